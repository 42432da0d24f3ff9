"""Records of JSON, JSON lines, CSV, Parquet and Arrow files (also .gz and .zst), each with its position in the file."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from prefkit.errors import UserError
from prefkit.shards import MANIFEST, WORK

Record = dict[str, Any]
Positioned = Iterator[
    tuple[int, Record | str]
]  # place in the file from 1, then the record or, if it is damaged, its text
BATCH_ROWS = 1024  # as records, which take much memory
TABLE_ROWS = 1 << 14  # as a table


class Piece(NamedTuple):
    """Part of a file: bytes of its lines (`bytes`), row groups or record batches of its table (`groups`), or all of it
    (`""`)."""

    kind: str = ""
    start: int = 0
    stop: int = 0


def pieces(path: Path, step: int) -> list[Piece]:
    """A file in parts of about `step` bytes, where its format can be entered in the middle."""
    size, name = path.stat().st_size, path.name.lower()
    if size > step and kind(path) == "jsonl" and not name.endswith((".gz", ".zst")):
        return [Piece("bytes", a, min(a + step, size)) for a in range(0, size, step)]
    if size > step and kind(path) in ("parquet", "arrow") and not name.endswith((".gz", ".zst")):
        with readable(path):
            n = _row_groups(path)
        each = max(1, n * step // size)
        return [Piece("groups", a, min(a + each, n)) for a in range(0, n, each)]
    return [Piece()]


def _row_groups(path: Path) -> int:
    """How many row groups or record batches a table has."""
    if kind(path) == "parquet":
        with pq.ParquetFile(path) as f:
            return f.metadata.num_row_groups
    with pa.memory_map(str(path)) as source:
        return sum(1 for _ in _record_batches(source))


def count_lines(path: Path, piece: Piece) -> int:
    """Line ends in a piece of bytes, so that the lines of the next one can be numbered."""
    with path.open("rb") as f:
        f.seek(piece.start)
        left, found = piece.stop - piece.start, 0
        while left > 0 and (data := f.read(min(left, 1 << 20))):
            left -= len(data)
            found += data.count(b"\n")
    return found


def read_piece(path: Path, piece: Piece, first_line: int, tally: Counter[str]) -> Iterator[tuple[str, Record | str]]:
    """`read_records` of a part; `first_line` is how many line ends lie before its first byte."""
    if piece.kind == "bytes":
        with readable(path):
            yield from ((f"{path.name}:{n}", record) for n, record in _line_range(path, piece, first_line, tally))
    elif piece.kind == "groups":
        with readable(path):
            found = _rows(_batches(path, piece, BATCH_ROWS))
            yield from ((f"{path.name}:{row}", record) for row, record in found)
    else:
        yield from read_records(path, tally)


def _line_range(path: Path, piece: Piece, line: int, tally: Counter[str]) -> Positioned:
    """The lines that begin in a piece: the first whole line after `start`, to the one that reaches beyond `stop`."""
    with path.open("rb") as f:
        if piece.start:
            f.seek(piece.start - 1)
            skipped = f.readline()
            line += len(skipped) > 1  # a line that began in the piece before
        while f.tell() < piece.stop and (raw := f.readline()):
            line += 1
            text = _decode(raw, tally).strip()
            if text:
                yield line, _object(text)


def read_records(path: Path, tally: Counter[str] | None = None) -> Iterator[tuple[str, Record | str]]:
    """(position, record) for each record of a file; a damaged line comes as its raw text.

    Positions are `NAME:LINE` for lines and `NAME:ROW` (from 1) for tables. Counts in `tally`: `repairs.invalid_utf8`,
    per line replaced (per file for one JSON value). Errors: `UserError` for a file of another kind or one that cannot
    be read from the start or breaks off.
    """
    reader = READERS[kind(path)]
    with readable(path):
        for place, record in reader(path, Counter() if tally is None else tally):
            yield f"{path.name}:{place}", record


def kind(path: Path) -> str:
    """The format a file's name tells: json, jsonl, csv, parquet or arrow."""
    name = path.name.lower()
    for suffix in (".gz", ".zst"):
        name = name.removesuffix(suffix)
    suffix = {".ndjson": ".jsonl", ".tsv": ".csv", ".feather": ".arrow"}.get(Path(name).suffix, Path(name).suffix)
    if suffix[1:] not in READERS:
        known = ", ".join(f".{k}" for k in READERS)
        raise UserError(f"cannot tell the format of {path.name!r}", path, f"known: {known}, also with .gz or .zst")
    return suffix[1:]


def is_readable(path: Path) -> bool:
    """Whether the name tells a format that `read_records` knows."""
    try:
        return bool(kind(path))
    except UserError:
        return False


def readable_files(path: Path) -> list[Path]:
    """The files of a folder, or the file itself, where the name tells a format.

    Not looked into: hidden files and folders (`.` or `_` before the name), and data sets that lie in the folder, whole
    or in the making.
    """
    if not path.is_dir():
        return [path] if is_readable(path) else []
    found = []
    for folder, inner, names in os.walk(path):
        inner[:] = [n for n in inner if not n.startswith((".", "_")) and not _is_data_set(Path(folder, n))]
        found += [Path(folder, n) for n in names if not n.startswith((".", "_"))]
    return [p for p in sorted(found) if is_readable(p)]


def _is_data_set(folder: Path) -> bool:
    return (folder / MANIFEST).exists() or (folder / WORK).exists()


def column_names(path: Path) -> list[str]:
    """The columns of a Parquet file, or the keys of a file's first record; none where no record is sound."""
    if kind(path) == "parquet":
        with readable(path):
            return pq.read_schema(path).names
    return list(next((r for _, r in read_records(path) if isinstance(r, dict)), {}))


def count_records(path: Path) -> int:
    """How many records a file has; those of lines are read for it."""
    with readable(path):
        if kind(path) == "parquet":
            return pq.read_metadata(path).num_rows
        if kind(path) == "arrow":
            with pa.memory_map(str(path)) as source:
                return sum(batch.num_rows for batch in _record_batches(source))
    return sum(1 for _ in read_records(path))


READ_ERRORS = (
    *(pa.ArrowException, ValueError, RecursionError, csv.Error, zlib.error, EOFError, OSError),
    *(OverflowError, KeyError),  # times outside Python's years, unknown time zones
)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong inside is the file's fault: a `UserError` that names it."""
    try:
        yield
    except READ_ERRORS as e:
        raise UserError(f"cannot read the file: {e}", path, "is it whole, and what its name says?") from e


def _open(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path))
    if path.name.lower().endswith(".zst"):  # pyarrow, not zstandard: it tells when a stream breaks off
        return io.BufferedReader(cast(io.RawIOBase, pa.input_stream(str(path), compression="zstd")))
    return path.open("rb")


def _decode(raw: bytes, tally: Counter[str]) -> str:
    """The text of UTF-8 bytes, a BOM left out; what is not UTF-8 is replaced and counted once."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        tally["repairs.invalid_utf8"] += 1
        return raw.decode("utf-8-sig", "replace")


def _jsonl(path: Path, tally: Counter[str]) -> Positioned:
    with _open(path) as f:
        yield from _lines(f, tally)


def _lines(lines: Iterable[bytes], tally: Counter[str]) -> Positioned:
    for line, raw in enumerate(lines, 1):
        text = _decode(raw, tally).strip()
        if text:
            yield line, _object(text)


def _object(text: str) -> Record | str:
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, an integer of thousands of digits, lists nested without end
        return text
    return record if isinstance(record, dict) else text


def _json(path: Path, tally: Counter[str]) -> Positioned:
    """A list of objects, an object that holds one such list (`{"data": […]}`), or JSON lines under a .json name."""
    with _open(path) as f:
        raw = f.read()
    of_whole: Counter[str] = Counter()
    if not raw.strip():
        return
    try:
        whole = json.loads(_decode(raw, of_whole))
    except json.JSONDecodeError as e:
        if e.msg != "Extra data":
            raise
        yield from _lines(raw.split(b"\n"), tally)
        return
    tally.update(of_whole)
    if isinstance(whole, dict):
        lists = [v for v in whole.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        alone = len(lists) == 1 and not {"role", "from"} & lists[0][0].keys()  # messages are no records
        whole = lists[0] if alone else [whole]
    if not isinstance(whole, list):
        raise UserError("the JSON is no list of records", path, "give a list of objects, or JSON lines")
    for row, record in enumerate(whole, 1):
        yield row, record if isinstance(record, dict) else json.dumps(record, ensure_ascii=False)


def _csv(path: Path, tally: Counter[str]) -> Positioned:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with _open(path) as f:
        rows = csv.DictReader(
            _sound(io.TextIOWrapper(f, "utf-8-sig", "surrogateescape", newline=""), tally),
            delimiter="\t" if ".tsv" in path.name.lower() else ",",
            strict=True,  # a stray quote must not swallow the rest of the file
        )
        _refuse_twins([n for n in rows.fieldnames or () if n], path)
        for record in rows:
            extra = cast(dict, record).pop(None, None)
            yield rows.line_num, record if extra is None else json.dumps([*record.values(), *extra], ensure_ascii=False)


def _sound(lines: Iterable[str], tally: Counter[str]) -> Iterator[str]:
    """Lines whose escaped bytes, which were not UTF-8, are replaced."""
    for line in lines:
        yield line if line.isascii() else _decode(line.encode(errors="surrogateescape"), tally)


def batches(path: Path, piece: Piece, most: int | None = None) -> Iterator[tuple[int, pa.RecordBatch]] | None:
    """A piece of a table as record batches, each with the number of rows before it; None for other formats.

    Where `most` rows are wanted at most, no more are read at once: a batch may span row groups.

    Errors: `UserError` as in `read_records`, also where a string is not UTF-8.
    """
    if kind(path) not in ("parquet", "arrow"):
        return None
    return _batches(path, piece, TABLE_ROWS if most is None else min(TABLE_ROWS, most))


def _batches(path: Path, piece: Piece, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    read = _arrow if kind(path) == "arrow" else _parquet
    with readable(path):
        for before, batch in read(path, piece, rows):
            _refuse_twins(batch.schema.names, path)
            batch.validate(full=True)
            yield before, _in_microseconds(batch)


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


def _refuse_twins(columns: Sequence[str], path: Path) -> None:
    if twins := [name for name, n in Counter(columns).items() if n > 1]:
        raise UserError(f"two columns are called {twins[0]!r}", path, "rename one of them")


def _parquet(path: Path, piece: Piece, rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    with pq.ParquetFile(path) as f:
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


def _table(path: Path, tally: Counter[str]) -> Positioned:
    return _rows(_batches(path, Piece(), BATCH_ROWS))


def _rows(found: Iterator[tuple[int, pa.RecordBatch]]) -> Positioned:
    for before, batch in found:
        yield from enumerate(batch.to_pylist(), before + 1)


READERS: dict[str, Callable[[Path, Counter[str]], Positioned]] = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": _table,
    "arrow": _table,
}
