"""What to score and how: the options of `evalkit score`, keywords of `score_pairs`. Nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefkit.errors import UserError

NO_REFERENCE = "none"


@dataclass(frozen=True)
class ScoreOptions:
    """None takes what the policy's run was trained with, else the model's own. UserError for what scores nothing."""

    split: str = "test"
    "Which split to score."
    reference: str | None = None
    "Model to refer to; the run's own by default, `none` for plain log-probabilities."
    beta: float | None = None
    "Scale of the rewards; the run's own by default, else 0.1."
    template: str | None = None
    "Chat template or format string; the run's own by default."
    max_tokens: int | None = None
    "Prompt and response together; the model's context by default."
    too_long: Literal["drop", "truncate_prompt", "truncate_response"] = "drop"
    "What becomes of longer pairs; always counted."
    tokens_per_batch: int = 4096
    "Tokens in one forward pass."
    limit: int | None = None
    "Score only the first pairs."
    noise: bool = False
    "Score a sample twice in different batches: margins smaller than what that changes count as undecided."
    engine: Literal["local", "ray"] = "local"
    "ray: on all machines of a Ray cluster, which see the models under the same paths."
    ray_address: str | None = None
    "Of the cluster; without it one is started here."

    def __post_init__(self) -> None:
        for name in ("limit", "max_tokens", "tokens_per_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value} leaves nothing", fix="give at least 1")
        if self.beta is not None and not 0 < self.beta < float("inf"):
            raise UserError(f"--beta {self.beta} is no scale of rewards", fix="give a number above 0")
