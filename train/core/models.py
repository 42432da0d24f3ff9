"""Loading models, tokenizers, adapters and references. Every mistake here is one line; none waits for the network."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import yaml
from safetensors import SafetensorError
from torch import nn

from prefkit.errors import UserError, unknown_name
from train.core.encode import Template

RUN_FILE = "run.yaml"
ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
CHECKPOINT = re.compile(r"checkpoint-\d+")
DTYPES = {n: getattr(torch, n) for n in ("float32", "bfloat16", "float16", "float64")}
WEIGHTS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


# ------------------------------------------------------------------------------------------------------------- where


def locate(path: str) -> Path:
    """The local folder of a model: itself, or the hub's snapshot of that name; UserError when there is neither."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) or path.startswith("."):
        raise UserError("model folder not found", path, "give a model folder, a run folder, or a name on the hub")
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        cached = Path(snapshot_download(path, allow_patterns=WEIGHTS, local_files_only=True))
        if any(cached.glob("*.safetensors")):
            return cached
    except OSError:
        pass  # not in the cache: ask the hub
    _reach(constants.ENDPOINT, path)
    try:
        return Path(snapshot_download(path, allow_patterns=WEIGHTS))
    except GatedRepoError as e:
        raise UserError(
            "the model is gated", path, f"accept its terms at {constants.ENDPOINT}/{path}, then hf auth login"
        ) from e
    except RepositoryNotFoundError as e:
        raise UserError("no such folder, and no such model on the hub", path, "check the name") from e
    except (HfHubHTTPError, OSError) as e:
        raise UserError(f"cannot download the model: {e}", path, "try again, or give a local folder") from e


def _reach(endpoint: str, path: str) -> None:
    """Fail in seconds instead of after the hub client's retries."""
    fix = "give a local folder, or connect to the network"
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        raise UserError("no such folder, not in the cache, and HF_HUB_OFFLINE is set", path, fix)
    if any(os.environ.get(k) for k in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    url = urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname or "", url.port or 443), timeout=5).close()
    except OSError as e:
        raise UserError(f"no such folder, not in the cache, and {url.hostname} cannot be reached", path, fix) from e


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a peft adapter."""
    return (folder / ADAPTER_FILE).is_file()


def run_config(folder: Path) -> dict[str, Any] | None:
    """The resolved configuration of one of our runs, also for its checkpoints; None for foreign folders."""
    home = folder.resolve().parent if CHECKPOINT.fullmatch(folder.resolve().name) else folder
    file = home / RUN_FILE
    if not file.is_file():
        return None
    try:
        config = yaml.safe_load(file.read_text("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError("the run's configuration is not YAML", file, "train again, or restore it") from e
    if not isinstance(config, dict):
        raise UserError("the run's configuration is damaged", file, "train again, or restore it")
    return config


def weights_digest(path: str) -> str:
    """Names the weights in a folder: sha256 over its *.safetensors; the hub's revision for a model from there."""
    folder = locate(path)
    if not Path(path).expanduser().is_dir():
        return folder.name
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


# ------------------------------------------------------------------------------------------------------------- load


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


def default_dtype() -> str:
    """float32 on CPU, bfloat16 on CUDA."""
    return "bfloat16" if torch.cuda.is_available() else "float32"


def load_model(path: str, dtype: str | None = None, four_bit: bool = False, attn: str = "sdpa") -> Any:
    """A causal language model from safetensors, in `dtype` (`default_dtype` if None), frozen NF4 when `four_bit`.

    NF4 means double quantisation and an explicit compute dtype: `dtype` again. UserError for an adapter folder,
    pickled weights, or a folder that holds no model.
    """
    from transformers import AutoModelForCausalLM

    dtype = dtype or default_dtype()
    if dtype not in DTYPES:
        raise unknown_name("dtype", dtype, DTYPES)
    folder = locate(path)
    _check_weights(folder, path)
    safe: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
    extra: dict[str, Any] = {"device_map": {"": torch.cuda.current_device()}} if torch.cuda.is_available() else {}
    if four_bit:
        extra["quantization_config"] = _nf4(DTYPES[dtype])
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], attn_implementation=attn, output_loading_info=True, **safe, **extra
        )
    except (OSError, ValueError, KeyError, SafetensorError) as e:
        raise UserError(f"no model can be loaded: {_first_line(e)}", path, "give a causal language model") from e
    model, info = loaded
    if missing := sorted(info["missing_keys"]):  # transformers would fill them with noise and go on
        raise UserError(f"{len(missing)} weights are missing, first {missing[0]}", path, "restore the model's files")
    for module in model.modules():
        # bitsandbytes repacks a CPU weight in its first forward in eval mode, rounding its scales to bf16 for good
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - unknown to type checkers
    model.name_or_path = str(folder.resolve()) if Path(path).expanduser().is_dir() else path  # what adapters point to
    return model.eval()


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
    try:
        base = json.loads((folder / ADAPTER_FILE).read_text("utf-8")).get("base_model_name_or_path")
    except (ValueError, AttributeError) as e:
        raise UserError("the adapter's configuration is damaged", folder / ADAPTER_FILE, "restore the file") from e
    if not base:
        raise UserError("the adapter names no base model", folder, f"set base_model_name_or_path in its {ADAPTER_FILE}")
    return base


def _first_line(e: Exception) -> str:
    return str(e).strip().partition("\n")[0][:200]


# ---------------------------------------------------------------------------------------------------------- adapters


def load_adapter(path: str, dtype: str | None, four_bit: bool, attn: str, trainable: bool = False) -> Any:
    """The peft model of an adapter folder over its own untouched base."""
    from peft import PeftModel

    folder = locate(path)
    base = _base_of(folder)
    try:
        model = load_model(base, dtype, four_bit, attn)
    except UserError as e:
        fix = f"restore the base, or set base_model_name_or_path in its {ADAPTER_FILE}"
        raise UserError(f"the adapter's base cannot be loaded: {e}", path, fix) from e
    _check_adapter_weights(folder, path)
    try:
        adapted = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (ValueError, RuntimeError, KeyError) as e:
        raise UserError(f"the adapter does not fit its base: {_first_line(e)}", path, "train it again") from e
    _check_adapter_keys(adapted, "default", folder, path)
    return adapted


def _check_adapter_weights(folder: Path, path: str) -> None:
    from safetensors import safe_open

    file = folder / ADAPTER_WEIGHTS
    if not file.is_file():
        raise UserError(f"the adapter has no {ADAPTER_WEIGHTS}", path, "train it again, or convert it to safetensors")
    try:
        with safe_open(file, "np"):
            pass
    except SafetensorError as e:
        raise UserError(f"the adapter's weights are damaged: {_first_line(e)}", file, "restore the file") from e


def _check_adapter_keys(model: Any, name: str, folder: Path, path: str) -> None:
    """peft leaves a weight that the file lacks at its random start, with no more than a warning."""
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(folder / ADAPTER_WEIGHTS, "np") as stored:
        known = set(stored.keys())
    needed = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if missing := sorted(set(needed) - known):
        raise UserError(f"{len(missing)} adapter weights are missing, first {missing[0]}", path, "restore its files")


def add_reference(model: Any, path: str) -> str:
    """Load an adapter a second time as the frozen `reference` over the same base; return the reference's kind."""
    folder = locate(path)
    _check_adapter_weights(folder, path)
    model.load_adapter(str(folder), "reference", is_trainable=False)
    _check_adapter_keys(model, "reference", folder, path)
    model.set_adapter("default")
    return "adapter:reference"


def new_adapter(model: Any, targets: Sequence[str], r: int, alpha: int, dropout: float) -> Any:
    """A fresh LoRA in fp32 (B = 0: the model is unchanged); UserError for a target that matches nothing."""
    from peft import LoraConfig, get_peft_model

    names = {name.rpartition(".")[2] for name, m in model.named_modules() if hasattr(m, "weight") and _is_matrix(m)}
    head = model.get_output_embeddings()
    names -= {n.rpartition(".")[2] for n, m in model.named_modules() if m is head or isinstance(m, nn.Embedding)}
    for target in targets:
        if target != "all-linear" and not any(_matches(name, target) for name, _ in model.named_modules()):
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
        return get_peft_model(model, config)
    except ValueError as e:
        raise UserError(
            f"LoRA cannot be added: {_first_line(e)}", model.config.model_type, "choose other targets"
        ) from e


def _is_matrix(module: nn.Module) -> bool:
    return getattr(module, "in_features", None) is not None or type(module).__name__ == "Conv1D"


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to zero, LoRA's and attention's too, so that policy and reference are functions."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                setattr(module, name, 0.0)


# --------------------------------------------------------------------------------------------------------- reference


@contextmanager
def reference_context(model: Any, kind: str, frozen: Any = None) -> Iterator[Any]:
    """Yield the model that is the reference while inside; gradients are off.

    `adapter_off`: the policy without its adapter; `adapter:NAME`: the policy with another adapter; `model`: `frozen`.
    """
    with torch.no_grad():
        if kind == "model":
            yield frozen
        elif kind == "adapter_off":
            model.base_model.disable_adapter_layers()
            try:
                yield model
            finally:
                model.base_model.enable_adapter_layers()
        elif kind.startswith("adapter:"):
            active = model.active_adapter
            trains = any(p.requires_grad for p in model.parameters())
            model.set_adapter(kind.partition(":")[2], inference_mode=True)
            try:
                yield model
            finally:
                model.set_adapter(active, inference_mode=not trains)
        else:
            raise unknown_name("reference", kind, ["adapter_off", "adapter:NAME", "model"])


@dataclass(frozen=True)
class Loaded:
    """A policy ready to score, with what its run says about tokens and reference.

    `reference` is a kind for `reference_context` or "none"; `frozen` is the reference model of kind "model";
    `config` is the run's resolved configuration (empty for foreign folders).
    """

    path: str
    model: Any
    tokenizer: Any
    template: Template
    reference: str
    frozen: Any
    config: dict[str, Any]


def load_policy(
    path: str,
    dtype: str | None = None,
    four_bit: bool | None = None,
    attn: str = "sdpa",
    template: str | None = None,
    reference: bool = True,
) -> Loaded:
    """Load a run folder, an adapter folder or a model; what is None is as the run had it.

    The reference of a run is what it started from: the base under its adapter, the SFT adapter loaded beside it, or
    the model that full fine-tuning began with (`reference=False` leaves the latter two out).
    """
    folder = locate(path)
    config = run_config(folder) or {}
    trained = config.get("model", {})
    dtype = dtype or trained.get("dtype")
    four_bit = bool(trained.get("four_bit")) if four_bit is None else four_bit
    tokenizer = load_tokenizer(path)
    chosen = Template.of(template or config.get("data", {}).get("template"), tokenizer)
    start, frozen, kind = trained.get("path"), None, "none"
    if start and reference:
        _check_start(start, path, config.get("digests", {}).get("model"))
    if is_adapter(folder):
        model, kind = load_adapter(path, dtype, four_bit, attn), "adapter_off"
        if reference and start and is_adapter(locate(start)):
            kind = add_reference(model, start)
    else:
        model = load_model(path, dtype, four_bit, attn)
        if start and reference:
            frozen, kind = load_model(start, dtype, four_bit, attn), "model"
    return Loaded(path, model.eval(), tokenizer, chosen, kind, frozen, config)


def _check_start(start: str, path: str, digest: str | None) -> None:
    """The reference is what the run started from, not what lies at that path today."""
    try:
        now = weights_digest(start)
    except UserError as e:
        raise UserError(f"the model this run started from is missing: {e}", path, "name another --reference") from e
    if digest is not None and now != digest:
        what = f"the model this run started from has changed since: {start}"
        raise UserError(what, path, "restore it, or name another --reference")
