"""A split of a data set, or a file of conversations, as rows: read and encoded once, then taken from the cache."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from prefkit.errors import UserError
from prefkit.file_formats import is_readable
from prefkit.readers import read_records
from prefkit.schema import Message
from prefkit.shards import open_pairs, read_manifest
from prefkit.unseen import encodable
from train.core.encode import Limits, Template
from train.core.rows import PairText, Rows, build_examples, build_rows, pair_texts, without_ties
from train.data.cache import ENCODING_VERSION, cached_rows, digest, tokenizer_digest

Kind = Literal["pairs", "one_pair_per_row", "examples"]
BUILD: dict[Kind, Callable[..., Rows]] = {  # kind -> (pairs, tokenizer, template, limits) -> Rows
    "pairs": build_rows,
    "one_pair_per_row": partial(build_rows, one_pair_per_row=True),
    "examples": build_examples,
}


def data_digest(data: str | Path) -> str:
    """Names the content of a data set folder or of a file of conversations."""
    path = Path(data)
    if not path.is_file():
        return read_manifest(path).digest
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def splits_of(data: str | Path) -> list[str]:
    """Names of the splits; a file has none."""
    return [] if Path(data).is_file() else list(read_manifest(data).splits)


def load_rows(
    data: str | Path,
    split: str,
    limit: int | None,
    kind: Kind,
    tokenizer: Any,
    template: Template,
    limits: Limits,
) -> Rows:
    """The first `limit` pairs of a split as rows; pairs that are ties are dropped where pairs are asked for.

    A file holds conversations for SFT: records with `messages`, the last of which is the answer that is trained.
    """
    path = Path(data)
    made_of = (data_digest(path), split, limit, kind, tokenizer_digest(tokenizer), template.source, asdict(limits))

    def build() -> Rows:
        if path.is_file():
            if kind != "examples":
                raise UserError("a file of conversations has no pairs", path, "give a data set made by prefkit convert")
            return _conversations(path, limit, tokenizer, template, limits)
        table = open_pairs(path, split).slice(0, limit)
        used, ties = without_ties(table) if kind != "examples" else (table, [])
        built = BUILD[kind](pair_texts(used), tokenizer, template, limits)
        return replace(built, read=table.num_rows, dropped=built.dropped | ({"tie": ties} if ties else {}))

    about = f"{path.name} {split} {limit or ''}".rstrip() + f" as {kind.replace('_', ' ')}"
    return cached_rows(digest(ENCODING_VERSION, *made_of), about, build)


def trained_prompts(data: Path, split: str, limit: int | None) -> Iterator[list[Message]]:
    """The prompts of a split, or of a file of conversations, as training reads them."""
    if data.is_file():
        read = (_messages(record) for _, record in islice(read_records(data, Counter()), limit))
        yield from (messages[:-1] for messages in read if messages is not None)
        return
    for batch in open_pairs(data, split).slice(0, limit).select(["prompt"]).to_batches(max_chunksize=1024):
        yield from batch["prompt"].to_pylist()


def _conversations(path: Path, limit: int | None, tokenizer: Any, template: Template, limits: Limits) -> Rows:
    """Every record is an example of its own, named by its place in the file; damaged ones are dropped by reason."""
    if not is_readable(path):
        raise UserError("not a file of conversations", path, "JSON lines of {messages: [{role, content}, …]}")
    examples, bad, broken = [], [], []
    for position, record in islice(read_records(path, Counter()), limit):
        messages = _messages(record)
        if messages is None:
            bad.append(position)
        elif any(text != encodable(text) for m in messages for text in (m["role"], m["content"])):
            broken.append(position)  # no tokenizer takes it
        else:
            examples.append(PairText(position, messages[:-1], messages[-1:], []))
    if not examples:
        raise UserError("no conversation in the file", path, 'a record is {"messages": [{"role": …, "content": …}, …]}')
    built = build_examples(examples, tokenizer, template, limits)
    left_out = {"no messages that end with the assistant's": bad, "half a character": broken}
    dropped = built.dropped | {reason: positions for reason, positions in left_out.items() if positions}
    return replace(built, read=len(examples) + len(bad) + len(broken), dropped=dropped)


def _messages(record: Any) -> list[Message] | None:
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or len(messages) < 2:
        return None
    turns: list[Message] = [
        {"role": m["role"], "content": m["content"]}
        for m in messages
        if isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
    ]
    return turns if len(turns) == len(messages) and turns[-1]["role"] == "assistant" else None
