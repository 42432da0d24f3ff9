"""The plan: which rows go into which micro-batch on which rank, by tokens. Pure: all ranks compute the same."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from train.core.rows import Row


def plan(
    lengths: Sequence[int], ranks: int, budget: int, sequences: Sequence[int] | None = None
) -> list[list[list[int]]]:
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


def plan_rows(
    rows: Sequence[Row], ranks: int, budget: int, shared: bool = True, attention_tokens: float = math.inf
) -> list[list[list[Row]]]:
    """`plan` over rows, after `split_row` cut those that are too long or cheaper in parts."""
    units = [part for row in rows for part in (split_row(row, budget, attention_tokens) if shared else [row])]
    if shared:
        indices = plan([u.tokens for u in units], ranks, budget)
    else:
        indices = plan([u.longest for u in units], ranks, budget, [len(u.response_ids) for u in units])
    return [[[units[i] for i in micro] for micro in rank] for rank in indices]


def split_row(row: Row, budget: int, attention_tokens: float = math.inf) -> list[Row]:
    """Parts of a row within `budget` tokens that hold each pair once, both responses together; the prompt is repeated.

    Exact: every pair's loss depends on its own two responses only. A single pair may exceed the budget. A sequence of
    L tokens costs L + L²/`attention_tokens`, so a row within the budget is cut too where its parts cost less.
    """
    if not row.pairs:  # nothing ties the responses together
        return [row] if row.tokens <= budget else single_responses([row])

    def cost(parts: list[Row]) -> float:
        return sum(p.tokens + p.tokens**2 / attention_tokens for p in parts)

    least = row.longest + min(map(len, row.response_ids))  # about the smallest part there can be
    caps = {min(budget, max(least, row.tokens // n)) for n in range(1, min(len(row.pairs), 8) + 1)}
    if attention_tokens == math.inf:
        caps = {budget}
    return min((_cut(row, cap) for cap in sorted(caps, reverse=True)), key=cost)


def _cut(row: Row, budget: int) -> list[Row]:
    """Greedily: each part takes the pair that adds the fewest tokens, until none fits."""
    if row.tokens <= budget:
        return [row]
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


def single_responses(rows: Iterable[Row]) -> list[Row]:
    """One row per distinct (prompt, response), without pairs."""
    return [r.only([i]) for r in rows for i in range(len(r.response_ids))]
