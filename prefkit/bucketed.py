"""Tables sorted into buckets by key, from whose files one bucket is read without looking at the others.

A file is an Arrow schema, a record batch for each bucket that has rows, and where each bucket begins, as `buckets + 1`
little-endian uint64. Thousands of buckets are read from thousands of files each, so that opening must cost little: a
bucket of a file is found by one small read and taken by another.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from prefkit.files import renamed


def write_buckets(path: Path, table: pa.Table, buckets: int) -> None:
    """Rows with a uint64 `key`; bucket b holds those whose key leaves b, in the order in which they came."""
    bucket = (table["key"].to_numpy() % np.uint64(buckets)).astype(np.int64)
    order = np.argsort(bucket, kind="stable")
    cuts = np.searchsorted(bucket[order], np.arange(buckets + 1)).tolist()
    rows = table.take(pa.array(order)).combine_chunks()
    places = []
    with renamed(path, shared=True) as new, pa.OSFile(str(new), "wb") as out:
        out.write(rows.schema.serialize())
        for a, b in pairwise(cuts):
            places.append(out.tell())
            if a < b:
                (batch,) = rows.slice(a, b - a).to_batches()
                out.write(batch.serialize())
        places.append(out.tell())
        out.write(np.array(places, "<u8").tobytes())


def read_bucket(paths: Iterable[Path], bucket: int, buckets: int) -> Iterator[pa.RecordBatch]:
    """The rows of one bucket in each of some files that were written with one schema."""
    empty = None
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        try:
            places = os.fstat(file).st_size - 8 * (buckets + 1)
            begin, end = np.frombuffer(os.pread(file, 16, places + 8 * bucket), "<u8").tolist()
            if empty is None:
                first = int.from_bytes(os.pread(file, 8, places), "little")
                schema = pa.ipc.read_schema(pa.py_buffer(os.pread(file, first, 0)))
                empty = pa.RecordBatch.from_pylist([], schema=schema)
            data = os.pread(file, end - begin, begin)
        finally:
            os.close(file)
        assert len(data) == end - begin, f"{path} is damaged"
        yield pa.ipc.read_record_batch(pa.py_buffer(data), empty.schema) if data else empty
