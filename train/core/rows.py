"""Rows: one prompt with its distinct responses, each computed once; and the plan that fits rows to memory and ranks.

Shape suffixes: B rows of a micro-batch, L padded tokens, R responses, P pairs, N response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from prefkit.schema import Message
from train.core.encode import Dropped, Ids, Limits, Template, encode_prompt_group


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
            self,
            response_ids=tuple(self.response_ids[r] for r in used),
            pairs=tuple((new[w], new[ell]) for w, ell in (self.pairs[p] for p in pairs)),
            pair_ids=tuple(self.pair_ids[p] for p in pairs),
            truncated=tuple(self.truncated[r] for r in used),
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
        """Pairs in the rows."""
        return sum(len(r.pairs) for r in self.rows)

    def counts(self) -> dict[str, Any]:
        """Counts for the run's summary: pairs kept, dropped by reason, truncated; prompts, responses, tokens."""
        cut = sum(1 for r in self.rows for p in r.pairs if r.prompt_truncated or any(r.truncated[i] for i in p))
        return {
            "pairs": self.kept,
            "dropped": {reason: len(ids) for reason, ids in sorted(self.dropped.items())},
            "truncated_pairs": cut,
            "prompts": len(self.rows),
            "responses": sum(len(r.response_ids) for r in self.rows),
            "tokens": sum(r.tokens for r in self.rows),
            "tokens_as_pairs": sum(
                2 * len(r.prompt_ids) + len(r.response_ids[w]) + len(r.response_ids[x]) for r in self.rows for w, x in r.pairs
            ),
        }


def pair_texts(table: Any) -> Iterable[PairText]:
    """The pairs of a pyarrow table in the PAIRS schema, in order."""
    for batch in table.select(["id", "prompt", "chosen", "rejected"]).to_batches(max_chunksize=1024):
        for record in batch.to_pylist():
            yield PairText(**record)


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


# ---------------------------------------------------------------------------------------------------- micro-batches


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
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
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
        *(torch.from_numpy(np.concatenate([*x, []]).astype(np.int64)) for x in (select, labels)),
        torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64)),
        torch.tensor(counts, dtype=torch.int64),
        _pair_index(rows),
        tuple(rows),
    )


def _block_mask(segment_BL: Tensor) -> Tensor:
    """Causal; the prompt (0) is visible to all, a response only to itself, padding (-1) to padding: no empty rows."""
    L = segment_BL.shape[1]
    same_BLL = segment_BL[:, :, None] == segment_BL[:, None, :]
    return same_BLL.logical_or_(segment_BL[:, None, :] == 0).logical_and_(torch.ones(L, L, dtype=torch.bool).tril_())[:, None]


def _pair_index(rows: Sequence[Row]) -> Tensor:
    pairs, first = [], 0
    for row in rows:
        pairs += [(first + w, first + x) for w, x in row.pairs]
        first += len(row.response_ids)
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


# -------------------------------------------------------------------------------------------------------- the plan


def plan(lengths: Sequence[int], ranks: int, budget: int, sequences: Sequence[int] | None = None) -> list[list[list[int]]]:
    """Micro-batches of unit indices for each rank: within `budget` padded tokens, the same number on every rank.

    Unit i is `sequences[i]` (default 1) sequences of at most `lengths[i]` tokens; one unit may exceed the budget alone.
    Pure and deterministic, so that every rank computes the same plan; micro-batches may be empty where units run out.
    """
    many = list(sequences) if sequences is not None else [1] * len(lengths)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    micro: list[list[int]] = []
    rows = 0
    for i in order:
        if micro and (rows + many[i]) * lengths[micro[-1][0]] <= budget:
            micro[-1].append(i)
            rows += many[i]
        else:
            micro.append([i])
            rows = many[i]

    def cost(m: list[int]) -> int:
        return lengths[m[0]] * sum(many[i] for i in m) if m else 0

    while len(micro) % ranks and any(len(m) > 1 for m in micro):  # an idle rank helps nobody
        biggest = max((m for m in micro if len(m) > 1), key=cost)
        at = micro.index(biggest)
        micro[at : at + 1] = [biggest[: len(biggest) // 2], biggest[len(biggest) // 2 :]]
    micro += [[] for _ in range(-len(micro) % ranks)]
    micro.sort(key=cost, reverse=True)
    # Heaviest first, back and forth over the ranks: totals stay close and every rank forwards alike sizes together.
    turns = [micro[k : k + ranks] for k in range(0, len(micro), ranks)]
    turns = [t if n % 2 == 0 else t[::-1] for n, t in enumerate(turns)]
    return [[turn[rank] for turn in turns] for rank in range(ranks)]


def plan_rows(rows: Sequence[Row], ranks: int, budget: int, shared: bool = True) -> list[list[list[Row]]]:
    """`plan` over rows, after those longer than the budget were split over their responses."""
    units = [part for row in rows for part in (split_row(row, budget) if shared else [row])]
    if shared:
        indices = plan([u.tokens for u in units], ranks, budget)
    else:
        indices = plan([u.longest for u in units], ranks, budget, [len(u.response_ids) for u in units])
    return [[[units[i] for i in micro] for micro in rank] for rank in indices]


def split_row(row: Row, budget: int) -> list[Row]:
    """Parts of a row within `budget` tokens that hold each pair once, both responses together; the prompt is repeated.

    Exact: every pair's loss depends on its own two responses only. A single pair may exceed the budget.
    """
    if row.tokens <= budget:
        return [row]
    if not row.pairs:  # nothing ties the responses together
        k = len(row.response_ids)
        return [_only(row, [i]) for i in range(k)] if k > 1 else [row]
    left, parts = list(range(len(row.pairs))), []
    while left:
        used: set[int] = set()
        part: list[int] = []
        size = len(row.prompt_ids)

        def added(p: int, used: set[int] = used) -> int:
            return sum(len(row.response_ids[r]) for r in set(row.pairs[p]) - used)

        while left:
            best = min(left, key=lambda p: (added(p), p))
            if part and size + added(best) > budget:
                break
            size += added(best)
            used |= set(row.pairs[best])
            part.append(best)
            left.remove(best)
        parts.append(row.select(sorted(part)))
    return parts


def _only(row: Row, keep: Sequence[int]) -> Row:
    return replace(
        row,
        response_ids=tuple(row.response_ids[i] for i in keep),
        truncated=tuple(row.truncated[i] for i in keep if row.truncated),
    )


def single_responses(rows: Iterable[Row]) -> list[Row]:
    """One row per distinct (prompt, response), without pairs."""
    return [_only(replace(r, pairs=(), pair_ids=()), [i]) for r in rows for i in range(len(r.response_ids))]


# ------------------------------------------------------------------------------------------------- may rows be shared?

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
    """Why one prompt may not be shared by several responses in a model of this configuration; None where it is exact."""
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

