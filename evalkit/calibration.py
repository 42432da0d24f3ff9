"""Is σ(margin) a probability? NLL, Brier score, calibration error, and the temperature that would mend it."""

from __future__ import annotations

import math

import numpy as np

from evalkit.scored import Scored
from prefkit.statistics import cluster_bootstrap

BINS = 10
RELIABLE = 300  # pairs below which a calibration error is mostly noise
FOLDS = 5


def nll_of(margin_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """-[p log σ(m) + (1-p) log σ(-m)] of each pair: DPO's loss at β, for soft labels as for hard ones."""
    return label_N * np.logaddexp(0, -margin_N) + (1 - label_N) * np.logaddexp(0, margin_N)


def probability(margin_N: np.ndarray) -> np.ndarray:
    """σ(margin)."""
    return np.exp(-np.logaddexp(0, -margin_N))


def brier_of(margin_N: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """(p - σ(m))² of each pair."""
    return (label_N - probability(margin_N)) ** 2


def outcome_of(s: Scored) -> np.ndarray:
    """Probability that the response with the larger reward is the better one, by the labels; ½ where rewards tie."""
    return s.label_N * s.hit_N + (1 - s.label_N) * (1 - s.hit_N)


def calibration(s: Scored) -> dict:
    """NLL, Brier, expected calibration error over ten equal bins, its curve, and the fitted temperature.

    Labels are all "chosen", so confidence is max(σ(m), σ(-m)) and the outcome whether that side is right. `signed` is
    mean confidence minus accuracy: above zero, margins claim more than they hold. Below 300 pairs `reliable` is
    false.
    """
    bin_N = confidence_bins(s)
    confidence_N, outcome_N = probability(np.abs(s.margin_N)), outcome_of(s)
    n_B = np.bincount(bin_N)
    confidence_B = np.bincount(bin_N, weights=confidence_N) / n_B
    accuracy_B = np.bincount(bin_N, weights=outcome_N) / n_B
    return {
        "nll": float(nll_of(s.margin_N, s.label_N).mean()),
        "brier": float(brier_of(s.margin_N, s.label_N).mean()),
        "ece": float(n_B @ np.abs(confidence_B - accuracy_B) / len(bin_N)),
        "signed": float(confidence_N.mean() - outcome_N.mean()),
        "reliable": len(bin_N) >= RELIABLE,
        "curve": [
            {"confidence": float(c), "accuracy": float(a), "n": int(n)}
            for c, a, n in zip(confidence_B, accuracy_B, n_B, strict=True)
        ],
        **temperature(s),
    }


def intervals(s: Scored) -> dict[str, dict]:
    """95 % intervals of means, by the bootstrap over groups.

    The calibration error has none: it is a sum of |gaps|, to which every replicate adds noise of its own, so that its
    percentiles lie above the truth (seen with a true error of .01: in none of 200 sets of 300 pairs did they hold it).
    """
    means = [s.margin_N, nll_of(s.margin_N, s.label_N), brier_of(s.margin_N, s.label_N)]
    sums_C4 = np.stack([np.bincount(s.group_N, v) for v in (np.ones_like(s.margin_N), *means)], axis=1)
    ends = cluster_bootstrap(sums_C4, lambda t_B4: t_B4[:, 1:] / t_B4[:, :1])
    return {name: e._asdict() for name, e in zip(("margin", "nll", "brier"), ends, strict=True)}


def confidence_bins(s: Scored) -> np.ndarray:
    """Bin 0..9 of each pair by |margin|, about equal counts; equal margins share a bin, whatever the rows' order."""
    size_N = np.abs(s.margin_N)
    ends = np.quantile(size_N, np.arange(1, BINS) / BINS, method="inverted_cdf")
    return np.unique(np.searchsorted(ends, size_N, "left"), return_inverse=True)[1]


def temperature(s: Scored) -> dict:
    """T that minimises the NLL of m/T, and the NLL after it with T fitted on the other folds of groups.

    Found as a = 1/T, in which the NLL is convex. `temperature` is null where no finite one is best, for margins do not
    tell at all (a = 0), and 0 where the lowest is, for they are right each time (a without bound).
    """
    m_N, p_N = s.margin_N, s.label_N
    scale = best_scale(m_N, p_N)
    after = None
    if s.n_groups >= FOLDS:
        fold_N = (np.random.default_rng(0).permutation(s.n_groups) % FOLDS)[s.group_N]
        total = 0.0
        for k in range(FOLDS):
            held_N = fold_N == k
            total += float(nll_of(best_scale(m_N[~held_N], p_N[~held_N]) * m_N[held_N], p_N[held_N]).sum())
        after = total / len(m_N)
    best = None if scale == 0 else 0.0 if scale == _ceiling(m_N) else 1 / scale
    return {"temperature": best, "nll_after": after}


def _ceiling(m_N: np.ndarray) -> float:
    """1/T at which the least margin is 50 nats: every probability is 0 or 1, and one wrong margin costs too much."""
    sizes = np.abs(m_N[m_N != 0])
    return 50 / max(float(sizes.min()), 1e-300) if len(sizes) else 1.0


def best_scale(m_N: np.ndarray, p_N: np.ndarray) -> float:
    """argmin over a in [0, ceiling] of the mean NLL of a·m: Newton on its derivative, kept within a bracket."""

    def slopes(a: float) -> tuple[float, float]:
        q_N = probability(a * m_N)
        return float(((q_N - p_N) * m_N).mean()), float((q_N * (1 - q_N) * m_N * m_N).mean())

    low, high = 0.0, _ceiling(m_N)
    if not m_N.any() or slopes(low)[0] >= 0:
        return 0.0
    if slopes(high)[0] <= 0:
        return high
    a = min(1.0, high / 2)
    for _ in range(100):
        first, second = slopes(a)
        low, high = (a, high) if first < 0 else (low, a)
        step = a - first / second if second > 0 else math.nan
        after = step if low < step < high else (low + high) / 2
        if abs(after - a) <= 1e-12 * a:
            break
        a = after
    return a
