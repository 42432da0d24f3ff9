"""Your own pairs: prompt, chosen and rejected as strings or message lists, under any column names.

The shapes are those of https://huggingface.co/docs/trl/dataset_formats#preference: explicit prompt, conversational,
and implicit prompt (chosen and rejected are conversations that share their first turns), as message lists or as the
transcripts of https://github.com/anthropics/hh-rlhf. A list of several responses on a side makes every chosen one a
pair with every rejected one, all of one set (RewardBench 2, RM-Bench).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit import columns, tables
from prefkit.columns import Columns
from prefkit.file_formats import readable_files
from prefkit.messages import messages_of, shared_prompt, system_turns, transcript_turns, without_prompt
from prefkit.readers import column_names
from prefkit.schema import Message, Pair, prompt_hash
from prefkit.shards import MANIFEST
from prefkit.sources import Record, Refused, Source, Tie
from prefkit.unseen import encodable

NAME = "pairs"
NUMBERS = ("score_chosen", "score_rejected", "margin", "p_chosen")  # passed through where present
KNOWN = ("id", "source_id", "set_id", "subset", "positions", *NUMBERS)  # columns that `meta` does not repeat
SAY_WHICH = {"label", "winner", "preference", "preferred", "better", "better_response_id"}


@dataclass(frozen=True)
class PairsOptions:
    """Column names. `prompt` may be absent where chosen and rejected are whole conversations; `group` names what must
    stay in one split beside equal prompts."""

    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    system: str = "system"
    group: str | None = None
    name: str | None = None


def to_pairs(record: Record, options: PairsOptions) -> Iterator[Pair | Tie]:
    """One pair a record, or those of an n-way set, chosen by chosen; a record without a named column is refused, and
    so is one with tools, which pairs have no place for. Equal scores are a tie, whatever the columns are called."""
    if _has_tools(record.get("tools")):
        raise Refused("tools_unsupported")
    for name in ("prompt", "system", "group"):
        column = getattr(options, name)
        empty = column not in record if name == "system" else record.get(column) in (None, "")
        if column != getattr(PairsOptions, name) and empty:
            raise Refused(f"missing_{name}")
    all_chosen, all_rejected = (_responses(record.get(column)) for column in (options.chosen, options.rejected))
    several = len(all_chosen) > 1 or len(all_rejected) > 1
    made = [_pair(record, options, c, r) for c in all_chosen for r in all_rejected]
    source_id = next((str(record[k]) for k in ("source_id", "id") if record.get(k) is not None), "")
    for pair in made:
        if _is_tie(pair):
            yield Tie()
        elif record.get("set_id") is not None:
            yield replace(pair, set_id=f"{pair.source}/{record['set_id']}")
        elif several:
            content = prompt_hash(_hashable([m for p in made for m in (*p.prompt, *p.chosen, *p.rejected)]))
            yield replace(pair, set_id=f"{pair.source}/{source_id or content}")
        else:
            yield pair


def _is_tie(pair: Pair) -> bool:
    """Equal scores, as float32 holds them, and no share that says which side is better."""
    if pair.score_chosen is None or pair.score_rejected is None or pair.p_chosen not in (None, 0.5):
        return False
    return bool(np.float32(pair.score_chosen) == np.float32(pair.score_rejected))


def _has_tools(value: Any) -> bool:
    """Whether a cell defines tools: a list of objects, or one as JSON."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        return True
    return isinstance(value, list) and any(isinstance(tool, dict) for tool in value)


def _responses(value: Any) -> list[Any]:
    """The cells of a side: a list of strings or of message lists holds several responses."""
    if isinstance(value, list) and value and all(isinstance(v, str | list) for v in value):
        return value
    return [value]


def _pair(record: Record, options: PairsOptions, chosen_cell: Any, rejected_cell: Any) -> Pair:
    prompt = messages_of(record.get(options.prompt), "user")
    chosen = messages_of(chosen_cell, "assistant")
    rejected = messages_of(rejected_cell, "assistant")
    if chosen is None or rejected is None:
        raise Refused("missing_text")
    if prompt is None:
        prompt, chosen, rejected = shared_prompt(transcript_turns(chosen), transcript_turns(rejected))
    else:
        chosen, rejected = without_prompt(prompt, chosen), without_prompt(prompt, rejected)
    meta = _extra(record, {options.prompt, options.chosen, options.rejected, options.system, *KNOWN})
    system = system_turns(record.get(options.system))
    if system and prompt and prompt[0]["role"] != "system":
        prompt = [*system, *prompt]
    elif system and prompt[: len(system)] != system:  # the conversation's own stands
        meta[options.system] = "\n\n".join(m["content"] for m in system)
    group = record.get(options.group) if options.group else None
    source = options.name or NAME
    score_chosen, score_rejected, margin, p_chosen = (_number(record.get(k)) for k in NUMBERS)
    if p_chosen is not None and not 0 <= p_chosen <= 1:
        raise Refused("bad_number")
    return Pair(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        source=source,
        subset=str(record.get("subset") or ""),
        group_key=f"{source}/{prompt_hash(_hashable(prompt)) if group is None else group}",
        source_id=str(next((record[k] for k in ("source_id", "id") if record.get(k) is not None), "")),
        score_chosen=score_chosen,
        score_rejected=score_rejected,
        margin=margin,
        p_chosen=p_chosen,
        meta=meta,
    )


def to_columns(batch: pa.RecordBatch, options: PairsOptions) -> Columns | None:
    """Rows with three sound texts and a prompt of their own, where no option asks for more of them."""
    if options.group is not None or options.system != PairsOptions.system:
        return None
    asked = (options.prompt, options.chosen, options.rejected)
    texts: list[Any] = [columns.strings(batch, c) for c in (*asked, options.system, "subset")]
    ids: list[Any] = [columns.names(batch, c) for c in ("source_id", "id", "set_id")]
    scores: list[Any] = [_numbers(batch, name) for name in NUMBERS]
    if any(c is None for c in (*texts, *ids, *scores)):
        return None
    taken = ~columns.there(texts[3])  # a system turn goes before the prompt
    for column in (*texts, *ids):
        taken &= columns.sound(column)
    for column in texts[:3]:
        taken &= columns.true(pc.invert(pc.match_substring(column, '[{"')), unknown=False)
    for column in scores:
        taken &= columns.true(pc.is_finite(column), unknown=True)
    better, worse, _, share = scores
    taken &= columns.true(pc.not_equal(texts[0], ""), unknown=False)
    taken &= columns.true(pc.not_equal(*(c.cast(pa.float32(), safe=False) for c in (better, worse))), unknown=True)
    taken &= _without_tools(batch)
    taken &= columns.true(pc.and_(pc.greater_equal(share, 0), pc.less_equal(share, 1)), unknown=True)
    keep, n, source = pa.array(taken), int(taken.sum()), tables.clean(options.name or NAME, Counter())
    prompt, chosen, rejected, _, subset, source_id, plain_id, set_id = (c.filter(keep) for c in (*texts, *ids))
    values = {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "source": pa.repeat(source, n),
        "subset": subset.fill_null(""),
        "group_key": pa.array([f"{source}/{h}" for h in columns.prompt_hashes(prompt)], pa.string()),
        "set_id": pc.binary_join_element_wise(source, set_id, "/"),
        "source_id": pc.coalesce(source_id, plain_id, ""),
    } | {name: c.filter(keep).cast(pa.float32(), safe=False) for name, c in zip(NUMBERS, scores, strict=True)}
    known = {*asked, *KNOWN, options.system}
    others = [i for i, f in enumerate(batch.schema) if f.name not in known and not _never_kept(f.type)]
    if not others:
        return Columns(taken, values)
    rows = pa.Table.from_batches([batch]).select(others).filter(keep).to_pylist()
    return Columns(taken, values, [_extra(row, known) for row in rows])


def _numbers(batch: pa.RecordBatch, name: str) -> pa.DoubleArray | None:
    if name not in batch.schema.names:
        return pa.nulls(batch.num_rows, pa.float64())
    column = batch.column(name)
    known = pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type)
    return column.cast(pa.float64(), safe=False) if known else None


def _without_tools(batch: pa.RecordBatch) -> np.ndarray:
    """Rows whose column `tools`, if there is one, is null or an empty list: bool[n]."""
    if "tools" not in batch.schema.names:
        return np.ones(batch.num_rows, dtype=bool)
    tools = batch.column("tools")
    if pa.types.is_list(tools.type) or pa.types.is_large_list(tools.type):
        return columns.true(pc.equal(pc.list_value_length(tools), 0), unknown=True)
    return tools.is_null().to_numpy(zero_copy_only=False)


def _never_kept(kind: pa.DataType) -> bool:
    """Whether values of this type are neither text nor numbers, so that `meta` has no place for them."""
    return pa.types.is_temporal(kind) or pa.types.is_nested(kind)


def _extra(record: Record, known: set[str]) -> dict:
    """What `meta` keeps: values of a record that no column of a pair holds."""
    return {k: _plain(v) for k, v in record.items() if k not in known and isinstance(v, str | int | float | bool)}


def _plain(value: str | int | float | bool) -> str | int | float | bool:
    """What JSON can hold: a number that is not finite becomes its name."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _hashable(prompt: list[Message]) -> list[Message]:
    """For hashing only: text may still hold lone surrogates."""
    return [{"role": encodable(m["role"]), "content": encodable(m["content"])} for m in prompt]


def _number(value: Any) -> float | None:
    try:
        number = None if value is None or value == "" else float(value)
    except (TypeError, ValueError, OverflowError):
        raise Refused("bad_number") from None
    if number is not None and not math.isfinite(number):
        raise Refused("bad_number")
    return number


def recognises(path: Path) -> bool:
    """A file, or a folder of files, of a format that can be read; no data set, which holds pairs already."""
    return bool(readable_files(path)) and not (path / MANIFEST).exists()


def label_column(names: Iterable[str]) -> str | None:
    """A column that seems to say which response is better, by its name."""
    return next((name for name in names if name.lower() in SAY_WHICH), None)


def warnings(files: list[Path], options: PairsOptions) -> list[str]:
    """Of columns that were named as chosen and rejected beside one that may say otherwise."""
    if (options.chosen, options.rejected) == (PairsOptions.chosen, PairsOptions.rejected):
        return []
    found = {label for file in files if (label := label_column(column_names(file)))} - {*vars(options).values()}
    sides = f"{options.chosen} is taken for better than {options.rejected} in every record"
    return [f"the column {label} is not read, {sides}: is that so?" for label in sorted(found)]


SOURCE = Source(
    name=NAME,
    summary="JSON, CSV, Parquet or Arrow with prompt, chosen, rejected as strings or message lists",
    licence="your own",
    to_pairs=to_pairs,
    to_columns=to_columns,
    options=PairsOptions,
    recognises=recognises,
    warnings=warnings,
)
