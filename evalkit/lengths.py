"""What length has to do with it: how margins follow it, and what of the accuracy is left without it."""

from __future__ import annotations

import math

import numpy as np

from evalkit.metrics import share, share_won
from evalkit.scored import Scored
from prefkit.shares import weighted_shares
from prefkit.statistics import two_sided

FOLDS = 5
NEAR = 0.1  # of the longer one: as good as equal


def lengths(s: Scored) -> dict:
    """Correlation of margin with D = tokens of chosen - of rejected, and accuracies that D cannot make.

    `balanced`: mean of the accuracies where chosen is longer and where it is shorter, null where one is missing.
    `controlled`: accuracy of margin - k·D, the slope k of margin on D fitted on the other folds of groups.
    `beyond`: what the margin adds to D in telling chosen from rejected.
    """
    d_N, near_N = s.difference("n").astype(float), near(s)
    longer_N, shorter_N = (d_N > 0) & ~near_N, (d_N < 0) & ~near_N
    parts = {
        name: share(s.hit_N[rows], s.group_N[rows]).as_dict() if rows.any() else None
        for name, rows in (("chosen_longer", longer_N), ("chosen_shorter", shorter_N), ("within_10_percent", near_N))
    }
    slope_N = slope_elsewhere(s.margin_N, d_N, s.group_N)
    return {
        "pearson": correlation(s.margin_N, d_N),
        "spearman": correlation(ranks(s.margin_N), ranks(d_N)),
        **parts,
        "balanced": balanced(s.hit_N, longer_N, shorter_N, s.group_N),
        "controlled": None if slope_N is None else share_won(s.margin_N - slope_N * d_N, s.group_N).as_dict(),
        "beyond": beyond_length(s.margin_N, d_N, s.group_N),
    }


def near(s: Scored) -> np.ndarray:
    """Which pairs' responses are of the same length within 10 % of the longer one."""
    n_chosen, n_rejected = s.column("n_chosen"), s.column("n_rejected")
    return np.abs(n_chosen - n_rejected) <= NEAR * np.maximum(n_chosen, n_rejected)


def balanced(hit_N: np.ndarray, longer_N: np.ndarray, shorter_N: np.ndarray, group_N: np.ndarray) -> dict | None:
    """Mean of the accuracies on two sorts of pairs, by `weighted_shares`; None where one sort is missing."""
    if not (longer_N.any() and shorter_N.any()):
        return None
    sorts = [(hit_N[rows_N], group_N[rows_N]) for rows_N in (longer_N, shorter_N)]
    ((value, ends),) = weighted_shares(sorts, np.array([[0.5, 0.5]]))
    return {"value": value, **ends._asdict(), "n_groups": len(np.unique(group_N[longer_N | shorter_N]))}


def correlation(x_N: np.ndarray, y_N: np.ndarray) -> float | None:
    """Pearson's r; None where one of the two does not vary."""
    if np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return None
    return float(np.corrcoef(x_N, y_N)[0, 1])


def ranks(value_N: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values their mean rank; by hand because scipy.stats takes a second to import."""
    _, index_N, count_L = np.unique(value_N, return_inverse=True, return_counts=True)
    return (np.cumsum(count_L) - (count_L - 1) / 2)[index_N]


def slope_elsewhere(m_N: np.ndarray, d_N: np.ndarray, group_N: np.ndarray) -> np.ndarray | None:
    """For each pair the slope of m on d over the folds its group is not in; None with fewer than 5 groups.

    Fitted with a constant: a preference that is the same at every length is no effect of length.
    """
    n_groups = int(group_N.max()) + 1
    if n_groups < FOLDS:
        return None
    fold_N = (np.random.default_rng(0).permutation(n_groups) % FOLDS)[group_N]
    scale = float(np.abs(d_N).max()) or 1.0
    x_N = d_N / scale
    sums_F = [
        np.bincount(fold_N, weights=w, minlength=FOLDS) for w in (np.ones_like(x_N), x_N, m_N, x_N * x_N, x_N * m_N)
    ]
    n, x, m, xx, xm = (v.sum() - v for v in sums_F)
    spread_F = xx - x * x / n
    flat_F = spread_F <= 1e-12 * np.maximum(xx, 1e-300)
    slope_F = np.where(flat_F, 0.0, (xm - x * m / n) / np.where(flat_F, 1.0, spread_F))
    return slope_F[fold_N] / scale


def beyond_length(m_N: np.ndarray, d_N: np.ndarray, group_N: np.ndarray) -> dict | None:
    """Logistic model of which side is chosen, from z(D) alone and from margin and z(D) together.

    Sides are taken in random orientation, so there is no constant, and orientation drops out: P(chosen) = σ(a·m +
    b·D). `likelihood_ratio` is 2·(log L with m - without), `bits_per_pair` the same per pair in bits; `p` is the
    clustered Wald test of a = 0, null where the classes separate. None where margins or lengths are all zero.
    """
    if not m_N.any() or not d_N.any():
        return None
    x_N2 = np.stack([m_N / math.sqrt((m_N @ m_N) / len(m_N)), d_N / math.sqrt((d_N @ d_N) / len(d_N))], axis=1)
    both, alone = logistic(x_N2, group_N), logistic(x_N2[:, 1:], group_N)
    ratio = max(0.0, 2 * (both["log_likelihood"] - alone["log_likelihood"]))
    z = both["weights"][0] / both["se"][0] if both["se"][0] else math.nan
    separated = both["log_likelihood"] > -0.01 * len(m_N)
    return {
        "likelihood_ratio": ratio,
        "bits_per_pair": ratio / 2 / len(m_N) / math.log(2),
        "z": None if separated or math.isnan(z) else z,
        "p": None if separated or math.isnan(z) else two_sided(z),
    }


def logistic(x_NP: np.ndarray, group_N: np.ndarray, ridge: float = 1e-6) -> dict:
    """Maximum likelihood of Σ log σ(x·w) by Newton, with standard errors clustered by group (sandwich)."""
    w_P = np.zeros(x_NP.shape[1])
    for _ in range(50):
        eta_N = x_NP @ w_P
        q_N = np.exp(-np.logaddexp(0, eta_N))  # σ(-η)
        gradient_P = x_NP.T @ q_N - ridge * w_P
        hessian_PP = (x_NP * (q_N * (1 - q_N))[:, None]).T @ x_NP + ridge * np.eye(len(w_P))
        step_P = np.linalg.solve(hessian_PP, gradient_P)
        step_P *= min(1.0, 4 / max(np.abs(step_P).max(), 1e-300))
        w_P = w_P + step_P
        if np.abs(step_P).max() < 1e-9:
            break
    eta_N = x_NP @ w_P
    q_N = np.exp(-np.logaddexp(0, eta_N))
    scores_CP = np.stack([np.bincount(group_N, weights=c) for c in (x_NP * q_N[:, None]).T], axis=1)
    inverse_PP = np.linalg.inv((x_NP * (q_N * (1 - q_N))[:, None]).T @ x_NP + ridge * np.eye(len(w_P)))
    covariance_PP = inverse_PP @ scores_CP.T @ scores_CP @ inverse_PP
    return {
        "weights": w_P.tolist(),
        "se": np.sqrt(np.maximum(np.diag(covariance_PP), 0)).tolist(),
        "log_likelihood": -float(np.logaddexp(0, -eta_N).sum()),
    }
