"""What one worker does in each phase of a conversion: a slice, a bucket, a file, a shard.

Each task writes its results under the work folder and a marker last; a marked task is not run again. Nothing here
depends on the number of workers or on the order in which tasks finish.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from prefkit import checks, tables
from prefkit.errors import UserError
from prefkit.readers import read_records
from prefkit.schema import Pair, Reject
from prefkit.sources import PairInput, Refused, Slice, Source, Unused, get_source
from prefkit.split import KEYS

REJECTS = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("kind", pa.string()),  # record: a post, a line; candidate: a pair
        pa.field("reason", pa.string()),
        pa.field("position", pa.string()),
        pa.field("raw", pa.string()),
    ]
)


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


def run(task: Task) -> None:
    """Run a task of any phase unless its marker stands."""
    if not task.done():
        {"map": map_slice, "pair": pair_bucket, "read": read_slice}[task.phase](task)


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
        tally=out.tally,
        links=out.links,
        warnings=out.warnings,
        rejects=out.rejects,
    )


# --- pair: a bucket into candidates ------------------------------------------------------------------------------


def pair_bucket(task: Task) -> None:
    """Pair the groups of a bucket, then check and filter."""
    join = get_source(task.job.source).join
    assert join is not None
    tally: Counter[str] = Counter()
    table = _bucket(task, tally)
    if table is None:
        return _mark(task, tally={}, rows=0)
    made = join.pair(PairInput(table, task.job.options, task.job.seed, tally))
    return finish(task, made.table, made.fates, made.rejects, tally)


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
            lines = rows["line"].to_numpy() + (first_lines[number] + 1)
            position = pa.array([f"{piece.name}:{line}" for line in lines.tolist()], pa.string())
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
    """Convert the records of a file (of all files, where it takes them together), then check and filter."""
    job = task.job
    source = get_source(job.source)
    assert source.to_pairs is not None
    tally: Counter[str] = Counter()
    pairs: list[Pair] = []
    owners: list[int] = []
    fates: list[str] = []
    rejects: list[Reject] = []
    pieces = job.slices if reads_together(job) else [job.slices[task.number]]
    for position, record in islice(_records(source, pieces, job.options, tally), job.limit):
        tally["records.read"] += 1
        fates.append("")
        try:
            if isinstance(record, str):
                raise Refused("malformed_record")
            made = list(source.to_pairs(record, job.options))
        except Refused as refused:
            tally[f"records.rejected.{refused.reason}"] += 1
            raw = record if isinstance(record, str) else json.dumps(record, ensure_ascii=True, default=str)
            rejects.append(Reject(refused.reason, position, raw))
            fates[-1] = "rejected"
            continue
        except Unused as unused:
            fates[-1] = unused.reason
            continue
        found = [p for p in made if isinstance(p, Pair)]
        tally["candidates.made"] += len(made)
        tally["candidates.ties"] += len(made) - len(found)
        if not found:
            fates[-1] = "only_ties" if made else "no_candidates"
        for pair in found:
            pairs.append(pair)
            owners.append(len(fates) - 1)
            pair.meta.setdefault("positions", [position])
    finish(task, tables.candidates(pairs, owners, tally), fates, rejects, tally)


def _records(source: Source, pieces: list[Slice], options: Any, tally: Counter[str]) -> Iterator[tuple[str, Any]]:
    if source.records is not None:
        yield from source.records([piece.path for piece in pieces], options)
        return
    for piece in pieces:
        for position, record in read_records(piece.path, tally):
            yield piece.name + position.removeprefix(piece.path.name), record


# --- what both end with: checks, --where, ids ---------------------------------------------------------------------


def finish(task: Task, table: pa.Table, fates: list[str], rejects: list[Reject], tally: Counter[str]) -> None:
    """Check and filter candidates, settle what became of each record, and write rows, keys and rejects."""
    table, reasons = checks.run(table, tally)
    good = reasons == ""
    bad = table.filter(pa.array(~good))
    for reason, row in zip(reasons[~good], bad.to_pylist(), strict=True):
        tally[f"candidates.rejected.{reason}"] += 1
        rejects.append(_reject_of(reason, row))
    checked = table.filter(pa.array(good))
    kept = filtered(checked, task.job.where)
    tally["candidates.filtered"] += checked.num_rows - kept.num_rows
    for fate in _settle(fates, [("used", kept), ("filtered", checked), ("rejected_pairs", table)]):
        if fate != "rejected":  # counted where it was refused
            tally["records.used" if fate == "used" else f"records.unused.{fate}"] += 1
    n_records = len(rejects) - bad.num_rows
    kinds = ["record"] * n_records + ["candidate"] * bad.num_rows
    write_table(task.stem.with_suffix(".rejects.arrow"), rejects_table(task.job.source, kinds, rejects))
    np.save(task.stem.with_suffix(".keys.npy"), _keys(kept))
    write_table(task.stem.with_suffix(".arrow"), kept.drop_columns(["group_key", "_records"]))
    _mark(task, tally=tally, rows=kept.num_rows)


def _settle(fates: list[str], by_pairs: list[tuple[str, pa.Table]]) -> list[str]:
    """Fates of all records; one without its own takes the best of what its pairs came to."""
    settled = list(fates)
    for fate, table in by_pairs:
        for i in np.unique(table["_records"].combine_chunks().flatten().to_numpy()):
            settled[i] = settled[i] or fate
    assert all(settled)
    return settled


def _reject_of(reason: str, row: dict) -> Reject:
    positions = json.loads(row["meta"]).get("positions", [])
    kept = {k: row[k] for k in ("prompt", "chosen", "rejected", "group_key", "source_id", "meta")}
    return Reject(reason, " ".join(positions), json.dumps(kept, ensure_ascii=False))


def rejects_table(source: str, kinds: list[str], rejects: list[Reject]) -> pa.Table:
    """Refused records and candidates as the columns of `REJECTS`."""
    rows = [
        [source, kind, r.reason, r.position, r.raw.encode(errors="replace").decode()]
        for kind, r in zip(kinds, rejects, strict=True)
    ]
    return pa.table([pa.array([r[i] for r in rows], f.type) for i, f in enumerate(REJECTS)], schema=REJECTS)


def filtered(table: pa.Table, where: str | None) -> pa.Table:
    """The rows, in their order, for which the SQL expression over the columns is true."""
    if where is None:
        return table
    plain_time = table["created"].cast(pa.timestamp("s"))  # zoned times would need an extension of duckdb
    visible = table.drop_columns("_records").append_column("_row", pa.array(np.arange(table.num_rows)))
    visible = visible.set_column(visible.schema.get_field_index("created"), "created", plain_time)
    with duckdb.connect(config={"threads": 1, "enable_external_access": False}) as db:
        try:
            db.register("pairs", visible)
            rows = db.execute(f"SELECT _row FROM pairs WHERE ({where}\n)").fetchnumpy()["_row"]  # noqa: S608
        except duckdb.Error as e:
            columns = ", ".join(c for c in visible.column_names if not c.startswith("_"))
            raise UserError(f"bad --where {where!r}: {e}", fix=f"an SQL condition over {columns}") from None
    return table.take(pa.array(np.sort(np.asarray(rows, dtype=np.int64))))


def _keys(table: pa.Table) -> np.ndarray:
    """Of each row: its id, group key and prompt as integers, and about how many bytes it takes."""
    keys = np.zeros(table.num_rows, dtype=KEYS)
    ids = np.frombuffer(bytes.fromhex("".join(table["id"].to_pylist())), dtype=">u8").reshape(-1, 2)
    keys["id_high"], keys["id_low"] = ids[:, 0], ids[:, 1]
    keys["group"] = tables.hash64_column(table["group_key"])
    prompts = tables.turn_json(table["prompt"].combine_chunks())
    known = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
    keys["prompt"] = tables.hash64(known)[[known[p] for p in prompts]] if prompts else 0
    sizes = np.full(table.num_rows, 400)
    for column in ("prompt", "chosen", "rejected"):
        sizes += tables.content_bytes(table[column].combine_chunks())
    keys["bytes"] = sizes
    return keys


def write_table(path: Path, table: pa.Table) -> None:
    """An Arrow stream."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table, max_chunksize=1000)
