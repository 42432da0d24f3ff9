"""The folder of a run: held by one process, and whether it is new, goes on, is finished or is of another run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from prefkit.errors import UserError
from prefkit.files import made
from prefkit.locks import only_holder
from train.config import Run
from train.models.locate import CHECKPOINT, RUN_FILE, SUMMARY, run_config
from train.terminal import is_main, say
from train.trainer_keys import coerce_trainer

METRICS = "metrics.jsonl"
LOCK = ".run.lock"
FEW = 5  # changed settings that are named
# Trainer writes the state last; a kill in between leaves a folder that must not be resumed from.
STATE, TORCH_FILES = "trainer_state.json", ("optimizer.pt", "scheduler.pt")


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Hold the run folder, or a `UserError`: it is taken, or another process trains into it.

    Of several processes the first one holds it. A folder that was not there and stays empty is removed again.
    """
    refuse_taken(out)  # before anything is put into a folder that is somebody else's
    if not is_main():
        yield
        return
    busy = UserError("another run is writing there", out, "wait for it, or choose another --out")
    with made(out), only_holder(out / LOCK, busy):
        try:
            yield
        finally:
            (out / LOCK).unlink(missing_ok=True)


def refuse_taken(out: Path) -> None:
    """UserError unless the run folder is new, empty, or of a run that can go on."""
    if out.exists() and not out.is_dir():
        raise UserError("the output is a file", out, "choose another --out")
    if out.exists() and any(p.name != LOCK for p in out.iterdir()) and not (out / RUN_FILE).is_file():
        raise UserError("the output folder is not empty and holds no run", out, "choose another --out")
    if (out / SUMMARY).is_file():
        raise UserError("this run is finished", out, "choose another --out, or remove it")


def settings(run: Run) -> dict[str, Any]:
    """The sections as run.yaml holds them: lists as lists, numbers as numbers."""
    return json.loads(json.dumps(asdict(run) | {"trainer": coerce_trainer(run.trainer)}))


def open_folder(run: Run, digests: dict[str, str], out: Path) -> str | None:
    """The checkpoint to resume from, or None for a fresh folder; UserError when the folder holds another run."""
    recorded = run_config(out)
    if recorded is None:
        return None
    now = settings(run)
    then = {section: recorded.get(section) for section in now}
    changed = [f"{key} was {old}, is {new}" for key, old, new in differences(then, now)]
    changed += [f"{k} has changed" for k, v in digests.items() if recorded.get("digests", {}).get(k) != v]
    found = [p for p in out.iterdir() if CHECKPOINT.fullmatch(p.name)]
    if changed and not found and not (out / METRICS).exists():  # it ended before its first step
        return None
    if changed:
        what = f"the folder holds another run: {', '.join(changed[:FEW])}{' …' * (len(changed) > FEW)}"
        raise UserError(what, out, "choose another --out, or remove it")
    latest = sorted(found, key=lambda p: -int(p.name.rpartition("-")[2]))
    for folder in latest:
        if is_whole(folder):
            return str(folder)
        say(f"note: {folder} is not whole: it is not resumed from")
    return None


def differences(then: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The keys (`dpo.beta`) whose values differ between two settings, with both; one that is missing is null."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in {**then, **now}:
            yield from differences(then.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif then != now:
        yield name, json.dumps(then, ensure_ascii=False), json.dumps(now, ensure_ascii=False)


def is_whole(folder: Path) -> bool:
    """Whether all that a run goes on from is there, to the last byte: a kill or a full disk may have cut a file."""
    weights = list(folder.glob("*.safetensors"))
    try:
        json.loads((folder / STATE).read_text("utf-8"))
        for file in weights:
            with safe_open(file, "pt"):  # its header says how long the file is
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    return bool(weights) and all(is_zipfile(folder / name) for name in TORCH_FILES)
