"""The plan: which rows go into which micro-batch on which rank, by tokens. Pure: all ranks compute the same."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from train.core.rows import Row

Micro = list[int]  # indices of the units that one forward computes


def plan(lengths: Sequence[int], ranks: int, budget: int) -> list[list[Micro]]:
    """Micro-batches of unit indices for each rank: within `budget` tokens, about equal, the same number everywhere.

    Unit i has `lengths[i]` tokens and may exceed the budget alone. The longest unit goes to the emptiest micro-batch,
    with as few micro-batches as that allows. Deterministic; where units run out, some ranks' may be empty, never all.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    count = -(-sum(lengths) // budget)
    while True:
        micro = _fill(order, lengths, max(1, -(-count // ranks)) * ranks)
        if all(len(m) <= 1 or sum(lengths[i] for i in m) <= budget for m in micro):
            return deal(micro, [sum(lengths[i] for i in m) for m in micro], ranks)
        count = max(len(micro) + 1, len(micro) * 21 // 20)


def _fill(order: Sequence[int], lengths: Sequence[int], count: int) -> list[Micro]:
    micro: list[Micro] = [[] for _ in range(count)]
    emptiest = [(0, n) for n in range(count)]
    for i in order:
        load, n = emptiest[0]
        micro[n].append(i)
        heapq.heapreplace(emptiest, (load + lengths[i], n))
    return micro


def plan_padded(lengths: Sequence[int], sequences: Sequence[int], ranks: int, budget: int) -> list[list[Micro]]:
    """The same for units of `sequences[i]` sequences padded to the longest of a micro-batch: alike lie together."""
    micro: list[Micro] = []
    rows = 0
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if micro and (rows + sequences[i]) * lengths[micro[-1][0]] <= budget:
            micro[-1].append(i)
            rows += sequences[i]
        else:
            micro.append([i])
            rows = sequences[i]
    micro += [[] for _ in range(-len(micro) % ranks)]
    return deal(micro, [lengths[m[0]] * sum(sequences[i] for i in m) if m else 0 for m in micro], ranks)


def deal(micro: list[Micro], costs: Sequence[int], ranks: int) -> list[list[Micro]]:
    """Heaviest first, back and forth over the ranks: totals stay close, and alike sizes are forwarded together."""
    heaviest = [micro[n] for n in sorted(range(len(micro)), key=lambda n: (-costs[n], n))]
    turns = [heaviest[k : k + ranks] for k in range(0, len(heaviest), ranks)]
    turns = [t if n % 2 == 0 else t[::-1] for n, t in enumerate(turns)]
    return [[turn[rank] for turn in turns if any(turn)] for rank in range(ranks)]


def plan_rows(rows: Sequence[Row], ranks: int, budget: int, packed: bool = True) -> list[list[list[Row]]]:
    """Micro-batches of rows for each rank, after rows over the budget were split."""
    units = [part for row in rows for part in split_row(row, budget, packed)]
    if packed:
        indices = plan([u.tokens for u in units], ranks, budget)
    else:
        indices = plan_padded([u.longest for u in units], [len(u.response_ids) for u in units], ranks, budget)
    return [[[units[i] for i in micro] for micro in rank] for rank in indices]


def padding(rows: Sequence[Row], budget: int) -> float:
    """Share of the computed tokens that are padding where rows are not packed."""
    real = computed = 0
    for micro in plan_rows(rows, 1, budget, packed=False)[0]:
        lengths = [len(r.prompt_ids) + len(ids) for r in micro for ids in r.response_ids]
        real, computed = real + sum(lengths), computed + len(lengths) * max(lengths, default=0)
    return 1 - real / computed


def split_row(row: Row, budget: int, packed: bool = True) -> list[Row]:
    """Parts of a row within `budget` tokens that hold each pair once, both responses together; the prompt is repeated.

    Not packed, a part counts as its responses side by side, each with its prompt and padded to the longest. Exact:
    every pair's loss depends on its own two responses only. Greedy: each part takes the pair that adds the fewest
    tokens, until none fits; a single pair may exceed the budget. Without pairs nothing ties responses together.
    """
    n, prompt = [len(r) for r in row.response_ids], len(row.prompt_ids)
    whole = row.tokens if packed else len(n) * row.longest
    if whole <= budget or len(row.parts) == 1:
        return [row]
    left, rows = list(range(len(row.parts))), []
    while left:
        used: set[int] = set()
        taken: list[int] = []
        size = longest = 0  # of the responses taken so far

        def cost(part: int) -> int:
            new = {*row.parts[part]} - used  # noqa: B023 - called within this turn only
            if packed:
                return prompt + size + sum(n[r] for r in new)  # noqa: B023
            return (len(used) + len(new)) * (prompt + max([longest, *(n[r] for r in new)]))  # noqa: B023

        while left:
            tokens, best = min((cost(p), p) for p in left)
            if taken and tokens > budget:
                break
            used |= set(row.parts[best])
            size, longest = sum(n[r] for r in used), max(n[r] for r in used)
            taken.append(best)
            left.remove(best)
        rows.append(row.select(sorted(taken)) if row.pairs else row.only(sorted(taken)))
    return rows


def single_responses(rows: Iterable[Row]) -> list[Row]:
    """One row per distinct (prompt, response), without pairs but with the example's id where it has one."""
    return [
        r if len(r.response_ids) == 1 and not r.pairs else r.only([i]) for r in rows for i in range(len(r.response_ids))
    ]
