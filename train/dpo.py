"""Direct preference optimisation: rows of prompts with responses, one forward of the policy, one of the reference."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import set_seed

from train.config import DpoRun
from train.core.locate import is_adapter, locate
from train.core.logprobs import check_fits, check_head, sum_logps, token_logps
from train.core.policies import add_reference, disable_dropout, reference_context
from train.core.rewards import pair_rewards, reward_sums
from train.core.rows import Batch, Row, build_rows
from train.core.sharing import decide_sharing
from train.losses import Loss, PairLogps, find_loss
from train.run import fit, load_trainable, prepare, say, say_model
from train.trainer import Outcome


@dataclass(frozen=True)
class DpoObjective:
    """Loss of every pair of a micro-batch under the policy and its frozen reference."""

    loss: Loss
    beta: float
    label_smoothing: float
    reference: str  # kind for `reference_context`, or "none"
    frozen: Any = None
    loss_on: str = "response"

    def units(self, row: Row) -> int:
        """A step counts pairs."""
        return len(row.pairs)

    def weight(self, row: Row) -> int:
        """The loss is a mean over pairs."""
        return len(row.pairs)

    def __call__(self, forward: Any, model: Any, batch: Batch) -> Outcome:
        """Losses and the field's metrics, as sums over pairs."""
        pairs = self.pair_logps(forward(batch), self.reference_logps(model, batch), batch)
        rewards = pair_rewards(
            pairs.policy_chosen, pairs.policy_rejected, pairs.ref_chosen, pairs.ref_rejected, self.beta
        )
        sums = reward_sums(rewards) | {
            "logps/chosen": pairs.policy_chosen.sum(),
            "logps/rejected": pairs.policy_rejected.sum(),
            "count": batch.pairs_P2.new_tensor(len(batch.pairs_P2)),
        }
        return Outcome(self.loss(pairs, self.beta, self.label_smoothing), batch.pair_ids, sums)

    def reference_logps(self, model: Any, batch: Batch) -> Tensor:
        """logps_R under the reference; zeros without one."""
        if self.reference == "none":
            return batch.counts_R.double() * 0
        with reference_context(model, self.reference, self.frozen) as reference:
            return sum_logps(token_logps(reference, batch), batch)

    @staticmethod
    def pair_logps(policy_R: Tensor, ref_R: Tensor, batch: Batch) -> PairLogps:
        """Responses' log-probabilities arranged as pairs."""
        winner_P, loser_P = batch.pairs_P2.unbind(1)
        return PairLogps(
            policy_chosen=policy_R[winner_P],
            policy_rejected=policy_R[loser_P],
            ref_chosen=ref_R[winner_P],
            ref_rejected=ref_R[loser_P],
            n_chosen=batch.counts_R[winner_P],
            n_rejected=batch.counts_R[loser_P],
        )


def load_start(run: DpoRun) -> tuple[Any, str, Any]:
    """The policy to train, the kind of its reference, and the frozen model of kind "model".

    A plain model gets a fresh LoRA and refers to itself without it. An SFT adapter is loaded twice over its untouched
    base, once to train and once as reference. Full fine-tuning keeps a frozen copy.
    """
    model = load_trainable(run.model, run.lora)
    if is_adapter(locate(run.model.path)):
        return model, add_reference(model, run.model.path), None
    if run.lora.enabled:
        return model, "adapter_off", None
    return model, "model", copy.deepcopy(model).requires_grad_(False)


def train_dpo(run: DpoRun, out: Path) -> dict[str, Any]:
    """Run DPO into a folder; see `train.config.DpoRun`."""
    loss = find_loss(run.dpo.loss)
    session, run = prepare(run, out, partial(build_rows, one_pair_per_row=run.data.one_pair_per_row))
    set_seed(run.seed)
    model, reference, frozen = load_start(run)
    disable_dropout(model)
    check_fits(model, session.rows + session.eval_rows)
    check_head(model)
    say_model(model, run.model)
    kind = reference if run.dpo.reference == "online" else "none"
    say(f"reference: {kind}; loss: {run.dpo.loss}, beta {run.dpo.beta}")
    objective = DpoObjective(loss, run.dpo.beta, run.dpo.label_smoothing, kind, frozen)
    sharing = decide_sharing(model, session.rows)
    say(sharing.line)
    return fit(session, model, objective, run.dpo.pairs_per_step, run.dpo.tokens_per_forward, sharing.shared)
