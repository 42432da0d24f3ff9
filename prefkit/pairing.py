"""How scored answers become pairs: one rule for every source that ranks more than two responses."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

MAX_PAIRS = 10  # per question, as in the published Stack Exchange sets


Pairs = list[tuple[int, int]]


class Paired(NamedTuple):
    """Index pairs (chosen, rejected) into the answers, and how many candidates fell away.

    Of n answers n·(n−1)/2 candidates are made: pairs + ties + capped + filtered; `filtered` are those that the pairing
    or the rule about who came later leaves out. `fate` says what became of an answer that is in no pair.
    """

    pairs: Pairs
    ties: int
    capped: int
    filtered: int = 0
    fate: str = "capped"


def vote_score(votes: int, accepted: bool) -> int:
    """round(log2(1 + votes)), +1 if accepted; −1 for negative votes, no bonus (arXiv 2112.00861)."""
    return -1 if votes < 0 else round(math.log2(1 + votes)) + accepted


SCORES: dict[str, Callable[[int, bool], float]] = {
    "log2": vote_score,
    "votes": lambda votes, accepted: votes,
    "accepted": lambda votes, accepted: int(accepted),
}


def _best_vs_rest(pairs: Pairs, scores: Sequence[float]) -> Pairs:
    best = max(scores)
    return [p for p in pairs if scores[p[0]] == best]


def _best_vs_worst(pairs: Pairs, scores: Sequence[float]) -> Pairs:
    best, worst = max(scores), min(scores)
    return [p for p in pairs if scores[p[0]] == best and scores[p[1]] == worst]


def _adjacent(pairs: Pairs, scores: Sequence[float]) -> Pairs:
    steps = sorted(set(scores))
    below = dict(pairwise(steps))
    return [p for p in pairs if below[scores[p[1]]] == scores[p[0]]]


PAIRING: dict[str, Callable[[Pairs, Sequence[float]], Pairs]] = {
    "all": lambda pairs, scores: pairs,
    "best-vs-rest": _best_vs_rest,
    "best-vs-worst": _best_vs_worst,
    "adjacent": _adjacent,
}


def better_pairs(
    scores: Sequence[float],
    ids: Sequence[object],
    salt: str,
    choose: Callable[[Pairs, Sequence[float]], Pairs] = PAIRING["all"],
    written: Sequence[str | None] | None = None,
    limit: int = MAX_PAIRS,
) -> Paired:
    """The pairs of answers with different scores that `choose` takes, the `limit` smallest by hash of salt and ids
    where there are more. With `written` (times of writing) the better answer must also be the later one: the earlier
    ones had more time to gather votes (SHP, arXiv 2110.08420).

    The order of the answers does not matter to which pairs are taken.
    """
    made = [
        (i, j) if scores[i] > scores[j] else (j, i)
        for i, j in combinations(range(len(scores)), 2)
        if scores[i] != scores[j]
    ]
    ties = len(scores) * (len(scores) - 1) // 2 - len(made)
    pairs = choose(made, scores)
    if written is not None:
        pairs = [p for p in pairs if (written[p[0]] or "") > (written[p[1]] or "")]
    filtered = len(made) - len(pairs)
    fate = "not_paired" if filtered else "capped"
    if len(pairs) <= limit:
        return Paired(pairs, ties, 0, filtered, fate)
    pairs.sort(key=lambda p: hashlib.blake2b(f"{salt}/{ids[p[0]]}-{ids[p[1]]}".encode(), digest_size=16).digest())
    return Paired(pairs[:limit], ties, len(pairs) - limit, filtered, fate)


def vote_margin(better: float, worse: float) -> float:
    """1 − 2^(−score gap), in 0..1: a gap of one score step (twice the votes) is ½."""
    return 1.0 - 2.0 ** (worse - better)
