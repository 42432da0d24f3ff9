"""Shares of pairs that are not independent, and weighted means of several shares, with one kind of interval.

Array suffixes: N pairs, K shares, X weighted means, C clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from prefkit.statistics import Interval, degrees_of_freedom, design_effect, fold, numbered, wilson


class Share(NamedTuple):
    """A mean of credits in 0..1 and its 95 % interval; `df` is infinite where each pair is a group of its own."""

    value: float
    low: float
    high: float
    n_groups: int
    n_effective: float
    df: float


def share(credit_N: np.ndarray, group_N: np.ndarray) -> Share:
    """Mean of credits, less than 1 being a tie's part; the interval is Wilson's on the effective number of pairs.

    That is n / max(1, design effect of the groups): pairs of one prompt count for less than as many of different
    prompts. The effect is an estimate too, so where groups hold several pairs Student's t stands for the normal, with
    `degrees_of_freedom` of the group sizes.
    """
    n, value = len(credit_N), float(credit_N.mean())
    index_N, sizes = numbered(group_N)
    n_effective = float(n / max(1.0, design_effect(credit_N, index_N)))
    df = degrees_of_freedom(sizes)
    return Share(value, *wilson(min(value, 1.0) * n_effective, n_effective, df=df), len(sizes), n_effective, df)


def weighted_shares(
    parts: Sequence[tuple[np.ndarray, np.ndarray]], weight_XK: np.ndarray
) -> list[tuple[float, Interval]]:
    """Σ weight·share for each row of weights, with the interval that the shares' own intervals make together.

    A part is a share's credits and their groups, numbered alike in all parts. Below the sum lies √(d'Rd), d being
    weight·(share - its low end) and R the correlation of the shares over the groups they have in common; above it the
    same of the high ends. One share keeps its interval, and shares of 0 or 1 still leave some room. The method of
    variance estimates recovery: Zou and Donner, Statistics in Medicine 27 (2008), 1693-1702.
    """
    shares = [share(credit_N, group_N) for credit_N, group_N in parts]
    value_K, low_K, high_K = np.array([s[:3] for s in shares]).T
    where = fold(max(int(group_N.max()) for _, group_N in parts) + 1, 0)
    sums_CK = np.stack(
        [
            np.bincount(where[group_N], credit_N - value, minlength=int(where.max()) + 1)
            for (credit_N, group_N), value in zip(parts, value_K, strict=True)
        ],
        axis=1,
    )
    size_K = np.sqrt((sums_CK**2).sum(axis=0))
    scaled_CK = sums_CK / np.where(size_K > 0, size_K, 1)
    r_KK = (scaled_CK.T @ scaled_CK).clip(min=0)  # of few groups it is noise: opposed ones would leave no width
    np.fill_diagonal(r_KK, 1.0)

    def reach(d_K: np.ndarray) -> float:
        return math.sqrt(max(0.0, float(d_K @ r_KK @ d_K)))

    means = []
    for weight_K in weight_XK:
        value = float(weight_K @ value_K)
        ends = Interval(value - reach(weight_K * (value_K - low_K)), value + reach(weight_K * (high_K - value_K)))
        means.append((value, ends))
    return means
