"""The one record that crosses every border: a prompt with a chosen and a rejected response."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypedDict

import pyarrow as pa

SCHEMA_VERSION = 1


class Message(TypedDict):
    """One turn; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Pair:
    """One prompt with a chosen and a rejected response, and where all three come from.

    `group_key` names the unit of splitting as the source knows it (`beer/123`); convert joins keys that share a prompt
    or a duplicate link into the final `group_id`. `licenses`, `urls` and `authors` are
    aligned [prompt, chosen, rejected].
    """

    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]
    source: str
    group_key: str
    subset: str = ""
    source_id: str = ""
    set_id: str | None = None
    score_chosen: float | None = None
    score_rejected: float | None = None
    margin: float | None = None
    p_chosen: float | None = None
    licenses: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    authors: list[str] = field(default_factory=list)
    created: datetime | None = None
    flags: list[str] = field(default_factory=list)
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reject:
    """A record or candidate refused with a reason; `raw` keeps it whole so that it can be converted again."""

    reason: str
    position: str
    raw: str


MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
STRINGS = pa.list_(pa.string())

PAIRS = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("group_id", pa.string()),
        pa.field("prompt", MESSAGES),
        pa.field("chosen", MESSAGES),
        pa.field("rejected", MESSAGES),
        pa.field("set_id", pa.string()),
        pa.field("score_chosen", pa.float32()),
        pa.field("score_rejected", pa.float32()),
        pa.field("margin", pa.float32()),
        pa.field("p_chosen", pa.float32()),
        pa.field("source", pa.string()),
        pa.field("subset", pa.string()),
        pa.field("source_id", pa.string()),
        pa.field("licenses", STRINGS),
        pa.field("urls", STRINGS),
        pa.field("authors", STRINGS),
        pa.field("created", pa.timestamp("s", tz="UTC")),
        pa.field("flags", STRINGS),
        pa.field("meta", pa.string()),
    ]
)


def _digest(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def _turns(messages: list[Message]) -> list[list[str]]:
    return [[m["role"], m["content"]] for m in messages]


def pair_id(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> str:
    """blake2b-128 of the three texts with their roles: the same pair has the same id in every data set."""
    return _digest([_turns(prompt), _turns(chosen), _turns(rejected)])


def prompt_hash(prompt: list[Message]) -> str:
    """blake2b-128 of a prompt: equal prompts belong to one group."""
    return _digest(_turns(prompt))
