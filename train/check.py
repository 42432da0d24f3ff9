"""What can be seen to be wrong with a run without loading torch: settings first, then the folders they name."""

from __future__ import annotations

import ast
import dataclasses
from math import inf
from pathlib import Path

from prefkit.errors import UserError, unknown_name
from train.config import DpoRun, Run
from train.core.encode import Template
from train.data.dataset import splits_of
from train.declared import keys_of
from train.folder import refuse_taken
from train.models.locate import locate_finished
from train.trainer_keys import DEFAULTS, OURS, OWNED, coerce_trainer

MOST_EPOCHS = 100_000  # their steps are all planned at the start
UNSMOOTHED = {"ipo", "hinge"}  # losses that do not read label_smoothing


def check(run: Run) -> Run:
    """The run with trainer keys spelt and defaulted; UserError for what can be seen to be wrong without torch."""
    kind = "dpo" if isinstance(run, DpoRun) else "sft"
    for name in ("model", "data"):
        if not getattr(run, name).path:
            raise UserError(f"{name}.path is missing", fix=f"add --{name}.path FOLDER")
    given = {k.replace("-", "_"): v for k, v in run.trainer.items()}
    for key in given:
        if key in OWNED or key.startswith("dataloader_"):
            raise UserError(f"trainer.{key} is not yours to set", fix=OWNED.get(key, OURS))
    _check_length(given)
    rate = coerce_trainer(given).get("learning_rate")
    if rate is not None and not 0 <= rate < inf:
        raise UserError(f"trainer.learning_rate is {rate}", fix="it must be a finite number, 0 or above")
    if run.data.template is not None:
        Template.named(run.data.template)
    if not 0 <= run.seed < 2**32:
        raise UserError(f"seed is {run.seed}", fix="give a whole number from 0 to 4294967295")
    _positive(run, "data.max_tokens", "data.max_prompt_tokens", "data.limit", "data.eval_limit")
    if run.lora.enabled:
        _positive(run, "lora.r", "lora.alpha")
        if not run.lora.targets:
            raise UserError("lora.targets is empty", fix="name modules, e.g. q_proj v_proj, or all-linear")
    if isinstance(run, DpoRun):
        _positive(run, "dpo.beta", "dpo.pairs_per_step")
        check_loss(run.dpo.loss)
        if not 0 <= run.dpo.label_smoothing < 0.5:
            raise UserError(f"dpo.label_smoothing is {run.dpo.label_smoothing}", fix="choose 0 ≤ ε < 0.5")
        if run.dpo.label_smoothing and run.dpo.loss in UNSMOOTHED:
            raise UserError(f"loss {run.dpo.loss} has no label smoothing", "dpo.label_smoothing", "leave it out")
    else:
        _positive(run, "sft.examples_per_step")
    section = run.dpo if isinstance(run, DpoRun) else run.sft
    if section.tokens_per_forward < 0:
        raise UserError(f"{kind}.tokens_per_forward is {section.tokens_per_forward}", fix="it must be above 0")
    if run.model.four_bit and not run.lora.enabled:
        raise UserError("4-bit weights cannot be trained themselves", "model.four_bit", "keep lora.enabled")
    return dataclasses.replace(run, trainer=DEFAULTS["both"] | DEFAULTS[kind] | given)


def check_places(run: Run, out: Path) -> None:
    """UserError where the output is taken, or model, data or splits are not there; a model on the hub is fetched."""
    refuse_taken(out)
    data, splits = run.data, splits_of(run.data.path)
    if not splits and isinstance(run, DpoRun):
        raise UserError("a file of conversations has no pairs", data.path, "give a data set made by prefkit convert")
    if not splits and (data.split, data.eval_split or "test") != ("train", "test"):
        raise UserError("a file has no splits", data.path, "leave data.split and data.eval_split out")
    if splits and data.split not in splits:
        raise unknown_name("split", data.split, splits)
    if splits and data.eval_split not in ("", "test", *splits):  # "test" is what nobody needs to have asked for
        raise unknown_name("evaluation split", data.eval_split, splits)
    locate_finished(run.model.path)


def check_loss(name: str) -> None:
    """UserError for a loss that is neither one of `train.losses` nor `FILE.py:function`."""
    file = name.rpartition(":")[0]
    known = keys_of("train.losses", "LOSSES")
    if name not in known and not file.endswith(".py"):
        raise unknown_name("loss", name, known)
    if name in known:
        return
    if not Path(file).is_file():
        raise UserError("loss file not found", name, "write it as ./file.py:function")
    try:
        ast.parse(Path(file).read_bytes())
    except SyntaxError as e:
        raise UserError(f"the loss file is no Python: {e.msg}", f"{file}:{e.lineno}", "mend it") from None


def _check_length(trainer: dict[str, str]) -> None:
    """How long to train is read before TrainingArguments is imported."""
    for key, kind in (("num_train_epochs", float), ("max_steps", int)):
        try:
            value = kind(trainer.get(key, "1"))
        except ValueError:
            raise UserError(f"trainer.{key} is {trainer[key]!r}", fix="it must be a number") from None
        if not (0 < value <= MOST_EPOCHS or (key == "max_steps" and (value > 0 or value == -1))):
            most = f" and at most {MOST_EPOCHS:,}" if key == "num_train_epochs" else ""
            raise UserError(f"trainer.{key} is {trainer[key]}", fix=f"it must be above 0{most}")
    if trainer.get("save_strategy") == "best":
        raise UserError("trainer.save_strategy is 'best'", fix="choose no, steps or epoch")


def _positive(run: Run, *names: str) -> None:
    for name in names:
        section, key = name.split(".")
        value = getattr(getattr(run, section), key)
        if value is not None and not 0 < value < inf:
            raise UserError(f"{name} is {value}", fix="it must be above 0" + " and finite" * (value == inf))
