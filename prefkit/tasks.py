"""What one worker does in each phase of a conversion: a slice, a bucket, a file, a shard.

Each task writes its results under the work folder and a marker last; a marked task is not run again. Nothing here
depends on the number of workers or on the order in which tasks finish.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit import lookups, records
from prefkit.contamination import Evaluation
from prefkit.finish import Rules, finish, prompt_signatures, row_keys
from prefkit.readers import Piece, count_lines
from prefkit.schema import Reject
from prefkit.sources import PairInput, Slice, get_source
from prefkit.tables import Candidates


@dataclass(frozen=True)
class Job:
    """What every task of a conversion knows."""

    work: Path
    source: str
    options: Any
    slices: list[Slice]
    buckets: int
    seed: int
    where: str | None
    limit: int | None
    checks: dict[str, str] = field(default_factory=dict)
    near: float = 0.0
    against: bool = False

    def noted(self) -> list[str]:
        """Kinds of notes that the slices made: after map."""
        return sorted({p.name.split(".")[1] for p in self.work.glob("map-*.*.000000.arrow")})


@dataclass(frozen=True)
class Task:
    """One task of a phase; `base` holds what earlier phases found: first lines of slices, the largest key kept."""

    job: Job
    phase: str
    number: int
    base: tuple[int, ...] = ()

    @property
    def stem(self) -> Path:
        return self.job.work / f"{self.phase}-{self.number:06d}"

    def done(self) -> bool:
        return self.stem.with_suffix(".json").exists()

    def read_marker(self) -> dict:
        return json.loads(self.stem.with_suffix(".json").read_text())


def run(task: Task) -> int:
    """Run a task of any phase unless its marker stands; returns how many rows it was."""
    if not task.done():
        {"map": map_slice, "look": merge_notes, "pair": pair_bucket, "read": read_slice}[task.phase](task)
    marker = task.read_marker()
    return marker.get("rows") or marker.get("tally", {}).get("records.read", 0)


def _mark(task: Task, **marker: object) -> None:
    path = task.stem.with_suffix(".json")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(marker))
    os.replace(temporary, path)


# --- map: a slice of the input into one file of `buckets` batches a part -------------------------------------------


@dataclass
class _Sorted:
    """`MapOutput` that writes each part as an Arrow file whose batch b holds bucket b: one open file, random access."""

    task: Task
    tally: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    parts: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    links: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    rejects: list[tuple[str, int, str]] = field(default_factory=list)

    def rows(self, table: pa.Table) -> None:
        buckets = self.task.job.buckets
        bucket = (table["key"].to_numpy() % np.uint64(buckets)).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        cuts = np.searchsorted(bucket[order], np.arange(buckets + 1))
        table = table.take(pa.array(order)).combine_chunks()
        with pa.ipc.new_file(_part(self.task.stem, self.parts), table.schema) as out:
            for a, b in pairwise(cuts):
                rows = table.slice(a, b - a).to_batches() or [pa.RecordBatch.from_pylist([], schema=table.schema)]
                out.write_batch(rows[0])
        self.parts += 1

    def note(self, kind: str, table: pa.Table) -> None:
        if table.num_rows:
            lookups.write_notes(self.task.stem, kind, self.notes[kind], table, self.task.job.buckets)
            self.notes[kind] += 1

    def link(self, one: str, other: str) -> None:
        self.links.append((one, other))

    def reject(self, reason: str, line: int, raw: str) -> None:
        self.tally[f"records.rejected.{reason}"] += 1
        self.rejects.append((reason, line, raw))

    def warn(self, what: str, name: str) -> None:
        self.warnings.append((what, name))


def _part(stem: Path, part: int) -> str:
    return f"{stem}-{part:04d}.arrow"


def map_slice(task: Task) -> None:
    """Parse and repair a slice and sort its records into buckets."""
    join = get_source(task.job.source).join
    assert join is not None
    out = _Sorted(task)
    join.map(task.job.slices[task.number], task.job.options, out)
    _mark(
        task,
        lines=out.lines,
        parts=out.parts,
        notes=out.notes,
        tally=out.tally,
        links=out.links,
        warnings=out.warnings,
        rejects=out.rejects,
    )


# --- look: what was noted of a bucket's keys, sorted -------------------------------------------------------------


def merge_notes(task: Task) -> None:
    """What all slices noted of the keys of a bucket, as one sorted table a kind."""
    join = get_source(task.job.source).join
    assert join is not None
    stems = [Task(task.job, "map", n).stem for n in range(len(task.job.slices))]
    paths = [s.path for s in task.job.slices]
    numbers = {path: n for n, path in enumerate(dict.fromkeys(paths))}
    for kind in task.job.noted():
        lookups.merge(task.job.work, stems, [numbers[p] for p in paths], kind, task.number, join.lookups[kind])
    _mark(task)


# --- pair: a bucket into candidates ------------------------------------------------------------------------------


def pair_bucket(task: Task) -> None:
    """Pair the groups of a bucket, then check and filter."""
    join = get_source(task.job.source).join
    assert join is not None
    tally: Counter[str] = Counter()
    table = _bucket(task, tally)
    if table is None:
        return _mark(task, tally={}, rows=0)
    known = {kind: lookups.Lookup(task.job.work, kind, task.job.buckets) for kind in task.job.noted()}
    made = join.pair(PairInput(table, task.job.options, task.job.seed, tally, known))
    return _finish(task, made.candidates, made.fates, made.rejects, tally)


def bucket_keys(job: Job, parts: list[int]) -> np.ndarray:
    """The keys of all groups: uint64[n], sorted."""
    found = [np.zeros(0, np.uint64)]
    for number, count in enumerate(parts):
        for part in range(count):
            with pa.memory_map(_part(Task(job, "map", number).stem, part)) as source:
                found.append(np.unique(pa.ipc.open_file(source).read_all()["key"].to_numpy()))
    return np.unique(np.concatenate(found))


def _bucket(task: Task, tally: Counter[str]) -> pa.Table | None:
    """The records of a bucket in input order, with their positions; those over the limit are counted and left out."""
    job, (largest, *first_lines) = task.job, task.base
    batches = []
    for number, piece in enumerate(job.slices):
        part = 0
        while os.path.exists(path := _part(Task(job, "map", number).stem, part)):
            with pa.OSFile(path) as source:
                rows = pa.Table.from_batches([pa.ipc.open_file(source).get_batch(task.number)])
            lines = pa.array(rows["line"].to_numpy() + (first_lines[number] + 1)).cast(pa.string())
            position = pc.binary_join_element_wise(piece.name, lines, ":")
            batches.append(rows.drop_columns("line").append_column("position", position))
            part += 1
    if not batches:
        return None
    table = pa.concat_tables(batches)
    table = table.append_column("order", pa.array(np.arange(table.num_rows)))
    keep = table["key"].to_numpy() <= np.uint64(largest)
    tally["records.unused.over_limit"] += int((~keep).sum())
    return table.filter(pa.array(keep)) if not keep.all() else table


# --- read: records that are pairs by themselves -------------------------------------------------------------------


def reads_together(job: Job) -> bool:
    """Whether one task reads all files: under a limit, or where records of one thing lie in several files."""
    return job.limit is not None or get_source(job.source).records is not None


def read_slice(task: Task) -> None:
    """Convert the records of a slice (of all, where they are taken together), then check and filter."""
    job, tally = task.job, Counter[str]()
    numbers = range(len(job.slices)) if reads_together(job) else [task.number]
    slices = [(job.slices[n], task.base[n]) for n in numbers]
    made = records.read(get_source(job.source), job.options, slices, job.limit, tally)
    _finish(task, made.candidates, made.fates, made.rejects, tally)


def count_slice(piece: Slice) -> int:
    """How many lines a slice of a file of records has, if lines of a later slice depend on it."""
    return count_lines(piece.path, Piece(piece.kind, piece.start, piece.stop)) if piece.kind == "bytes" else 0


# --- what both end with -------------------------------------------------------------------------------------------


def _finish(task: Task, made: Candidates, fates: list[str], rejects: list[Reject], tally: Counter[str]) -> None:
    """Rows, cells, keys, signatures and rejects of a task as files, then its marker."""
    job, seconds = task.job, defaultdict[str, float](float)
    rules = Rules(job.checks, job.where, Evaluation.load(job.work) if job.against else None)
    done = finish(job.source, rules, made, fates, rejects, tally, seconds)
    write_table(task.stem.with_suffix(".rejects.arrow"), done.rejects)
    np.save(task.stem.with_suffix(".keys.npy"), row_keys(done.kept))
    if job.near:
        started = time.perf_counter()
        np.save(task.stem.with_suffix(".near.npy"), prompt_signatures(done.kept))
        seconds["near duplicates"] += time.perf_counter() - started
    write_table(task.stem.with_suffix(".cells.arrow"), pa.table({"cell": done.kept.cells}))
    write_table(
        task.stem.with_suffix(".arrow"),
        done.kept.table.drop_columns(["group_key", *(c for c in made.table.column_names if c.startswith("_"))]),
    )
    _mark(task, tally=tally, rows=done.kept.rows, seconds=seconds)


def write_table(path: Path, table: pa.Table) -> None:
    """An Arrow stream."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)


def read_cells(path: Path) -> pa.ListArray:
    """The cells beside a file of candidates, memory-mapped."""
    column = read_table(path.with_suffix(".cells.arrow"))["cell"]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def read_table(path: Path) -> pa.Table:
    """A file that `write_table` wrote, memory-mapped."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
