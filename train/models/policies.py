"""A policy with its reference: how a run's own is found again, and how one model computes as the other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from prefkit.errors import UserError, unknown_name
from train.core.encode import Template
from train.models.load import add_adapter, default_dtype, load_adapter, load_model, load_tokenizer
from train.models.locate import (
    ADAPTER_FILE,
    adapter_config,
    as_base_of,
    is_adapter,
    locate,
    locate_finished,
    run_config,
    weights_digest,
)


def add_reference(model: Any, path: str) -> str:
    """Load an adapter a second time as the frozen `reference` over the same base; return the reference's kind."""
    add_adapter(model, path, "reference")
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
class Policy:
    """A policy by its files: what its run says about tokens, precision and reference. No weights are loaded.

    `start` is what it started from and is compared with (its run's model, or the base of a foreign adapter), `kind` how
    that reference is had: a kind for `reference_context`, or "none". `config` is the run's resolved configuration,
    empty for foreign folders.
    """

    path: str
    dtype: str
    four_bit: bool
    tokenizer: Any
    template: Template
    start: str | None
    kind: str
    config: dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """A policy with its weights; `frozen` is the reference model of kind "model"."""

    policy: Policy
    model: Any
    frozen: Any = None


def describe_policy(path: str, dtype: str | None = None, template: str | None = None, reference: bool = True) -> Policy:
    """A run folder, an adapter folder or a model; what is None is as the run had it.

    The reference of a run is what it started from: the base under its adapter, the SFT adapter loaded beside it, or
    the model that full fine-tuning began with. UserError where that has changed; `reference=False` does not look.
    """
    folder = locate_finished(path)
    config = run_config(folder) or {}
    trained = config.get("model", {})
    tokenizer = load_tokenizer(path)
    start, kind = trained.get("path"), "none"
    if is_adapter(folder):
        base = adapter_config(folder)["base_model_name_or_path"]
        with as_base_of(path):
            locate(base)
        if reference and start and is_adapter(locate(start)):
            kind = "adapter:reference"
            _check_same_base(base, start, path)
        else:
            kind, start = "adapter_off", base  # what is left when the adapter is off, whatever the run says
    elif start and reference:
        kind = "model"
    if config and start and reference:
        _check_start(start, path, config.get("digests", {}).get("model"))
    return Policy(
        path,
        dtype or trained.get("dtype") or default_dtype(),
        bool(trained.get("four_bit")),
        tokenizer,
        Template.of(template or config.get("data", {}).get("template"), tokenizer),
        start,
        kind,
        config,
    )


def load_policy(policy: Policy) -> Loaded:
    """The weights of a policy, and of its reference as its kind asks."""
    if is_adapter(locate(policy.path)):
        model = load_adapter(policy.path, policy.dtype, policy.four_bit)
        if policy.kind == "adapter:reference":
            add_reference(model, str(policy.start))
        return Loaded(policy, model.eval())
    model = load_model(policy.path, policy.dtype, policy.four_bit).eval()
    frozen = load_model(str(policy.start), policy.dtype, policy.four_bit) if policy.kind == "model" else None
    return Loaded(policy, model, frozen)


def _check_same_base(base: str, start: str, path: str) -> None:
    """The adapter of the reference is loaded over the policy's base: that must be its own."""
    own = adapter_config(locate(start))["base_model_name_or_path"]
    with as_base_of(path):
        same = weights_digest(base) == weights_digest(own)
    if not same:
        what = f"the adapter's base {base} is not that of the model it started from, {own}"
        raise UserError(what, path, f"set base_model_name_or_path in its {ADAPTER_FILE} to the same model")


def _check_start(start: str, path: str, digest: str | None) -> None:
    """The reference is what the run started from, not what lies at that path today."""
    try:
        now = weights_digest(start)
    except UserError as e:
        raise UserError(f"the model this run started from is missing: {e}", path, "name another --reference") from e
    if digest is not None and now != digest:
        what = f"the model this run started from has changed since: {start}"
        raise UserError(what, path, "restore it, or name another --reference")
