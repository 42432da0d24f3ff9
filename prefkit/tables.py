"""Pairs as Arrow columns: messages, ids, and the repair of text that Arrow or a tokenizer could not carry."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from json.encoder import encode_basestring
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.schema import MESSAGES, PAIRS, Pair

SIDES = ("prompt", "chosen", "rejected")
# What convert carries before groups are known: PAIRS without `group_id`, with the source's own key and the records
# used; the texts stand apart, once each, and a row names them by number. `_prompt`, `_chosen` and `_rejected` are
# hashes of the texts.
CANDIDATES = pa.schema(
    [pa.field(f.name, pa.int32()) if f.name in SIDES else f for f in PAIRS if f.name != "group_id"]
    + [pa.field("group_key", pa.string()), *(pa.field(f"_{s}", pa.uint64()) for s in SIDES)]
    + [pa.field("_records", pa.list_(pa.int32()))]
)
json_string = encode_basestring  # json.dumps(text, ensure_ascii=False), without building an encoder for each text
CONTROLS = bytes(set(range(32)) - {9, 10, 13}) + b"\x7f"
AT_A_TIME = 1 << 18  # bytes that are looked at together: they fit the cache


class Candidates(NamedTuple):
    """Pairs before they are published: `table` is `CANDIDATES`, whose `prompt`, `chosen` and `rejected` are rows of
    `cells`, a `schema.MESSAGES` array in which each post or message list stands once."""

    cells: pa.ListArray
    table: pa.Table

    @property
    def rows(self) -> int:
        """How many pairs."""
        return self.table.num_rows

    def side(self, name: str) -> np.ndarray:
        """The cell of each pair's prompt, chosen or rejected: int32[n]."""
        return self.table[name].to_numpy()

    def filter(self, keep: np.ndarray) -> Candidates:
        """The pairs that a bool[n] marks; cells stay as they are."""
        return self if keep.all() else Candidates(self.cells, self.table.filter(pa.array(keep)))

    def spelled(self, rows: np.ndarray | None = None) -> pa.Table:
        """The rows (all by default) with their messages in place of cell numbers."""
        table = self.table if rows is None else self.table.take(pa.array(rows))
        for name in SIDES:
            column = self.cells.take(table[name].combine_chunks())
            table = table.set_column(table.schema.get_field_index(name), pa.field(name, MESSAGES), column)
        return table


def clean(text: str, tally: Counter[str]) -> str:
    """Text without control characters, carriage returns and lone surrogates; counts `repairs.*` per text touched."""
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        tally["repairs.lone_surrogate"] += 1
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        tally["repairs.carriage_return"] += 1
    kept = data.translate(None, CONTROLS)
    if len(kept) == len(data) == len(text):
        return text
    tally["repairs.control_character"] += len(kept) != len(data)
    return kept.decode()


def clean_column(texts: Sequence[str | None], tally: Counter[str]) -> pa.Array:
    """Texts as a string column, each as `clean` leaves it."""
    try:
        column = pa.array(texts, pa.string())
    except UnicodeEncodeError:
        return pa.array([None if t is None else clean(t, tally) for t in texts], pa.string())
    rows = unclean(column)
    if not len(rows):
        return column
    pieces, done = [], 0
    for i in rows.tolist():
        pieces += [column.slice(done, i - done), pa.array([clean(texts[i] or "", tally)], pa.string())]
        done = i + 1
    return pa.concat_arrays([*pieces, column.slice(done)])


def unclean(column: pa.StringArray) -> np.ndarray:
    """The texts that `clean` would change: int64[m], ascending."""
    data, found = string_bytes(column), []
    for a in range(0, len(data), AT_A_TIME):
        part = data[a : a + AT_A_TIME]
        bad = (part < 32) & (part != 9) & (part != 10) | (part == 127)
        if bad.any():
            found.append(np.flatnonzero(bad) + a)
    if not found:
        return np.zeros(0, np.int64)
    cuts = string_offsets(column)
    return np.unique(np.searchsorted(cuts, cuts[0] + np.concatenate(found), side="right") - 1)


def string_bytes(column: pa.Array) -> np.ndarray:
    """The UTF-8 bytes of all texts of a string column, end to end: uint8[n], without a copy."""
    if not len(column):
        return np.zeros(0, np.uint8)
    cuts = string_offsets(column)
    data = column.buffers()[2]
    return np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)[cuts[0] : cuts[-1]]


def string_offsets(column: pa.Array) -> np.ndarray:
    """Where each text begins and the last ends in the column's buffer: int32[n + 1]."""
    return np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]


def edges(column: pa.Array, rows: np.ndarray, n: int, *, end: bool = False) -> np.ndarray:
    """The first (or last) n bytes of the texts at `rows`, which have as many: uint8[m, n]."""
    cuts = string_offsets(column) - string_offsets(column)[0]
    at = cuts[rows + 1] - n if end else cuts[rows]
    return string_bytes(column)[at[:, None] + np.arange(n)]


def concat(parts: Sequence[Candidates]) -> Candidates:
    """Candidates one after the other."""
    if len(parts) == 1:
        return parts[0]
    found, before = [], 0
    for cells, table in parts:
        for name in SIDES:
            moved = pa.array(table[name].to_numpy() + np.int32(before))
            table = table.set_column(table.schema.get_field_index(name), CANDIDATES.field(name), moved)
        found.append(table)
        before += len(cells)
    return Candidates(pa.concat_arrays([p.cells for p in parts]), pa.concat_tables(found).combine_chunks())


def no_candidates() -> Candidates:
    """Not one pair."""
    return Candidates(pa.nulls(0, MESSAGES), CANDIDATES.empty_table())


def single_turns(roles: pa.Array, contents: pa.Array) -> pa.ListArray:
    """A column of one-message lists."""
    messages = pa.StructArray.from_arrays([roles, contents], fields=list(MESSAGES.value_type))
    return pa.ListArray.from_arrays(pa.array(np.arange(len(contents) + 1, dtype=np.int32)), messages)


def candidates(pairs: Sequence[Pair], records: Sequence[int], tally: Counter[str]) -> Candidates:
    """Pairs as `Candidates`; `records[i]` is the record that pair i came from."""
    turns = [m for p in pairs for side in (p.prompt, p.chosen, p.rejected) for m in side]
    lengths = [len(side) for p in pairs for side in (p.prompt, p.chosen, p.rejected)]
    messages = pa.StructArray.from_arrays(
        [clean_column([m["role"] for m in turns], tally), clean_column([m["content"] for m in turns], tally)],
        fields=list(MESSAGES.value_type),
    )
    columns: dict[str, Any] = {
        side: np.arange(k, 3 * len(pairs), 3, dtype=np.int32) for k, side in enumerate(SIDES)
    } | {
        "meta": clean_column([meta_json(p.meta) for p in pairs], Counter()),
        "_records": pa.ListArray.from_arrays(
            pa.array(np.arange(len(pairs) + 1, dtype=np.int32)), pa.array(records, pa.int32())
        ),
    }
    for name in ("group_key", "set_id", "source", "subset", "source_id"):
        columns[name] = clean_column([getattr(p, name) for p in pairs], Counter())
    for name in ("licenses", "urls", "authors", "flags"):
        lists = [getattr(p, name) for p in pairs]
        cuts = pa.array(_cuts([len(v) for v in lists]))
        columns[name] = pa.ListArray.from_arrays(cuts, clean_column([v for values in lists for v in values], Counter()))
    for name in ("score_chosen", "score_rejected", "margin", "p_chosen", "created"):
        columns[name] = [getattr(p, name) for p in pairs]
    return with_ids(pa.ListArray.from_arrays(pa.array(_cuts(lengths)), messages), columns)


meta_json = json.JSONEncoder(ensure_ascii=False, sort_keys=True).encode


def _cuts(lengths: Sequence[int]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)


def with_ids(cells: pa.ListArray, columns: dict[str, Any]) -> Candidates:
    """Candidates of cells and the columns but for what follows from the texts: `id`, `schema.pair_id` of each row, and
    blake2b-64 of its prompt, chosen and rejected."""
    texts = cell_json(cells)
    columns["id"] = list(_pair_ids(texts, *(columns[name].tolist() for name in SIDES)))
    hashes = _hashes(texts)
    columns |= {f"_{name}": hashes[columns[name]] for name in SIDES}
    arrays = [a if isinstance(a := columns[f.name], pa.Array) else pa.array(a, f.type) for f in CANDIDATES]
    return Candidates(cells, pa.table(arrays, schema=CANDIDATES))


def _pair_ids(texts: list[bytes], *sides: list[int]) -> Iterator[str]:
    """blake2b-128 of `[prompt,chosen,rejected]`; what pairs of one prompt have in common is hashed once."""
    last = None
    for prompt, chosen, rejected in zip(*sides, strict=True):
        if prompt != last:
            last, begun = prompt, hashlib.blake2b(b"[%b," % texts[prompt], digest_size=16)
        digest = begun.copy()
        digest.update(b"%b,%b]" % (texts[chosen], texts[rejected]))
        yield digest.hexdigest()


def cell_json(cells: pa.ListArray) -> list[bytes]:
    """Each cell, whose texts are clean, as the JSON that `schema.pair_id` hashes."""
    flat, cuts = cells.flatten(), offsets(cells)
    roles = flat.field(0).to_pylist()
    opened = {r: f'[{json_string(r)},"'.encode() for r in dict.fromkeys(roles)}
    turns = [opened[r] + t + b'"]' for r, t in zip(roles, _escaped(flat.field(1)), strict=True)]
    if len(turns) == len(cells) and (np.diff(cuts) == 1).all():
        return [b"[%b]" % t for t in turns]
    return [b"[%b]" % b",".join(turns[a:b]) for a, b in pairwise(cuts)]


def _escaped(texts: pa.StringArray) -> list[bytes]:
    """Clean texts as they stand between the quotes of JSON: all of them at once, apart by a byte that none holds."""
    if not len(texts):
        return []
    ends = pa.array(np.array([0, len(texts)], np.int32))
    whole = pc.binary_join(pa.ListArray.from_arrays(ends, texts), "\0")[0].as_buffer().to_pybytes()
    for raw, escape in ((b"\\", rb"\\"), (b'"', rb"\""), (b"\n", rb"\n"), (b"\t", rb"\t")):
        whole = whole.replace(raw, escape)
    return whole.split(b"\0")


def cell_hashes(cells: pa.ListArray) -> np.ndarray:
    """blake2b-64 of each cell's JSON, as in `_prompt`: uint64[m]."""
    return _hashes(cell_json(cells))


def offsets(lists: pa.ListArray) -> np.ndarray:
    """Where each list begins in `lists.flatten()`, from 0; no list may be null."""
    cuts = lists.offsets.to_numpy(zero_copy_only=False)
    return cuts - cuts[0]


def hash64(texts: Iterable[str]) -> np.ndarray:
    """blake2b-64 of each text: uint64[n]."""
    return _hashes(t.encode() for t in texts)


def _hashes(texts: Iterable[bytes]) -> np.ndarray:
    digests = b"".join([hashlib.blake2b(t, digest_size=8).digest() for t in texts])
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def hash64_column(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """`hash64` of a string column, each distinct text hashed once."""
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    codes = whole.dictionary_encode()
    return hash64(codes.dictionary.to_pylist())[codes.indices.to_numpy()] if len(codes) else np.zeros(0, np.uint64)


def content_bytes(messages: pa.ListArray) -> np.ndarray:
    """UTF-8 bytes of all contents in each cell: int64[n]."""
    lengths = pc.binary_length(messages.flatten().field(1)).to_numpy(zero_copy_only=False)
    total = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    cuts = offsets(messages)
    return total[cuts[1:]] - total[cuts[:-1]]


def triples(values: pa.Array, who: Sequence[np.ndarray]) -> pa.Array:
    """Lists of three, taken from `values` at who[0][i], who[1][i], who[2][i]."""
    index = np.stack(who, axis=1).ravel()
    return pa.ListArray.from_arrays(
        pa.array(np.arange(0, len(index) + 1, 3, dtype=np.int32)), values.take(pa.array(index))
    )
