"""The output head in tiles: log-probability, entropy and top-1 hit of labels without a tensor of [tokens, vocabulary].

Shape suffixes: N response tokens, T tokens of one tile, D hidden size, V vocabulary, C vocabulary of one tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from prefkit.errors import UserError

# Tokens and vocabulary of a tile at most. Matrix products reach their speed from about a thousand tokens on, and the
# elementwise passes that follow want the tile still in cache: on CPU 8 MB. A GPU wants few launches: 512 MB.
TILES = {"cpu": (2048, 1024), "cuda": (2048, 1 << 16)}


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

    @property
    def wide(self) -> torch.dtype:
        """What its softmax is computed in: fp32, or fp64 for an fp64 model."""
        return torch.promote_types(self.weight_VD.dtype, torch.float32)


class TokenLogps(NamedTuple):
    """Of N tokens: log-probability (fp64, nats, differentiable); entropy of the prediction (nats, NaN unless asked
    for); 1 where the label was the likeliest token."""

    logps_N: Tensor
    entropy_N: Tensor
    hits_N: Tensor


class TiledLogps(torch.autograd.Function):
    """log softmax(head(hidden))[label] for N tokens; tiles of at most `tile` = (tokens, vocabulary) reuse one buffer.

    Log-softmax in fp32 (fp64 for an fp64 model), its sums in fp64. With a frozen head the gradient with respect to
    hidden is formed in the forward pass, while the tile is at hand; a trainable head recomputes each tile in backward
    and accumulates its own gradient in fp32. With p the softmax and s the slope of the soft-cap at each logit,
    ∂ log p[y] / ∂ hidden = scale · (s[y]·W[y] − (p·s) W).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,  # the head's own, given apart for autograd to see
        bias_V: Tensor | None,
        labels_N: Tensor,
        head: Head,
        tile: tuple[int, int],
        entropy: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.head_trains = weight_VD.requires_grad or (bias_V is not None and bias_V.requires_grad)
        ctx.form_grad = hidden_ND.requires_grad and not ctx.head_trains
        found_N4 = torch.full((len(labels_N), 4), torch.nan, dtype=torch.float64, device=hidden_ND.device)
        grad_ND = torch.empty_like(hidden_ND) if ctx.form_grad else None
        for part in _parts(len(labels_N), tile[0]):
            found_N4[part], expected_TD = _scan(hidden_ND[part], labels_N[part], head, tile[1], entropy, ctx.form_grad)
            if grad_ND is not None and expected_TD is not None:
                grad_ND[part] = (_at_label(found_N4[part], labels_N[part], head) - expected_TD) * head.scale
        logps_N, entropy_N, hits_N, _ = found_N4.unbind(1)
        if ctx.form_grad:
            ctx.save_for_backward(grad_ND)
        elif ctx.head_trains:
            ctx.save_for_backward(hidden_ND, labels_N, found_N4)
            ctx.rest = (head, tile)
        ctx.mark_non_differentiable(entropy_N, hits_N)
        return logps_N.clone(), entropy_N, hits_N

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        up_N = upstream[0]
        if ctx.form_grad:
            (grad_ND,) = ctx.saved_tensors
            return grad_ND * up_N[:, None].to(grad_ND.dtype), *[None] * 6
        hidden_ND, labels_N, found_N4 = ctx.saved_tensors
        head, tile = ctx.rest
        weight_VD, bias_V = head.weight_VD, head.bias_V
        grad_ND = torch.empty_like(hidden_ND)
        grad_VD = torch.zeros_like(weight_VD, dtype=head.wide)
        grad_V = torch.zeros_like(bias_V, dtype=head.wide) if bias_V is not None else None
        for part in _parts(len(labels_N), tile[0]):
            labels_T, up_T1 = labels_N[part], (up_N[part, None] * head.scale).to(head.wide)
            upward_TD = hidden_ND[part].to(head.wide) * up_T1
            expected_TD = torch.zeros_like(upward_TD)
            for chunk, prob_TC, slope_TC in _logits(hidden_ND[part], head, tile[1]):
                prob_TC.sub_(found_N4[part, 3:].to(head.wide)).exp_()
                if slope_TC is not None:
                    prob_TC.mul_(slope_TC)
                _add_product(expected_TD, prob_TC, weight_VD[chunk])
                grad_VD[chunk].addmm_(prob_TC.t(), upward_TD, alpha=-1)
                if grad_V is not None:
                    grad_V[chunk].addmv_(prob_TC.t(), up_T1[:, 0], alpha=-1)
            grad_ND[part] = (_at_label(found_N4[part], labels_T, head) - expected_TD) * up_T1
            slope_T1 = _label_slope(found_N4[part], head)
            grad_VD.index_add_(0, labels_T, upward_TD * slope_T1)
            if grad_V is not None:
                grad_V.index_add_(0, labels_T, (up_T1 * slope_T1)[:, 0])
        grad_bias = grad_V.to(bias_V.dtype) if grad_V is not None else None
        return grad_ND, grad_VD.to(weight_VD.dtype), grad_bias, *[None] * 4


def _parts(N: int, largest: int) -> Iterator[slice]:
    """Tiles of equal size: a small last one would be slow."""
    size = -(-N // max(1, -(-N // largest)))
    for start in range(0, N, max(1, size)):
        yield slice(start, min(start + size, N))


def _logits(hidden_TD: Tensor, head: Head, chunk: int) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Logits of a tile, a chunk of the vocabulary at a time in one buffer, and the slope of the soft-cap at each."""
    V = len(head.weight_VD)
    hidden_TD = hidden_TD.to(head.weight_VD.dtype)
    buffer = torch.empty(len(hidden_TD) * min(chunk, V), dtype=head.wide, device=hidden_TD.device)
    for start in range(0, V, chunk):
        part = slice(start, min(start + chunk, V))
        weight_CD = head.weight_VD[part]
        logits_TC = buffer[: len(hidden_TD) * len(weight_CD)].view(len(hidden_TD), len(weight_CD))
        if head.weight_VD.dtype == head.wide:
            torch.mm(hidden_TD, weight_CD.t(), out=logits_TC)
        else:
            logits_TC.copy_(hidden_TD @ weight_CD.t())
        if head.bias_V is not None:
            logits_TC.add_(head.bias_V[part])
        if head.scale != 1.0:
            logits_TC.mul_(head.scale)
        slope_TC = None
        if head.softcap is not None:
            logits_TC.div_(head.softcap).tanh_()
            slope_TC = 1 - logits_TC.square()
            logits_TC.mul_(head.softcap)
        yield part, logits_TC, slope_TC


def _scan(
    hidden_TD: Tensor, labels_T: Tensor, head: Head, chunk: int, entropy: bool, form_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Of a tile in one pass over the vocabulary: log-probability, entropy, hit and log Σ exp(logits), [T, 4] in fp64;
    and (p·s) W where the gradient is wanted.

    The largest logit so far is kept; when it grows, all sums shrink (online softmax, Milakov & Gimelshein 2018).
    """
    T, D = hidden_TD.shape
    options: dict[str, Any] = {"dtype": head.wide, "device": hidden_TD.device}
    top_T1 = torch.full((T, 1), torch.finfo(head.wide).min, **options)
    picked_T1 = torch.full((T, 1), torch.nan, **options)  # stays so for a label outside the vocabulary
    sums_T1, weighted_T1 = torch.zeros(2, T, 1, dtype=torch.float64, device=hidden_TD.device)
    expected_TD = torch.zeros((T, D), **options) if form_grad else None
    for part, logits_TC, slope_TC in _logits(hidden_TD, head, chunk):
        at_T1 = labels_T[:, None] - part.start
        here_T1 = (at_T1 >= 0) & (at_T1 < logits_TC.shape[1])
        picked_T1 = torch.where(here_T1, logits_TC.gather(1, at_T1.clamp(0, logits_TC.shape[1] - 1)), picked_T1)
        higher_T1 = torch.maximum(top_T1, logits_TC.amax(1, keepdim=True))
        fall_T1 = (top_T1 - higher_T1).double()
        shrink_T1 = fall_T1.exp()
        top_T1 = higher_T1
        logits_TC.sub_(top_T1)
        exp_TC = logits_TC.exp() if entropy else logits_TC.exp_()
        if entropy:  # Σ e·(logit − largest)
            here = torch.bmm(exp_TC[:, None], logits_TC[:, :, None])[:, 0].double()
            weighted_T1 = (weighted_T1 + sums_T1 * fall_T1) * shrink_T1 + here
        sums_T1 = sums_T1 * shrink_T1 + exp_TC.sum(1, keepdim=True)
        if expected_TD is not None:
            expected_TD.mul_(shrink_T1.to(head.wide))
            _add_product(expected_TD, exp_TC if slope_TC is None else exp_TC.mul_(slope_TC), head.weight_VD[part])
        del exp_TC, slope_TC  # so that the next chunk is computed in the same memory
    log_sums_T1 = sums_T1.log()
    logps_T1 = (picked_T1 - top_T1).double() - log_sums_T1
    entropy_T1 = log_sums_T1 - weighted_T1 / sums_T1 if entropy else torch.full_like(logps_T1, torch.nan)
    found_T4 = torch.cat([logps_T1, entropy_T1, (picked_T1 >= top_T1).double(), top_T1.double() + log_sums_T1], 1)
    return found_T4, None if expected_TD is None else expected_TD.div_(sums_T1.to(head.wide))


def _add_product(out_TD: Tensor, exp_TC: Tensor, weight_CD: Tensor) -> None:
    """out += exp W; products in the head's dtype, their sums over the vocabulary in fp32."""
    if weight_CD.dtype == out_TD.dtype:
        out_TD.addmm_(exp_TC, weight_CD)
    else:
        out_TD.add_(exp_TC.to(weight_CD.dtype) @ weight_CD)


def _label_slope(found_T4: Tensor, head: Head) -> Tensor:
    """Slope of the soft-cap at the label's logit, which is log p + log Σ exp: [T, 1]."""
    picked_T1 = found_T4[:, :1] + found_T4[:, 3:]
    slope_T1 = torch.ones_like(picked_T1) if head.softcap is None else 1 - (picked_T1 / head.softcap) ** 2
    return slope_T1.to(head.wide)


def _at_label(found_T4: Tensor, labels_T: Tensor, head: Head) -> Tensor:
    """s[y]·W[y]."""
    return head.weight_VD[labels_T].to(head.wide) * _label_slope(found_T4, head)


def tiled_logps(
    hidden_ND: Tensor, head: Head, labels_N: Tensor, tile: tuple[int, int] | None = None, entropy: bool = False
) -> TokenLogps:
    """Log-probabilities of labels under the head, differentiable in hidden, weight and bias; entropies if asked."""
    tile = tile or TILES.get(hidden_ND.device.type, TILES["cpu"])
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return TokenLogps(*TiledLogps.apply(hidden_ND, head.weight_VD, head.bias_V, labels_N, head, tile, entropy))
