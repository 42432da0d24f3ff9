"""A thin transformers.Trainer: what its DataLoader yields is one optimizer step, cut by the plan into micro-batches.

Trainer keeps the loop, optimizer, schedule, checkpoints and loggers. Losses and metrics are sums over pairs (DPO) or
tokens (SFT), divided once by the count of the whole step, window or evaluation, over all processes.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from prefkit.errors import UserError
from prefkit.files import write_text
from train.core.batch import Batch, collate
from train.core.head import TokenLogps
from train.core.logprobs import PairPolicy
from train.core.plan import plan_rows
from train.core.rows import Row
from train.schedule import Schedule
from train.terminal import is_main
from train.trainer_keys import WHOLE, coerce_trainer
from train.weights import load_weights, save_policy

NONFINITE = "nonfinite.json"


@dataclass(frozen=True)
class Outcome:
    """Of one micro-batch: a loss for each of `ids` (graph attached), and sums for the metrics."""

    losses: Tensor
    ids: list[str]
    sums: dict[str, Tensor]


class Objective(Protocol):
    """What DPO and SFT differ by; `forward` is the wrapped policy, `model` the bare one (for the reference)."""

    @property
    def loss_on(self) -> str:
        """Labelled tokens: "response" or "all"."""

    def units(self, row: Row) -> int:
        """What a step counts: pairs or examples."""

    def weight(self, row: Row) -> int:
        """What the loss is averaged over: pairs or trained tokens."""

    def __call__(self, forward: Any, model: Any, batch: Batch) -> Outcome:
        """Losses and metric sums of a micro-batch."""


@dataclass(frozen=True)
class Layout:
    """How rows become micro-batches."""

    budget: int  # tokens of one forward
    packed: bool = True
    loss_on: str = "response"

    def micro_batches(self, rows: Sequence[Row], ranks: int, rank: int) -> Iterator[Batch]:
        """This rank's micro-batches of some rows, made one after another; every rank has the same number."""
        planned = plan_rows(rows, ranks, self.budget, self.packed)
        return (collate(m, self.packed, self.loss_on) for m in planned[rank])


def token_sums(found: TokenLogps, batch: Batch) -> dict[str, Tensor]:
    """What is averaged over response tokens: entropy of the predictions, and how often the label was the likeliest.

    A response counts once for each pair that it is in, so that it does not matter how a row was split.
    """
    paired = batch.pairs_P2.flatten()
    uses_R = found.logps_N.new_zeros(len(batch.counts_R)).index_add(0, paired, found.logps_N.new_ones(len(paired)))
    uses_R = uses_R if len(paired) else uses_R + 1
    uses_N = uses_R[batch.response_N]
    return {
        "entropy": found.entropy_N @ uses_N,
        "mean_token_accuracy": found.hits_N @ uses_N,
        "tokens": uses_N.sum(),
    }


PER_TOKEN = {"entropy", "mean_token_accuracy"}  # what is divided by `tokens`, not by `count`


@dataclass
class Sums:
    """Running sums of metrics and of what they are divided by."""

    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, more: dict[str, Tensor]) -> None:
        """Add detached sums under their names."""
        for name, value in more.items():
            self.values[name] = self.values.get(name, 0) + value.detach().double()

    def means(self, accelerator: Any) -> dict[str, float]:
        """Each sum over all processes divided by the sum named `count` (`tokens` for `PER_TOKEN`); empties the sums."""
        names = sorted(self.values)
        stacked = torch.stack([self.values[n] for n in names])
        total = dict(zip(names, accelerator.reduce(stacked, "sum").tolist(), strict=True))
        self.values = {}
        count, tokens = total.pop("count"), total.pop("tokens")
        return {n: v / (tokens if n in PER_TOKEN else count) for n, v in total.items()} if count else {}


@contextlib.contextmanager
def trainer_mistakes() -> Iterator[None]:
    """What transformers makes of a value, or of a library that is not there, as one line."""
    try:
        yield
    except (ValueError, TypeError, RuntimeError, ImportError) as e:
        raise UserError(f"trainer: {' '.join(str(e).split())[:300]}", fix="change this value of --trainer") from e


def training_arguments(values: dict[str, str], out: Path, seed: int, steps: int) -> TrainingArguments:
    """TrainingArguments from the trainer section; UserError for keys and values it does not take."""
    given = coerce_trainer(values)
    if (
        0 < (warmup := float(given.get("warmup_steps") or 0)) < 1
    ):  # Trainer rounds up: a run of one step would learn nothing
        given["warmup_steps"] = int(warmup * steps)
    given |= {"max_steps": steps, "num_train_epochs": 1.0}
    given.setdefault("use_cpu", not torch.cuda.is_available())
    given.setdefault("ddp_find_unused_parameters", False)
    with trainer_mistakes():
        args = TrainingArguments(
            **given,
            output_dir=str(out),
            seed=seed,
            data_seed=seed,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=1,
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
        )
    if args.fp16 and args.device.type == "cpu":
        raise UserError("trainer.fp16 needs a GPU", fix="set trainer.bf16, or leave it out")
    args._n_gpu = min(args.n_gpu, 1)  # one process drives one GPU: torchrun for more
    return args


class StepTrainer(Trainer):
    """Trainer over a `Schedule` of rows with an `Objective`; the model it trains is `PairPolicy`."""

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        objective: Objective,
        layout: Layout,
        rows: Sequence[Row],
        plan: Schedule,
        eval_rows: Sequence[Row] = (),
        **kwargs: Any,
    ):
        self.objective: Objective = objective
        self.layout, self.plan = layout, plan
        self.rows, self.eval_rows = rows, eval_rows
        self.window = Sums()
        super().__init__(PairPolicy(model), args, train_dataset=plan.steps, eval_dataset=eval_rows, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # an accelerate configuration can ask for them too
            raise UserError("weights cannot be sharded over processes", "FSDP, DeepSpeed", WHOLE)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """As Trainer does; what it does not take is the user's mistake."""
        with trainer_mistakes():
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """The same."""
        with trainer_mistakes():
            return super().create_scheduler(*args, **kwargs)

    # -- data ----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Every process walks through the same steps and takes its own micro-batches of each."""
        steps: Any = self.plan.steps  # a list is a Dataset by its methods
        return DataLoader(steps, batch_size=1, shuffle=False, collate_fn=self._collate_step)

    def _collate_step(self, steps: list[np.ndarray]) -> tuple[list[Batch], int]:
        rows = [self.rows[i] for i in steps[0]]
        micro = list(self.layout.micro_batches(rows, self.args.world_size, self.args.process_index))
        return micro, sum(self.objective.weight(r) for r in rows)

    # -- one step ------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of all micro-batches; gradients meet at the last. Returns the step's mean loss."""
        model.train()
        micro, total_weight = inputs
        ranks = self.accelerator.num_processes
        step_loss = torch.zeros((), device=self.args.device)
        outcomes = []
        for i, batch in enumerate(micro):
            last = i == len(micro) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(model):
                with self.accelerator.autocast():
                    outcome = self.objective(model, self.bare, batch.to(self.args.device))
                # processes average their gradients, and so does Trainer the losses it logs
                loss = outcome.losses.sum() * (ranks / total_weight)
                self.accelerator.backward(loss)
            step_loss += loss.detach()
            self.window.add(outcome.sums)
            outcomes.append((outcome.ids, outcome.losses.detach()))
        self._stop_if_not_finite(outcomes)
        return step_loss

    @property
    def bare(self) -> Any:
        """The model without PairPolicy, DDP or other wrappers."""
        return self.accelerator.unwrap_model(self.model).model

    def _stop_if_not_finite(self, outcomes: list[tuple[list[str], Tensor]]) -> None:
        """Before the weights change, on all processes at once: those that one left alone would wait for it."""
        wrong = [i for ids, losses in outcomes for i, x in zip(ids, losses.tolist(), strict=True) if not isfinite(x)]
        if not self.accelerator.reduce(torch.tensor(len(wrong), device=self.args.device), "sum"):
            return
        wrong = gather_object(wrong)
        file = Path(str(self.args.output_dir)) / NONFINITE
        if is_main():
            write_text(file, json.dumps({"step": self.state.global_step + 1, "ids": wrong}, indent=1))
        self.accelerator.wait_for_everyone()
        shown = ", ".join(wrong[:3])
        raise UserError(
            f"the loss of {len(wrong)} pairs is not finite at step {self.state.global_step + 1}: {shown}",
            file,
            "look at these pairs, lower trainer.learning_rate, or use bfloat16 instead of float16",
        )

    # -- metrics -------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the window's exact means to what Trainer logs."""
        if "loss" in logs and self.window.values:
            logs |= self.window.means(self.accelerator)
        self.state.epoch = self.plan.epoch_at(self.state.global_step)
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Exact means over the whole evaluation split, whatever the number of processes."""
        policy = self.accelerator.unwrap_model(self.model)
        policy.eval()
        sums = Sums()
        for batch in self.layout.micro_batches(self.eval_rows, self.args.world_size, self.args.process_index):
            with self.accelerator.autocast():
                outcome = self.objective(policy, policy.model, batch.to(self.args.device))
            sums.add(outcome.sums | {"loss": outcome.losses.sum()})
        metrics = {f"{metric_key_prefix}_{k}": v for k, v in sums.means(self.accelerator).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_policy(self.bare, self.processing_class, output_dir or str(self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_weights(self.bare, Path(resume_from_checkpoint))
