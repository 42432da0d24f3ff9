"""Pairs as Arrow columns: messages, ids, and the repair of text that Arrow or a tokenizer could not carry."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from json.encoder import encode_basestring

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.schema import MESSAGES, PAIRS, Message, Pair

# What convert carries before groups are known: PAIRS without `group_id`, with the source's own key and the records
# used.
CANDIDATES = pa.schema(
    [f for f in PAIRS if f.name != "group_id"]
    + [pa.field("group_key", pa.string()), pa.field("_records", pa.list_(pa.int32()))]
)
_json = encode_basestring  # json.dumps(text, ensure_ascii=False), without building an encoder for each text
CONTROLS = bytes(set(range(32)) - {9, 10, 13}) + b"\x7f"


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


def single_turns(role: str, contents: pa.Array) -> pa.Array:
    """A column of one-message lists."""
    n = len(contents)
    messages = pa.StructArray.from_arrays(
        [pa.array([role], pa.string()).take(pa.array(np.zeros(n, np.int8))), contents], fields=list(MESSAGES.value_type)
    )
    return pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32)), messages)


def candidates(pairs: Sequence[Pair], records: Sequence[int], tally: Counter[str]) -> pa.Table:
    """Pairs as a `CANDIDATES` table; `records[i]` is the record that pair i came from."""

    def turns(messages: list[Message]) -> list[Message]:
        return [{"role": clean(m["role"], tally), "content": clean(m["content"], tally)} for m in messages]

    def text(value: str | None) -> str | None:
        return None if value is None else clean(value, Counter())

    columns = {
        "prompt": [turns(p.prompt) for p in pairs],
        "chosen": [turns(p.chosen) for p in pairs],
        "rejected": [turns(p.rejected) for p in pairs],
        "meta": [text(json.dumps(p.meta, ensure_ascii=False, sort_keys=True)) for p in pairs],
        "group_key": [text(p.group_key) for p in pairs],
        "_records": [[r] for r in records],
    }
    for name in ("set_id", "source", "subset", "source_id"):
        columns[name] = [text(getattr(p, name)) for p in pairs]
    for name in ("licenses", "urls", "authors", "flags"):
        columns[name] = [[text(v) for v in getattr(p, name)] for p in pairs]
    for name in ("score_chosen", "score_rejected", "margin", "p_chosen", "created"):
        columns[name] = [getattr(p, name) for p in pairs]
    columns["id"] = [""] * len(pairs)
    table = pa.table({f.name: pa.array(columns[f.name], f.type) for f in CANDIDATES}, schema=CANDIDATES)
    return with_ids(table)


def with_ids(table: pa.Table) -> pa.Table:
    """The table with its `id` column filled: `schema.pair_id` of each row."""
    prompt, chosen, rejected = (turn_json(table[c].combine_chunks()) for c in ("prompt", "chosen", "rejected"))
    ids = [
        hashlib.blake2b(f"[{p},{c},{r}]".encode(), digest_size=16).hexdigest()
        for p, c, r in zip(prompt, chosen, rejected, strict=True)
    ]
    return table.set_column(table.schema.get_field_index("id"), "id", pa.array(ids, pa.string()))


def turn_json(messages: pa.ListArray) -> list[str]:
    """Each cell as the JSON that `schema.pair_id` hashes; a text that stands in many cells is written once."""
    flat = messages.flatten()
    role, content = (flat.field(i).dictionary_encode() for i in (0, 1))
    roles = [_json(v) for v in role.dictionary.to_pylist()]
    contents = [_json(v) for v in content.dictionary.to_pylist()]
    turns = [
        f"[{roles[r]},{contents[c]}]"
        for r, c in zip(role.indices.to_pylist(), content.indices.to_pylist(), strict=True)
    ]
    if len(turns) == len(messages) and (np.diff(offsets(messages)) == 1).all():
        return [f"[{t}]" for t in turns]
    cuts = offsets(messages)
    return ["[" + ",".join(turns[a:b]) + "]" for a, b in pairwise(cuts)]


def offsets(lists: pa.ListArray) -> np.ndarray:
    """Where each list begins in `lists.flatten()`, from 0; no list may be null."""
    cuts = lists.offsets.to_numpy(zero_copy_only=False)
    return cuts - cuts[0]


def hash64(texts: Iterable[str]) -> np.ndarray:
    """blake2b-64 of each text: uint64[n]."""
    return np.array(
        [int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "big") for t in texts], dtype=np.uint64
    )


def hash64_column(column: pa.ChunkedArray) -> np.ndarray:
    """`hash64` of a string column, each distinct text hashed once."""
    codes = column.combine_chunks().dictionary_encode()
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
