"""The section `trainer`: fields of transformers.TrainingArguments, known without loading transformers."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from prefkit.errors import UserError
from prefkit.wording import TYPES
from train.declared import fields_of

OURS = "it is decided by the plan of a step"
WHOLE = "every process holds a whole model: use lora or model.four_bit where memory is short, torchrun for several GPUs"
UNUSED = "nothing here reads it"
OWNED = {  # TrainingArguments fields that the house decides -> what to set instead
    "per_device_train_batch_size": "set dpo.pairs_per_step or sft.examples_per_step",
    "per_device_eval_batch_size": "set tokens_per_forward",
    "gradient_accumulation_steps": "set dpo.pairs_per_step and tokens_per_forward",
    "auto_find_batch_size": "set tokens_per_forward",
    "train_sampling_strategy": "set data.order",
    "group_by_length": OURS,
    "remove_unused_columns": OURS,
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
    "include_num_input_tokens_seen": "summary.json counts tokens",
    "resume_from_checkpoint": "the same command with the same --out goes on from its last checkpoint",
    "accelerator_config": OURS,
    "torch_empty_cache_steps": UNUSED,
    "disable_tqdm": "each log is one line",
    "use_cpu": "a GPU is used where there is one; CUDA_VISIBLE_DEVICES= hides it",
    "do_train": UNUSED,
    "do_eval": "set data.eval_split and trainer.eval_strategy",
    "do_predict": UNUSED,
    "label_names": UNUSED,
    "prediction_loss_only": UNUSED,
    "include_for_metrics": UNUSED,
    "batch_eval_metrics": UNUSED,
    "eval_accumulation_steps": UNUSED,
    "eval_do_concat_batches": UNUSED,
    "eval_use_gather_object": UNUSED,
    "bf16_full_eval": "set model.dtype",
    "fp16_full_eval": "set model.dtype",
    "length_column_name": UNUSED,
    "deepspeed": WHOLE,
    "fsdp": WHOLE,
    "fsdp_config": WHOLE,
}
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


def coerce_trainer(values: dict[str, str]) -> dict[str, Any]:
    """Trainer values as TrainingArguments declares them; UserError with the nearest name for an unknown key."""
    fields = fields_of("transformers.training_args", "TrainingArguments")
    result: dict[str, Any] = {}
    for key, text in values.items():
        if key not in fields:
            raise _unknown(key, [k for k in fields if k not in OWNED])
        try:
            result[key] = _coerce(text, fields[key])
        except (ValueError, yaml.YAMLError) as e:
            plain = fields[key].removesuffix(" | None")
            must = "{NAME: VALUE, …}" if "dict" in plain else TYPES.get(plain, plain)
            raise UserError(f"trainer.{key} is {text!r}", fix=f"it must be {must}") from e
    return result


def _unknown(key: str, known: list[str]) -> UserError:
    """With the field whose initials these are (lr), which has this word in it (epochs), or is written nearly so."""
    short = [k for k in known if "".join(word[0] for word in k.split("_")) == key]
    near = short or [k for k in known if key in k.split("_")][:3] or get_close_matches(key, known, n=1)
    fix = f"did you mean {' or '.join(map(repr, near))}?" if near else "give a field of transformers.TrainingArguments"
    return UserError(f"unknown trainer key {key!r}", fix=fix)


def _coerce(text: str, declared: str) -> Any:
    """`declared` is an annotation such as "bool", "float | None", "dict[str, Any] | str"."""
    if "None" in declared and (text == "null" or (text.lower() == "none" and "str" not in declared)):
        return None
    if "bool" in declared and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if "dict" in declared or "list" in declared:
        value = yaml.safe_load(text)
        plain = "str" in declared.split(" | ") and ("dict" not in declared or Path(text).is_file())
        return value if isinstance(value, (dict, list)) or plain else _fail(text)
    if "float" in declared:
        return float(text)
    if "int" in declared:
        return int(text)
    return text if "str" in declared or "bool" not in declared else _fail(text)


def _fail(text: str) -> Any:
    raise ValueError(text)
