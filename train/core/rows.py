"""Rows: one prompt with its distinct responses, each computed once; collated into one sequence under a block mask.

Shape suffixes: B rows of a micro-batch, L padded tokens, R responses, P pairs, N response tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from prefkit.schema import Message
from train.core.encode import Dropped, Encoded, Ids, Limits, Template, encode_prompt_group


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt (int32 ids), its k distinct responses, and (winner, loser) indices into them, one per pair id."""

    prompt_ids: Ids
    response_ids: tuple[Ids, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    pair_ids: tuple[str, ...] = ()
    truncated: tuple[bool, ...] = ()
    prompt_truncated: bool = False

    @property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """Responses of each pair id: the two of a pair, or the one of an example."""
        return self.pairs or tuple((i,) for i in range(len(self.pair_ids)))

    @property
    def tokens(self) -> int:
        """Tokens of the row with its prompt computed once."""
        return len(self.prompt_ids) + self.response_tokens

    @property
    def response_tokens(self) -> int:
        """Tokens that are trained or scored."""
        return sum(map(len, self.response_ids))

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest response."""
        return len(self.prompt_ids) + max(map(len, self.response_ids))

    def select(self, pairs: Sequence[int]) -> Row:
        """The same prompt with only these pairs (indices) and the responses they use."""
        used = sorted({r for p in pairs for r in self.pairs[p]})
        new = {old: i for i, old in enumerate(used)}
        return replace(
            self.only(used),
            pairs=tuple((new[w], new[x]) for w, x in (self.pairs[p] for p in pairs)),
            pair_ids=tuple(self.pair_ids[p] for p in pairs),
        )

    def only(self, responses: Sequence[int]) -> Row:
        """The same prompt with only these responses (indices), without pairs."""
        return replace(
            self,
            response_ids=tuple(self.response_ids[r] for r in responses),
            truncated=tuple(self.truncated[r] for r in responses if self.truncated),
            pairs=(),
            pair_ids=(),
        )


class PairText(NamedTuple):
    """One pair as text; `id` follows it to the metrics and to the scores."""

    id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


@dataclass
class Rows:
    """Rows built from pairs, and what was dropped: reason → pair ids; `kept + dropped` is every pair given."""

    rows: list[Row] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)

    @property
    def kept(self) -> int:
        """Pairs in the rows; examples in rows made for SFT."""
        return sum(len(r.pair_ids) for r in self.rows)

    def counts(self) -> dict[str, Any]:
        """Counts for the run's summary: pairs kept, dropped by reason, truncated; prompts, responses, tokens."""
        cut = sum(r.prompt_truncated or any(r.truncated[i] for i in p) for r in self.rows for p in r.parts)
        return {
            "pairs": self.kept,
            "dropped": {reason: len(ids) for reason, ids in sorted(self.dropped.items())},
            "truncated_pairs": cut,
            "prompts": len({r.prompt_ids.tobytes() for r in self.rows}),
            "responses": sum(len(r.response_ids) for r in self.rows),
            "tokens": sum(r.tokens for r in self.rows),
            "tokens_as_pairs": sum(
                2 * len(r.prompt_ids) + len(r.response_ids[w]) + len(r.response_ids[x])
                for r in self.rows
                for w, x in r.pairs
            ),
        }


def pair_texts(table: Any) -> Iterable[PairText]:
    """The pairs of a pyarrow table in the PAIRS schema, in order."""
    for batch in table.select(["id", "prompt", "chosen", "rejected"]).to_batches(max_chunksize=1024):
        for record in batch.to_pylist():
            yield PairText(**record)


def without_ties(table: pa.Table) -> tuple[pa.Table, list[str]]:
    """The pairs of which one response is preferred, and the ids of the others (p_chosen = ½), to be counted."""
    tied = pc.equal(table["p_chosen"], 0.5).fill_null(False)
    return table.filter(pc.invert(tied)), table.filter(tied)["id"].to_pylist()


def build_rows(
    pairs: Iterable[PairText], tokenizer: Any, template: Template, limits: Limits, one_pair_per_row: bool = False
) -> Rows:
    """Group pairs by prompt in order of first appearance, encode each group once, and keep each response once.

    `one_pair_per_row` gives every pair a row of its own, for parity with trainers that know only pairs.
    """
    groups: dict[Any, list[PairText]] = {}
    for i, pair in enumerate(pairs):
        key = i if one_pair_per_row else tuple((m["role"], m["content"]) for m in pair.prompt)
        groups.setdefault(key, []).append(pair)
    result = Rows()
    for group in groups.values():
        texts: dict[tuple, list[Message]] = {}
        slots = [tuple(_slot(texts, side) for side in (p.chosen, p.rejected)) for p in group]
        encoded = encode_prompt_group(tokenizer, template, group[0].prompt, list(texts.values()), limits)
        if isinstance(encoded, Dropped):
            result.dropped.setdefault(encoded.reason, []).extend(p.id for p in group)
            continue
        row = Row(encoded.prompt_ids, (), prompt_truncated=encoded.prompt_truncated)
        row = _add_pairs(row, encoded.response_ids, encoded.truncated, group, slots, result.dropped)
        if row.pairs:
            result.rows.append(row)
    return result


def build_examples(pairs: Iterable[PairText], tokenizer: Any, template: Template, limits: Limits) -> Rows:
    """Rows for SFT: each distinct (prompt, chosen response) once, one row each, bearing its first pair's id."""
    groups: dict[Any, dict[Any, PairText]] = {}
    for pair in pairs:
        prompt, chosen = (tuple((m["role"], m["content"]) for m in side) for side in (pair.prompt, pair.chosen))
        groups.setdefault(prompt, {}).setdefault(chosen, pair)
    result = Rows()
    for group in groups.values():
        first = next(iter(group.values()))
        encoded = encode_prompt_group(tokenizer, template, first.prompt, [p.chosen for p in group.values()], limits)
        for i, pair in enumerate(group.values()):
            ids = encoded if isinstance(encoded, Dropped) else encoded.response_ids[i]
            if isinstance(ids, Dropped):
                result.dropped.setdefault(ids.reason, []).append(pair.id)
            elif isinstance(encoded, Encoded):
                cut = (encoded.truncated[i],)
                result.rows.append(Row(encoded.prompt_ids, (ids,), (), (pair.id,), cut, encoded.prompt_truncated))
    return result


def _slot(texts: dict[tuple, list[Message]], side: list[Message]) -> int:
    key = tuple((m["role"], m["content"]) for m in side)
    texts.setdefault(key, side)
    return list(texts).index(key)


def _add_pairs(
    row: Row,
    ids: Sequence[Ids | Dropped],
    cut: Sequence[bool],
    group: Sequence[PairText],
    slots: Sequence[tuple],
    dropped: dict[str, list[str]],
) -> Row:
    distinct: dict[bytes, int] = {}
    responses: list[Ids] = []
    truncated: list[bool] = []
    pairs: list[tuple[int, int]] = []
    names: list[str] = []
    for pair, slot in zip(group, slots, strict=True):
        sides = [ids[s] for s in slot]
        reason = next((s.reason for s in sides if isinstance(s, Dropped)), None)
        if reason is None and np.array_equal(*sides):
            reason = "chosen and rejected have the same tokens"
        if reason is not None:
            dropped.setdefault(reason, []).append(pair.id)
            continue
        for s in slot:
            if ids[s].tobytes() not in distinct:
                distinct[ids[s].tobytes()] = len(responses)
                responses.append(ids[s])
                truncated.append(cut[s])
        pairs.append((distinct[ids[slot[0]].tobytes()], distinct[ids[slot[1]].tobytes()]))
        names.append(pair.id)
    return replace(
        row, response_ids=tuple(responses), pairs=tuple(pairs), pair_ids=tuple(names), truncated=tuple(truncated)
    )


@dataclass(frozen=True, eq=False)
class Batch:
    """A micro-batch as tensors.

    `mask_B1LL` (True = visible) is None where plain causal attention is right. Position `select_N` of the flattened
    [B*L] hidden states predicts token `labels_N` of response `response_N`. `pairs_P2` are (winner, loser) responses.
    """

    ids_BL: Tensor
    positions_BL: Tensor
    mask_B1LL: Tensor | None
    select_N: Tensor
    labels_N: Tensor
    response_N: Tensor
    counts_R: Tensor
    pairs_P2: Tensor
    rows: tuple[Row, ...]

    @property
    def pair_ids(self) -> list[str]:
        """Ids of the pairs, in the order of `pairs_P2`."""
        return [i for r in self.rows for i in r.pair_ids]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        moved: dict[str, Any] = {
            k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **moved)


def collate(rows: Sequence[Row], shared: bool = True, loss_on: str = "response") -> Batch:
    """Tensors of some rows: each row one sequence (`shared`), or each response a sequence with its own prompt.

    No rows gives a dummy sequence without labels, for ranks that must take part in a forward. `loss_on="all"` labels
    the prompt's tokens too; it needs rows of one response.
    """
    sequences = [[r.prompt_ids, *r.response_ids] for r in rows]
    if not shared:
        sequences = [[prompt, response] for prompt, *responses in sequences for response in responses]
    sequences = sequences or [[np.zeros(1, np.int32)]]
    L = max(sum(map(len, s)) for s in sequences)
    ids_BL = np.zeros((len(sequences), L), np.int64)
    positions_BL = np.tile(np.arange(L), (len(sequences), 1))
    segment_BL = np.full((len(sequences), L), -1, np.int16)
    select, labels, counts = [], [], []
    for b, (prompt, *responses) in enumerate(sequences):
        n, at = len(prompt), len(prompt)
        ids_BL[b, :n], segment_BL[b, :n] = prompt, 0
        for i, response in enumerate(responses):
            end = at + len(response)
            ids_BL[b, at:end], segment_BL[b, at:end] = response, i + 1
            positions_BL[b, at:end] = np.arange(n, n + len(response))
            where = np.arange(at - 1, end - 1)
            where[0] = n - 1  # the prompt's last position predicts the first token of every response
            if loss_on == "all":
                where, response = np.concatenate([np.arange(n - 1), where]), np.concatenate([prompt[1:], response])
            select.append(where + b * L)
            labels.append(response)
            counts.append(len(response))
            at = end
    return Batch(
        torch.from_numpy(ids_BL),
        torch.from_numpy(positions_BL),
        _block_mask(torch.from_numpy(segment_BL)) if any(len(s) > 2 for s in sequences) else None,
        _concatenate(select),
        _concatenate(labels),
        torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64)),
        torch.tensor(counts, dtype=torch.int64),
        _pair_index(rows),
        tuple(rows),
    )


def _concatenate(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate([*arrays, np.empty(0, np.int64)]).astype(np.int64))


def _block_mask(segment_BL: Tensor) -> Tensor:
    """Causal; the prompt (0) is visible to all, a response only to itself, padding (-1) to padding: no empty rows."""
    L = segment_BL.shape[1]
    same_BLL = segment_BL[:, :, None] == segment_BL[:, None, :]
    causal_LL = torch.ones(L, L, dtype=torch.bool).tril_()
    return same_BLL.logical_or_(segment_BL[:, None, :] == 0).logical_and_(causal_LL)[:, None]


def _pair_index(rows: Sequence[Row]) -> Tensor:
    pairs, first = [], 0
    for row in rows:
        pairs += [(first + w, first + x) for w, x in row.pairs]
        first += len(row.response_ids)
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
