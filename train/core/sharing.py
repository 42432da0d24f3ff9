"""May several responses share one prompt under a block mask? Decided from the model's configuration, then probed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from train.core.logprobs import base_model, response_logps
from train.core.rows import Row

ATTENTION_SLOWER = 4  # than matrix products, per FLOP: measured on CPU, softmax and mask included

_PLAIN_ROPE = {"default", "linear", "llama3", "yarn"}  # frequencies do not depend on the length of the input
_LEARNED = {"gpt2", "gpt_bigcode"}  # learned positions, looked up by position_ids
_RECURRENT = ("mamba", "rwkv", "recurrent", "xlstm", "lfm2")
_RULES: dict[str, Callable[[Any, int], bool]] = {
    "attention is neither sdpa nor eager": lambda c, n: (c._attn_implementation or "sdpa") not in ("sdpa", "eager"),
    "layers other than full attention": lambda c, n: bool(_other_layers(c, n)),
    "a sliding window shorter than the longest sequence": lambda c, n: _window(c) < n,
    "attention soft-cap under sdpa": lambda c, n: bool(
        getattr(c, "attn_logit_softcapping", None) and c._attn_implementation == "sdpa"
    ),
    "alibi positions": lambda c, n: bool(getattr(c, "alibi", False)) or c.model_type in ("bloom", "mpt"),
    "rotary frequencies that depend on length": lambda c, n: not _rope_types(c) <= _PLAIN_ROPE,
    "recurrent layers": lambda c, n: any(word in c.model_type for word in _RECURRENT),
    "positions are not known to come from position_ids": lambda c, n: not (_rope_types(c) or c.model_type in _LEARNED),
}


def shareable(config: Any, longest: int) -> str | None:
    """Why responses may not share one prompt in a model of this configuration; None where sharing is exact."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return next((reason for reason, applies in _RULES.items() if applies(config, longest)), None)


def _window(c: Any) -> float:
    layers = getattr(c, "layer_types", None)
    active = getattr(c, "sliding_window", None) and getattr(c, "use_sliding_window", True)
    if layers is not None and "sliding_attention" not in layers:
        return float("inf")
    return c.sliding_window if active else float("inf")


def _other_layers(c: Any, longest: int) -> set[str]:
    fine = {"full_attention"} | ({"sliding_attention"} if _window(c) >= longest else set())
    return set(getattr(c, "layer_types", None) or ["full_attention"]) - fine


def _rope_types(c: Any) -> set[str]:
    rope = getattr(c, "rope_parameters", None) or {}
    per_layer = [v for v in rope.values() if isinstance(v, dict)] or ([rope] if rope else [])
    return {r.get("rope_type", "default") for r in per_layer}


def attention_tokens(model: Any) -> float:
    """Length at which attention under a dense mask costs as much as everything else in the layers, for `split_row`."""
    body = base_model(model).base_model
    matrices = sum(p.numel() for name, p in body.named_parameters() if p.ndim == 2 and "lora_" not in name)
    embeddings = sum(m.weight.numel() for m in body.modules() if isinstance(m, nn.Embedding))
    config = model.config.get_text_config()
    by_flops = (matrices - embeddings) / (2 * config.hidden_size * config.num_hidden_layers)
    return by_flops / ATTENTION_SLOWER


def check_sharing(model: Any, row: Row) -> float:
    """Largest difference in nats between a row's shared and separate log-probabilities, summed per response."""
    whole = response_logps(model, [row], row.tokens)[0].logps_R
    alone = response_logps(model, [row], row.tokens, shared=False)[0].logps_R
    return float(np.abs(whole - alone).max())


class Sharing(NamedTuple):
    """Whether responses share their prompt, and one line saying why or why not."""

    shared: bool
    line: str


def decide_sharing(model: Any, rows: Sequence[Row]) -> Sharing:
    """By the model's configuration first, then by a probe on the row with the most tokens."""
    several = [r for r in rows if len(r.response_ids) > 1]
    if not several:
        return Sharing(False, "prompts are not shared: each has one response")
    reason = shareable(model.config, max(r.longest for r in several))
    if reason is not None:
        return Sharing(False, f"prompts are not shared: {reason}")
    row = max(several, key=lambda r: r.tokens)
    off = check_sharing(model, row)
    tolerance = {8: 1e-6, 4: 1e-3}.get(model.dtype.itemsize, 0.05) * row.response_tokens**0.5
    word = "shared" if off <= tolerance else "not shared"
    return Sharing(off <= tolerance, f"prompts are {word}: off by {off:.1e} nats on a row of {row.tokens} tokens")
