"""The output head in tiles: log-probability, entropy and top-1 hit of labels without a tensor of [tokens, vocabulary].

Shape suffixes: N response tokens, T tokens of one tile, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefkit.errors import UserError

TILE_ELEMENTS = {"cpu": 1 << 22, "cuda": 1 << 27}  # logits held at once: near the cache on CPU, enough to fill a GPU


@dataclass(frozen=True)
class Head:
    """The output projection and what the architecture does to logits after it: scale, then soft-cap."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, model: Any) -> Head:
        """The head of a causal language model; UserError when it is not a plain linear layer."""
        layer = model.get_output_embeddings()
        if not isinstance(layer, nn.Linear) or type(layer).__name__ not in (
            "Linear",
            "NonDynamicallyQuantizableLinear",
        ):
            raise UserError(
                f"the output head is a {type(layer).__name__}, not a plain linear layer",
                fix="remove lm_head from lora.target_modules and keep it out of quantisation",
            )
        config = model.config.get_text_config()
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
        scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        return cls(layer.weight, layer.bias, float(scale), getattr(config, "final_logit_softcapping", None))


class TokenLogps(NamedTuple):
    """Of N tokens: log-probability (fp64, nats, differentiable); entropy of the prediction (nats, NaN unless asked
    for); 1 where the label was the likeliest token."""

    logps_N: Tensor
    entropy_N: Tensor
    hits_N: Tensor


class _Tile(NamedTuple):
    """A tile between the two passes: exp(logits − largest), their sums, and the slope of the soft-cap."""

    part: slice
    exp_TV: Tensor
    sums_T1: Tensor
    slope_TV: Tensor | None


class TiledLogps(torch.autograd.Function):
    """log softmax(head(hidden))[label] for N tokens; tiles of `tile` tokens reuse one buffer.

    Log-softmax in fp32 (fp64 for an fp64 model). With a frozen head the gradient with respect to hidden is formed in
    the forward pass, while the tile is at hand; a trainable head recomputes each tile in backward and accumulates its
    own gradient in fp32. With e = exp(logits − largest), S = Σe and s the slope of the soft-cap at each logit,
    ∂ log p[y] / ∂ hidden = scale · (s[y]·W[y] − (e·s) W / S): probabilities are never formed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        scale: float,
        softcap: float | None,
        tile: int,
        entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        head = Head(weight_VD, bias_V, scale, softcap)
        ctx.head_trains = weight_VD.requires_grad or (bias_V is not None and bias_V.requires_grad)
        ctx.form_grad = hidden_ND.requires_grad and not ctx.head_trains
        unknown_N = torch.full((len(labels_N),), torch.nan, dtype=torch.float64, device=hidden_ND.device)
        out = TokenLogps(*(unknown_N.clone() for _ in range(3)))
        grad_ND = torch.empty_like(hidden_ND) if ctx.form_grad else None
        for t in _tiles(hidden_ND, labels_N, head, tile, out, entropy):
            if grad_ND is not None:
                grad_ND[t.part] = _hidden_grad(t, labels_N[t.part], head)
        if ctx.form_grad:
            ctx.save_for_backward(grad_ND)
        elif ctx.head_trains:
            ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N)
            ctx.rest = (scale, softcap, tile)
        ctx.mark_non_differentiable(out.entropy_N, out.hits_N)
        return out.logps_N, out.entropy_N, out.hits_N

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        up_N = upstream[0]
        if ctx.form_grad:
            (grad_ND,) = ctx.saved_tensors
            return grad_ND * up_N[:, None].to(grad_ND.dtype), *[None] * 7
        hidden_ND, weight_VD, bias_V, labels_N = ctx.saved_tensors
        scale, softcap, tile = ctx.rest
        head = Head(weight_VD, bias_V, scale, softcap)
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        grad_ND = torch.empty_like(hidden_ND)
        grad_VD = torch.zeros_like(weight_VD, dtype=wide)
        grad_V = torch.zeros_like(bias_V, dtype=wide) if bias_V is not None else None
        unused = TokenLogps(*(torch.empty_like(up_N) for _ in range(3)))
        for t in _tiles(hidden_ND, labels_N, head, tile, unused, entropy=False):
            labels_T, up_T1 = labels_N[t.part], up_N[t.part, None].to(wide) * scale
            grad_ND[t.part] = _hidden_grad(t, labels_T, head) * up_N[t.part, None].to(grad_ND.dtype)
            at_label_T1 = up_T1 if t.slope_TV is None else up_T1 * t.slope_TV.gather(1, labels_T[:, None])
            shares_T1 = up_T1 / t.sums_T1
            hidden_TD = hidden_ND[t.part].to(wide)
            grad_VD.addmm_(t.exp_TV.t(), hidden_TD * shares_T1, alpha=-1)
            grad_VD.index_add_(0, labels_T, hidden_TD * at_label_T1)
            if grad_V is not None:
                grad_V.addmv_(t.exp_TV.t(), shares_T1[:, 0], alpha=-1).index_add_(0, labels_T, at_label_T1[:, 0])
        grad_bias = grad_V.to(bias_V.dtype) if grad_V is not None else None
        return grad_ND, grad_VD.to(weight_VD.dtype), grad_bias, *[None] * 5


def _tiles(
    hidden_ND: Tensor, labels_N: Tensor, head: Head, tile: int, out: TokenLogps, entropy: bool
) -> Iterator[_Tile]:
    """Fill `out` tile by tile and yield each tile, its exponentials already multiplied by the slope of the soft-cap."""
    wide = torch.promote_types(head.weight_VD.dtype, torch.float32)
    N, V = len(labels_N), len(head.weight_VD)
    buffer_TV = torch.empty(min(tile, N), V, dtype=wide, device=hidden_ND.device)
    spare_TV = torch.empty_like(buffer_TV) if entropy else None
    for start in range(0, N, tile):
        part = slice(start, min(start + tile, N))
        logits_TV = buffer_TV[: part.stop - start]
        hidden_TD = hidden_ND[part].to(head.weight_VD.dtype)
        if head.weight_VD.dtype == wide:
            torch.mm(hidden_TD, head.weight_VD.t(), out=logits_TV)
        else:
            logits_TV.copy_(hidden_TD @ head.weight_VD.t())
        slope_TV = _finish_logits(logits_TV, head)
        picked_T = logits_TV.gather(1, labels_N[part, None])[:, 0]
        top_T1 = logits_TV.amax(1, keepdim=True)
        logits_TV.sub_(top_T1)
        exp_TV = torch.exp(logits_TV, out=logits_TV if spare_TV is None else spare_TV[: len(logits_TV)])
        sums_T1 = exp_TV.sum(1, keepdim=True)
        log_sums_T = sums_T1[:, 0].double().log()
        out.logps_N[part] = (picked_T - top_T1[:, 0]).double() - log_sums_T
        out.hits_N[part] = (picked_T >= top_T1[:, 0]).double()
        if entropy:  # log Σe − Σ (e/Σe)·(logit − largest)
            means_T = torch.bmm(exp_TV[:, None], logits_TV[:, :, None])[:, 0, 0] / sums_T1[:, 0]
            out.entropy_N[part] = log_sums_T - means_T.double()
        yield _Tile(part, exp_TV if slope_TV is None else exp_TV.mul_(slope_TV), sums_T1, slope_TV)


def _finish_logits(logits_TV: Tensor, head: Head) -> Tensor | None:
    if head.bias_V is not None:
        logits_TV.add_(head.bias_V)
    if head.scale != 1.0:
        logits_TV.mul_(head.scale)
    if head.softcap is None:
        return None
    logits_TV.div_(head.softcap).tanh_()
    slope_TV = 1 - logits_TV.square()
    logits_TV.mul_(head.softcap)
    return slope_TV


def _hidden_grad(t: _Tile, labels_T: Tensor, head: Head) -> Tensor:
    weight_VD = head.weight_VD
    at_label_TD = weight_VD[labels_T]
    if t.slope_TV is not None:
        at_label_TD = at_label_TD * t.slope_TV.gather(1, labels_T[:, None]).to(weight_VD.dtype)
    # normalised before rounding: a bf16 product of bare exponentials would lose their sum
    expected_TD = t.exp_TV.to(weight_VD.dtype) @ weight_VD / t.sums_T1.to(weight_VD.dtype)
    return (at_label_TD - expected_TD) * head.scale


def tiled_logps(
    hidden_ND: Tensor, head: Head, labels_N: Tensor, tile: int | None = None, entropy: bool = False
) -> TokenLogps:
    """Log-probabilities of labels under the head, differentiable in hidden, weight and bias; entropies if asked."""
    tile = tile or max(16, TILE_ELEMENTS.get(hidden_ND.device.type, 1 << 24) // len(head.weight_VD))
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return TokenLogps(
            *TiledLogps.apply(hidden_ND, head.weight_VD, head.bias_V, labels_N, head.scale, head.softcap, tile, entropy)
        )
