"""Intervals, paired tests, the bootstrap over groups, and agreement: shared by judgements, reports and leaderboards.

Needs numpy, and scipy where Student's t is asked for. What is random takes a seed and gives the same number each time.
Array suffixes: N values, C clusters (prompts that stand or fall together), K sums, B replicates, S statistics.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

FOLDED = 8192  # clusters are joined at random into this many where there are more
CHUNK = 64  # replicates drawn at once
NORMAL = NormalDist()


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float


def wilson(k: float, n: float, confidence: float = 0.95, df: float = math.inf) -> Interval:
    """Wilson's score interval of a proportion k/n; k may be fractional (ties as ½), n = 0 says nothing: (0, 1).

    With `df`, where n was estimated from few clusters, Student's t takes the normal's place.

    Wilson 1927; method 3 of Newcombe, Statistics in Medicine 17 (1998), 857-872.
    """
    if not (0 <= k <= n and 0 < confidence < 1):
        raise ValueError(f"wilson needs 0 <= k <= n and 0 < confidence < 1, got k={k}, n={n}, confidence={confidence}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = critical(confidence, df)
    p, z2n = k / n, z * z / n
    centre = (p + z2n / 2) / (1 + z2n)
    half = z * math.sqrt(p * (1 - p) / n + z2n / (4 * n)) / (1 + z2n)
    # at k = 0 and k = n the bound is exact; rounding must not push it past p
    return Interval(min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)))


def half_test(share: float, n: float, df: float = math.inf) -> float:
    """Two-sided p of a share being ½, by the score test: below .05 exactly where Wilson's 95 % interval misses ½."""
    return two_sided((share - 0.5) / math.sqrt(0.25 / n), df) if n else 1.0


def critical(confidence: float, df: float = math.inf) -> float:
    """How many standard errors a two-sided interval reaches: of the normal, or of Student's t with `df`."""
    if math.isinf(df):
        return NORMAL.inv_cdf(0.5 + confidence / 2)
    from scipy.special import stdtrit  # a fifth of a second, for those who need it

    return float(stdtrit(df, 0.5 + confidence / 2))


def two_sided(z: float, df: float = math.inf) -> float:
    """Two-sided p of a standard normal z, or of Student's t with `df`."""
    if math.isinf(df):
        return math.erfc(abs(z) / math.sqrt(2))
    from scipy.special import stdtr

    return 2 * float(stdtr(df, -abs(z)))


def degrees_of_freedom(sizes: np.ndarray) -> float:
    """Of a variance estimated from clusters of these sizes: n² / Σ m_c² - 1, never below 1.

    That is C - 1 for C clusters of one size, and less where a few large ones decide. Infinite where each cluster is one
    value: then nothing about clusters was estimated.
    """
    n = float(sizes.sum())
    return math.inf if sizes.max() == 1 else max(1.0, n * n / float(sizes @ sizes) - 1)


def numbered(clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Clusters numbered 0 to C - 1 in their order, and the size of each; small whole numbers need no sorting."""
    if clusters.dtype.kind in "iu" and len(clusters) and clusters.min() >= 0 and clusters.max() < 4 * len(clusters):
        sizes = np.bincount(clusters)
        return (np.cumsum(sizes > 0) - 1)[clusters], sizes[sizes > 0]
    _, index, sizes = np.unique(clusters, return_inverse=True, return_counts=True)
    return index, sizes


def design_effect(values: np.ndarray, clusters: np.ndarray) -> float:
    """How many times the variance of the mean exceeds that of as many independent values.

    `values` and `clusters` are aligned; the clustered variance is that of `clustered_se`. Where all values are equal,
    or there is one cluster, nothing can be estimated and a cluster is taken to say one thing: Kish's Σ m_c² / n for
    cluster sizes m_c.
    """
    n = len(values)
    index, sizes = numbered(clusters)
    deviations = values - values.mean()
    independent = float(deviations @ deviations) / (n * n)
    if independent == 0 or len(sizes) == 1:
        return float(sizes @ sizes) / n
    sums = np.bincount(index, weights=deviations)
    return len(sizes) / (len(sizes) - 1) * float(sums @ sums) / (n * n) / independent * (n - 1) / n


def clustered_se(values: np.ndarray, clusters: np.ndarray) -> float:
    """Standard error of the mean: √(C/(C-1) Σ_c (Σ_{i in c} (v_i - mean))²) / n; NaN for one cluster.

    Miller, arXiv 2411.00640, section 2.2, with the correction for few clusters that inspect_ai uses.
    """
    sums = np.bincount(numbered(clusters)[0], weights=values - values.mean())
    if len(sums) < 2:
        return math.nan
    return math.sqrt(len(sums) / (len(sums) - 1) * float(sums @ sums)) / len(values)


def minimum_detectable(se: float, power: float = 0.8, confidence: float = 0.95, df: float = math.inf) -> float:
    """Smallest true difference that a two-sided test finds with this power: (z_{1-α/2} + z_power) · se, t with `df`."""
    return (critical(confidence, df) + critical(2 * power - 1, df)) * se


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values in the given order: the chance of one false finding among all stays below what each says.

    Holm, Scandinavian Journal of Statistics 6 (1979), 65-70.
    """
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted


class McNemar(NamedTuple):
    """p of two classifiers being equally often right, from the pairs only one of them has right."""

    exact: float
    mid_p: float


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """Exact and mid-p McNemar tests of the discordant counts; without discordant pairs both are 1.

    X ~ Bin(b + c, ½): exact = min(1, 2 P(X ≤ min)), mid-p = 2 P(X ≤ min) - P(X = min). Fagerland, Lydersen and Laake,
    BMC Medical Research Methodology 13:91 (2013).
    """
    n, least = only_first + only_second, min(only_first, only_second)
    k = np.arange(1, least + 1)
    log_ratio = np.concatenate([[0.0], np.cumsum(np.log((n - k + 1) / k))])  # log of C(n, k)
    probability = np.exp(log_ratio - n * math.log(2))
    tail = 2 * float(probability.sum())
    return McNemar(min(1.0, tail), min(1.0, tail - float(probability[-1])))


def placement(value_N: np.ndarray, other_M: np.ndarray) -> np.ndarray:
    """For each value the share of others below it, equal ones half."""
    ordered_M = np.sort(other_M)
    return (np.searchsorted(ordered_M, value_N, "left") + np.searchsorted(ordered_M, value_N, "right")) / (
        2 * len(ordered_M)
    )


def rank_correlation(x_N: np.ndarray, y_N: np.ndarray) -> float | None:
    """Spearman's ρ: the correlation of ranks, those of equal values averaged; None where one side has one value."""
    ranks = []
    for values_N in (x_N, y_N):
        _, place_N, count_V = np.unique(values_N, return_inverse=True, return_counts=True)
        if len(count_V) < 2:
            return None
        ranks.append((np.cumsum(count_V) - (count_V - 1) / 2)[place_N])
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def fold(clusters: int, seed: int) -> np.ndarray:
    """Which of at most `FOLDED` joint clusters each belongs to, at random: int[C].

    Sums over clusters drawn without looking at them are as independent as the clusters; the standard error then has
    itself an error of 1/√(2·8192), under 1 %, and a million clusters cost no more than eight thousand.
    """
    if clusters <= FOLDED:
        return np.arange(clusters)
    return np.random.default_rng([seed, clusters]).permutation(clusters) % FOLDED


def _folded(sums_CK: np.ndarray, seed: int) -> np.ndarray:
    where = fold(len(sums_CK), seed)
    return np.stack([np.bincount(where, weights=column) for column in sums_CK.T], axis=1)


def sign_flip(sums_C: np.ndarray, draws: int = 20_000, seed: int = 0) -> float:
    """Two-sided p of paired differences being symmetric about zero, clusters flipped whole.

    `sums_C` holds each cluster's summed difference. Up to 14 clusters that differ, all 2^C flips are counted; beyond,
    `draws` seeded ones, p = (as far out + 1) / (draws + 1).
    """
    sums_C = sums_C[sums_C != 0]
    if not len(sums_C):
        return 1.0
    sums_C = _folded(sums_C[:, None], seed)[:, 0]
    seen = abs(float(sums_C.sum())) * (1 - 1e-12)
    if len(sums_C) <= 14:
        bits = (np.arange(1 << len(sums_C))[:, None] >> np.arange(len(sums_C))) & 1
        return float((np.abs((2 * bits - 1) @ sums_C) >= seen).mean())
    rng, as_far = np.random.default_rng(seed), 0
    for start in range(0, draws, CHUNK):
        signs = rng.integers(0, 2, (min(CHUNK, draws - start), len(sums_C)), dtype=np.int8) * 2.0 - 1
        as_far += int((np.abs(signs @ sums_C) >= seen).sum())
    return (as_far + 1) / (draws + 1)


def cluster_bootstrap(
    sums_CK: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    replicates: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> list[Interval]:
    """Percentile intervals of statistics of sums, clusters resampled whole with replacement.

    `sums_CK` holds K sums of each cluster (counts are sums too), `statistic` maps totals [B, K] to [B, S]. Beside a
    chunk of 64 replicates nothing grows with B × C. The percentiles are those of a wider confidence, by Student's t for
    C - 1 and √(C/(C-1)): plain ones of few clusters are too short (Hesterberg, The American Statistician 69 (2015),
    371-386; of 6 clusters they held a difference in 84 % of simulated sets). NaN ends where there is one cluster, or a
    statistic is undefined (not finite) in more than 1 % of the replicates; fewer are left out.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        n_statistics = statistic(sums_CK.sum(axis=0, keepdims=True)).shape[1]
    if len(sums_CK) < 2:
        return [Interval(math.nan, math.nan)] * n_statistics
    tail = NORMAL.cdf(-critical(confidence, len(sums_CK) - 1) * math.sqrt(len(sums_CK) / (len(sums_CK) - 1)))
    sums_CK = _folded(sums_CK, seed)
    n, rng, values = len(sums_CK), np.random.default_rng(seed), []
    for start in range(0, replicates, CHUNK):
        rows = min(CHUNK, replicates - start)
        drawn = rng.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        weights = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        with np.errstate(divide="ignore", invalid="ignore"):
            values.append(statistic(weights.astype(float) @ sums_CK))
    found = [v[np.isfinite(v)] for v in np.concatenate(values).T]
    return [
        Interval(*map(float, np.quantile(v, [tail, 1 - tail])))
        if len(v) >= 0.99 * replicates
        else Interval(math.nan, math.nan)
        for v in found
    ]


def fleiss_kappa(counts_NK: np.ndarray) -> float:
    """Agreement of m judges beyond chance; `counts_NK` says how many chose category k for item n, m in each row.

    Fleiss, Psychological Bulletin 76 (1971), 378-382. NaN where all judgements are alike.
    """
    judges = counts_NK.sum(axis=1)
    if len(counts_NK) == 0 or judges.min() != judges.max() or judges[0] < 2:
        raise ValueError("fleiss_kappa needs items with the same number of judgements, at least two")
    m = judges[0]
    seen = ((counts_NK**2).sum(axis=1) - m).mean() / (m * (m - 1))
    shares = counts_NK.sum(axis=0) / counts_NK.sum()
    chance = float(shares @ shares)
    return float((seen - chance) / (1 - chance)) if chance < 1 else math.nan


def cohen_kappa(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Agreement of two judges beyond chance (Cohen 1960); NaN where both always say the same one thing."""
    labels = np.unique(np.concatenate([first_N, second_N]))
    chance = sum(float((first_N == v).mean() * (second_N == v).mean()) for v in labels)
    return (float((first_N == second_N).mean()) - chance) / (1 - chance) if chance < 1 else math.nan


def krippendorff_alpha(counts_NK: np.ndarray) -> float:
    """Nominal α for any number of judgements an item; items with fewer than two do not count.

    Krippendorff, Content Analysis (2004), chapter 11. NaN where all judgements are alike.
    """
    counts_NK = counts_NK[counts_NK.sum(axis=1) > 1].astype(float)
    judges_N = counts_NK.sum(axis=1)
    agreeing = (counts_NK * (counts_NK - 1)).sum(axis=1) / (judges_N - 1)
    totals_K, total = counts_NK.sum(axis=0), counts_NK.sum()
    observed = 1 - agreeing.sum() / total if total else math.nan
    expected = 1 - float((totals_K * (totals_K - 1)).sum()) / (total * (total - 1)) if total > 1 else 0.0
    return float(1 - observed / expected) if expected else math.nan
