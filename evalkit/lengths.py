"""What length has to do with it: how margins follow it, and what of the accuracy is left without it."""

from __future__ import annotations

import numpy as np

from evalkit.control import beyond, explained
from evalkit.metrics import FEW_GROUPS, deciding_groups, share, share_won
from evalkit.scored import Scored
from prefkit.shares import weighted_shares

NEAR = 0.1  # of the longer one: as good as equal
ROUNDING = 1e-9  # of the largest margin


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
    return {
        "pearson": correlation(s.margin_N, d_N),
        "spearman": correlation(ranks(s.margin_N), ranks(d_N)),
        **parts,
        "balanced": balanced(s.hit_N, longer_N, shorter_N, s.group_N),
        "controlled": controlled(s, d_N[:, None]),
        "beyond": beyond(s.margin_N, d_N[:, None], s.group_N),
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
    used = group_N[longer_N | shorter_N]
    of = {"n_groups": len(np.unique(used)), "rough": deciding_groups(used) < FEW_GROUPS}
    return {"value": value, **ends._asdict(), **of}


def controlled(s: Scored, d_NP: np.ndarray) -> dict | None:
    """Accuracy of the margin without what features explain of it; None with too few groups to fit on others."""
    explained_N = explained(s.margin_N, d_NP, s.group_N)
    if explained_N is None:
        return None
    rest_N = s.margin_N - explained_N
    rest_N[np.abs(rest_N) <= ROUNDING * np.abs(s.margin_N).max()] = 0  # nothing is left: a tie
    return share_won(rest_N, s.group_N).as_dict()


def correlation(x_N: np.ndarray, y_N: np.ndarray) -> float | None:
    """Pearson's r; None where one of the two does not vary."""
    if np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return None
    return float(np.corrcoef(x_N, y_N)[0, 1])


def ranks(value_N: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values their mean rank; by hand because scipy.stats takes a second to import."""
    _, index_N, count_L = np.unique(value_N, return_inverse=True, return_counts=True)
    return (np.cumsum(count_L) - (count_L - 1) / 2)[index_N]
