"""Records that are pairs by themselves → candidates: by columns where the source can, else one by one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefkit import columns, tables
from prefkit.readers import Piece, batches, read_piece, readable
from prefkit.schema import Pair, Reject
from prefkit.sources import PairOutput, Refused, Slice, Source, Unused
from prefkit.tables import Candidates


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
        tabular = batches(piece.path, part, out.left()) if source.to_columns else None
        if tabular is None:
            found = read_piece(piece.path, part, first_line, tally)
            out.take((piece.name + position.removeprefix(piece.path.name), record) for position, record in found)
            continue
        for before, batch in tabular:
            out.take_rows(piece.path, piece.name, before, batch)
            if out.left() == 0:
                break
    return out.close()


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
        found, first, names = None, len(self.fates), batch.schema.names
        if self.source.to_columns is not None and len(set(names)) == len(names):
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
            records = batch.take(pa.array(rest)).to_pylist() if len(rest) else []
        for row, record in zip(rest.tolist(), records, strict=True):
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
        one_by_one = [tables.candidates(self.pairs, self.owners, self.tally)] if self.pairs or not self.parts else []
        made = tables.concat([*self.parts, *one_by_one])
        if self.parts and one_by_one:
            order = np.argsort(made.table["_records"].combine_chunks().flatten().to_numpy(), kind="stable")
            made = made._replace(table=made.table.take(pa.array(order)))
        return PairOutput(made, self.fates, self.rejects)
