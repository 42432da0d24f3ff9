"""What is judged and what is said of it: items with hidden producers, and the judgements about them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from prefkit.schema import Message, prompt_hash


@dataclass(frozen=True, slots=True)
class Response:
    """One answer, and what only the reveal may show: its producer, and its licence, url and author (`origin`)."""

    messages: list[Message]
    producer: str | None = None
    origin: dict = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Draft:
    """An item to be judged, before it has an id. `group_id` is what must stay in one split."""

    prompt: list[Message]
    responses: list[Response]
    group_id: str
    origin: dict = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """What a judge is shown: a prompt and responses in an order that says nothing about who made them."""

    id: str
    prompt: list[Message]
    responses: list[list[Message]]


@dataclass(frozen=True, slots=True)
class Judgement:
    """One answer of one judge to one item.

    `id` is a UUID made by the client, so that a judgement sent twice is stored once; `shown` holds indexes of the
    item's responses as they stood on the page (A, B, …); `winner` is such an index, only with outcome `better`.
    """

    id: str
    batch_id: str
    item_id: str
    shown: tuple[int, ...]
    outcome: str  # one of tables.OUTCOMES
    winner: int | None = None
    strength: int | None = None
    flags: tuple[str, ...] = ()
    comment: str = ""
    milliseconds: int | None = None


def item_order(draft: Draft) -> list[int]:
    """The order in which an item keeps its responses: by digest of the text, so that it tells nothing."""
    return sorted(range(len(draft.responses)), key=lambda i: prompt_hash(draft.responses[i].messages))


def item_id(draft: Draft) -> str:
    """blake2b-128 of the prompt and the set of responses: a comparison has one id whoever made its sides."""
    return digest([prompt_hash(draft.prompt), *sorted(prompt_hash(r.messages) for r in draft.responses)])


def digest(parts: list[str]) -> str:
    """blake2b-128 of the lines."""
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
