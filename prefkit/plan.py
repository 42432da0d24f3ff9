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

import numpy as np

from prefkit import engine, tables
from prefkit.checks import CHECKS, severities
from prefkit.conditions import check_condition
from prefkit.contamination import FILE as EVALUATION
from prefkit.contamination import evaluation_files, write_evaluation
from prefkit.errors import UserError
from prefkit.file_formats import Piece, other_files, readable_files
from prefkit.finish import matching
from prefkit.keys import find
from prefkit.near import THRESHOLD
from prefkit.publish import JOINED, group_numbers
from prefkit.readers import pieces
from prefkit.schema import SCHEMA_VERSION
from prefkit.shards import MANIFEST, Manifest, open_pairs, read_shard
from prefkit.sources import SOURCES, Slice, Source, get_source, source_options
from prefkit.split import DEFAULT_SPLITS, Anchors, parse_splits
from prefkit.tasks import Job
from prefkit.wording import counted

SLICE_BYTES = 8 << 20  # at least; also the size of a bucket
SHOWN = 3  # inputs that an advice names
WORK_FORMAT = 4  # of the files of a work folder: one of another format is not gone on from
TOOLS = ("prefkit", "html-to-markdown", "lxml", "py7zr", "pyarrow", "rensa")


@dataclass(frozen=True)
class Plan:
    """What will be converted, how, and by which tasks."""

    source: Source
    job: Job
    inputs: list[dict[str, Any]]
    config: dict[str, Any]
    splits: dict[str, float]
    workers: int
    against: dict[Path, str]
    anchors: Anchors | None
    warnings: list[str]
    stamps: dict[Path, tuple[int, int]]  # size and time of change of each input when its digest was taken

    @property
    def digest(self) -> str:
        """Names the work of this conversion: the same inputs and configuration go on where they were stopped."""
        pieces = [[s.name, s.start, s.stop, s.kind, s.subset] for s in self.job.slices]
        work = [WORK_FORMAT, self.job.buckets, pieces]
        known = json.dumps([self.config, self.inputs, work, tool_versions(), SCHEMA_VERSION], sort_keys=True)
        return hashlib.blake2b(known.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Settings:
    """What a user can choose about a conversion, apart from inputs, output and workers."""

    source: str | None = None
    splits: str | Mapping[str, float] = DEFAULT_SPLITS
    where: str | None = None
    seed: int = 0
    limit: int | None = None
    max_pairs: int | None = None
    options: Mapping[str, object] | None = None
    format: str = "arrow"
    checks: Mapping[str, str] | None = None
    near: float = THRESHOLD
    against: Sequence[Path | str] = ()
    splits_from: Path | str | None = None


def make_plan(
    inputs: Sequence[Path | str] | Path | str, folder: Path, given: Settings, workers: int | None = None
) -> Plan:
    """Everything that can be refused is refused here, before any work."""
    paths = _checked_paths(inputs)
    if given.format not in ("arrow", "parquet"):
        raise UserError(f"unknown format {given.format!r}", fix="arrow or parquet")
    if given.limit is not None and given.limit < 1:
        raise UserError(f"limit {given.limit} leaves nothing", fix="give at least 1")
    if given.max_pairs is not None and given.max_pairs < 1:
        raise UserError(f"max_pairs {given.max_pairs} leaves nothing", fix="give at least 1")
    if workers is not None and workers < 1:
        raise UserError(f"workers {workers} can do nothing", fix="give at least 1")
    if not 0 <= given.near <= 1:
        raise UserError(f"near {given.near} is no Jaccard index", fix="give 0 (off) to 1")
    shares, severity = parse_splits(given.splits), severities(given.checks)
    check_condition(given.where)
    if given.where is not None:
        matching(tables.no_candidates(), given.where)
    chosen = get_source(given.source) if given.source is not None else _guess(paths)
    parsed = source_options(chosen, given.options)
    total = sum(f.stat().st_size for f in {s.path for s in _slices(chosen, paths, parsed, sys.maxsize)})
    step = min(max(SLICE_BYTES, total // 2000), 64 << 20)  # so that a worker stays below half a GB
    slices = _slices(chosen, paths, parsed, step)
    buckets = max(1, -(-total // step))
    against = _named_apart(evaluation_files([Path(os.path.abspath(p)) for p in given.against]))
    job = Job(
        work=folder,
        source=chosen.name,
        options=parsed,
        slices=slices,
        buckets=buckets,
        seed=given.seed,
        where=given.where,
        limit=given.limit,
        max_pairs=given.max_pairs,
        checks=severity,
        near=given.near,
        against=bool(against),
    )
    config = {
        "source": chosen.name,
        "options": asdict(parsed),
        "splits": shares,
        "where": given.where,
        "seed": given.seed,
        "limit": given.limit,
        "max_pairs": given.max_pairs,
        "format": given.format,
        "checks": {n: s for n, s in severity.items() if s != CHECKS[n].severity},
        "near": given.near,
        "against": [{"name": name, "sha256": _sha256(p)} for p, name in against.items()],
        "splits_from": None,
    }
    anchors = None
    if given.splits_from is not None:
        anchors = read_anchors(Path(given.splits_from), list(shares))
        config["splits_from"] = Manifest.read(given.splits_from).digest
    workers = workers if workers is not None else engine.cores() if total > engine.SMALL_BYTES else 1
    stamps = {piece.path: _stamp(piece.path) for piece in slices}
    described = _describe_inputs(slices, workers)
    warnings = _not_read(chosen, paths) + (chosen.warnings(list(stamps), parsed) if chosen.warnings else [])
    return Plan(chosen, job, described, config, shares, workers, against, anchors, warnings, stamps)


def _checked_paths(inputs: Sequence[Path | str] | Path | str) -> list[Path]:
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    paths = [Path(os.path.abspath(p)) for p in given]  # "." has a name too; links keep theirs
    if not paths:
        raise UserError("no input", fix="name a dump, a file of pairs or a folder")
    for i, (path, shown) in enumerate(zip(paths, given, strict=True)):
        if not str(shown) or not path.exists():
            raise UserError("no such file or folder", str(shown) or "''", "check the path")
        if (path.parent / MANIFEST).is_file() and path.name in Manifest.read(path.parent).splits:
            raise UserError("this is a split of a data set already", shown, "give what that was made from")
        if any(path.samefile(other) for other in paths[:i]):
            raise UserError("the same input is given twice", shown, "give it once")
    return paths


def refuse_changed(plan: Plan) -> None:
    """After all was read: `UserError` for an input that is no longer what its digest was taken of."""
    for path, stamp in plan.stamps.items():
        if not path.exists() or _stamp(path) != stamp:
            raise UserError("this input was changed while it was read", path, "run the command again")


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def prepare(plan: Plan) -> None:
    """What tasks need beside their slices, in the work folder."""
    if plan.against and not (plan.job.work / EVALUATION).exists():
        write_evaluation(plan.job.work, list(plan.against))


def read_anchors(old: Path, names: list[str]) -> Anchors:
    """Where the groups and prompts of a data set lie; `UserError` where it has a split that is not among `names`."""
    manifest = Manifest.read(old)
    if JOINED not in manifest.files:
        raise UserError("an older version wrote this: which groups it joined is not known", old, "convert it again")
    if missing := [n for n in manifest.splits if n not in names and manifest.splits[n]["rows"]]:
        raise UserError(f"{old} has a split {missing[0]!r} that --splits does not name", old, "name the same splits")
    groups, prompts = [], []
    for name in manifest.splits:
        table = open_pairs(old, name)
        number = names.index(name) if name in names else 0
        groups.append((np.sort(group_numbers(table["group_id"].unique())), number))
        hashes = [tables.cell_hashes(cells) for cells in table["prompt"].chunks]  # one array holds 2 GB of text
        prompts.append((np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes])), number))
    known, split = _by_key(groups)
    joined = read_shard(old / JOINED)
    here, place = find(group_numbers(joined["group_id"]), known)
    more = group_numbers(joined["group_key"])[here]
    order = np.argsort(every := np.concatenate([known, more]), kind="stable")
    return Anchors(every[order], np.concatenate([split, split[place]])[order], *_by_key(prompts))


def _by_key(found: list[tuple[np.ndarray, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Keys with the number of the split each lies in, sorted by key."""
    keys = np.concatenate([k for k, _ in found])
    numbers = np.repeat(np.array([n for _, n in found], np.int32), [len(k) for k, _ in found])
    order = np.argsort(keys, kind="stable")
    return keys[order], numbers[order]


def _guess(paths: list[Path]) -> Source:
    fits = [s for s in map(get_source, _importable()) if s.recognises is not None and all(map(s.recognises, paths))]
    named = [s for s in fits if s.name != "pairs"] or fits  # any JSON may be pairs; a name that says more wins
    if len(named) != 1 and (paths[0] / MANIFEST).exists():
        fix = "give what it was made from; --source rejects reads what was refused there"
        raise UserError("this is a data set already", paths[0], fix)
    if paths[0].is_dir() and not any(paths[0].iterdir()):
        raise UserError("the folder is empty", paths[0], "give a folder with files, or a file")
    if len(named) != 1:
        raise UserError("cannot tell the source from the input", paths[0], _name_it(paths[0]))
    return named[0]


def _name_it(path: Path) -> str:
    """What to do where the source is not known: of a folder of dumps, each by itself."""
    known = [s.recognises for s in map(get_source, _importable()) if s.recognises is not None]
    inside = sorted(path.iterdir()) if path.is_dir() else []
    found = [p for p in inside if any(recognises(p) for recognises in known)]
    inputs = [min(os.path.relpath(p), str(p), key=len) for p in found]
    if inputs:
        return f"give what is in the folder: {' '.join(inputs[:SHOWN])}{' …' * (len(inputs) > SHOWN)}"
    return f"add --source: {', '.join(sorted(SOURCES))}"


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
        found = source.join.slices(path, options, step) if source.join else _files(source, path, options, step)
        if again := {s.path.resolve() for s in slices} & {s.path.resolve() for s in found}:
            raise UserError("the same file is in two inputs", min(again), "give it once")
        slices += found
    for piece in slices:
        if any("\ud800" <= c <= "\udfff" for c in str(piece.path)):  # bytes that are no UTF-8, as Python holds them
            raise UserError("the name of this file is not UTF-8", ascii(str(piece.path)), "rename it")
    names = _named_apart({s.path: s.name for s in slices})
    return [replace(s, name=names[s.path]) for s in slices]


def _files(source: Source, path: Path, options: Any, step: int) -> list[Slice]:
    if source.files is not None:
        files = source.files(path, options)
    else:
        files = readable_files(path) if path.is_dir() else [path]
    if not files:
        raise UserError("no file in the folder that the source can read", path, "name the files")
    slices = []
    for f in files:
        name = f"{path.name}/{f.relative_to(path).as_posix()}" if path.is_dir() else f.name
        parts = [Piece()] if source.records is not None else pieces(f, step)
        slices += [Slice(f, name, p.start, p.stop, p.kind) for p in parts]
    return slices


def _not_read(source: Source, paths: list[Path]) -> list[str]:
    """A warning for each folder of which files are left out because their names tell no format."""
    if source.join is not None or source.files is not None:
        return []
    found = {path: [p.relative_to(path).as_posix() for p in other_files(path)] for path in paths if path.is_dir()}
    return [
        f"not read, as the names tell no format: {counted(len(names), 'file')} of {path.name}, "
        f"{', '.join(names[:SHOWN])}{' …' * (len(names) > SHOWN)}"
        for path, names in found.items()
        if names
    ]


def _named_apart(names: dict[Path, str]) -> dict[Path, str]:
    """Files of one name get as much of their folders' names before it as tells them apart."""
    while len(set(names.values())) < len(names):
        uses = Counter(names.values())
        names = {p: _with_folder(p, n) if uses[n] > 1 else n for p, n in names.items()}
    return names


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
