"""What one worker does in each phase of a conversion: a slice, a bucket, a file, a shard.

Each task writes its results under the work folder and a marker last; a marked task is not run again. Nothing here
depends on the number of workers or on the order in which tasks finish.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit import lookups, records
from prefkit.bucketed import read_bucket, write_buckets
from prefkit.contamination import Evaluation
from prefkit.file_formats import Piece
from prefkit.files import renamed
from prefkit.finish import Rules, finish, prompt_signatures, row_keys
from prefkit.keys import write_columns
from prefkit.readers import count_lines
from prefkit.schema import Reject
from prefkit.sources import PairInput, Slice, get_source
from prefkit.tables import Candidates

NOTE_BUCKETS = 64  # at most, of the tables that are looked up in: a pair task may open every one of them


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
    max_pairs: int | None = None
    checks: dict[str, str] = field(default_factory=dict)
    near: float = 0.0
    against: bool = False

    @property
    def note_buckets(self) -> int:
        """How many buckets notes are sorted into."""
        return min(self.buckets, NOTE_BUCKETS)


@dataclass(frozen=True)
class Mapped:
    """What earlier phases found of the slices, one number each, and later tasks must know."""

    lines: tuple[int, ...] = ()  # line ends of its file before a slice
    parts: tuple[int, ...] = ()  # files of rows that it was sorted into
    notes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # files of notes, by kind
    largest: int = 2**64 - 1  # the largest group key that `limit` keeps


@dataclass(frozen=True)
class Task:
    """One task of a phase."""

    job: Job
    phase: str
    number: int
    base: Mapped = Mapped()

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
    with renamed(task.stem.with_suffix(".json"), shared=True) as new:
        new.write_text(json.dumps(marker))


# --- map: a slice of the input, sorted into buckets, in one file a part -------------------------------------------


@dataclass
class _Sorted:
    """`MapOutput` that writes each part sorted into buckets."""

    task: Task
    tally: Counter[str] = field(default_factory=Counter)
    lines: int = 0
    parts: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    links: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)
    rejects: list[tuple[str, int, str]] = field(default_factory=list)

    def rows(self, table: pa.Table) -> None:
        write_buckets(_part(self.task.stem, self.parts), table, self.task.job.buckets)
        self.parts += 1

    def note(self, kind: str, table: pa.Table) -> None:
        if table.num_rows:
            write_buckets(_notes(kind, self.task.stem, self.notes[kind]), table, self.task.job.note_buckets)
            self.notes[kind] += 1

    def link(self, one: str, other: str) -> None:
        self.links.append((one, other))

    def reject(self, reason: str, line: int, raw: str) -> None:
        self.tally[f"records.rejected.{reason}"] += 1
        self.rejects.append((reason, line, raw))

    def warn(self, what: str, name: str) -> None:
        self.warnings.append((what, name))


def _part(stem: Path, part: int) -> Path:
    return stem.with_name(f"{stem.name}-{part:04d}.arrow")


def _notes(kind: str, stem: Path, number: int) -> Path:
    return stem.with_name(f"{stem.name}.{kind}.{number:06d}.arrow")


def _files(job: Job, counts: Sequence[int], name: Callable[[Path, int], Path]) -> list[tuple[int, Path]]:
    """Files that the slices wrote, with the number of the slice each is of."""
    stems = [Task(job, "map", n).stem for n in range(len(counts))]
    return [(n, name(stem, k)) for n, stem in enumerate(stems) for k in range(counts[n])]


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


# --- look: what was noted of the keys of a bucket of notes, sorted -------------------------------------------------


def merge_notes(task: Task) -> None:
    """What all slices noted of the keys of a bucket of notes, as one sorted table a kind."""
    job = task.job
    join = get_source(job.source).join
    assert join is not None
    numbers = {path: n for n, path in enumerate(dict.fromkeys(s.path for s in job.slices))}
    for kind, counts in task.base.notes.items():
        files = _files(job, counts, partial(_notes, kind))
        of_input = [(numbers[job.slices[n].path], path) for n, path in files]
        lookups.merge(job.work, of_input, kind, task.number, job.note_buckets, join.lookups[kind])
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
    known = {kind: lookups.Lookup(task.job.work, kind, task.job.note_buckets) for kind in task.base.notes}
    made = join.pair(PairInput(table, task.job.options, task.job.seed, tally, known, task.job.max_pairs))
    return _finish(task, made.candidates, made.fates, made.rejects, tally)


def bucket_keys(job: Job, parts: Sequence[int]) -> np.ndarray:
    """The keys of all groups: uint64[n], sorted."""
    found, paths = [np.zeros(0, np.uint64)], [path for _, path in _files(job, parts, _part)]
    for bucket in range(job.buckets if paths else 0):
        keys = [rows["key"].to_numpy() for rows in read_bucket(paths, bucket, job.buckets)]
        found.append(np.unique(np.concatenate(keys)))
    return np.sort(np.concatenate(found))


def _bucket(task: Task, tally: Counter[str]) -> pa.Table | None:
    """The records of a bucket in input order, with their positions; those over the limit are counted and left out."""
    job, mapped = task.job, task.base
    parts = _files(job, mapped.parts, _part)
    batches = list(read_bucket([path for _, path in parts], task.number, job.buckets))
    if not batches:
        return None
    table = pa.Table.from_batches(batches).combine_chunks()
    piece = np.repeat([n for n, _ in parts], [b.num_rows for b in batches])
    lines = pa.array(table["line"].to_numpy() + (np.array(mapped.lines)[piece] + 1)).cast(pa.string())
    names = pa.array([s.name for s in job.slices]).take(pa.array(piece))
    table = table.drop_columns("line").append_column("position", pc.binary_join_element_wise(names, lines, ":"))
    table = table.append_column("order", pa.array(np.arange(table.num_rows)))
    keep = table["key"].to_numpy() <= np.uint64(mapped.largest)
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
    slices = [(job.slices[n], task.base.lines[n]) for n in numbers]
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
    write_columns(task.stem.with_suffix(".keys"), row_keys(done.kept))
    if job.near:
        started = time.perf_counter()
        write_columns(task.stem.with_suffix(".near"), prompt_signatures(done.kept))
        seconds["near duplicates"] += time.perf_counter() - started
    write_table(task.stem.with_suffix(".cells.arrow"), pa.table({"cell": done.kept.cells}))
    write_table(
        task.stem.with_suffix(".arrow"),
        done.kept.table.drop_columns([c for c in made.table.column_names if c.startswith("_")]),
    )
    _mark(task, tally=tally, rows=done.kept.rows, seconds=seconds)


def write_table(path: Path, table: pa.Table) -> None:
    """An Arrow stream."""
    with (
        renamed(path, shared=True) as new,
        pa.OSFile(str(new), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table)


def read_cells(path: Path) -> pa.ListArray:
    """The cells beside a file of candidates, memory-mapped."""
    column = read_table(path.with_suffix(".cells.arrow"))["cell"]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def read_table(path: Path) -> pa.Table:
    """A file that `write_table` wrote, memory-mapped."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
