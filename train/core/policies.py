"""A policy with its reference: how a run's own is found again, and how one model computes as the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prefkit.errors import UserError, unknown_name
from train.core.encode import Template
from train.core.locate import RUN_FILE, SUMMARY, is_adapter, locate, run_config, weights_digest
from train.core.models import check_adapter_keys, check_adapter_weights, load_adapter, load_model, load_tokenizer


def add_reference(model: Any, path: str) -> str:
    """Load an adapter a second time as the frozen `reference` over the same base; return the reference's kind."""
    folder = locate(path)
    check_adapter_weights(folder, path)
    model.load_adapter(str(folder), "reference", is_trainable=False)
    check_adapter_keys(model, "reference", folder, path)
    model.set_adapter("default")
    return "adapter:reference"


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
    attn: str = "rows",
    template: str | None = None,
    reference: bool = True,
) -> Loaded:
    """Load a run folder, an adapter folder or a model; what is None is as the run had it.

    The reference of a run is what it started from: the base under its adapter, the SFT adapter loaded beside it, or
    the model that full fine-tuning began with (`reference=False` leaves the latter two out).
    """
    folder = locate(path)
    config = run_config(folder) or {}
    if (folder / RUN_FILE).is_file() and not (folder / SUMMARY).is_file():
        raise UserError("this run is not finished", path, "give its training command again, or name a checkpoint of it")
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


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to zero, LoRA's and attention's too, so that policy and reference are functions."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and ("dropout" in name or name.endswith("pdrop")):
                setattr(module, name, 0.0)
