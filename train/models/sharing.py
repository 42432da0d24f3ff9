"""May rows lie packed in one sequence? Decided from the model's configuration, then probed against plain forwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from train.core.logprobs import base_model, response_logps, separate_logps
from train.core.rows import Row
from train.models.load import PACKED

_PLAIN_ROPE = {"default", "linear", "llama3", "yarn"}  # frequencies do not depend on the length of the input
_LEARNED = {"gpt2", "gpt_bigcode"}  # learned positions, looked up by position_ids
_RECURRENT = ("mamba", "rwkv", "recurrent", "xlstm", "lfm2")
_ATTENTION = {"full_attention", "sliding_attention"}
BY_LENGTH = "rotary frequencies that depend on length"
_RULES: dict[str, Callable[[Any, int], bool]] = {
    "recurrent layers": lambda c, n: any(word in c.model_type for word in _RECURRENT),
    "alibi positions": lambda c, n: bool(getattr(c, "alibi", False)) or c.model_type in ("bloom", "mpt"),
    "layers other than attention": lambda c, n: not set(getattr(c, "layer_types", None) or ()) <= _ATTENTION,
    "attention sinks": lambda c, n: c.model_type == "gpt_oss",
    "its attention cannot be replaced": lambda c, n: c._attn_implementation not in PACKED.values(),
    BY_LENGTH: lambda c, n: not _rope_types(c) <= _PLAIN_ROPE and n > _first_length(c),
    "positions are not known to come from position_ids": lambda c, n: not (_rope_types(c) or c.model_type in _LEARNED),
}


def unpackable(config: Any, longest: int) -> str | None:
    """Why rows of a model of this configuration may not be packed; None where packing is exact."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return next((reason for reason, applies in _RULES.items() if applies(config, longest)), None)


def _ropes(c: Any) -> list[dict]:
    rope = getattr(c, "rope_parameters", None) or {}
    return [v for v in rope.values() if isinstance(v, dict)] or ([rope] if rope else [])


def _rope_types(c: Any) -> set[str]:
    return {r.get("rope_type", "default") for r in _ropes(c)}


def _first_length(c: Any) -> int:
    """Up to here every rotary embedding keeps its first frequencies."""
    return min([r.get("original_max_position_embeddings") or c.max_position_embeddings for r in _ropes(c)], default=0)


class Sharing(NamedTuple):
    """Whether rows are packed, so that responses share their prompt, and one line saying why or why not.

    `alone`: not even padded batches are exact, for a sequence's numbers depend on the longest beside it.
    """

    packed: bool
    line: str
    alone: bool = False


def decide_sharing(model: Any, rows: Sequence[Row]) -> Sharing:
    """By the model's configuration first, then by a probe on the row with the most tokens, the first one before it."""
    reason = unpackable(base_model(model).config, max(r.longest for r in rows))
    if reason is None:
        probed = [rows[0], max(rows, key=lambda r: r.tokens)]
        off, tokens = probe(model, probed), max(r.response_tokens for r in probed)
        allowed = {8: 1e-6, 4: 1e-3}.get(model.dtype.itemsize, 0.05) * tokens**0.5
        dtype = str(model.dtype).removeprefix("torch.")
        rounding = f"rounding of {dtype} may cost {allowed:.1e} over {tokens} response tokens"
        if off <= allowed:
            line = f"rows are packed: responses are within {off:.1e} nats of each computed alone; {rounding}"
            return Sharing(True, line)
        reason = f"responses would be {off:.1e} nats off each computed alone, but {rounding}"
    apart = sum(len(r.prompt_ids) * len(r.response_ids) + r.response_tokens for r in rows)
    cost = f"each response repeats its prompt, {apart / sum(r.tokens for r in rows):.2f} times the tokens"
    return Sharing(False, f"rows are not packed: {reason}; {cost}", alone=reason == BY_LENGTH)


def probe(model: Any, rows: Sequence[Row]) -> float:
    """Largest difference in nats between packed and separate log-probabilities, summed per response."""
    together = response_logps(model, rows, sum(r.tokens for r in rows))
    alone = separate_logps(model, rows)
    return max(float(np.abs(a.logps_R - b.logps_R).max()) for a, b in zip(together, alone, strict=True))
