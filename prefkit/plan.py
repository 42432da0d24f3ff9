"""Everything that can be refused is refused here: inputs, source, options, splits and --where, before any work."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prefkit import engine, tables
from prefkit.errors import UserError
from prefkit.finish import check_condition, filtered
from prefkit.readers import is_readable
from prefkit.schema import SCHEMA_VERSION
from prefkit.sources import SOURCES, Slice, Source, get_source, source_options
from prefkit.split import DEFAULT_SPLITS, parse_splits
from prefkit.tasks import Job

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
        pieces = [[s.name, s.start, s.stop, s.kind, s.subset] for s in self.job.slices]
        work = [self.job.buckets, pieces]
        known = json.dumps([self.config, self.inputs, work, tool_versions(), SCHEMA_VERSION], sort_keys=True)
        return hashlib.blake2b(known.encode(), digest_size=16).hexdigest()


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
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    paths = [Path(os.path.abspath(p)) for p in given]  # "." has a name too; links keep theirs
    if not paths:
        raise UserError("no input", fix="name a dump, a file of pairs or a folder")
    for i, (path, shown) in enumerate(zip(paths, given, strict=True)):
        if not path.exists():
            raise UserError("no such file or folder", shown, "check the path")
        if any(path.samefile(other) for other in paths[:i]):
            raise UserError("the same input is given twice", shown, "give it once")
    if format not in ("arrow", "parquet"):
        raise UserError(f"unknown format {format!r}", fix="arrow or parquet")
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit} leaves nothing", fix="give at least 1")
    if workers is not None and workers < 1:
        raise UserError(f"workers {workers} can do nothing", fix="give at least 1")
    shares = parse_splits(splits)
    check_condition(where)
    filtered(tables.CANDIDATES.empty_table(), where)
    chosen = get_source(source) if source is not None else _guess(paths)
    parsed = source_options(chosen, options)
    total = sum(f.stat().st_size for f in {s.path for s in _slices(chosen, paths, parsed, sys.maxsize)})
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
    """The slices of all inputs; a `UserError` where two inputs hold the same file."""
    slices: list[Slice] = []
    for path in paths:
        found = source.join.slices(path, options, step) if source.join else _files(source, path, options)
        if again := {s.path.resolve() for s in slices} & {s.path.resolve() for s in found}:
            raise UserError("the same file is in two inputs", min(again), "give it once")
        slices += found
    return _named_apart(slices)


def _files(source: Source, path: Path, options: Any) -> list[Slice]:
    if source.files is not None:
        files = source.files(path, options)
    else:
        files = sorted(p for p in path.rglob("*") if is_readable(p)) if path.is_dir() else [path]
    if not files:
        raise UserError("no file in the folder that the source can read", path, "name the files")
    return [Slice(f, f"{path.name}/{f.relative_to(path).as_posix()}" if path.is_dir() else f.name) for f in files]


def _named_apart(slices: list[Slice]) -> list[Slice]:
    """Files of one name get as much of their folders' names before it as tells them apart."""
    names = {s.path: s.name for s in slices}
    while len(set(names.values())) < len(names):
        uses = Counter(names.values())
        names = {p: _with_folder(p, n) if uses[n] > 1 else n for p, n in names.items()}
    return [replace(s, name=names[s.path]) for s in slices]


def _with_folder(path: Path, name: str) -> str:
    parts = (path.parent.resolve() / path.name).parts[1:]
    return "/".join(parts[-(name.count("/") + 2) :])


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


def tool_versions() -> dict[str, str]:
    """Versions of what decides about bytes."""

    def known(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "unknown"

    return {name: known(name) for name in TOOLS}
