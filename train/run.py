"""What every run does: read the data and encode it, write down the settings, train, evaluate, save."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from transformers import PrinterCallback

from prefkit.errors import UserError
from prefkit.files import write_text
from prefkit.wording import counted
from train.callbacks import Interrupt, RunLog
from train.check import check_places
from train.config import DpoRun, LoraConfig, ModelConfig, Run, SftRun
from train.core.encode import Limits, Template
from train.core.logprobs import check_fits, check_head
from train.core.rows import Row, Rows
from train.data.dataset import Kind, data_digest, load_rows, splits_of
from train.folder import open_folder, settings
from train.models.load import context_length, default_dtype, load_adapter, load_model, load_tokenizer, new_adapter
from train.models.locate import (
    RUN_FILE,
    SUMMARY,
    adapter_config,
    is_adapter,
    locate,
    run_config,
    weights_digest,
)
from train.models.memory import peak_megabytes, trim_holes
from train.models.sharing import Sharing, decide_sharing
from train.schedule import schedule
from train.terminal import is_main, say
from train.trainer import NONFINITE, Layout, Objective, StepTrainer, trainer_mistakes, training_arguments
from train.weights import save_policy

DROPPED = "dropped.json"
MAX_TOKENS = 1024  # of a prompt with one response, unless the run says otherwise

R = TypeVar("R", SftRun, DpoRun)


@dataclass(frozen=True)
class Session:
    """A run whose data is encoded: all that is needed besides the model."""

    run: Run  # resolved: template text, dtype, absolute local paths
    digests: dict[str, str]  # of the data set and of the weights it starts from
    out: Path
    tokenizer: Any
    template: Template
    rows: list[Row]
    eval_rows: list[Row]
    counts: dict[str, Any]
    dropped: dict[str, dict[str, list[str]]]  # split -> reason -> ids of the pairs that are not used
    resume: str | None

    @property
    def noted(self) -> dict[str, Any]:
        """What run.yaml says besides settings."""
        return {"digests": self.digests, "versions": _versions()}

    @property
    def unit(self) -> str:
        """What a step counts."""
        return "pairs" if self.kind == "dpo" else "examples"

    @property
    def kind(self) -> str:
        """The command: sft or dpo."""
        return "dpo" if isinstance(self.run, DpoRun) else "sft"


# ---------------------------------------------------------------------------------------------------------- before


def prepare(run: R, out: Path, kind: Kind) -> tuple[Session, R]:
    """Open the run folder, the tokenizer and the data; return them with the resolved run."""
    check_places(run, out)
    args = training_arguments(run.trainer, out, run.seed, 1)  # may be refused, before the data is read
    path = Path(run.model.path).expanduser()
    known = data_digest(run.data.path)
    tokenizer = load_tokenizer(run.model.path)
    earlier = run_config(locate(run.model.path)) or {}
    template = Template.of(run.data.template or earlier.get("data", {}).get("template"), tokenizer)
    full = not run.lora.enabled
    dtype: Any = run.model.dtype or ("float32" if full else default_dtype())
    model = replace(
        run.model,
        path=str(path.resolve()) if path.is_dir() else run.model.path,
        dtype=dtype,
    )
    data = replace(run.data, template=template.source, path=str(Path(run.data.path).resolve()))
    data = replace(data, max_tokens=_max_tokens(run.data.max_tokens, run.model.path))
    trainer = run.trainer
    if args.mixed_precision in ("fp16", "bf16"):  # also as `accelerate launch` asks: it holds for the reference too
        trainer = trainer | {args.mixed_precision: "true"}
    elif full and torch.cuda.is_available():  # fp32 weights, bf16 arithmetic
        trainer = {"bf16": "true"} | trainer
    run = replace(run, model=model, data=data, trainer=trainer, lora=_lora_of(run))
    if earlier and bool(earlier["model"].get("four_bit")) != run.model.four_bit:
        then = "plain" if run.model.four_bit else "4-bit"
        say(f"note: {run.model.path} was trained on a {then} base, this run is not")
    digests = {"data": known, "model": weights_digest(run.model.path)}
    if isinstance(run, DpoRun) and (file := Path(run.dpo.loss.rpartition(":")[0])).suffix == ".py":
        digests["loss"] = hashlib.sha256(file.read_bytes()).hexdigest()
    resume = open_folder(run, digests, out)
    more = f"… ({len(template.source)} characters)" if len(template.source) > 200 else ""
    say(f"template: {template.source[:200]!r}{more}")
    for note in template.notes(tokenizer):
        say(f"note: {note}")
    trained = _read(run, run.data.split, run.data.limit, tokenizer, template, kind)
    if not trained.rows:
        raise UserError("no pair is left to train on", run.data.path, "see the counts above; raise data.max_tokens")
    found = {run.data.split: trained}
    evaluated = Rows()
    if run.data.eval_split in splits_of(run.data.path):
        evaluated = _read(run, run.data.eval_split, run.data.eval_limit, tokenizer, template, kind)
        found.setdefault(run.data.eval_split, evaluated)  # the training split may be evaluated too
    else:
        say(f"no split {run.data.eval_split!r}: no evaluation" if run.data.eval_split else "no evaluation is asked for")
    if not evaluated.rows and run.trainer.get("eval_strategy", "no") != "no":
        raise UserError("no pair is left to evaluate on", run.data.path, "leave trainer.eval_strategy out")
    counts = {split: read.counts() for split, read in found.items()}
    dropped = {split: read.dropped for split, read in found.items() if read.dropped}
    return Session(run, digests, out, tokenizer, template, trained.rows, evaluated.rows, counts, dropped, resume), run


def _lora_of(run: Run) -> LoraConfig:
    """What is asked for; of an adapter that is continued its own shape, as far as these settings can tell it."""
    folder = locate(run.model.path)
    if not (is_adapter(folder) and run.lora.enabled):
        return run.lora
    known, own = adapter_config(folder), LoraConfig()
    if known.get("peft_type") == "LORA":  # what a file leaves out is peft's own default
        own = LoraConfig(r=known.get("r", 8), alpha=known.get("lora_alpha", 8), dropout=known.get("lora_dropout", 0.0))
        if isinstance(names := known.get("target_modules"), list) and names:  # not a pattern, which may hold commas
            own = replace(own, targets=tuple(sorted(names)))
    if run.lora not in (LoraConfig(), own):
        say("note: an adapter that is continued keeps its own shape: what lora says is not used")
    return own


def _max_tokens(asked: int | None, model: str) -> int:
    """Of a prompt with one response: what is asked for, else MAX_TOKENS, as far as the model has positions."""
    context = context_length(model) or asked or MAX_TOKENS
    if asked is not None and asked > context:
        what = f"data.max_tokens is {asked}, the model has {context} positions"
        raise UserError(what, model, f"set --data.max-tokens {context} at most")
    if asked is None and context < MAX_TOKENS:
        say(f"limit: {context} tokens for prompt and response together, all that the model has positions for")
    return asked or min(context, MAX_TOKENS)


def _read(run: Run, split: str, limit: int | None, tokenizer: Any, template: Template, kind: Kind) -> Rows:
    limits = Limits(run.data.max_tokens or MAX_TOKENS, run.data.max_prompt_tokens, run.data.too_long)
    found = load_rows(run.data.path, split, limit, kind, tokenizer, template, limits)
    counts = found.counts()
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in counts["dropped"].items()) or "none"
    left, cut = f"{found.kept:,} of {counted(found.read, 'pair')}", counts["truncated_pairs"]
    say(f"{split}: {left}; dropped: {dropped}; truncated: {cut:,}")
    say(f"  {', '.join(counted(counts[f'{what}s'], what) for what in ('prompt', 'response', 'token'))}")
    if found.rows:
        say(f"  boundary of the first: {found.rows[0].boundary(tokenizer)}")
    return found


def load_trainable(config: ModelConfig, lora: LoraConfig) -> Any:
    """The model to train: with a fresh LoRA, with the adapter that the path is, or whole."""
    if config.attn == "flex" and not torch.cuda.is_available():
        raise UserError("FlexAttention has no backward on this device", "--model.attn flex", "use --model.attn rows")
    if is_adapter(locate(config.path)):
        if not lora.enabled:
            raise UserError(
                "an adapter cannot be trained in full", config.path, "keep lora.enabled, or merge it with peft first"
            )
        model = load_adapter(config.path, config.dtype, config.four_bit, config.attn, trainable=True)
    else:
        model = load_model(config.path, config.dtype, config.four_bit, config.attn)
        model = new_adapter(model, lora.targets, lora.r, lora.alpha, lora.dropout) if lora.enabled else model
    if next(model.parameters()).device.type == "cpu":
        trim_holes(model)
    return model


# ---------------------------------------------------------------------------------------------------------- during


def fit(session: Session, model: Any, objective: Objective, per_step: int, budget: int, packed: bool) -> dict[str, Any]:
    """Train, evaluate, save; returns the summary that marks the run as finished."""
    run, out = session.run, session.out
    epochs = float(run.trainer["num_train_epochs"])
    limit = int(run.trainer.get("max_steps", "-1"))
    units = [objective.units(r) for r in session.rows]
    plan = schedule(units, per_step, epochs, limit, run.seed, run.data.order == "shuffled")
    args = training_arguments(run.trainer, out, run.seed, len(plan.steps))
    if is_main():
        out.mkdir(parents=True, exist_ok=True)
        for stale in (DROPPED, NONFINITE):  # of a run that took no step here, or stopped at one
            (out / stale).unlink(missing_ok=True)
        if session.dropped:
            write_text(out / DROPPED, json.dumps(session.dropped, indent=1))
        write_text(out / RUN_FILE, yaml.safe_dump({"command": session.kind, **settings(run), **session.noted}))
    interrupt = Interrupt()
    with trainer_mistakes():
        trainer = StepTrainer(
            model,
            args,
            objective,
            Layout(budget or default_budget(), packed, objective.loss_on),
            session.rows,
            plan,
            session.eval_rows,
            processing_class=session.tokenizer,
            callbacks=[interrupt, RunLog(out, session.unit, sum(units), plan.epoch_ends[:-1])],
        )
    trainer.remove_callback(PrinterCallback)
    begin = f", from {session.resume}" if session.resume else ""
    seen, rows = len(np.unique(np.concatenate(plan.steps))), len(session.rows)
    say(f"{counted(len(plan.steps), 'step')} over {f'{seen:,} of ' * (seen < rows)}{counted(rows, 'row')}{begin}")
    start = time.monotonic()
    result = trainer.train(resume_from_checkpoint=session.resume)
    if interrupt.stopped:
        raise KeyboardInterrupt
    if not all(bool(p.isfinite().all()) for p in model.parameters() if p.requires_grad):
        what = f"the trained weights are not finite after step {result.global_step}, although the loss was"
        raise UserError(what, out, "lower trainer.learning_rate, or use bfloat16 instead of float16")
    evaluated = _last_evaluation(trainer) if session.eval_rows else {}
    summary = {
        "steps": result.global_step,
        "wall_seconds": round(time.monotonic() - start, 3),
        "train_loss": _mean_loss(trainer.state.log_history),
        "peak_megabytes": round(peak_megabytes()),
        **{k: v for k, v in evaluated.items() if k.startswith("eval_")},
        "data": session.counts,
    }
    if is_main():
        save_policy(trainer.bare, session.tokenizer, out)
        write_text(out / SUMMARY, json.dumps(summary, indent=1))
    trainer.accelerator.wait_for_everyone()
    say(f"saved {out}")
    return summary


def default_budget() -> int:
    """Tokens of one forward where the run does not say."""
    return 16384 if torch.cuda.is_available() else 1536


def _mean_loss(history: list[dict[str, float]]) -> float | None:
    """Over all steps, also those before the checkpoint that the run went on from; None where nothing is logged."""
    logs = [(h["step"], h["loss"]) for h in history if "loss" in h]
    steps = np.diff([0, *(step for step, _ in logs)])
    return float(np.average([loss for _, loss in logs], weights=steps)) if logs else None


def _last_evaluation(trainer: StepTrainer) -> dict[str, float]:
    """The evaluation after the last step: the one Trainer made there, else a new one."""
    here = [h for h in trainer.state.log_history if "eval_loss" in h and h["step"] == trainer.state.global_step]
    return here[-1] if here else trainer.evaluate()


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("prefkit", "torch", "transformers", "peft")}


def examine(session: Session, model: Any) -> Sharing:
    """How rows are computed, by what the model makes of them; says what is trained. UserError where data do not fit."""
    rows, config = session.rows + session.eval_rows, session.run.model
    check_fits(model, rows)
    check_head(model)
    loaded = f"{Path(config.path).name} in {'NF4' if config.four_bit else config.dtype}"
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    say(f"model: {loaded}; {trained:,} of {total:,} stored weights trained")
    sharing = decide_sharing(model, rows)
    say(sharing.line)
    return sharing
