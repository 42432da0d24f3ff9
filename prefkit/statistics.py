"""Intervals, agreement and paired tests: shared by judgements, reports and leaderboards."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def wilson(k: float, n: float, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion k/n; k may be fractional (ties as ½), n = 0 says nothing: (0, 1).

    Wilson 1927; method 3 of Newcombe, Statistics in Medicine 17 (1998), 857-872.
    """
    if not (0 <= k <= n and 0 < confidence < 1):
        raise ValueError(f"wilson needs 0 <= k <= n and 0 < confidence < 1, got k={k}, n={n}, confidence={confidence}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, z2n = k / n, z * z / n
    centre = (p + z2n / 2) / (1 + z2n)
    half = z * math.sqrt(p * (1 - p) / n + z2n / (4 * n)) / (1 + z2n)
    # at k = 0 and k = n the bound is exact; rounding must not push it past p
    return Interval(min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def design_effect(values: np.ndarray, clusters: np.ndarray) -> float:
    """How many times the variance of the mean exceeds that of as many independent values.

    `values` and `clusters` are aligned; the clustered variance is C/(C-1) Σ_c (Σ_{i in c} (v_i - mean))² / n² (Miller,
    arXiv 2411.00640). Where all values are equal, or there is one cluster, nothing can be estimated and a cluster is
    taken to say one thing: Kish's Σ m_c² / n for cluster sizes m_c.
    """
    n = len(values)
    _, index, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    deviations = values - values.mean()
    independent = float(deviations @ deviations) / (n * n)
    if independent == 0 or len(sizes) == 1:
        return float(sizes @ sizes) / n
    sums = np.bincount(index, weights=deviations)
    return len(sizes) / (len(sizes) - 1) * float(sums @ sums) / (n * n) / independent * (n - 1) / n
