"""Parquet and Arrow files as record batches, whole or by row groups, in types that Python can hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from prefkit.errors import UserError
from prefkit.file_formats import Piece, file_format, readable

if TYPE_CHECKING:
    import pyarrow.parquet as pq

TABLE_ROWS = 1 << 14


def is_table(path: Path) -> bool:
    """Whether the name tells a table: Parquet or Arrow."""
    return file_format(path) in ("parquet", "arrow")


def batches(path: Path, piece: Piece, rows: int = TABLE_ROWS) -> Iterator[tuple[int, pa.RecordBatch]]:
    """A piece of a table as record batches of Parquet's `rows` at most, each with the number of rows before it.

    Errors: `UserError` as in `readers.read_records`, also where a string is not UTF-8.
    """
    read = _arrow if file_format(path) == "arrow" else _parquet
    with readable(path):
        for before, batch in read(path, piece, rows):
            refuse_twins(batch.schema.names, path)
            batch.validate(full=True)
            yield before, _in_microseconds(batch)


def row_groups(path: Path) -> int:
    """How many row groups or record batches a table has."""
    with readable(path):
        if file_format(path) == "parquet":
            with _parquet_file(path) as f:
                return f.num_row_groups
        with pa.memory_map(str(path)) as source:
            return sum(1 for _ in _record_batches(source))


def count_rows(path: Path) -> int:
    """How many rows a table has."""
    with readable(path):
        if file_format(path) == "parquet":
            with _parquet_file(path) as f:
                return f.metadata.num_rows
        with pa.memory_map(str(path)) as source:
            return sum(batch.num_rows for batch in _record_batches(source))


def table_columns(path: Path) -> list[str]:
    """The names of a table's columns."""
    with readable(path):
        if file_format(path) == "parquet":
            with _parquet_file(path) as f:
                return f.schema_arrow.names
        with pa.memory_map(str(path)) as source:
            return next((batch.schema.names for batch in _record_batches(source)), [])


def refuse_twins(columns: Sequence[str], path: Path) -> None:
    """A `UserError` where two columns have one name."""
    if twins := [name for name, n in Counter(columns).items() if n > 1]:
        raise UserError(f"two columns are called {twins[0]!r}", path, "rename one of them")


def _in_microseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Times as Python can hold them: of nanoseconds pyarrow makes objects of pandas, or fails where there is none."""
    schema = pa.schema([field.with_type(_microseconds(field.type)) for field in batch.schema])
    return batch if schema.equals(batch.schema) else batch.cast(schema, safe=False)


def _microseconds(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz) if kind.unit == "ns" else kind
    if pa.types.is_duration(kind):
        return pa.duration("us") if kind.unit == "ns" else kind
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_microseconds(field.type)) for field in kind])
    if pa.types.is_time64(kind):
        return pa.time64("us")
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_microseconds(kind.value_type)), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        made = pa.large_list if pa.types.is_large_list(kind) else pa.list_
        return made(kind.value_field.with_type(_microseconds(kind.value_type)))
    return kind


def _parquet_file(path: Path) -> pq.ParquetFile:
    import pyarrow.parquet as pq  # with the clients of object stores that it brings, 9 MB that most commands never need

    return pq.ParquetFile(path)


def _parquet(path: Path, piece: Piece, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    with _parquet_file(path) as f:
        before = sum(f.metadata.row_group(i).num_rows for i in range(piece.start))
        groups = range(piece.start, piece.stop if piece.kind else f.metadata.num_row_groups)
        for batch in f.iter_batches(rows, row_groups=groups):
            yield before, batch
            before += batch.num_rows


def _arrow(path: Path, piece: Piece, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    before = 0
    with pa.memory_map(str(path)) as source:
        for n, batch in enumerate(islice(_record_batches(source), piece.stop if piece.kind else None)):
            if n >= piece.start:
                yield before, batch
            before += batch.num_rows


def _record_batches(source: pa.MemoryMappedFile) -> Iterator[pa.RecordBatch]:
    """Those of an Arrow file or stream; their bytes are read when they are looked at."""
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    file = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
    yield from map(file.get_batch, range(file.num_record_batches)) if is_file else file
