"""Items to judge out of what people have: pairs of a data set, or JSON lines of a prompt with two responses."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from prefkit.errors import UserError
from prefkit.judgements.items import Draft, Response
from prefkit.readers import Record, read_records
from prefkit.schema import Message, prompt_hash
from prefkit.unseen import encodable
from prefkit.wording import counts_text

SHAPE = 'a line is {"prompt": "…", "responses": ["…", "…"]}'
ATTRIBUTION = {"licenses": "license", "urls": "url", "authors": "author"}  # column -> key in an origin


@dataclass(frozen=True, slots=True)
class Drafts:
    """Items to judge, and records that gave none, by reason."""

    items: list[Draft]
    left_out: Counter[str]


def as_messages(value: object, role: str) -> list[Message]:
    """A text as one message of that role, a list of messages as it is; ValueError for anything else."""
    if isinstance(value, str) and value.strip():
        return [{"role": role, "content": encodable(value)}]
    if isinstance(value, list) and value and all(_is_message(m) for m in value):
        return [{"role": encodable(m["role"]), "content": encodable(m["content"])} for m in value]
    raise ValueError(f"neither a text nor messages: {value!r:.60}")


def drafts_of_pairs(pairs: pa.Table, *, limit: int | None = None, seed: int = 0) -> Drafts:
    """Pairs of a data set as items; the producers are its columns, chosen and rejected.

    `limit` keeps the pairs with the smallest hashes of seed and id: a larger limit adds to a smaller one.
    """
    ids = pairs["id"].to_pylist()
    kept = sorted(range(len(ids)), key=lambda i: _hash(seed, ids[i]))[:limit]
    items, left_out = [], Counter({"limit": len(ids) - len(kept)})
    for row in _rows(pairs.take(pa.array(kept, pa.int64()))):
        if prompt_hash(row["chosen"]) == prompt_hash(row["rejected"]):
            left_out["identical responses"] += 1
            continue
        of_prompt, of_chosen, of_rejected = (_attribution(row, i) for i in range(3))
        known = {k: row[k] for k in ("source", "subset", "source_id") if row[k]}
        sides = [Response(row["chosen"], "chosen", of_chosen), Response(row["rejected"], "rejected", of_rejected)]
        items.append(Draft(row["prompt"], sides, row["group_id"], known | of_prompt))
    return Drafts(items, +left_out)


def drafts_of_file(path: Path, *, limit: int | None = None, seed: int = 0) -> Drafts:
    """Records {prompt, responses: [two]} of a JSON lines (or other) file as items, nobody knows by whom.

    Raises `UserError` if no record at all has that shape.
    """
    items: list[Draft] = []
    left_out: Counter[str] = Counter()
    for _, record in read_records(path):
        try:
            items.append(_draft(record))
        except ValueError as e:
            left_out[str(e)] += 1
    if not items:
        raise UserError(f"nothing to judge: {counts_text(left_out) or 'no records'}", path, SHAPE)
    items.sort(key=lambda d: _hash(seed, prompt_hash(d.prompt)))
    if limit is not None and limit < len(items):
        left_out["limit"] = len(items) - limit
    return Drafts(items[:limit], left_out)


def _draft(record: Record | str) -> Draft:
    if isinstance(record, str):
        raise ValueError("damaged line")
    try:
        prompt = as_messages(record.get("prompt"), "user")
    except ValueError:
        raise ValueError("no prompt") from None
    responses = record.get("responses")
    if not isinstance(responses, list) or len(responses) != 2:
        raise ValueError("not two responses")
    try:
        sides = [Response(as_messages(r, "assistant")) for r in responses]
    except ValueError:
        raise ValueError("empty response") from None
    if prompt_hash(sides[0].messages) == prompt_hash(sides[1].messages):
        raise ValueError("identical responses")
    return Draft(prompt, sides, prompt_hash(prompt))


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def _attribution(row: dict, index: int) -> dict[str, str]:
    """Licence, url and author of the prompt (0), the chosen (1) or the rejected response (2), where known."""
    return {key: row[col][index] for col, key in ATTRIBUTION.items() if row[col] and row[col][index]}


def _rows(table: pa.Table) -> Iterator[dict]:
    for part in table.to_batches(max_chunksize=1024):
        yield from part.to_pylist()


def _hash(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{key}".encode(), digest_size=8).digest()
