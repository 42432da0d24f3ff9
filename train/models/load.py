"""Loading models, tokenizers and adapters. Every mistake here is one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn

from prefkit.errors import UserError, unknown_name
from train.core.attention import ROWS
from train.models.flex import FLEX
from train.models.gated import keep_less
from train.models.locate import adapter_config, as_base_of, is_adapter, locate
from train.models.lora import lean_lora

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PACKED = {"rows": ROWS, "flex": FLEX}  # kinds of attention that take packed rows, and their names in configurations
# what transformers makes of damaged files, or of sizes that do not fit the weights
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError)
DTYPES = {n: getattr(torch, n) for n in ("float32", "bfloat16", "float16", "float64")}


def load_tokenizer(path: str) -> Any:
    """The tokenizer of a model, run or adapter; of the adapter's base where the adapter has none."""
    from transformers import AutoTokenizer

    folder = locate(path)
    if is_adapter(folder) and not any(folder.glob("tokenizer*")):
        return load_tokenizer(_base_of(folder))
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as e:
        raise UserError(f"no tokenizer can be loaded: {_first_line(e)}", path, "the folder needs tokenizer.json") from e


def context_length(path: str) -> int | None:
    """How many positions a model has, from its configuration alone; None where it has no limit."""
    from transformers import AutoConfig

    folder = locate(path)
    if is_adapter(folder):
        with as_base_of(path):
            folder = locate(_base_of(folder))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except UNREADABLE as e:
        raise UserError(f"no model configuration can be read: {_first_line(e)}", path, "give a model folder") from e
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def default_dtype() -> str:
    """float32 on CPU, bfloat16 on CUDA."""
    return "bfloat16" if torch.cuda.is_available() else "float32"


def load_model(path: str, dtype: str | None = None, four_bit: bool = False, attn: str = "rows") -> Any:
    """A causal language model from safetensors, in `dtype` (`default_dtype` if None), frozen NF4 when `four_bit`.

    `attn` "rows" is `train.core.attention`, "flex" is `train.models.flex`, where the architecture lets its attention be
    replaced, else its own. NF4 means double quantisation and an explicit compute dtype: `dtype` again. UserError for an
    adapter folder, pickled weights, or a folder that holds no model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = dtype or default_dtype()
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    folder = locate(path)
    _check_weights(folder, path)
    options: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False, "output_loading_info": True}
    if torch.cuda.is_available():
        options["device_map"] = {"": torch.cuda.current_device()}
    if four_bit:
        options["quantization_config"] = _nf4(DTYPES[dtype])
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if attn not in PACKED or _attention_replaceable(config):
            options["attn_implementation"] = PACKED.get(attn, attn)
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPES[dtype], **options)
    except UNREADABLE as e:
        raise UserError(f"no model can be loaded: {_first_line(e)}", path, "give a causal language model") from e
    model, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers would fill them with noise and go on
        raise UserError(f"{len(missing)} weights are missing, first {missing[0]}", path, "restore the model's files")
    for module in model.modules():
        # bitsandbytes repacks a CPU weight in its first forward in eval mode, rounding its scales to bf16 for good
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - unknown to type checkers
    keep_less(model)
    model.name_or_path = str(folder.resolve()) if Path(path).expanduser().is_dir() else path  # what adapters point to
    return model.eval()


def _attention_replaceable(config: Any) -> bool:
    """Whether the architecture calls its attention through transformers' interface, in a form that ours can compute:
    that of sdpa, or with a soft-cap, which sdpa has not."""
    from transformers import AutoModelForCausalLM

    kind = AutoModelForCausalLM._model_mapping.get(type(config), None)
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    known = getattr(kind, "_supports_sdpa", False) or capped is not None
    return known and getattr(kind, "_supports_attention_backend", False)


def _nf4(compute: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def _check_weights(folder: Path, path: str) -> None:
    if is_adapter(folder):
        # transformers would inject this adapter silently, and a later LoRA would silently reset it
        raise UserError("this is an adapter, not a model", path, "give it to dpo or score, which load it with its base")
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")):
            raise UserError("the weights are pickles, which can run code", path, "convert them to safetensors")
        raise UserError("the folder holds no *.safetensors weights", path, "give a model folder or a run folder")


def _base_of(folder: Path) -> str:
    return adapter_config(folder)["base_model_name_or_path"]


def _first_line(e: Exception) -> str:
    return str(e).strip().partition("\n")[0][:200]


# ---------------------------------------------------------------------------------------------------------- adapters


def load_adapter(path: str, dtype: str | None, four_bit: bool, attn: str = "rows", trainable: bool = False) -> Any:
    """The peft model of an adapter folder over its own untouched base."""
    base = _base_of(locate(path))
    with as_base_of(path):
        model = load_model(base, dtype, four_bit, attn)
    return add_adapter(model, path, trainable=trainable)


def add_adapter(model: Any, path: str, name: str = "default", trainable: bool = False) -> Any:
    """The model with the adapter of a folder under a name; UserError for files that are damaged or do not fit."""
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    folder = locate(path)
    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise UserError(f"the adapter has no {ADAPTER_WEIGHTS}", path, "train it again, or convert it to safetensors")
    try:
        with safe_open(file, "np") as stored:
            known = set(stored.keys())
        if isinstance(model, PeftModel):
            model.load_adapter(str(folder), name, is_trainable=trainable)
        else:
            model = PeftModel.from_pretrained(model, str(folder), name, is_trainable=trainable)
    except SafetensorError as e:
        raise UserError(f"the adapter's weights are damaged: {_first_line(e)}", file, "restore the file") from e
    except (ValueError, RuntimeError, KeyError) as e:
        raise UserError(f"the adapter does not fit its base: {_first_line(e)}", path, "train it again") from e
    # peft leaves a weight that the file lacks at its random start, with no more than a warning
    needed = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if missing := sorted(set(needed) - known):
        raise UserError(f"{len(missing)} adapter weights are missing, first {missing[0]}", path, "restore its files")
    lean_lora(model)
    return model


def new_adapter(model: Any, targets: Sequence[str], r: int, alpha: int, dropout: float) -> Any:
    """A fresh LoRA in fp32 (B = 0: the model is unchanged); UserError for a target that matches nothing."""
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    linear = {n for n, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D)) and m is not head}
    names = {name.rpartition(".")[2] for name in linear}
    for target in targets:
        if target != "all-linear" and not any(f".{n}".endswith(f".{target}") for n, _ in model.named_modules()):
            raise UserError(
                f"LoRA target {target!r} matches no module",
                model.config.model_type,
                f"choose from {', '.join(sorted(names))}",
            )
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear" if "all-linear" in targets else list(targets),
        task_type="CAUSAL_LM",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as e:
        raise UserError(
            f"LoRA cannot be added: {_first_line(e)}", model.config.model_type, "choose other targets"
        ) from e
    lean_lora(adapted)
    return adapted
