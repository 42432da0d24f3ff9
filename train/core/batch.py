"""Rows as tensors: packed end to end into one sequence without padding, or, where a model forbids that, side by side.

Shape suffixes: B sequences, L tokens of a sequence, R responses, P pairs, N response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.core.attention import Packing, Span
from train.core.encode import common_start
from train.core.rows import Row


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch as tensors.

    Packed, B is 1 and `packing` tells the attention which tokens belong together; otherwise (None) each response is a
    sequence with its own prompt, padded on the right, under plain causal attention. Position `select_N` of the
    flattened [B*L] hidden states predicts token `labels_N` of response `response_N`. `pairs_P2` are (winner, loser)
    responses; `ref_R` their log-probabilities under the reference where the rows carry them. `ids` are those of the
    pairs, in the order of `pairs_P2`, or of the examples.
    """

    ids_BL: Tensor
    positions_BL: Tensor
    packing: Packing | None
    select_N: Tensor
    labels_N: Tensor
    response_N: Tensor
    counts_R: Tensor
    pairs_P2: Tensor
    ref_R: Tensor | None
    ids: list[str]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **moved)


def collate(rows: Sequence[Row], packed: bool = True, loss_on: str = "response") -> Batch:
    """Tensors of some rows.

    No rows gives a dummy sequence without labels, for ranks that must take part in a forward. `loss_on="all"` labels
    the prompt's tokens too; it needs rows of one response.
    """
    lay = _packed if packed else _padded
    ids_BL, positions_BL, packing, select = lay(rows) if rows else _packed([Row(np.zeros(1, np.int32), ())])
    labels = [r for row in rows for r in row.response_ids]
    if loss_on == "all":
        prompts = [row.prompt_ids for row in rows for _ in row.response_ids]
        select = [np.concatenate([np.arange(w[0] - len(p) + 1, w[0]), w]) for w, p in zip(select, prompts, strict=True)]
        labels = [np.concatenate([p[1:], r]) for p, r in zip(prompts, labels, strict=True)]
    counts = torch.tensor([len(x) for x in labels], dtype=torch.int64)
    refs = [x for row in rows for x in row.ref_logps]
    return Batch(
        torch.from_numpy(ids_BL),
        torch.from_numpy(positions_BL),
        packing if packed else None,
        _concatenate(select),
        _concatenate(labels),
        torch.repeat_interleave(torch.arange(len(counts)), counts),
        counts,
        _pair_index(rows),
        torch.tensor(refs, dtype=torch.float64) if refs else None,
        [name for row in rows for name in row.pair_ids],
    )


def _packed(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, Packing, list[np.ndarray]]:
    """One sequence: each row's prompt with what all its responses begin with, then the rest of each response."""
    ids, positions, spans, select, at = [], [], [], [], 0
    for row in rows:
        n, common = len(row.prompt_ids), common_start(row.response_ids)
        shared = n + common
        ids += [row.prompt_ids, *[r[:common] for r in row.response_ids[:1]], *[r[common:] for r in row.response_ids]]
        own = tuple(len(r) - common for r in row.response_ids)
        positions += [np.arange(shared), *[np.arange(shared, shared + o) for o in own]]
        spans.append(Span(shared, own))
        last, at = at + shared - 1, at + shared  # the last shared position predicts every response's next token
        for o in own:
            begin = np.arange(last - common, last + (o > 0))
            select.append(np.concatenate([begin, np.arange(at, at + o - 1)]))
            at += o
    flat = [np.concatenate(x).astype(np.int64)[None] for x in (ids, positions)]
    return flat[0], flat[1], Packing(tuple(spans)), select


def _padded(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray, None, list[np.ndarray]]:
    """Each response a sequence with its own prompt."""
    sequences = [(row.prompt_ids, r) for row in rows for r in row.response_ids]
    L = max(len(p) + len(r) for p, r in sequences)
    ids_BL = np.zeros((len(sequences), L), np.int64)
    select = []
    for b, (prompt, response) in enumerate(sequences):
        ids_BL[b, : len(prompt) + len(response)] = np.concatenate([prompt, response])
        select.append(np.arange(len(response)) + (b * L + len(prompt) - 1))
    return ids_BL, np.tile(np.arange(L), (len(sequences), 1)), None, select


def _concatenate(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([*arrays, np.empty(0, np.int64)]).astype(np.int64))


def _pair_index(rows: Sequence[Row]) -> Tensor:
    pairs, first = [], 0
    for row in rows:
        pairs += [(first + w, first + x) for w, x in row.pairs]
        first += len(row.response_ids)
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
