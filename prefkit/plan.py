"""Everything that can be refused is refused here: inputs, source, options, splits and --where, before any work."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
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
from prefkit.finish import matching
from prefkit.inputs import (
    checked_paths,
    describe_inputs,
    guess_source,
    named_apart,
    not_read,
    sha256,
    slices_of,
    stamp_of,
)
from prefkit.keys import find
from prefkit.near import THRESHOLD
from prefkit.publish import JOINED, group_numbers
from prefkit.remote import local_copies
from prefkit.schema import SCHEMA_VERSION
from prefkit.shards import Manifest, open_pairs, read_shard
from prefkit.sources import Source, get_source, source_options
from prefkit.split import DEFAULT_SPLITS, Anchors, parse_splits
from prefkit.tasks import Job

SLICE_BYTES = 8 << 20  # at least; also the size of a bucket
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
    paths = checked_paths(inputs)
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
    chosen = get_source(given.source) if given.source is not None else guess_source(paths)
    parsed = source_options(chosen, given.options)
    total = sum(f.stat().st_size for f in {s.path for s in slices_of(chosen, paths, parsed, sys.maxsize)})
    step = min(max(SLICE_BYTES, total // 2000), 64 << 20)  # so that a worker stays below half a GB
    slices = slices_of(chosen, paths, parsed, step)
    buckets = max(1, -(-total // step))
    against = named_apart(evaluation_files([Path(os.path.abspath(p)) for p in local_copies(given.against)]))
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
        "against": [{"name": name, "sha256": sha256(p)} for p, name in against.items()],
        "splits_from": None,
    }
    anchors = None
    if given.splits_from is not None:
        (older,) = map(Path, local_copies(given.splits_from))
        anchors = read_anchors(older, list(shares))
        config["splits_from"] = Manifest.read(older).digest
    workers = workers if workers is not None else engine.cores() if total > engine.SMALL_BYTES else 1
    stamps = {piece.path: stamp_of(piece.path) for piece in slices}
    described = describe_inputs(slices, workers)
    warnings = not_read(chosen, paths) + (chosen.warnings(list(stamps), parsed) if chosen.warnings else [])
    return Plan(chosen, job, described, config, shares, workers, against, anchors, warnings, stamps)


def refuse_changed(plan: Plan) -> None:
    """After all was read: `UserError` for an input that is no longer what its digest was taken of."""
    for path, stamp in plan.stamps.items():
        if not path.exists() or stamp_of(path) != stamp:
            raise UserError("this input was changed while it was read", path, "run the command again")


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


def tool_versions() -> dict[str, str]:
    """Versions of what decides about bytes."""

    def known(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "unknown"

    return {name: known(name) for name in TOOLS}
