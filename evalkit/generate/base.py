"""What a generating backend is: a function from a model and prompts to answers, in any order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from prefkit.schema import Message


@dataclass(frozen=True)
class Settings:
    """How prompts are put and answers drawn; temperature 0 takes the likeliest token each time."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 8
    template: str | None = None  # the run's own


@dataclass(frozen=True)
class Answer:
    """The text a model gave to prompt number `index`, and whether it ended by itself (`stop`) or was cut (`length`)."""

    index: int
    text: str
    n_tokens: int
    finish: str


Backend = Callable[[str, Sequence[list[Message]], Settings], Iterator[Answer]]
