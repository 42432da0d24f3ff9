"""Supervised fine-tuning: the mean negative log-probability of the chosen responses' tokens, each distinct one once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed

from train.config import SftRun
from train.core.batch import Batch
from train.core.head import TokenLogps
from train.core.logprobs import sum_tokens
from train.core.rows import Row
from train.run import examine, fit, load_trainable, prepare
from train.trainer import Outcome, token_sums


@dataclass(frozen=True)
class SftObjective:
    """−Σ log π(y|x) over tokens, averaged over all trained tokens of a step."""

    loss_on: str = "response"

    def units(self, row: Row) -> int:
        """A step counts examples."""
        return 1

    def weight(self, row: Row) -> int:
        """The loss is a mean over trained tokens."""
        return row.tokens - 1 if self.loss_on == "all" else row.response_tokens

    def __call__(self, forward: Any, model: Any, batch: Batch) -> Outcome:
        """Losses of the responses, summed over their tokens."""
        found: TokenLogps = forward(batch)
        losses_R = -sum_tokens(found.logps_N, batch)
        sums = token_sums(found, batch) | {"nll": losses_R.sum(), "count": batch.counts_R.sum()}
        return Outcome(losses_R, batch.ids, sums)


def train_sft(run: SftRun, out: Path) -> dict[str, Any]:
    """Run SFT into a folder; see `train.config.SftRun`. A model path that is an adapter is continued."""
    session, run = prepare(run, out, "examples")
    set_seed(run.seed)
    model = load_trainable(run.model, run.lora)
    packed = examine(session, model).packed
    objective = SftObjective(run.sft.loss_on)
    return fit(session, model, objective, run.sft.examples_per_step, run.sft.tokens_per_forward, packed)
