"""Records of JSON, JSON lines, CSV, Parquet and Arrow files (also .gz and .zst), each with its position in the file."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from prefkit.errors import UserError
from prefkit.file_formats import Piece, file_format, open_file, readable
from prefkit.tabular import batches, count_rows, is_table, refuse_twins, row_groups, table_columns

Record = dict[str, Any]
Positioned = Iterator[
    tuple[int, Record | str]
]  # place in the file from 1, then the record or, if it is damaged, its text
BATCH_ROWS = 1024  # of a table as records, which take much memory


def pieces(path: Path, step: int) -> list[Piece]:
    """A file in parts of about `step` bytes, where its format can be entered in the middle."""
    size, name = path.stat().st_size, path.name.lower()
    if size > step and file_format(path) == "jsonl" and not name.endswith((".gz", ".zst")):
        return [Piece("bytes", a, min(a + step, size)) for a in range(0, size, step)]
    if size > step and is_table(path) and not name.endswith((".gz", ".zst")):
        n = row_groups(path)
        each = max(1, n * step // size)
        return [Piece("groups", a, min(a + each, n)) for a in range(0, n, each)]
    return [Piece()]


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
        found = _rows(batches(path, piece, BATCH_ROWS))
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
    reader = READERS[file_format(path)]
    with readable(path):
        for place, record in reader(path, Counter() if tally is None else tally):
            yield f"{path.name}:{place}", record


def column_names(path: Path) -> list[str]:
    """The columns of a table, or the keys of a file's first record; none where no record is sound."""
    if is_table(path):
        return table_columns(path)
    return list(next((r for _, r in read_records(path) if isinstance(r, dict)), {}))


def count_records(path: Path) -> int:
    """How many records a file has; those of lines are read for it."""
    return count_rows(path) if is_table(path) else sum(1 for _ in read_records(path))


def _decode(raw: bytes, tally: Counter[str], encoding: str = "utf-8-sig") -> str:
    """The text of UTF-8 bytes, a BOM left out; what is not UTF-8 is replaced and counted once."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        tally["repairs.invalid_utf8"] += 1
        return raw.decode(encoding, "replace")


def _jsonl(path: Path, tally: Counter[str]) -> Positioned:
    with open_file(path) as f:
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
    with open_file(path) as f:
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
    with open_file(path) as f:
        rows = csv.DictReader(
            _sound(io.TextIOWrapper(f, "utf-8-sig", "surrogateescape", newline=""), tally),
            delimiter="\t" if ".tsv" in path.name.lower() else ",",
            strict=True,  # a stray quote must not swallow the rest of the file
        )
        refuse_twins([n for n in rows.fieldnames or () if n], path)
        for record in rows:
            extra = cast(dict, record).pop(None, None)
            yield rows.line_num, record if extra is None else json.dumps([*record.values(), *extra], ensure_ascii=False)


def _sound(lines: Iterable[str], tally: Counter[str]) -> Iterator[str]:
    """Lines whose escaped bytes, which were not UTF-8, are replaced."""
    for line in lines:
        yield line if line.isascii() else _decode(line.encode(errors="surrogateescape"), tally, "utf-8")


def _table(path: Path, tally: Counter[str]) -> Positioned:
    return _rows(batches(path, Piece(), BATCH_ROWS))


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
