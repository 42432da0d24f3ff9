"""The folder that a conversion writes into: new or its own, one writer at a time, and a log that is not published."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from prefkit.engine import WorkerLost
from prefkit.errors import UserError
from prefkit.files import NO_ROOM, made, write_text
from prefkit.locks import only_holder
from prefkit.plan import Plan
from prefkit.shards import MANIFEST, WORK, Manifest

LOG = "_run.log"  # also the lock of its folder
NOTE = "conversion"  # in a work folder: which conversion it is of


def discard(out: Path) -> None:
    """Remove a data set and nothing else that may lie in its folder."""
    for name in [*Manifest.read(out).files, MANIFEST, LOG]:
        (out / name).unlink(missing_ok=True)
    for folder in (*sorted((p for p in out.rglob("*") if p.is_dir()), reverse=True), out):
        with suppress(OSError):  # something else is in it
            folder.rmdir()


def refuse_finished(out: Path) -> None:
    """A `UserError` unless the folder is new, empty or holds an unfinished conversion."""
    if (out / MANIFEST).exists():
        shutil.rmtree(out / WORK, ignore_errors=True)  # of a conversion that was killed after its last write
        raise UserError("the output folder already holds a data set", out, "choose another --out or delete it")
    if out.exists() and not out.is_dir():
        raise UserError("the output is a file", out, "choose another --out")
    nearest = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise UserError(f"cannot make the output folder in {nearest}", out, "choose another --out")
    if out.is_dir() and not (out / WORK).exists() and any(p.name != LOG for p in out.iterdir()):
        raise UserError("the output folder is not empty", out, "choose another --out or empty it")


@contextmanager
def full_disk(out: Path) -> Iterator[None]:
    """A full disk and its like as one line; what is done stays, and the same command goes on."""
    try:
        yield
    except OSError as e:
        if e.errno not in NO_ROOM:
            raise
        fix = "make room and run the same command again"
        raise UserError(f"cannot write: {os.strerror(e.errno)}", out, fix) from e


@contextmanager
def claimed(out: Path, plan: Plan) -> Iterator[None]:
    """The work folder, gone on with if it is of this very conversion, else a `UserError`.

    An error that the same command would meet again leaves nothing to go on from.
    """
    refuse_finished(out)  # another convert may have finished since
    work, note = plan.job.work, plan.job.work / NOTE
    if note.exists() and note.read_text() != plan.digest:
        fix = f"run that command again to finish it, or delete {work}"
        raise UserError("an unfinished conversion of other inputs or settings is there", work, fix)
    if work.exists() and not note.exists():  # it was being discarded
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_text(note, plan.digest)
    try:
        yield
    except WorkerLost:
        raise
    except UserError:
        discard_work(work)
        (out / LOG).unlink(missing_ok=True)
        raise


def discard_work(work: Path) -> None:
    """Remove a work folder, the note first: without it nothing of what may be left is ever taken up."""
    (work / NOTE).unlink(missing_ok=True)
    shutil.rmtree(work)


@contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """Make the folder and hold it by its log, or a `UserError`: it cannot be made, or another process writes there."""
    busy = UserError("another convert is writing there", out, "wait for it, or choose another --out")
    with ExitStack() as stack:
        try:
            stack.enter_context(made(out))
            stack.enter_context(only_holder(out / LOG, busy))
        except OSError as e:
            raise UserError(f"cannot make the output folder: {e.strerror}", out, "choose another --out") from None
        yield


@contextmanager
def log_of(out: Path, plan: Plan) -> Iterator[Any]:
    """`_run.log`: what is not part of the data set, such as times, workers and where the inputs lay."""
    started = last = time.perf_counter()
    with (out / LOG).open("a") as log:
        for path in dict.fromkeys(s.path for s in plan.job.slices):
            print(json.dumps({"input": str(path.resolve())}, ensure_ascii=False), file=log)

        def lap(phase: str, **more: object) -> None:
            nonlocal last
            now = time.perf_counter()
            print(json.dumps({"phase": phase, "wall_seconds": round(now - last, 3), **more}), file=log, flush=True)
            last = now

        yield lap
        megabytes = sum(i["bytes"] for i in plan.inputs) / 1e6
        wall = time.perf_counter() - started
        rate = {"wall_seconds": round(wall, 3), "mb_per_second": round(megabytes / wall, 1), "workers": plan.workers}
        print(json.dumps({"phase": "all", **rate, "cores": os.cpu_count()}), file=log)
