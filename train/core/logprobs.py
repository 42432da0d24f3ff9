"""Log-probabilities of response tokens: the body once per row, the head only where a response token is predicted.

Shape suffixes: B sequences, L tokens, N response tokens, D hidden size, R responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prefkit.errors import UserError
from train.core.batch import Batch, collate
from train.core.head import Head, TokenLogps, tiled_logps
from train.core.plan import plan_rows, single_responses
from train.core.rows import Row, SequenceLogp, sequence_key


def base_model(model: Any) -> Any:
    """The causal language model inside a peft wrapper, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def token_logps(model: Any, batch: Batch, entropy: bool = False) -> TokenLogps:
    """Of the batch's N response tokens: body to the last hidden state, then the tiled head."""
    causal = base_model(model)
    body = getattr(causal, causal.base_model_prefix, None) or causal.model  # Llama 4's prefix names nothing
    layout: dict[str, Any] = {}
    if batch.packing is not None:  # a mask of four dimensions is passed through: no model builds one of its own
        nothing = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=batch.ids_BL.device)
        layout = {"packing": batch.packing, "attention_mask": nothing}
    hidden_BLD = body(
        input_ids=batch.ids_BL, position_ids=batch.positions_BL, use_cache=False, **layout
    ).last_hidden_state
    hidden_ND = hidden_BLD.flatten(0, 1).index_select(0, batch.select_N)
    return tiled_logps(hidden_ND, Head.of(causal), batch.labels_N, entropy=entropy)


def sum_tokens(values_N: Tensor, batch: Batch) -> Tensor:
    """Sums over each response's tokens: [R], fp64."""
    return values_N.new_zeros(len(batch.counts_R)).index_add(0, batch.response_N, values_N)


class PairPolicy(nn.Module):
    """A (peft) model whose forward is log-probabilities, so that the hooks of DDP and FSDP see every call."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> TokenLogps:
        """log π of the response tokens, and what the metrics say of them."""
        return token_logps(self.model, batch, entropy=True)

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Trainer calls this on what it trains."""
        self.model.gradient_checkpointing_enable(**kwargs)
        if hasattr(self.model, "enable_input_require_grads"):
            self.model.enable_input_require_grads()


@torch.no_grad()
def sequence_logps(model: Any, rows: Sequence[Row], budget: int, packed: bool) -> Iterator[dict[bytes, SequenceLogp]]:
    """Log-probabilities of all responses of the rows by their keys, a dict a forward of `budget` tokens."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    for micro in plan_rows(rows, 1, budget, packed)[0]:
        batch = collate(micro, packed).to(device)
        tokens_N = token_logps(model, batch).logps_N.cpu().numpy()
        tokens_R = np.split(tokens_N, np.cumsum(batch.counts_R.cpu().numpy())[:-1])
        keys = [sequence_key(row.prompt_ids, r) for row in micro for r in row.response_ids]
        yield {k: SequenceLogp(t.sum(), t.astype(np.float32)) for k, t in zip(keys, tokens_R, strict=True)}
    model.train(was_training)


@dataclass(frozen=True, eq=False)
class Scored:
    """Of one row: float64 sums of response log-probabilities, and each token's own (float32)."""

    logps_R: np.ndarray
    token_logps: tuple[np.ndarray, ...]

    @property
    def counts_R(self) -> np.ndarray:
        """Tokens of each response."""
        return np.array([len(t) for t in self.token_logps])


class Kept(Protocol):
    """What keeps log-probabilities by `sequence_key`; `path` is for messages."""

    path: Path

    def get(self, keys: Iterable[bytes]) -> dict[bytes, SequenceLogp]:
        """Those of the keys that are known."""

    def add(self, scored: dict[bytes, SequenceLogp]) -> None:
        """Keep these, all or none."""


def collect_logps(
    rows: Sequence[Row],
    compute: Callable[[list[Row]], Iterable[dict[bytes, SequenceLogp]]],
    cache: Kept | None = None,
    progress: Callable[[int], None] = lambda responses: None,
) -> list[Scored]:
    """Scores of every response of every row, in the order given; what `cache` holds is not computed again.

    `compute` is given rows of what is missing (perhaps none); each of its results is kept at once, and what it leaves
    out other processes have put into the cache. A prompt with a response is computed once however often it comes;
    `progress` is told how many were computed.
    """
    keys = [[sequence_key(row.prompt_ids, r) for r in row.response_ids] for row in rows]
    wanted = {k for ks in keys for k in ks}
    found = cache.get(wanted) if cache is not None else {}
    missing: list[Row] = []
    asked = set(found)
    for row, ks in zip(rows, keys, strict=True):
        if new := [i for i, k in enumerate(ks) if k not in asked]:
            missing.append(row.only(new))
            asked |= {ks[i] for i in new}
    for fresh in compute(missing):
        if cache is not None:
            cache.add(fresh)
        found |= fresh
        progress(len(fresh))
    if cache is not None:
        found |= cache.get(wanted - found.keys())
        if lost := len(wanted - found.keys()):
            what = f"{lost} log-probabilities that other processes computed are not finite, or not in this cache"
            raise UserError(what, cache.path, "let all processes share PREFKIT_CACHE, and check the model's dtype")
    scored = [[found[k] for k in ks] for ks in keys]
    return [Scored(np.array([s.total for s in row]), tuple(s.tokens for s in row)) for row in scored]


def response_logps(
    model: Any,
    rows: Sequence[Row],
    budget: int,
    packed: bool = True,
    cache: Kept | None = None,
    progress: Callable[[int], None] = lambda responses: None,
) -> list[Scored]:
    """`collect_logps` of a model that is at hand, in forwards of `budget` tokens."""
    return collect_logps(rows, lambda missing: sequence_logps(model, missing, budget, packed), cache, progress)


def separate_logps(model: Any, rows: Sequence[Row]) -> list[Scored]:
    """The same with each response in a forward of its own: what nothing beside it can change."""
    return collect_logps(rows, lambda missing: sequence_logps(model, single_responses(missing), 1, packed=False))


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
        fix = f"set --data.max-tokens {positions}, in evalkit --max-tokens"
        raise UserError(what, base_model(model).name_or_path, fix)


@torch.no_grad()
def check_head(model: Any) -> None:
    """Compare our head with the model's own logits on a few tokens; UserError when the architecture does more."""
    device = next(model.parameters()).device
    causal = base_model(model)
    row = Row(np.array([1, 2, 3], np.int32), (np.array([4, 5, 6], np.int32),))
    batch = collate([row], packed=False).to(device)
    ours = token_logps(model, batch).logps_N
    logits = causal(input_ids=batch.ids_BL, position_ids=batch.positions_BL, use_cache=False).logits[0]
    theirs = logits[batch.select_N].double().log_softmax(-1).gather(1, batch.labels_N[:, None])[:, 0]
    off = float((ours - theirs).abs().max())
    if off > (1e-3 if causal.dtype in (torch.float32, torch.float64) else 0.2):
        what = f"log-probabilities differ from the model's own logits by {off:.2g} nats"
        fix = "this architecture changes logits in a way train.core.head.Head does not know"
        raise UserError(what, causal.config.model_type, fix)
