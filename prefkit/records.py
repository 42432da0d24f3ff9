"""Records that are pairs by themselves → candidates: by columns where the source can, else one by one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefkit import columns, tables
from prefkit.errors import UserError
from prefkit.file_formats import Piece, readable
from prefkit.readers import BATCH_ROWS, count_records, read_piece
from prefkit.schema import Pair, Reject
from prefkit.sources import PairOutput, Refused, Slice, Source, Unused
from prefkit.tables import Candidates
from prefkit.tabular import TABLE_ROWS, batches, is_table


def read(
    source: Source, options: Any, slices: list[tuple[Slice, int]], limit: int | None, tally: Counter[str]
) -> PairOutput:
    """What the records of slices make, each with the number of line ends before it; at most `limit` records.

    Counts `records.read`, `records.rejected.*`, candidates and repairs in `tally`.
    """
    out = _Records(source, options, tally, limit)
    if source.records is not None:
        out.take(source.records([s for s, _ in slices], options))
    for piece, first_line in slices if source.records is None else ():
        if out.left() == 0:
            break
        part = Piece(piece.kind, piece.start, piece.stop)
        if source.to_columns is None or not is_table(piece.path):
            found = read_piece(piece.path, part, first_line, tally)
            out.take((piece.name + position.removeprefix(piece.path.name), record) for position, record in found)
            continue
        most = out.left()  # a batch may span row groups: no more are read than are wanted
        for before, batch in batches(piece.path, part, TABLE_ROWS if most is None else min(TABLE_ROWS, most)):
            out.take_rows(piece.path, piece.name, before, batch)
            if out.left() == 0:
                break
    return out.close()


def count(source: Source, options: Any, slices: Sequence[Slice]) -> int:
    """How many records there are in all."""
    if source.records is not None:
        return sum(1 for _ in source.records(list(slices), options))
    return sum(count_records(path) for path in {s.path for s in slices})


class _Records:
    """What became of the records so far."""

    def __init__(self, source: Source, options: Any, tally: Counter[str], limit: int | None):
        self.source, self.options, self.tally, self.limit = source, options, tally, limit
        self.fates: list[str] = []
        self.rejects: list[Reject] = []
        self.pairs: list[Pair] = []
        self.owners: list[int] = []
        self.parts: list[Candidates] = []

    def left(self) -> int | None:
        """How many more records the limit allows."""
        return None if self.limit is None else self.limit - len(self.fates)

    def take(self, found: Iterable[tuple[str, Any]]) -> None:
        """Records with their positions, one by one."""
        for position, record in islice(found, self.left()):
            self.fates.append("")
            self._one(len(self.fates) - 1, position, record)

    def take_rows(self, path: Path, name: str, before: int, batch: pa.RecordBatch) -> None:
        """Rows of a table: what the source cannot take by columns goes one by one."""
        batch = batch.slice(0, self.left())
        found, first = None, len(self.fates)
        if self.source.to_columns is not None:
            with readable(path):
                found = self.source.to_columns(batch, self.options)
        self.fates += [""] * batch.num_rows
        taken = found.taken if found is not None else np.zeros(batch.num_rows, dtype=bool)
        if found is not None and taken.any():
            rows = np.flatnonzero(taken)
            self.tally["candidates.made"] += len(rows)
            self.parts.append(columns.candidates(found, rows + first, name, rows + before + 1))
        rest = np.flatnonzero(~taken)
        with readable(path):
            for row, record in _records(batch, rest):
                self._one(first + row, f"{name}:{before + row + 1}", record)

    def _one(self, number: int, position: str, record: Any) -> None:
        assert self.source.to_pairs is not None
        try:
            if isinstance(record, str):
                raise Refused("malformed_record")
            made = list(self.source.to_pairs(record, self.options))
        except Refused as refused:
            self.tally[f"records.rejected.{refused.reason}"] += 1
            raw = record if isinstance(record, str) else json.dumps(record, ensure_ascii=True, default=str)
            self.rejects.append(Reject(refused.reason, position, raw))
            self.fates[number] = "rejected"
            return
        except Unused as unused:
            self.fates[number] = unused.reason
            return
        if self.source.counts is not None:
            self.tally.update(self.source.counts(record))
        found = [p for p in made if isinstance(p, Pair)]
        self.tally["candidates.made"] += len(made)
        self.tally["candidates.ties"] += len(made) - len(found)
        if not found:
            self.fates[number] = "only_ties" if made else "no_candidates"
        for pair in found:
            self.pairs.append(pair)
            self.owners.append(number)
            pair.meta.setdefault("positions", [position])

    def close(self) -> PairOutput:
        """All candidates in the order of their records."""
        self.tally["records.read"] += len(self.fates)
        try:
            alone = self.pairs or not self.parts
            one_by_one = [tables.candidates(self.pairs, self.owners, self.tally)] if alone else []
            made = tables.concat([*self.parts, *one_by_one])
        except (pa.ArrowInvalid, pa.ArrowCapacityError) as e:  # an array holds no more
            what = f"more than 2 GB of text in one piece ({' '.join(str(e).split())})"
            raise UserError(what, fix="cut the file up, or give it as JSON lines or Parquet, not packed") from None
        if self.parts and one_by_one:
            order = np.argsort(made.table["_records"].combine_chunks().flatten().to_numpy(), kind="stable")
            made = made._replace(table=made.table.take(pa.array(order)))
        return PairOutput(made, self.fates, self.rejects)


def _records(batch: pa.RecordBatch, rows: np.ndarray) -> Iterator[tuple[int, Any]]:
    """Some rows of a batch as dicts, not many at a time: they take much memory. Not by `take`, which knows no views."""
    for begin in range(0, batch.num_rows, BATCH_ROWS):
        some = rows[(rows >= begin) & (rows < begin + BATCH_ROWS)].tolist()
        if len(some) > BATCH_ROWS // 16:
            all_of_them = batch.slice(begin, BATCH_ROWS).to_pylist()
            yield from ((row, all_of_them[row - begin]) for row in some)
        else:
            yield from ((row, batch.slice(row, 1).to_pylist()[0]) for row in some)
