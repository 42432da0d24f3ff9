"""Tables too large for memory that a bucket looks things up in: written in pieces by key, merged bucket by bucket."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from prefkit.bucketed import read_bucket
from prefkit.files import renamed


def merge(work: Path, notes: list[tuple[int, Path]], kind: str, bucket: int, buckets: int, how: str) -> None:
    """What was noted of the keys of a bucket of notes, sorted by key; `notes` are files with the number of the input
    each was made of.

    `last`: a key noted again keeps its last value. `sum`: values are summed up within an input, and of several inputs
    (two snapshots of a site) the last one that knows the key stands, as for the posts themselves.
    """
    batches = list(read_bucket([path for _, path in notes], bucket, buckets))
    whole = pa.Table.from_batches(batches)
    keys, values = whole["key"].to_numpy(), [c for c in whole.column_names if c != "key"]
    of_input = np.repeat([number for number, _ in notes], [b.num_rows for b in batches])
    origin = of_input if how == "sum" else np.arange(len(keys))
    order = np.lexsort((origin, keys))
    keys, origin = keys[order], origin[order]
    new_key = np.concatenate([[True], np.diff(keys) != 0])[: len(keys)]
    begins = np.flatnonzero(new_key | np.concatenate([[True], np.diff(origin) != 0])[: len(keys)])
    last = np.append(new_key[begins[1:]], True)[: len(begins)]  # the last of a key's inputs, or of its notes
    columns: dict[str, object] = {"key": keys[begins][last]}
    for name in values:
        if how == "sum":
            columns[name] = np.add.reduceat(whole[name].to_numpy()[order], begins)[last] if len(keys) else whole[name]
        else:
            columns[name] = whole[name].take(pa.array(order[begins[last]]))
    merged = pa.table(columns).combine_chunks()
    with renamed(_path(work, kind, bucket), shared=True) as new, pa.ipc.new_file(str(new), merged.schema) as out:
        out.write_table(merged)


class Lookup:
    """Finds rows by key in the merged tables, which stay on disk."""

    def __init__(self, work: Path, kind: str, buckets: int):
        self.work, self.kind, self.buckets = work, kind, buckets

    def __call__(self, keys: np.ndarray) -> pa.Table:
        """The values of each key, in the order of the keys; nulls where it was never noted."""
        bucket = keys % np.uint64(self.buckets)
        pieces, places = [], []
        for b in np.unique(bucket).tolist():
            here = np.flatnonzero(bucket == b)
            table = self._table(b)
            known = table["key"].to_numpy() if table.num_rows else np.zeros(0, np.uint64)
            at = np.searchsorted(known, keys[here])
            hit = at < len(known)
            hit[hit] = known[at[hit]] == keys[here][hit]
            pieces.append(table.drop_columns("key").take(pa.array(at, mask=~hit)))
            places.append(here)
        if not pieces:
            return (
                pa.ipc.open_file(pa.memory_map(str(_path(self.work, self.kind, 0))))
                .read_all()
                .drop_columns("key")
                .slice(0, 0)
            )
        back = np.argsort(np.concatenate(places))
        return pa.concat_tables(pieces).take(pa.array(back))

    def _table(self, bucket: int) -> pa.Table:
        return pa.ipc.open_file(pa.memory_map(str(_path(self.work, self.kind, bucket)))).read_all()


def _path(work: Path, kind: str, bucket: int) -> Path:
    return work / f"look-{bucket:06d}.{kind}.merged.arrow"
