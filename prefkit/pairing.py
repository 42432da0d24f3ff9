"""How scored answers become pairs: one rule for every source that ranks more than two responses."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

MAX_PAIRS = 10  # per question, as in the published Stack Exchange sets


class Paired(NamedTuple):
    """Index pairs (chosen, rejected) into the answers, and how many candidates fell away."""

    pairs: list[tuple[int, int]]
    ties: int
    capped: int


def vote_score(votes: int, accepted: bool) -> int:
    """round(log2(1 + votes)), +1 if accepted; −1 for negative votes, no bonus (arXiv 2112.00861)."""
    return -1 if votes < 0 else round(math.log2(1 + votes)) + accepted


def better_pairs(scores: Sequence[float], ids: Sequence[object], salt: str, limit: int = MAX_PAIRS) -> Paired:
    """Every pair of answers with different scores, the `limit` smallest by hash of salt and ids where there are more.

    Of n answers n·(n−1)/2 candidates are made: pairs + ties + capped. The order of the answers does not matter to which
    pairs are taken.
    """
    pairs = [
        (i, j) if scores[i] > scores[j] else (j, i)
        for i, j in combinations(range(len(scores)), 2)
        if scores[i] != scores[j]
    ]
    ties = len(scores) * (len(scores) - 1) // 2 - len(pairs)
    if len(pairs) <= limit:
        return Paired(pairs, ties, 0)
    pairs.sort(key=lambda p: hashlib.blake2b(f"{salt}/{ids[p[0]]}-{ids[p[1]]}".encode(), digest_size=16).digest())
    return Paired(pairs[:limit], ties, len(pairs) - limit)


def vote_margin(better: float, worse: float) -> float:
    """1 − 2^(−score gap), in 0..1: a gap of one score step (twice the votes) is ½."""
    return 1.0 - 2.0 ** (worse - better)
