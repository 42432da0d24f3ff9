"""Trained weights on disk: one ordinary adapter or a whole model, written and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from prefkit.errors import UserError
from train.models.load import load_model


def save_policy(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """One ordinary adapter, or the whole model, and the tokenizer; safetensors."""
    if hasattr(model, "peft_config"):
        # "auto" would ask the hub whether the base's vocabulary was resized
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    else:
        model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    open_as_the_rest(Path(folder))


def open_as_the_rest(folder: Path) -> None:
    """Let those read the weights who may read the configuration beside them: safetensors makes files for their owner
    alone, whatever the umask."""
    mode = next(folder.glob("*config.json")).stat().st_mode
    for file in folder.glob("*.safetensors"):
        file.chmod(mode)


def load_weights(model: Any, folder: Path) -> None:
    """Weights of a checkpoint into the model that is being trained."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, tensors, adapter_name="default")
        return
    if _lacks(model, tensors):  # fused experts lie under other names, which transformers knows
        tensors = load_model(str(folder), str(model.dtype).removeprefix("torch.")).state_dict()
    if lacking := _lacks(model, tensors):
        raise UserError(f"the checkpoint does not fit the model: {lacking[:3]}", folder, "start a new run")


def _lacks(model: Any, tensors: dict[str, Tensor]) -> list[str]:
    """What is missing of the model's weights, or unknown to it, once these are loaded."""
    result = model.load_state_dict(tensors, strict=False)
    tied = set(getattr(model, "_tied_weights_keys", None) or ())
    return sorted({*result.missing_keys, *result.unexpected_keys} - tied)
