"""Trained weights on disk: one ordinary adapter or a whole model, written and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from prefkit.errors import UserError


def save_policy(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """One ordinary adapter, or the whole model, and the tokenizer; safetensors."""
    if hasattr(model, "peft_config"):
        # "auto" would ask the hub whether the base's vocabulary was resized
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    else:
        model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_weights(model: Any, folder: Path) -> None:
    """Weights of a checkpoint into the model that is being trained."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, tensors, adapter_name="default")
        return
    result = model.load_state_dict(tensors, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    missing = set(result.missing_keys) - tied
    if missing or result.unexpected_keys:
        raise UserError(f"the checkpoint does not fit the model: {sorted(missing)[:3]}", folder, "start a new run")
