"""What of a margin other features of a pair explain, such as length and style: by regression on other groups.

Array suffixes: N pairs, P features (differences of chosen and rejected), F folds of groups, C groups.
"""

from __future__ import annotations

import math

import numpy as np

from prefkit.statistics import critical, degrees_of_freedom, numbered, two_sided

FOLDS = 5
FLAT = 1e-10  # of a feature's own size: less variance than this is none


def explained(m_N: np.ndarray, d_NP: np.ndarray, group_N: np.ndarray) -> np.ndarray | None:
    """Σ slope·d of each pair, slopes of m on d over the folds its group is not in; None with fewer than 5 groups.

    Fitted with a constant, which is not part of it: a preference that is the same whatever d is no effect of d.
    """
    n_groups = int(group_N.max()) + 1
    if n_groups < FOLDS:
        return None
    fold_N = (np.random.default_rng(0).permutation(n_groups) % FOLDS)[group_N]
    x_NP = d_NP / _scale(d_NP)
    one_NP = np.column_stack([np.ones(len(m_N)), x_NP, m_N])
    gram_FPP = np.stack([one_NP[fold_N == f].T @ one_NP[fold_N == f] for f in range(FOLDS)])
    slope_FP = np.stack([_slopes(gram_PP) for gram_PP in gram_FPP.sum(axis=0) - gram_FPP])
    return (x_NP * slope_FP[fold_N]).sum(axis=1)


def _scale(d_NP: np.ndarray) -> np.ndarray:
    """Largest size of each feature, 1 where there is none."""
    size_P = np.abs(d_NP).max(axis=0)
    return np.where(size_P > 0, size_P, 1.0)


def _slopes(gram_PP: np.ndarray) -> np.ndarray:
    """Least squares from the sums of products of (1, features, m); what does not vary has the slope 0."""
    n, sum_P = gram_PP[0, 0], gram_PP[0, 1:]
    centred_PP = gram_PP[1:, 1:] - np.outer(sum_P, sum_P) / n
    return _inverse(centred_PP[:-1, :-1], n) @ centred_PP[:-1, -1]


def _inverse(gram_PP: np.ndarray, n: float) -> np.ndarray:
    """Of sums over n pairs of products of features of size 1, without the directions in which they do not vary."""
    value_P, vector_PP = np.linalg.eigh(gram_PP)
    kept_P = value_P > FLAT * n
    return (vector_PP[:, kept_P] / value_P[kept_P]) @ vector_PP[:, kept_P].T


def slopes(m_N: np.ndarray, d_NP: np.ndarray, group_N: np.ndarray) -> list[dict[str, float]]:
    """Change of m with one more of each feature, the others held, with 95 % intervals by errors clustered by group.

    `n_groups` are those in which the feature differs at all: from few of them the error is poorly known. The ends are
    NaN where there are no more groups than numbers fitted, and of a feature that differs in fewer than three groups:
    the slope fits those, and nothing is left to estimate its error from.
    """
    scale_P = _scale(d_NP)
    x_NP = (d_NP - d_NP.mean(axis=0)) / scale_P
    inverse_PP = _inverse(x_NP.T @ x_NP, len(m_N))
    slope_P = inverse_PP @ (x_NP.T @ (m_N - m_N.mean()))
    left_N = m_N - m_N.mean() - x_NP @ slope_P
    index_N, sizes = numbered(group_N)
    fits = len(sizes) > len(slope_P) + 1
    sums_CP = np.stack([np.bincount(index_N, c) for c in (x_NP * left_N[:, None]).T], axis=1)
    few = len(sizes) / (len(sizes) - 1) * (len(m_N) - 1) / (len(m_N) - len(slope_P) - 1) if fits else math.nan
    se_P = np.sqrt(np.maximum(np.diag(inverse_PP @ (sums_CP.T @ sums_CP) @ inverse_PP) * few, 0))
    reach = critical(0.95, degrees_of_freedom(sizes))
    differ_P = [len(np.unique(group_N[x_N != 0])) for x_N in d_NP.T]
    reach_P = np.where(np.array(differ_P) < 3, math.nan, reach * se_P)
    ends_P = zip(slope_P / scale_P, reach_P / scale_P, differ_P, strict=True)
    return [{"slope": float(k), "low": float(k - r), "high": float(k + r), "n_groups": n} for k, r, n in ends_P]


def beyond(m_N: np.ndarray, d_NP: np.ndarray, group_N: np.ndarray) -> dict | None:
    """Logistic model of which side is chosen, from the features alone and from margin and features together.

    Sides are taken in random orientation, so there is no constant, and orientation drops out: P(chosen) = σ(a·m +
    b·d). `likelihood_ratio` is 2·(log L with m - without), `bits_per_pair` the same per pair in bits; `p` is the
    clustered Wald test of a = 0, null where the classes separate, the features are all that the margin is, or there
    are not more groups than weights. None where margins or features are all zero.
    """
    d_NP = d_NP[:, d_NP.any(axis=0)]
    if not m_N.any() or not d_NP.shape[1]:
        return None
    x_NP = np.column_stack([m_N, d_NP])
    x_NP = x_NP / np.sqrt((x_NP**2).mean(axis=0))
    both, alone = logistic(x_NP, group_N), logistic(x_NP[:, 1:], group_N)
    ratio = max(0.0, 2 * (both["log_likelihood"] - alone["log_likelihood"]))
    z = both["weights"][0] / both["se"][0] if both["se"][0] else math.nan
    sizes = numbered(group_N)[1]
    separated = both["log_likelihood"] > -0.01 * len(m_N)
    untestable = separated or len(sizes) <= x_NP.shape[1] or np.linalg.matrix_rank(x_NP) < x_NP.shape[1]
    return {
        "likelihood_ratio": ratio,
        "bits_per_pair": ratio / 2 / len(m_N) / math.log(2),
        "z": None if untestable or math.isnan(z) else z,
        "p": None if untestable or math.isnan(z) else two_sided(z, degrees_of_freedom(sizes)),
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
    few = len(scores_CP) / max(1, len(scores_CP) - 1)
    covariance_PP = few * inverse_PP @ scores_CP.T @ scores_CP @ inverse_PP
    return {
        "weights": w_P.tolist(),
        "se": np.sqrt(np.maximum(np.diag(covariance_PP), 0)).tolist(),
        "log_likelihood": -float(np.logaddexp(0, -eta_N).sum()),
    }
