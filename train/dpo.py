"""Direct preference optimisation: rows of prompts with responses, one forward of the policy, one of the reference."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from transformers import set_seed

from prefkit.errors import UserError
from prefkit.progress import progress
from train.config import DpoRun
from train.core.batch import Batch
from train.core.head import TokenLogps
from train.core.logprobs import response_logps, sum_tokens, token_logps
from train.core.plan import single_responses
from train.core.rewards import pair_rewards, reward_sums
from train.core.rows import Row, sequence_key
from train.data.cache import LogpCache
from train.losses import Loss, PairLogps, find_loss
from train.models.locate import is_adapter, locate
from train.models.policies import add_reference, reference_context
from train.models.sharing import Sharing
from train.run import Session, default_budget, examine, fit, load_trainable, prepare
from train.terminal import say
from train.trainer import Outcome, token_sums, training_arguments


@dataclass(frozen=True)
class DpoObjective:
    """Loss of every pair of a micro-batch under the policy and its frozen reference."""

    loss: Loss
    beta: float
    label_smoothing: float
    reference: str  # kind for `reference_context`, or "none": the rows carry it, or there is none
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
        ref_R = self.reference_logps(model, batch)  # first: what it needs is free again before the policy's graph grows
        found: TokenLogps = forward(batch)
        pairs = self.pair_logps(sum_tokens(found.logps_N, batch), ref_R, batch)
        rewards = pair_rewards(
            pairs.policy_chosen, pairs.policy_rejected, pairs.ref_chosen, pairs.ref_rejected, self.beta
        )
        sums = (
            reward_sums(rewards)
            | token_sums(found, batch)
            | {
                "logps/chosen": pairs.policy_chosen.sum(),
                "logps/rejected": pairs.policy_rejected.sum(),
                "count": batch.pairs_P2.new_full((), len(batch.pairs_P2)),
            }
        )
        losses = self.loss(pairs, self.beta, self.label_smoothing)
        if getattr(losses, "shape", None) != pairs.policy_chosen.shape:
            shape = f"shape {list(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
            what = f"the loss gives {shape}, not one number for each of {len(batch.ids)} pairs"
            raise UserError(what, "dpo.loss", "return a tensor like pair_logps.margins(beta), without a mean")
        if pairs.policy_chosen.requires_grad and not losses.requires_grad:
            raise UserError("the loss has no gradient", "dpo.loss", "do not detach it, and use torch alone")
        return Outcome(losses, batch.ids, sums)

    def reference_logps(self, model: Any, batch: Batch) -> Tensor:
        """logps_R under the reference: as the rows carry them, else computed; zeros without one."""
        if batch.ref_R is not None:
            return batch.ref_R
        if self.reference == "none":
            return batch.counts_R.double() * 0
        with reference_context(model, self.reference, self.frozen) as reference:
            return sum_tokens(token_logps(reference, batch).logps_N, batch)

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
    if run.dpo.reference == "none":
        return model, "none", None
    if is_adapter(locate(run.model.path)):
        return model, add_reference(model, run.model.path), None
    if run.lora.enabled:
        return model, "adapter_off", None
    return model, "model", copy.deepcopy(model).requires_grad_(False)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to zero, LoRA's and attention's too, so that policy and reference are functions."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                setattr(module, name, 0.0)


def train_dpo(run: DpoRun, out: Path) -> dict[str, Any]:
    """Run DPO into a folder; see `train.config.DpoRun`."""
    loss = find_loss(run.dpo.loss)
    session, run = prepare(run, out, "one_pair_per_row" if run.data.one_pair_per_row else "pairs")
    set_seed(run.seed)
    model, reference, frozen = load_start(run)
    disable_dropout(model)
    sharing = examine(session, model)
    kind = reference
    say(f"reference: {kind}; loss: {run.dpo.loss}, beta {run.dpo.beta}")
    if run.dpo.reference == "cached":
        session = with_reference(session, run, model, kind, frozen, sharing)
        kind, frozen = "none", None  # the rows carry it
    objective = DpoObjective(loss, run.dpo.beta, run.dpo.label_smoothing, kind, frozen)
    return fit(session, model, objective, run.dpo.pairs_per_step, run.dpo.tokens_per_forward, sharing.packed)


def with_reference(session: Session, run: DpoRun, model: Any, kind: str, frozen: Any, sharing: Sharing) -> Session:
    """The session whose rows carry their log-probabilities under the reference, from the cache or computed now.

    Several processes share the work, each its part of the rows. UserError names a pair whose reference is not finite.
    """
    config, mixed = run.model, mixed_precision(session)
    precision = f"{config.dtype}{f' under autocast to {mixed}'.replace('torch.', '') if mixed else ''}"
    cache = LogpCache(session.digests["model"], precision, config.four_bit, config.path)
    budget = run.dpo.tokens_per_forward or default_budget()
    processes = PartialState(cpu=not torch.cuda.is_available())
    mine = (session.rows + session.eval_rows)[processes.process_index :: processes.num_processes]
    if sharing.alone:  # what is kept must not depend on what lay beside it
        mine, budget = single_responses(mine), 1
    total = sum(len(r.response_ids) for r in mine)
    autocast = torch.autocast(processes.device.type, mixed, enabled=mixed is not None)
    with reference_context(model, kind, frozen) as reference, progress("reference", total) as advance, autocast:
        response_logps(reference, mine, budget, sharing.packed, cache, advance)
    say(f"reference of this process: {cache.hits} responses from the cache, {cache.misses} computed")
    processes.wait_for_everyone()
    return replace(session, rows=_with_logps(session.rows, cache), eval_rows=_with_logps(session.eval_rows, cache))


def mixed_precision(session: Session) -> torch.dtype | None:
    """What the trainer's autocast computes in: a reference computed before it starts must not differ."""
    args = training_arguments(session.run.trainer, session.out, session.run.seed, 1)
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(args.mixed_precision)


def _with_logps(rows: list[Row], cache: LogpCache) -> list[Row]:
    keys = [[sequence_key(row.prompt_ids, r) for r in row.response_ids] for row in rows]
    known = cache.get(k for ks in keys for k in ks)
    for row, ks in zip(rows, keys, strict=True):
        if not all(k in known for k in ks):
            what = "log-probabilities of the reference are not finite, or not in the cache of this process"
            fix = "use bfloat16 or float32 instead of float16; let processes of several machines share PREFKIT_CACHE"
            raise UserError(what, row.pair_ids[0], fix)
    return [replace(row, ref_logps=tuple(known[k].total for k in ks)) for row, ks in zip(rows, keys, strict=True)]
