"""Attention over rows laid end to end in one sequence: no padding, and no mask of [L, L].

A row is a shared stretch (prompt, and what all its responses begin with) followed by each response's own tokens. The
shared stretch sees itself; a response sees the shared stretch and itself: causal, each with positions of its own. That
is one small attention a stretch, so the cost is what the rows need and not the square of what happens to lie together.

Shape suffixes: H heads, L tokens of the sequence, Q tokens of a stretch, K tokens it may see, D size of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ROWS = "prefkit_rows"  # the name of this attention in a model's configuration


class Span(NamedTuple):
    """How many tokens of a row all its responses share, and how many are each response's own; a 0 is allowed."""

    shared: int
    own: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Packing:
    """The rows of one sequence, in order, and the masks their attention needed so far (all layers share them)."""

    spans: tuple[Span, ...]
    masks: dict[tuple, Any] = field(default_factory=dict)

    @property
    def stretches(self) -> list[tuple[slice, list[slice]]]:
        """Where each row's shared tokens lie, and where each response's own; responses without any are left out."""
        found, at = [], 0
        for span in self.spans:
            shared, owns, at = slice(at, at + span.shared), [], at + span.shared
            for n in span.own:
                owns += [slice(at, at + n)] * (n > 0)
                at += n
            found.append((shared, owns))
        return found

    def mask(self, q: int, k: int, window: int | None, like: Tensor) -> Tensor | None:
        """What is added to scores [Q, K] of the last `q` of `k` tokens; None where plain causal attention is right."""
        window = window if window is not None and window < k else None
        if q == k and window is None:
            return None
        key = (q, k, window, like.dtype, like.device)
        if key not in self.masks:
            after_QK = torch.arange(k - q, k, device=like.device)[:, None] - torch.arange(k, device=like.device)
            hidden_QK = after_QK < 0 if window is None else (after_QK < 0) | (after_QK >= window)
            self.masks[key] = like.new_zeros(q, k).masked_fill_(hidden_QK, -torch.inf)
        return self.masks[key]


def row_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query, key, value [1, H, L, D] → [1, L, H, D].

    Without `packing` it is transformers' own sdpa attention (padded batches, generation).
    """
    if packing is None:
        if softcap is None:
            return sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
            )
        if attention_mask is not None:
            lowest = torch.finfo(query.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill_(~attention_mask, lowest)
        return _attend(query, key, value, attention_mask, dropout, scaling, softcap).transpose(1, 2), None
    query, key = query.to(value.dtype), key.to(value.dtype)  # autocast leaves them as rotary embeddings made them
    windowed = sliding_window is not None and sliding_window < max(
        s.shared + max(s.own, default=0) for s in packing.spans
    )
    alike = query.shape[-1] == value.shape[-1]  # not where keys are longer than values, as in latent attention
    if query.device.type == "cpu" and alike and softcap is None and not windowed and not dropout:
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        return FlashRows.apply(query, key, value, packing, scale).transpose(1, 2), None
    lengths = [n for span in packing.spans for n in (span.shared, *span.own)]
    queries, keys, values = (torch.split(x, lengths, dim=2) for x in (query, key, value))
    out = []
    at = 0
    for span in packing.spans:
        k, v = keys[at], values[at]
        for i, q in enumerate(queries[at : at + 1 + len(span.own)]):
            if q.shape[2]:
                seen = (k, v) if i == 0 else (torch.cat([k, keys[at + i]], 2), torch.cat([v, values[at + i]], 2))
                mask_QK = packing.mask(q.shape[2], seen[0].shape[2], sliding_window, q)
                out.append(_attend(q, *seen, mask_QK, dropout, scaling, softcap))
        at += 1 + len(span.own)
    return torch.cat(out, dim=2).transpose(1, 2), None


class FlashRows(torch.autograd.Function):
    """The same on CPU without a mask or a copy of the shared keys: flash attention in two parts, merged exactly.

    The tokens of a row's responses attend to the shared stretch together, and to their own response alone; two softmax
    parts with log-sum-exps a and b merge with weights exp(a − c) and exp(b − c), c = log(exp a + exp b). Flash backward
    needs of the whole softmax only its output and c, so each part's gradients are exact by themselves.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float) -> Tensor:
        heads, length, size = q.shape[1], q.shape[2], q.shape[3]
        out = q.new_empty(1, length, heads, size).transpose(1, 2)
        lse = torch.empty(1, length, heads, dtype=torch.promote_types(q.dtype, torch.float32)).transpose(1, 2)
        for shared, owns in packing.stretches:
            out[:, :, shared], lse[:, :, shared] = _flash(q, k, v, shared, shared, True, scale)
            if not owns:
                continue
            rest = slice(shared.stop, owns[-1].stop)
            out[:, :, rest], lse[:, :, rest] = _flash(q, k, v, rest, shared, False, scale)
            for own in owns:
                part, its_lse = _flash(q, k, v, own, own, True, scale)
                whole = torch.logaddexp(lse[:, :, own], its_lse)
                out[:, :, own].mul_((lse[:, :, own] - whole).exp_()[..., None])
                out[:, :, own].add_(part.mul_((its_lse - whole).exp_()[..., None]))
                lse[:, :, own] = whole
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.packing, ctx.scale = packing, scale
        return out

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (up,) = upstream
        q, k, v, out, lse = ctx.saved_tensors
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))

        def add(queries: slice, keys: slice, causal: bool, first_q: bool, first_k: bool) -> None:
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(up[:, :, queries], q[:, :, queries], k[:, :, keys], v[:, :, keys], out[:, :, queries]),
                *(lse[:, :, queries], 0.0, causal),
                scale=ctx.scale,
            )
            for grad, part, where, first in zip(
                (dq, dk, dv), parts, (queries, keys, keys), (first_q, first_k, first_k), strict=True
            ):
                grad[:, :, where].copy_(part) if first else grad[:, :, where].add_(part)

        for shared, owns in ctx.packing.stretches:
            add(shared, shared, True, True, True)
            if owns:
                add(slice(shared.stop, owns[-1].stop), shared, False, True, False)
            for own in owns:
                add(own, own, True, False, True)
        return dq, dk, dv, None, None


def _flash(
    q: Tensor, k: Tensor, v: Tensor, queries: slice, keys: slice, causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of one stretch over another, [1, H, Q, D], and its log-sum-exp, [1, H, Q]."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q[:, :, queries], k[:, :, keys], v[:, :, keys], 0.0, causal, scale=scale
    )


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask_QK: Tensor | None, dropout: float, scale: float | None, softcap: float | None
) -> Tensor:
    causal, groups = mask_QK is None, q.shape[1] // k.shape[1]
    if groups > 1 and not (causal and softcap is None):
        # on a GPU no kernel takes both a mask and fewer heads of keys but the one that holds all scores
        k, v, groups = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1), 1
    if softcap is not None:
        return _softcapped(q, k, v, mask_QK, dropout, scale, softcap)
    gqa = groups > 1
    return scaled_dot_product_attention(q, k, v, mask_QK, dropout, is_causal=causal, scale=scale, enable_gqa=gqa)


def _softcapped(
    q: Tensor, k: Tensor, v: Tensor, mask_QK: Tensor | None, dropout: float, scale: float | None, softcap: float
) -> Tensor:
    """Attention whose scores are bounded by cap · tanh(score / cap), as in Gemma 2, which sdpa cannot express."""
    scores = q @ k.transpose(2, 3) * (scale if scale is not None else q.shape[-1] ** -0.5)
    scores = torch.tanh(scores / softcap) * softcap
    if mask_QK is None:
        later = scores.shape[3] - scores.shape[2] + 1
        mask_QK = torch.full(scores.shape[2:], -torch.inf, dtype=q.dtype, device=q.device).triu_(later)
    weights = torch.softmax(scores + mask_QK, -1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype)
    return torch.nn.functional.dropout(weights, dropout) @ v


AttentionInterface.register(ROWS, row_attention)
AttentionMaskInterface.register(ROWS, sdpa_mask)
