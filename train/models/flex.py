"""Packed rows under FlexAttention: one kernel over the whole sequence, whose block mask skips what no token may see.

An option for GPUs (`--model.attn flex`); `train.core.attention` explains rows and says who sees whom.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from train.core.attention import Packing, row_attention

FLEX = "prefkit_rows_flex"


def flex_row_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    dropout: float = 0.0,
    **given: Any,
) -> tuple[Tensor, None]:
    """What `row_attention` computes, [1, H, L, D] → [1, L, H, D]; it does so itself for padded batches and dropout."""
    if packing is None or dropout:
        return row_attention(module, query, key, value, attention_mask, dropout=dropout, packing=packing, **given)
    softcap = given.get("softcap")
    out = _kernel(query.device.type)(
        query.to(value.dtype),  # under autocast rotary embeddings leave fp32
        key.to(value.dtype),
        value,
        score_mod=_capped(softcap) if softcap is not None else None,
        block_mask=block_mask(packing, given.get("sliding_window"), query.device),
        scale=given.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out.transpose(1, 2), None


def block_mask(packing: Packing, window: int | None, device: torch.device) -> BlockMask:
    """Who sees whom in the sequence, made once for all layers of one window."""
    key = ("flex", window, device)
    if key not in packing.masks:
        stretches, length = [], 0  # row, which of its stretches (0 is the shared one), index less position
        for i, span in enumerate(packing.spans):
            for r, n in enumerate((span.shared, *span.own)):
                stretches += [(i, r, length - span.shared * (r > 0))] * n
                length += n
        row_L, own_L, before_L = torch.tensor(stretches, device=device).unbind(1)

        def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            seen = (k <= q) & (row_L[q] == row_L[k]) & ((own_L[k] == 0) | (own_L[k] == own_L[q]))
            return seen if window is None else seen & ((q - before_L[q]) - (k - before_L[k]) < window)

        packing.masks[key] = create_block_mask(sees, None, None, length, length, device=device)
    return packing.masks[key]


@cache
def _capped(cap: float) -> Any:
    """Scores bounded as in Gemma 2; one function a cap, so that the kernel is compiled once."""
    return lambda score, *place: cap * torch.tanh(score / cap)


@cache
def _kernel(device: str) -> Any:
    """Compiled where there is a kernel; elsewhere the plain computation, which the tests compare."""
    return torch.compile(flex_attention, dynamic=True) if device == "cuda" else flex_attention


AttentionInterface.register(FLEX, flex_row_attention)
AttentionMaskInterface.register(FLEX, sdpa_mask)
