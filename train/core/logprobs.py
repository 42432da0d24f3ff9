"""Log-probabilities of response tokens: the body once per row, the head only where a response token is predicted.

Shape suffixes: B rows, L tokens, N response tokens, T tokens of one tile, D hidden size, V vocabulary, R responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prefkit.errors import UserError
from train.core.plan import plan, single_responses
from train.core.rows import Batch, Row, collate

TILE_ELEMENTS = 1 << 23  # logits held at once: 32 MB in fp32, which stays near the cache on CPU and fills a GPU


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


class TiledLogps(torch.autograd.Function):
    """log softmax(head(hidden))[label] for N tokens without a tensor of [N, V].

    Tiles of `tile` tokens reuse one buffer. Log-softmax in fp32 (fp64 for an fp64 model); logps_N in fp64. With a
    frozen head the gradient with respect to hidden is formed in the forward pass, while the tile is at hand; a
    trainable head recomputes each tile in backward and accumulates its own gradient in fp32.
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
    ) -> Tensor:
        head = Head(weight_VD, bias_V, scale, softcap)
        ctx.head_trains = weight_VD.requires_grad or (bias_V is not None and bias_V.requires_grad)
        ctx.form_grad = hidden_ND.requires_grad and not ctx.head_trains
        logps_N = torch.empty(len(labels_N), dtype=torch.float64, device=hidden_ND.device)
        grad_ND = torch.empty_like(hidden_ND) if ctx.form_grad else None
        for part, probs_TV, logps_T, slope_TV in _tiles(hidden_ND, labels_N, head, tile, probs=ctx.form_grad):
            logps_N[part] = logps_T
            if grad_ND is not None:
                grad_ND[part] = _to_hidden(_logit_grad(probs_TV, labels_N[part], None, slope_TV, scale), weight_VD)
        if ctx.form_grad:
            ctx.save_for_backward(grad_ND)
        elif ctx.head_trains:
            ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N)
            ctx.rest = (scale, softcap, tile)
        return logps_N

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (up_N,) = upstream
        if ctx.form_grad:
            (grad_ND,) = ctx.saved_tensors
            return grad_ND * up_N[:, None].to(grad_ND.dtype), *[None] * 6
        hidden_ND, weight_VD, bias_V, labels_N = ctx.saved_tensors
        scale, softcap, tile = ctx.rest
        head = Head(weight_VD, bias_V, scale, softcap)
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        grad_ND = torch.empty_like(hidden_ND)
        grad_VD = torch.zeros_like(weight_VD, dtype=wide)
        grad_V = torch.zeros_like(bias_V, dtype=wide) if bias_V is not None else None
        for part, probs_TV, _, slope_TV in _tiles(hidden_ND, labels_N, head, tile, probs=True):
            dlogits_TV = _logit_grad(probs_TV, labels_N[part], up_N[part], slope_TV, scale)
            grad_ND[part] = _to_hidden(dlogits_TV, weight_VD)
            grad_VD.addmm_(dlogits_TV.t(), hidden_ND[part].to(wide))
            if grad_V is not None:
                grad_V += dlogits_TV.sum(0)
        grad_bias = grad_V.to(bias_V.dtype) if grad_V is not None else None
        return grad_ND, grad_VD.to(weight_VD.dtype), grad_bias, None, None, None, None


def _tiles(hidden_ND: Tensor, labels_N: Tensor, head: Head, tile: int, probs: bool):
    """Yield, tile by tile: slice, softmax_TV if `probs`, logps_T in fp64, slope of the soft-cap or None."""
    wide = torch.promote_types(head.weight_VD.dtype, torch.float32)
    N, V = len(labels_N), len(head.weight_VD)
    buffer_TV = torch.empty(min(tile, N), V, dtype=wide, device=hidden_ND.device)
    for start in range(0, N, tile):
        part = slice(start, min(start + tile, N))
        logits_TV = buffer_TV[: part.stop - start]
        hidden_TD = hidden_ND[part].to(head.weight_VD.dtype)
        if head.weight_VD.dtype == wide:
            torch.mm(hidden_TD, head.weight_VD.t(), out=logits_TV)
        else:
            logits_TV.copy_(hidden_TD @ head.weight_VD.t())
        slope_TV = _finish_logits(logits_TV, head, probs)
        picked_T = logits_TV.gather(1, labels_N[part, None])[:, 0]
        top_T1 = logits_TV.amax(1, keepdim=True)
        sums_T1 = logits_TV.sub_(top_T1).exp_().sum(1, keepdim=True)
        logps_T = (picked_T - top_T1[:, 0]).double() - sums_T1[:, 0].double().log()
        yield part, logits_TV.div_(sums_T1) if probs else logits_TV, logps_T, slope_TV


def _finish_logits(logits_TV: Tensor, head: Head, slope: bool) -> Tensor | None:
    if head.bias_V is not None:
        logits_TV.add_(head.bias_V)
    if head.scale != 1.0:
        logits_TV.mul_(head.scale)
    if head.softcap is None:
        return None
    logits_TV.div_(head.softcap).tanh_()
    slope_TV = 1 - logits_TV.square() if slope else None
    logits_TV.mul_(head.softcap)
    return slope_TV


def _logit_grad(
    probs_TV: Tensor, labels_T: Tensor, up_T: Tensor | None, slope_TV: Tensor | None, scale: float
) -> Tensor:
    """In place: probabilities become the gradient of (upstream-weighted) logps with respect to the raw projection."""
    grad_TV = probs_TV.neg_()
    grad_TV.scatter_add_(1, labels_T[:, None], grad_TV.new_ones(len(labels_T), 1))
    if slope_TV is not None:
        grad_TV.mul_(slope_TV)
    if scale != 1.0:
        grad_TV.mul_(scale)
    return grad_TV if up_T is None else grad_TV.mul_(up_T[:, None].to(grad_TV.dtype))


def _to_hidden(dlogits_TV: Tensor, weight_VD: Tensor) -> Tensor:
    return dlogits_TV.to(weight_VD.dtype) @ weight_VD


def tiled_logps(hidden_ND: Tensor, head: Head, labels_N: Tensor, tile: int | None = None) -> Tensor:
    """logps_N (fp64, nats) of labels under the head; differentiable in hidden, weight and bias."""
    tile = tile or max(16, TILE_ELEMENTS // len(head.weight_VD))
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return TiledLogps.apply(hidden_ND, head.weight_VD, head.bias_V, labels_N, head.scale, head.softcap, tile)


# --------------------------------------------------------------------------------------------------------- policies


def base_model(model: Any) -> Any:
    """The causal language model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def token_logps(model: Any, batch: Batch) -> Tensor:
    """logps_N (fp64) of the batch's response tokens: body to the last hidden state, then the tiled head."""
    causal = base_model(model)
    body = getattr(causal, causal.base_model_prefix)
    mask = batch.mask_B1LL
    if mask is not None and causal.config._attn_implementation == "eager":  # eager adds its mask, sdpa selects by it
        mask = torch.zeros_like(mask, dtype=causal.dtype).masked_fill_(~mask, torch.finfo(causal.dtype).min)
    hidden_BLD = body(
        input_ids=batch.ids_BL, position_ids=batch.positions_BL, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return tiled_logps(hidden_BLD.flatten(0, 1).index_select(0, batch.select_N), Head.of(causal), batch.labels_N)


def sum_logps(logps_N: Tensor, batch: Batch) -> Tensor:
    """logps_R: sums over each response's tokens, fp64."""
    return logps_N.new_zeros(len(batch.counts_R)).index_add(0, batch.response_N, logps_N)


class PairPolicy(nn.Module):
    """A (peft) model whose forward is log-probabilities, so that the hooks of DDP and FSDP see every call."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        """logps_R: log π(response | prompt), summed over response tokens, fp64."""
        return sum_logps(token_logps(self.model, batch), batch)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Trainer calls this on what it trains."""
        self.model.gradient_checkpointing_enable(**kwargs)
        if hasattr(self.model, "enable_input_require_grads"):
            self.model.enable_input_require_grads()


@dataclass(frozen=True, eq=False)
class Scored:
    """Of one row: float64 sums of response log-probabilities, token counts, and on request each token's own."""

    logps_R: np.ndarray
    counts_R: np.ndarray
    token_logps: tuple[np.ndarray, ...] = ()


@torch.no_grad()
def response_logps(
    model: Any, rows: Sequence[Row], budget: int, shared: bool = True, per_token: bool = False
) -> list[Scored]:
    """Score every response of every row, in the order given; work runs longest first in forwards of `budget` tokens."""
    parts = [(i, part) for i, row in enumerate(rows) for part in _parts(row, budget, shared)]
    first = np.concatenate([[0], np.cumsum([len(p.response_ids) for _, p in parts])])  # responses before part i
    results: list[np.ndarray] = [np.empty(0)] * int(first[-1])
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    for micro in plan([p.tokens for _, p in parts], 1, budget)[0]:
        batch = collate([parts[i][1] for i in micro], shared).to(device)
        logps = torch.split(token_logps(model, batch).cpu(), batch.counts_R.tolist())
        where = [r for i in micro for r in range(first[i], first[i + 1])]
        for r, tokens in zip(where, logps, strict=True):
            results[r] = tokens.numpy()
    model.train(was_training)
    by_row: list[list[np.ndarray]] = [[] for _ in rows]
    for n, (i, _) in enumerate(parts):
        by_row[i] += results[first[n] : first[n + 1]]
    return [
        Scored(np.array([t.sum() for t in ts]), np.array([len(t) for t in ts]), tuple(ts) if per_token else ())
        for ts in by_row
    ]


def _parts(row: Row, budget: int, shared: bool) -> list[Row]:
    """The row without pairs, whole where it fits and may be shared, else cut between responses."""
    if not shared or row.tokens > budget:
        return single_responses([row])
    return [row]


def check_fits(model: Any, rows: Sequence[Row]) -> None:
    """UserError when a token or a position of the rows lies outside the model."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    largest = max(int(ids.max()) for r in rows for ids in (r.prompt_ids, *r.response_ids))
    if largest >= vocabulary:
        what = f"the tokenizer makes token {largest}, the model knows {vocabulary}"
        raise UserError(what, base_model(model).name_or_path, "use the model's own tokenizer")
    positions = getattr(base_model(model).config.get_text_config(), "max_position_embeddings", None)
    longest = max(r.longest for r in rows)
    if positions and longest > positions:
        what = f"a pair has {longest} tokens, the model has {positions} positions"
        raise UserError(what, base_model(model).name_or_path, f"--data.max-tokens {positions}")


@torch.no_grad()
def check_head(model: Any) -> None:
    """Compare our head with the model's own logits on a few tokens; UserError when the architecture does more."""
    device = next(model.parameters()).device
    causal = base_model(model)
    row = Row(np.array([1, 2, 3], np.int32), (np.array([4, 5, 6], np.int32),))
    batch = collate([row]).to(device)
    ours = token_logps(model, batch)
    logits = causal(input_ids=batch.ids_BL, position_ids=batch.positions_BL, use_cache=False).logits[0]
    theirs = logits[batch.select_N].double().log_softmax(-1).gather(1, batch.labels_N[:, None])[:, 0]
    off = float((ours - theirs).abs().max())
    if off > (1e-3 if causal.dtype in (torch.float32, torch.float64) else 0.2):
        raise UserError(
            f"log-probabilities differ from the model's own logits by {off:.2g} nats",
            causal.config.model_type,
            "this architecture changes logits in a way train.core.logprobs.Head does not know",
        )
