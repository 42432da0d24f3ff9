"""Rows of a table → candidates without an object a row, for sources whose texts lie in columns of strings."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit import tables
from prefkit.schema import PAIRS
from prefkit.tables import Candidates


class Columns(NamedTuple):
    """What a source makes of a table by its columns: one pair of each row that is `taken`.

    `values` holds, for those rows, prompt, chosen and rejected as texts (one turn each), and of the other columns of
    `schema.Pair` what differs from its defaults. All texts are clean: `sound` says which are. `meta` is one dict a row.
    """

    taken: np.ndarray  # bool[n]
    values: dict[str, pa.Array]
    meta: list[dict] | None = None


def strings(batch: pa.RecordBatch, name: str) -> pa.StringArray | None:
    """A column of strings, nulls where the batch has none of that name; None where it holds anything else."""
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows, pa.string())
    column = batch.column(name)
    return column.cast(pa.string()) if is_text(column.type) or pa.types.is_null(column.type) else None


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type becomes one of strings as it is."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def names(batch: pa.RecordBatch, name: str) -> pa.StringArray | None:
    """A column of strings or integers, as `str` spells them; None where it holds anything else."""
    if name in batch.schema.names and pa.types.is_integer(batch.schema.field(name).type):
        return batch.column(name).cast(pa.string())
    return strings(batch, name)


def sound(column: pa.StringArray) -> np.ndarray:
    """Which texts are either null or such as `tables.clean` leaves alone: bool[n]."""
    marks = np.ones(len(column), dtype=bool)
    marks[tables.unclean(column)] = False
    return marks


def there(column: pa.Array) -> np.ndarray:
    """Which values are not null: bool[n]."""
    return column.is_valid().to_numpy(zero_copy_only=False)


def true(marks: Any, *, unknown: bool) -> np.ndarray:
    """An Arrow column of truth values as bool[n], `unknown` where it is null."""
    return pc.fill_null(marks, unknown).to_numpy(zero_copy_only=False)


def candidates(found: Columns, records: np.ndarray, name: str, rows: np.ndarray) -> Candidates:
    """The pairs as candidates: pair i came from record `records[i]`, which is row `rows[i]` of the input `name`."""
    n, values = len(records), found.values
    prompts = values["prompt"].dictionary_encode()
    responses = pa.chunked_array([values["chosen"], values["rejected"]]).dictionary_encode()
    chosen, rejected = responses.unify_dictionaries().chunks
    first = len(prompts.dictionary)
    texts = pa.concat_arrays([prompts.dictionary, chosen.dictionary])
    roles = pa.concat_arrays([pa.repeat("user", first), pa.repeat("assistant", len(chosen.dictionary))])
    columns = {f.name: _default(f, n) for f in PAIRS} | values
    columns |= {
        "prompt": prompts.indices.to_numpy(),
        "chosen": chosen.indices.to_numpy() + np.int32(first),
        "rejected": rejected.indices.to_numpy() + np.int32(first),
        "meta": _meta(found.meta, name, rows),
        "_records": pa.ListArray.from_arrays(pa.array(np.arange(n + 1, dtype=np.int32)), pa.array(records, pa.int32())),
    }
    return tables.with_ids(tables.single_turns(roles, texts), columns)


def prompt_hashes(texts: pa.StringArray) -> list[str]:
    """`schema.prompt_hash` of clean texts that are one turn of the user's each."""
    cells = tables.single_turns(pa.repeat("user", len(texts)), texts)
    return [hashlib.blake2b(t, digest_size=16).hexdigest() for t in tables.cell_json(cells)]


def _default(field: pa.Field, n: int) -> pa.Array:
    """A column as `schema.Pair` fills it where the source says nothing."""
    if pa.types.is_list(field.type):
        nothing = pa.array(np.zeros(n + 1, np.int32))
        return pa.ListArray.from_arrays(nothing, pa.nulls(0, field.type.value_type))
    return pa.repeat("", n) if field.name in ("subset", "source_id") else pa.nulls(n, field.type)


def _meta(extras: list[dict] | None, name: str, rows: np.ndarray) -> pa.Array:
    if extras is not None:
        positions = ({"positions": [f"{name}:{row}"]} for row in rows.tolist())
        return tables.clean_column([tables.meta_json(e | p) for e, p in zip(extras, positions, strict=True)], Counter())
    opening = tables.clean(json.dumps({"positions": [f"{name}:"]}, ensure_ascii=False).removesuffix('"]}'), Counter())
    return pc.binary_join_element_wise(opening, pa.array(rows).cast(pa.string()), '"]}', "")


def first_of_three(texts: pa.StringArray) -> pa.ListArray:
    """[text, "", ""] of each text that is not empty, [] of each that is: what is known of a prompt alone."""
    known = true(pc.not_equal(texts, ""), unknown=False)
    index = np.zeros((int(known.sum()), 3), np.int64)  # 0: nothing
    index[:, 0] = np.flatnonzero(known) + 1
    values = pa.concat_arrays([pa.array([""], pa.string()), texts]).take(pa.array(index.ravel()))
    cuts = np.concatenate([[0], np.cumsum(3 * known)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(cuts), values)


def first_hits(lists: pa.ListArray, hits: Any) -> pa.StringArray:
    """The first text of each list that is marked in `hits` (one mark a text), "" where none is."""
    at = np.flatnonzero(true(hits, unknown=False))
    rows, first = np.unique(pc.list_parent_indices(lists).to_numpy()[at], return_index=True)
    index = np.full(len(lists), -1)
    index[rows] = at[first]
    return lists.flatten().take(pa.array(index, mask=index < 0)).fill_null("")
