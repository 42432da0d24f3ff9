"""The attributes of a block of rows as columns, by the places of its quotes: no object is made for a row or a value.

An attribute's value holds no raw quote, so quotes cut a block into values and what lies between them. Of the latter
there are few distinct texts (`" PostTypeId="`, `" />\\n  <row Id="`), and a block is taken only where each is what XML
has there and the values need no more than unescaping. Whatever else there is, `xmlrows.elements` sees row by row.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

SPACE, NAME = rb"[ \t\r\n]", rb"(?!xml)[A-Za-z_][A-Za-z0-9_.-]*"
BETWEEN = re.compile(rb'(?:<row|"(?:%b*/>%b*<row)?)%b+(%b)%b*=%b*"' % (SPACE, SPACE, SPACE, NAME, SPACE, SPACE))
# Or the end of a row that is another slice's.
PROLOG = re.compile(rb"(?:\xef\xbb\xbf)?%b*(?:<\?xml[^<>]*\?>)?%b*(?:<%b>)?%b*|[^<]*" % (SPACE, SPACE, NAME, SPACE))
LAST = re.compile(rb'"%b*/>%b*(?:</%b>%b*)?' % (SPACE, SPACE, NAME, SPACE))
REFERENCES = {  # the most frequent first
    b"&lt;": "<", b"&gt;": ">", b"&#xA;": "\n", b"&quot;": '"', b"&amp;": "&", b"&#xD;": "\r", b"&#x9;": "\t",
    b"&apos;": "'", b"&#39;": "'", b"&#x27;": "'", b"&#10;": "\n", b"&#13;": "\r", b"&#9;": "\t",
}  # fmt: skip
WORD = 8  # bytes, in which any of them fits
ALL = slice(None)


class Columns:
    """The rows of a block; `lines` int64[n] are counted as the block's first is."""

    def __init__(self, lines: np.ndarray, cells: pa.StringArray, places: dict[str, np.ndarray]):
        self.lines, self._cells, self._places = lines, cells, places

    def __len__(self) -> int:
        return len(self.lines)

    def column(self, name: str, rows: np.ndarray | slice = ALL) -> pa.StringArray:
        """The values of an attribute in some rows (all by default), null where one has none."""
        places = self._places.get(name)
        if places is None:
            return pa.nulls(len(self.lines[rows]), pa.string())
        return self._cells.take(pa.array(places[rows], mask=places[rows] < 0))

    def row(self, i: int) -> dict[str, str]:
        """The attributes of one row, in its order."""
        places = sorted((int(of_row[i]), name) for name, of_row in self._places.items() if of_row[i] >= 0)
        return {name: self._cells[place].as_py() for place, name in places}


def columns(block: bytes, line: int) -> Columns | None:
    """The rows of a block whose first line is `line`; None where they must be seen one by one."""
    start = block.find(b"<row")
    if start < 0 or len(block) >= 1 << 31 or not PROLOG.fullmatch(block, 0, start):
        return None
    data = np.frombuffer(block, np.uint8)[start:]
    quotes = np.flatnonzero(data == ord('"'))
    cuts = np.concatenate([[0], quotes, [len(data)]])
    cuts[1:-1:2] += 1  # quotes stay with what lies between
    between = _cells(data, cuts)[::2].dictionary_encode()
    texts, codes = between.dictionary.to_pylist(), between.indices.to_numpy()
    names = [BETWEEN.fullmatch(text) for text in texts[:-1]]
    odd = np.array([_odd(np.frombuffer(text, np.uint8)) for text in texts])[codes].sum()
    if not all(names) or not LAST.fullmatch(texts[-1]) or _odd(data) != odd:
        return None
    try:
        cells = _cells(*_unescaped(data, cuts)).cast(pa.string())
    except (KeyError, pa.ArrowInvalid):  # an unusual reference, or bytes that are not UTF-8
        return None
    opens = np.array([text.find(b"<row") for text in texts])[codes]  # -1: the same row goes on
    row = np.cumsum(opens >= 0) - 1
    places = _places([m[1].decode() for m in names if m], codes[:-1], row[:-1])
    if places is None:
        return None
    starts = start + (cuts[:-1:2] + opens)[opens >= 0]
    ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
    return Columns(np.searchsorted(ends, starts) + line, cells, places)


def _places(names: list[str], codes: np.ndarray, row: np.ndarray) -> dict[str, np.ndarray] | None:
    """Of each attribute, the cell of its value in each row, or -1; None where a row has one twice."""
    numbers = {name: n for n, name in enumerate(dict.fromkeys(names))}
    number, found = np.array([numbers[name] for name in names])[codes], {}
    for name, n in numbers.items():
        at = np.flatnonzero(number == n)
        found[name] = np.full(row[-1] + 1, -1)
        found[name][row[at]] = 2 * at + 1
        if np.count_nonzero(found[name] >= 0) < len(at):
            return None
    return found


def _odd(data: np.ndarray) -> int:
    """How many bytes no value may hold: `<`, controls, line ends (XML takes them for spaces) and U+FFFE and U+FFFF."""
    found = np.count_nonzero((data < 32) & (data != ord("\t"))) + np.count_nonzero(data == ord("<"))
    third = np.flatnonzero(data[:-2] == 0xEF) + 2
    return int(found) + int(np.count_nonzero((data[third - 1] == 0xBF) & (data[third] >= 0xBE)))


def _cells(data: np.ndarray, cuts: np.ndarray) -> pa.BinaryArray:
    """The bytes between each two cuts, without a copy."""
    return pa.Array.from_buffers(
        pa.binary(), len(cuts) - 1, [None, pa.py_buffer(cuts.astype(np.int32)), pa.py_buffer(data)]
    )


def _unescaped(data: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bytes with spaces for tabs and characters for references, and where the cuts come to lie.

    KeyError for a reference that is none of `REFERENCES`.
    """
    at = np.flatnonzero(data == ord("&"))
    padded = np.concatenate([data, np.zeros(WORD, np.uint8)])
    words = np.ndarray(len(data), np.dtype("<u8"), padded, strides=(1,))[at]  # what stands there, as numbers
    width, character = np.zeros(len(at), np.int64), np.zeros(len(at), np.uint8)
    for text, meant in REFERENCES.items():
        if width.all():
            break
        same = words & np.uint64((1 << 8 * len(text)) - 1) == int.from_bytes(text, "little")
        width[same], character[same] = len(text), ord(meant)
    if not width.all():
        raise KeyError
    padded[padded == ord("\t")] = ord(" ")  # https://www.w3.org/TR/xml/#AVNormalize
    padded[at] = character
    keep = np.ones(len(padded), dtype=bool)
    for k in range(1, max(map(len, REFERENCES))):
        keep[at[width > k] + k] = False
    keep[len(data) :] = False
    gone = np.concatenate([[0], np.cumsum(width - 1)])  # bytes before each reference, and before the end
    return padded[keep], cuts - gone[np.searchsorted(at, cuts)]
