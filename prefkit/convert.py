"""From preference sources to a data set, top to bottom: plan → map → pair → resolve → publish.

Exact prompts and pair ids exist only once markup is converted, so duplicates and groups are resolved after pairing. What is
published depends on the inputs, the configuration and the tool versions alone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from prefkit import engine, tables
from prefkit.errors import UserError
from prefkit.publish import Publication, publish
from prefkit.readers import is_readable
from prefkit.schema import SCHEMA_VERSION, Reject
from prefkit.shards import MANIFEST, Manifest, ledgers_out_of_balance
from prefkit.sources import SOURCES, Slice, Source, get_source, source_options
from prefkit.split import DEFAULT_SPLITS, KEYS, parse_splits, resolve
from prefkit.tasks import Job, Task, bucket_keys, filtered, rejects_table, run, write_table

SLICE_BYTES = 8 << 20  # at least; also the size of a bucket
SMALL_BYTES = 16 << 20  # below it, starting processes costs more than they save
TOOLS = ("prefkit", "html-to-markdown", "lxml", "py7zr", "pyarrow")


@dataclass(frozen=True)
class Plan:
    """What will be converted, how, and by which tasks."""

    source: Source
    job: Job
    inputs: list[dict[str, Any]]
    config: dict[str, Any]
    splits: dict[str, float]
    workers: int

    @property
    def digest(self) -> str:
        """Names the work of this conversion: the same inputs and configuration go on where they were stopped."""
        known = json.dumps([self.config, self.inputs, tool_versions(), SCHEMA_VERSION], sort_keys=True)
        return hashlib.blake2b(known.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Outcome:
    """What a conversion found, before anything is published."""

    tally: Counter[str]
    warnings: list[str]
    publication: Publication


def convert_dataset(
    inputs: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    source: str | None = None,
    splits: str | Mapping[str, float] = DEFAULT_SPLITS,
    where: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    limit: int | None = None,
    options: Mapping[str, object] | None = None,
    format: Literal["arrow", "parquet"] = "arrow",
) -> Manifest:
    """Convert inputs into a data set at `out` and return its manifest.

    `where` is an SQL condition over the columns of `schema.PAIRS` but group_id; `limit` takes at most so many questions
    (records, for sources of lines). A conversion that was stopped goes on when called again with the same arguments.
    Errors: `UserError` for what the caller can mend; then no manifest is written.
    """
    out = Path(out)
    _refuse_finished(out)
    plan = make_plan(inputs, out / ".work", source, splits, where, seed, workers, limit, options, format)
    out.mkdir(parents=True, exist_ok=True)
    with _only_writer(out), _log(out, plan) as lap:
        _claim_work(plan)
        outcome = work(plan, lap)
        files = publish(out, outcome.publication, plan.job, plan.workers, format)
        lap("publish")
        manifest = describe(plan, outcome, files)
        manifest.write(out)
        shutil.rmtree(plan.job.work)
    return manifest


def preview_dataset(inputs: Sequence[Path | str], **arguments: Any) -> tuple[Manifest, pa.Table]:
    """The manifest that `convert_dataset` would write, without files, and the first pairs; leaves nothing on disk."""
    with tempfile.TemporaryDirectory(prefix="prefkit-") as folder:
        plan = make_plan(inputs, Path(folder), **arguments)
        outcome = work(plan, lambda phase: None)
        return describe(plan, outcome, {}), outcome.publication.head(plan.job, 3)


def work(plan: Plan, lap: Any) -> Outcome:
    """map → pair → resolve: from inputs to rows that know their split, group and shard."""
    job, tally, warnings = plan.job, Counter[str](), list[str]()
    if plan.source.join is None:
        tasks = [Task(job, "read", n) for n in range(len(job.slices) if job.limit is None else 1)]
        links = np.zeros((0, 2), np.uint64)
    else:
        maps = [Task(job, "map", n) for n in range(len(job.slices))]
        engine.run_tasks(run, maps, plan.workers, "map")
        markers = [t.read_marker() for t in maps]
        for marker in markers:
            tally.update(marker["tally"])
            warnings += marker["warnings"]
        links = _links(markers)
        base = (_largest_key(job, markers), *_first_lines(job.slices, markers))
        _write_map_rejects(job, markers, base[1:])
        tasks = [Task(job, "pair", n, base) for n in range(job.buckets)]
        lap("map")
    engine.run_tasks(run, tasks, plan.workers, "pair")
    lap("pair")
    for task in tasks:
        tally.update(task.read_marker()["tally"])
    keys = [np.load(p) if (p := t.stem.with_suffix(".keys.npy")).exists() else np.zeros(0, KEYS) for t in tasks]
    rows = np.concatenate(keys)
    resolved = resolve(rows, links, job.seed, plan.splits)
    tally["candidates.duplicate"] += int((resolved.split < 0).sum())
    tally["candidates.pairs"] += int((resolved.split >= 0).sum())
    lap("resolve")
    publication = Publication.of(
        [t.stem for t in tasks], [len(k) for k in keys], rows["bytes"], resolved, list(plan.splits)
    )
    return Outcome(tally, warnings + publication.warnings(), publication)


# --- plan ---------------------------------------------------------------------------------------------------------


def make_plan(
    inputs: Sequence[Path | str] | Path | str,
    folder: Path,
    source: str | None = None,
    splits: str | Mapping[str, float] = DEFAULT_SPLITS,
    where: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    limit: int | None = None,
    options: Mapping[str, object] | None = None,
    format: str = "arrow",
) -> Plan:
    """Everything that can be refused is refused here, before any work."""
    paths = [Path(p) for p in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    if not paths:
        raise UserError("no input", fix="name a dump, a file of pairs or a folder")
    for path in paths:
        if not path.exists():
            raise UserError("no such file or folder", path, "check the path")
    if format not in ("arrow", "parquet"):
        raise UserError(f"unknown format {format!r}", fix="arrow or parquet")
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit} leaves nothing", fix="give at least 1")
    shares = parse_splits(splits)
    filtered(tables.CANDIDATES.empty_table(), where)
    chosen = get_source(source) if source is not None else _guess(paths)
    parsed = source_options(chosen, options)
    total = sum(f.stat().st_size for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file())
    step = min(max(SLICE_BYTES, total // 1000), 128 << 20)
    slices = _slices(chosen, paths, parsed, step)
    job = Job(folder, chosen.name, parsed, slices, max(1, -(-total // step)), seed, where, limit)
    config = {
        "source": chosen.name,
        "options": asdict(parsed),
        "splits": shares,
        "where": where,
        "seed": seed,
        "limit": limit,
        "format": format,
    }
    workers = workers if workers is not None else engine.cores() if total > SMALL_BYTES else 1
    return Plan(chosen, job, _describe_inputs(slices, workers), config, shares, workers)


def _guess(paths: list[Path]) -> Source:
    fits = [s for s in map(get_source, _importable()) if s.recognises is not None and all(map(s.recognises, paths))]
    named = [s for s in fits if s.name != "pairs"] or fits  # any JSON may be pairs; a name that says more wins
    if len(named) != 1:
        raise UserError(
            "cannot tell the source from the input", paths[0], f"add --source: {', '.join(sorted(SOURCES))}"
        )
    return named[0]


def _importable() -> Iterator[str]:
    for name in SOURCES:
        try:
            get_source(name)
        except ModuleNotFoundError:
            continue
        yield name


def _slices(source: Source, paths: list[Path], options: Any, step: int) -> list[Slice]:
    if source.join is not None:
        return [s for p in paths for s in source.join.slices(p, options, step)]
    slices = []
    for path in paths:
        if source.files is not None:
            files = source.files(path, options)
        else:
            files = sorted(p for p in path.rglob("*") if is_readable(p)) if path.is_dir() else [path]
        if not files:
            raise UserError("no file in the folder that the source can read", path, "name the files")
        slices += [
            Slice(f, f"{path.name}/{f.relative_to(path).as_posix()}" if path.is_dir() else f.name) for f in files
        ]
    return slices


def _describe_inputs(slices: list[Slice], workers: int) -> list[dict[str, Any]]:
    """Name, size and sha256 of every file that will be read, in order."""
    files = list({s.path: s.name for s in slices}.items())
    digests = engine.run_tasks(_sha256, [p for p, _ in files], workers, "read")
    return [{"name": n, "bytes": p.stat().st_size, "sha256": d} for (p, n), d in zip(files, digests, strict=True)]


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise UserError(f"cannot read the input: {e.strerror}", path, "check its permissions") from None


# --- between the phases -------------------------------------------------------------------------------------------


def _first_lines(slices: list[Slice], markers: list[dict]) -> list[int]:
    """How many line ends of its file lie before each slice."""
    seen: Counter[Path] = Counter()
    first = []
    for piece, marker in zip(slices, markers, strict=True):
        first.append(seen[piece.path])
        seen[piece.path] += marker["lines"]
    return first


def _largest_key(job: Job, markers: list[dict]) -> int:
    """Groups with keys up to this one are kept: all of them, or the `limit` smallest."""
    if job.limit is None:
        return 2**64 - 1
    keys = bucket_keys(job, [m["parts"] for m in markers])
    return int(keys[min(job.limit, len(keys)) - 1]) if len(keys) else 0


def _links(markers: list[dict]) -> np.ndarray:
    """Duplicate links as pairs of group keys: uint64[m, 2]."""
    return tables.hash64(k for m in markers for link in m["links"] for k in link).reshape(-1, 2)


def _write_map_rejects(job: Job, markers: list[dict], first_lines: Sequence[int]) -> None:
    rejects = [
        Reject(reason, f"{piece.name}:{first + line + 1}", raw)
        for piece, marker, first in zip(job.slices, markers, first_lines, strict=True)
        for reason, line, raw in marker["rejects"]
    ]
    write_table(job.work / "map.rejects.arrow", rejects_table(job.source, ["record"] * len(rejects), rejects))


# --- the folder ---------------------------------------------------------------------------------------------------


def _refuse_finished(out: Path) -> None:
    if (out / MANIFEST).exists():
        raise UserError("the output folder already holds a data set", out, "choose another --out or delete it")
    if out.exists() and not out.is_dir():
        raise UserError("the output is a file", out, "choose another --out")
    if out.is_dir() and not (out / ".work").exists() and any(out.iterdir()):
        raise UserError("the output folder is not empty", out, "choose another --out or empty it")


def _claim_work(plan: Plan) -> None:
    """Take up the work folder if it is of this very conversion."""
    note = plan.job.work / "conversion"
    if note.exists() and note.read_text() != plan.digest:
        fix = f"run that command again to finish it, or delete {plan.job.work}"
        raise UserError("an unfinished conversion of other inputs or settings is there", plan.job.work, fix)
    plan.job.work.mkdir(parents=True, exist_ok=True)
    note.write_text(plan.digest)


@contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    with (out / "_run.log").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError("another convert is writing there", out, "wait for it, or choose another --out") from None
        yield


@contextmanager
def _log(out: Path, plan: Plan) -> Iterator[Any]:
    """`_run.log`: what is not part of the data set, such as times, workers and where the inputs lay."""
    started = last = time.perf_counter()
    with (out / "_run.log").open("a") as log:
        for path in dict.fromkeys(s.path for s in plan.job.slices):
            print(json.dumps({"input": str(path.resolve())}, ensure_ascii=False), file=log)

        def lap(phase: str) -> None:
            nonlocal last
            now = time.perf_counter()
            print(json.dumps({"phase": phase, "wall_seconds": round(now - last, 3)}), file=log, flush=True)
            last = now

        yield lap
        megabytes = sum(i["bytes"] for i in plan.inputs) / 1e6
        wall = time.perf_counter() - started
        rate = {"wall_seconds": round(wall, 3), "mb_per_second": round(megabytes / wall, 1), "workers": plan.workers}
        print(json.dumps({"phase": "all", **rate, "cores": os.cpu_count()}), file=log)


# --- manifest -----------------------------------------------------------------------------------------------------


def describe(plan: Plan, outcome: Outcome, files: dict[str, dict[str, Any]]) -> Manifest:
    """The manifest of what was found; both ledgers of the source balance or it is our bug."""
    nested = _nested(outcome.tally)
    ledgers = {
        "records": {"read": 0, "used": 0, "unused": {}, "rejected": {}} | nested.get("records", {}),
        "candidates": dict.fromkeys(("made", "pairs", "ties", "capped", "filtered", "duplicate"), 0)
        | {"rejected": {}}
        | nested.get("candidates", {}),
    }
    manifest = Manifest(
        config=plan.config,
        inputs=plan.inputs,
        splits=outcome.publication.split_counts(),
        sources={plan.source.name: ledgers},
        files=files,
        repairs=nested.get("repairs", {}),
        flags=nested.get("flags", {}),
        warnings=outcome.warnings,
        tools=tool_versions(),
    )
    assert not (wrong := ledgers_out_of_balance(ledgers)), (wrong, ledgers)
    return manifest


def _nested(tally: Counter[str]) -> dict[str, Any]:
    """`records.unused.only_ties: 3` as nested dicts, without zeros."""
    nested: dict[str, Any] = {}
    for name, count in sorted(tally.items()):
        *parents, leaf = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        if count:
            place[leaf] = count
    return nested


def tool_versions() -> dict[str, str]:
    """Versions of what decides about bytes."""

    def known(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "unknown"

    return {name: known(name) for name in TOOLS}
