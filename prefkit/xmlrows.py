"""Rows of a Stack Exchange dump (`<row …/>`) from any stretch of bytes, whatever surrounds or damages them.

Attribute values cannot hold a raw `<`, so a row is what lies between `<row` and the next `<`. That one fact survives
files on a single line, CRLF, any prolog (BOM, comments, DOCTYPE), byte ranges and truncated tails; entities are
never resolved.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from lxml import etree

BLOCK_BYTES = 1 << 20
START = re.compile(rb"<row(?=[\s/>])")
OTHER = re.compile(
    rb"<(?!row[\s/>]|(?:posts|postlinks|users|votes)\b|[/?!])[^<]*=[^<]*"
)  # in a row's place: `<rwo Id="1" />`
TAG = re.compile(rb"""<(?:[^<>"']|"[^<"]*"|'[^<']*')*>""")
WHOLE = re.compile(rb"""<row(?:[^<>"']|"[^<"]*"|'[^<']*')*/>""")
COMMENT = re.compile(rb"<!--.*?-->", re.S)
REFERENCE = re.compile(rb"&#(?:x([0-9A-Fa-f]{1,8})|([0-9]{1,10}));")
CONTROLS = bytes(set(range(32)) - {9, 10, 13})
Attributes = dict[str, str]
Row = Any  # an lxml element: `row.get(name)` reads an attribute, `row.items()` all


@dataclass(frozen=True, slots=True)
class Damaged:
    """A row that is not XML even after repair, or an element in a row's place, as it stands in the file."""

    raw: str


class Framer:
    """Cuts a stream of bytes into blocks of whole rows; `lines` counts the line ends passed so far."""

    def __init__(self, block_bytes: int = BLOCK_BYTES):
        self.block_bytes, self.lines = block_bytes, 0
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(line of its first byte counted from 0, block) for each block that `data` completes."""
        self._pieces.append(data)
        self._size += len(data)
        if self._size >= self.block_bytes and b"<" in data:
            buffer = b"".join(self._pieces)
            cut = max(buffer.rfind(b"<row"), 0) or buffer.rfind(b"<")  # a broken row keeps what it spills
            self._pieces, self._size = [buffer[cut:]], len(buffer) - cut
            yield self._block(buffer[:cut])

    def close(self) -> Iterator[tuple[int, bytes]]:
        """The last block."""
        yield self._block(b"".join(self._pieces))
        self._pieces, self._size = [], 0

    def _block(self, block: bytes) -> tuple[int, bytes]:
        first = self.lines
        self.lines += line_ends(block)
        return first, block


def line_ends(data: bytes) -> int:
    """How many line ends there are: ten times as fast as `bytes.count`."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == ord("\n")))


def byte_range(path: Path, start: int, stop: int) -> Iterator[bytes]:
    """The bytes from `start` to the first `<` at or after `stop`: neighbouring ranges share no row and lose none."""
    with path.open("rb") as f:
        f.seek(start)
        left = stop - start
        while left > 0 and (data := f.read(min(left, BLOCK_BYTES))):
            left -= len(data)
            yield data
        while data := f.read(1 << 16):
            end = data.find(b"<")
            yield data if end < 0 else data[:end]
            if end >= 0:
                return


UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def utf16(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """A UTF-16 stream (with its BOM) as UTF-8."""
    return map(decoder(UTF16_MARKS[0]), chunks)


def decoder(head: bytes) -> Callable[[bytes], bytes]:
    """What makes UTF-8 of the chunks of a stream that begins so, if that is the mark of UTF-16."""
    if not head.startswith(UTF16_MARKS):
        return lambda data: data
    found = codecs.getincrementaldecoder("utf-16")(errors="surrogatepass")  # to be repaired, and counted, row by row
    return lambda data: found.decode(data).encode(errors="surrogatepass")


def parse(block: bytes, line: int, tally: Counter[str]) -> list[tuple[int, Attributes | Damaged]]:
    """The rows of a block as `elements` finds them, with their attributes as a dict."""
    return [(n, row if isinstance(row, Damaged) else dict(row.items())) for n, row in elements(block, line, tally)]


def elements(block: bytes, line: int, tally: Counter[str]) -> list[tuple[int, Row | Damaged]]:
    """The rows of a block, each with its line counted as `line` is.

    Counts in `tally`: `repairs.illegal_character` (control characters and references that XML forbids, dropped) and
    `repairs.invalid_utf8`, per row repaired.
    """
    if b"<!--" in block:
        block = COMMENT.sub(lambda m: b"\n" * m[0].count(b"\n"), block)
    starts = [m.start() for m in START.finditer(block)]
    rows = _rows(block[starts[0] : block.rfind(b"/>") + 2]) if starts else []
    found: list[tuple[int, Row | Damaged]] = list(zip(starts, rows or [], strict=False))
    if rows is None or len(rows) != len(starts):
        found = [row for a, b in pairwise([*starts, len(block)]) for row in _stretch(block, a, b, tally)]
    if block.count(b"<") > len(starts):
        first = starts[0] if starts else len(block)
        found = sorted([*_before(block, first), *found, *_others(block, found)], key=lambda row: row[0])
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 10)
    lines = np.searchsorted(ends, [start for start, _ in found]) + line
    return list(zip(lines.tolist(), [row for _, row in found], strict=True))


def _stretch(block: bytes, a: int, b: int, tally: Counter[str]) -> Iterator[tuple[int, Row | Damaged]]:
    """The row that begins at `a`, and what lies between it and the next: a row that lost its `<`."""
    whole = WHOLE.match(block, a, b)
    yield a, _one(block[a : whole.end() if whole else b], tally)
    if whole and b"=" in (lost := block[whole.end() : b].partition(b"<")[0]):
        yield whole.end() + len(lost) - len(lost.lstrip()), Damaged(lost.strip().decode("utf-8", "replace"))


def _before(block: bytes, first: int) -> Iterator[tuple[int, Damaged]]:
    """What stands before the first row, behind a tag (what is before that is another slice's): it lost its `<`."""
    start = block.find(b"<", 0, first)
    text = TAG.sub(lambda m: b" " * len(m[0]), block[start:first]) if start >= 0 else b""
    if b"=" in text:
        yield start + len(text) - len(text.lstrip()), Damaged(text.strip().decode("utf-8", "replace"))


def _others(block: bytes, rows: list[tuple[int, Row | Damaged]]) -> Iterator[tuple[int, Damaged]]:
    """Elements other than rows, but for what a damaged row before them already holds, and for another root."""
    starts = [start for start, _ in rows]
    for m in OTHER.finditer(block):
        owner = bisect(starts, m.start()) - 1
        if (owner < 0 and b"Id=" in m[0]) or (owner >= 0 and not isinstance(rows[owner][1], Damaged)):
            yield m.start(), Damaged(m[0].rstrip().decode("utf-8", "replace"))


def _rows(rows: bytes) -> list[Row] | None:
    """All rows at once; None where something is not well-formed, or looks like a row but is none."""
    parser = etree.XMLParser(huge_tree=True, resolve_entities=False, no_network=True)
    try:
        root = etree.fromstring(b"<r>" + rows + b"</r>", parser)
    except etree.XMLSyntaxError:
        return None
    if any("=" in row.tail for row in root if row.tail):
        return None
    found = list(root)
    return found if all(row.tag == "row" for row in found) else [row for row in found if row.tag == "row"]


def _one(raw: bytes, tally: Counter[str]) -> Row | Damaged:
    """The row that a stretch begins with, repaired where that is enough; Damaged keeps the whole stretch."""
    whole, raw = raw.rstrip(), raw[: end if (end := raw.find(b"<", 1)) > 0 else len(raw)].rstrip()
    if parsed := _rows(raw):
        return parsed[0]
    legal = REFERENCE.sub(_keep_legal, raw).translate(None, CONTROLS)
    valid = legal.decode("utf-8", "replace").encode()
    parsed = _rows(valid)
    if not parsed:
        return Damaged(whole.decode("utf-8", "replace"))
    tally["repairs.illegal_character"] += legal != raw
    tally["repairs.invalid_utf8"] += valid != legal
    return parsed[0]


def _keep_legal(m: re.Match[bytes]) -> bytes:
    code = int(m[1], 16) if m[1] else int(m[2])
    legal = code in (9, 10, 13) or 32 <= code < 0xD800 or 0xE000 <= code < 0xFFFE or 0x10000 <= code < 0x110000
    return m[0] if legal else b""
