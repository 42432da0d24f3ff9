"""Configuration: frozen dataclasses that are dotted flags and YAML sections at once. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from cyclopts import App, ArgumentCollection
from cyclopts import Token as CliToken
from cyclopts.config import Dict as DictConfig

from prefkit.errors import UserError, unknown_name


@dataclass(frozen=True)
class ModelConfig:
    """What is trained."""

    path: str = ""
    "Model folder, run folder, adapter folder, or a name on the hub (required)."
    dtype: Literal["float32", "bfloat16", "float16", "float64"] | None = None
    "Of the weights; default bfloat16 on CUDA, float32 on CPU and for full fine-tuning."
    four_bit: bool = False
    "Load the frozen base in 4-bit NF4 with double quantisation (QLoRA)."
    attn: Literal["rows", "flex", "sdpa", "eager"] = "rows"
    "rows: each prompt once, no padding; flex: the same by FlexAttention, on a GPU; sdpa, eager: the model's own."


@dataclass(frozen=True)
class DataConfig:
    """What it is trained on."""

    path: str = ""
    "Data set folder written by prefkit convert (required)."
    split: str = "train"
    eval_split: str = "test"
    "Split for evaluation, used where the data set has it; empty: none."
    limit: int | None = None
    "Use only the first pairs of the split."
    eval_limit: int | None = None
    "Use only the first pairs of the evaluation split."
    max_tokens: int = 1024
    "Of prompt and one response together."
    max_prompt_tokens: int | None = None
    too_long: Literal["drop", "truncate_prompt", "truncate_response"] = "drop"
    "What to do with pairs over the limits; a truncated response gets no EOS."
    template: str | None = None
    "Chat template or format string: a name (question, plain, dialogue), text, or a file; default the tokenizer's."
    order: Literal["shuffled", "file"] = "shuffled"
    "Order of prompts in an epoch."
    one_pair_per_row: bool = False
    "Compute every pair by itself, as other trainers do; slower, equal."


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters; an adapter that is continued keeps its own shape."""

    enabled: bool = True
    "False trains all weights."
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    "Off in DPO whatever is set."
    targets: tuple[str, ...] = ("all-linear",)
    "Module names; each must match something."


@dataclass(frozen=True)
class DpoConfig:
    """Direct preference optimisation."""

    loss: str = "sigmoid"
    "sigmoid, ipo, hinge, or your own as ./file.py:function."
    beta: float = 0.1
    label_smoothing: float = 0.0
    "Above 0: cDPO."
    reference: Literal["online", "cached", "none"] = "online"
    "cached: computed once for all epochs and runs; none: rewards are the policy's own log-probabilities."
    pairs_per_step: int = 32
    "Of one optimizer step, over all processes; a step ends with a whole prompt."
    tokens_per_forward: int = 0
    "Tokens of one micro-batch: memory, never the result; default 1536 on CPU, 16384 on CUDA."


@dataclass(frozen=True)
class SftConfig:
    """Supervised fine-tuning on the chosen responses."""

    examples_per_step: int = 32
    "Of one optimizer step, over all processes."
    loss_on: Literal["response", "all"] = "response"
    "Train on response tokens only, or on the prompt's too."
    tokens_per_forward: int = 0
    "Tokens of one micro-batch: memory, never the result; default 1536 on CPU, 16384 on CUDA."


@dataclass(frozen=True)
class SftRun:
    """Everything an SFT run depends on."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    trainer: dict[str, str] = field(default_factory=dict)
    "Any field of transformers.TrainingArguments, e.g. --trainer.learning-rate 1e-4."
    seed: int = 0


@dataclass(frozen=True)
class DpoRun:
    """Everything a DPO run depends on."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
    trainer: dict[str, str] = field(default_factory=dict)
    "Any field of transformers.TrainingArguments, e.g. --trainer.learning-rate 1e-5."
    seed: int = 0


Run = SftRun | DpoRun

_OURS = "it is decided by the plan of a step"
OWNED = {  # TrainingArguments fields that the house decides -> what to set instead
    "per_device_train_batch_size": "set dpo.pairs_per_step or sft.examples_per_step",
    "per_device_eval_batch_size": "set tokens_per_forward",
    "gradient_accumulation_steps": "set dpo.pairs_per_step and tokens_per_forward",
    "auto_find_batch_size": "set tokens_per_forward",
    "train_sampling_strategy": "set data.order",
    "group_by_length": _OURS,
    "remove_unused_columns": _OURS,
    "label_smoothing_factor": "set dpo.label_smoothing",
    "output_dir": "set --out",
    "seed": "set --seed",
    "data_seed": "set --seed",
    "logging_nan_inf_filter": "a loss that is not finite always stops the run",
    "average_tokens_across_devices": "losses are always averaged over the whole step",
    "load_best_model_at_end": "choose a checkpoint folder of the run",
    "neftune_noise_alpha": "not supported",
    "use_liger_kernel": "the tiled head is always on",
    "push_to_hub": "push the finished run folder",
}
UNSMOOTHED = {"ipo", "hinge"}  # losses that do not read label_smoothing
DEFAULTS: dict[str, dict[str, str]] = {
    "sft": {"learning_rate": "1e-4"},
    "dpo": {"learning_rate": "5e-5"},
    "both": {
        "num_train_epochs": "1",
        "lr_scheduler_type": "cosine",
        "warmup_steps": "0.03",
        "logging_steps": "10",
        "save_strategy": "steps",
        "save_steps": "500",
        "report_to": "none",
    },
}


def check(run: Run) -> Run:
    """The run with trainer keys spelt and defaulted; UserError for what can be seen to be wrong without torch."""
    kind = "dpo" if isinstance(run, DpoRun) else "sft"
    for name in ("model", "data"):
        if not getattr(run, name).path:
            raise UserError(f"{name}.path is missing", fix=f"add --{name}.path FOLDER")
    given = {k.replace("-", "_"): v for k, v in run.trainer.items()}
    for key in given:
        if key in OWNED or key.startswith("dataloader_"):
            raise UserError(f"trainer.{key} is not yours to set", fix=OWNED.get(key, _OURS))
    _check_length(given)
    _positive(run, "data.max_tokens", "lora.r" if run.lora.enabled else "data.max_tokens")
    if isinstance(run, DpoRun):
        _positive(run, "dpo.beta", "dpo.pairs_per_step")
        if not 0 <= run.dpo.label_smoothing < 0.5:
            raise UserError(f"dpo.label_smoothing is {run.dpo.label_smoothing}", fix="choose 0 ≤ ε < 0.5")
        if run.dpo.label_smoothing and run.dpo.loss in UNSMOOTHED:
            raise UserError(f"loss {run.dpo.loss} has no label smoothing", "dpo.label_smoothing", "leave it out")
    else:
        _positive(run, "sft.examples_per_step")
    if run.model.four_bit and not run.lora.enabled:
        raise UserError("4-bit weights cannot be trained themselves", "model.four_bit", "keep lora.enabled")
    return dataclasses.replace(run, trainer=DEFAULTS["both"] | DEFAULTS[kind] | given)


def _check_length(trainer: dict[str, str]) -> None:
    """How long to train is read before TrainingArguments is imported."""
    for key, kind in (("num_train_epochs", float), ("max_steps", int)):
        try:
            value = kind(trainer.get(key, "1"))
        except ValueError:
            raise UserError(f"trainer.{key} is {trainer[key]!r}", fix="it must be a number") from None
        if not (value > 0 or (key == "max_steps" and value == -1)):
            raise UserError(f"trainer.{key} is {trainer[key]}", fix="it must be above 0")
    if trainer.get("save_strategy") == "best":
        raise UserError("trainer.save_strategy is 'best'", fix="choose no, steps or epoch")


def _positive(run: Run, *names: str) -> None:
    for name in names:
        section, key = name.split(".")
        value = getattr(getattr(run, section), key)
        if not value > 0:
            raise UserError(f"{name} is {value}", fix="it must be above 0")


def as_dict(run: Run) -> dict[str, Any]:
    """Plain sections for run.yaml."""
    return json.loads(json.dumps(dataclasses.asdict(run)))


def digest(run: Run) -> str:
    """Changes whenever any setting of the run changes."""
    return hashlib.blake2b(json.dumps(as_dict(run), sort_keys=True).encode(), digest_size=16).hexdigest()


def from_yaml(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """cyclopts configuration hook: fill what the command line left open from the file named by --config.

    Unlike cyclopts' own, it merges `trainer` key by key, so that `--trainer.x` adds to the file's section.
    """
    (chosen,) = (a for a in arguments if a.name == "--config")
    if not chosen.tokens:
        return
    path = Path(chosen.tokens[-1].value)
    values = _read_yaml(path)
    if values.pop("command", app.name[0]) != app.name[0]:
        raise UserError(f"this file does not configure {app.name[0]}", path)
    (trainer,) = (a for a in arguments if a.name == "--trainer")
    given = {t.keys[0].replace("-", "_") for t in trainer.tokens if t.keys}
    for key, value in (values.pop("trainer", None) or {}).items():
        if key.replace("-", "_") not in given:
            text = value if isinstance(value, str) else json.dumps(value)
            trainer.append(CliToken(keyword=f"--trainer.{key}", value=text, source=str(path), keys=(key,)))
    for command in reversed(commands):  # without its commands as keys, cyclopts skips sections named like a command
        values = {command: values}
    DictConfig(values, source=str(path))(app, commands, arguments)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text("utf-8")) or {}
    except FileNotFoundError as e:
        raise UserError("configuration file not found", path) from e
    except OSError as e:
        raise UserError(f"cannot read the configuration: {e.strerror}", path, "name a YAML file") from e
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"not YAML: {' '.join(str(e).split())}", path) from e
    sections = ("model", "data", "lora", "dpo", "sft", "trainer")
    if not isinstance(values, dict) or any(not isinstance(values.get(k) or {}, dict) for k in sections):
        raise UserError("a configuration is sections with keys", path, "see recipes/ for examples")
    return {k: _without_nulls(v) for k, v in values.items() if k not in ("versions", "digests")}


def _without_nulls(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def coerce_trainer(values: dict[str, str], fields: dict[str, dataclasses.Field]) -> dict[str, Any]:
    """Trainer values as TrainingArguments declares them; UserError with the nearest name for an unknown key."""
    result: dict[str, Any] = {}
    for key, text in values.items():
        if key not in fields:
            raise unknown_name("trainer key", key, [k for k in fields if k not in OWNED])
        try:
            result[key] = _coerce(text, str(fields[key].type))
        except ValueError as e:
            raise UserError(f"trainer.{key} is {text!r}", fix=f"it must be {fields[key].type}") from e
    return result


def _coerce(text: str, declared: str) -> Any:
    """`declared` is an annotation such as "bool", "float | None", "dict[str, Any] | str"."""
    if text == "null" or (text.lower() == "none" and "str" not in declared):
        return None
    if "bool" in declared and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if "dict" in declared or "list" in declared:
        value = yaml.safe_load(text)
        return value if isinstance(value, (dict, list)) or "str" in declared else _fail(text)
    if "float" in declared:
        return float(text)
    if "int" in declared:
        return int(text)
    return text if "str" in declared or "bool" not in declared else _fail(text)


def _fail(text: str) -> Any:
    raise ValueError(text)
