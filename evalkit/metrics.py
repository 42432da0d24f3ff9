"""What a set of scored pairs says, as plain functions of arrays; definitions in docs/evaluation.md."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from evalkit.scored import Scored
from prefkit import shares
from prefkit.statistics import (
    clustered_se,
    critical,
    degrees_of_freedom,
    half_test,
    minimum_detectable,
    numbered,
    placement,
)
from train.core.rewards import hits

FEW_GROUPS = 30  # fewer say little about how much groups differ
COVERAGES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class Proportion:
    """A share with its 95 % interval; `value` counts a tie as one half, `strict` as wrong; `p_half` tests ½."""

    value: float
    low: float
    high: float
    strict: float
    tie_rate: float
    n: int
    n_groups: int
    n_effective: float
    p_half: float
    method: str
    rough: bool  # too few groups decide how wide the interval is

    def as_dict(self) -> dict:
        """Plain numbers for report.json."""
        return asdict(self)


def share_won(difference_N: np.ndarray, group_N: np.ndarray) -> Proportion:
    """Share of pairs whose difference favours the chosen response, ties ½; the interval is that of `share`."""
    return share(hits(difference_N), group_N)


def share(credit_N: np.ndarray, group_N: np.ndarray) -> Proportion:
    """Mean of credits in 0..1, less than 1 being a tie's part; interval of `shares.share`, `p_half` its test of ½."""
    value, low, high, n_groups, n_effective, df = shares.share(credit_N, group_N)
    method = "Wilson on effective n" + ("" if df == math.inf else f", Student's t with {df:.1f} degrees of freedom")
    deciding = deciding_groups(group_N)
    if rough := deciding < FEW_GROUPS:
        few = f"only {n_groups}" if n_groups < FEW_GROUPS else f"its width is decided by as few as {deciding:.0f}"
        method += f"; {few} group{'s' * (n_groups != 1)}, read it as a rough guide"
    strict, ties = float((credit_N == 1).mean()), float(((credit_N > 0) & (credit_N < 1)).mean())
    p_half = half_test(value, n_effective, df)
    return Proportion(value, low, high, strict, ties, len(credit_N), n_groups, n_effective, p_half, method, rough)


def deciding_groups(group_N: np.ndarray) -> float:
    """How many groups of one size would tell as much about how groups differ: (Σ v)² / Σ v², v = m (m + 2) of m pairs.

    The G* of Carter, Schnepel and Steigerwald (Review of Economics and Statistics 99 (2017), 698-709) where pairs of a
    group have a correlation of a third. A hundred single pairs and twenty groups of ten are 120 groups, and decide like
    25.
    """
    m_C = numbered(group_N)[1].astype(float)
    v_C = m_C * (m_C + 2)
    return float(v_C.sum() ** 2 / (v_C @ v_C))


def summary(value_N: np.ndarray) -> dict:
    """Mean, standard deviation and quartiles."""
    q25, q50, q75 = np.quantile(value_N, [0.25, 0.5, 0.75])
    sd = float(value_N.std(ddof=1)) if len(value_N) > 1 else 0.0
    return {"mean": float(value_N.mean()), "sd": sd, "q25": float(q25), "median": float(q50), "q75": float(q75)}


def histogram(value_N: np.ndarray, bins: int = 41) -> dict:
    """Counts and edges as far as 99 % of |values| reach, zero an edge; what lies beyond counts in the end bins.

    `ties` are the values that are zero, counted right of it.
    """
    reach = float(np.quantile(np.abs(value_N), 0.99)) or 1.0
    edges = np.linspace(-reach, reach, bins - bins % 2 + 1)
    edges[len(edges) // 2] = 0.0
    counts, _ = np.histogram(np.clip(value_N, -reach, reach), edges)
    return {"edges": edges, "counts": counts, "ties": int((value_N == 0).sum())}


def baselines(s: Scored) -> dict[str, dict]:
    """What else ranks these pairs: length, the reference, the policy without its reference."""
    differences = {"longer_wins": s.difference("chars")}
    if s.mode != "sum":
        differences["reference_free"] = s.difference("policy")
    if s.mode != "mean":
        differences["mean_likelihood"] = mean_likelihood(s)
    if s.reference is not None:
        differences["reference_only"] = s.difference("ref")
    return {name: share_won(diff_N, s.group_N).as_dict() for name, diff_N in differences.items()}


def mean_likelihood(s: Scored) -> np.ndarray:
    """Difference of mean log-probability a token: what decoding prefers."""
    per_token = [s.column(f"policy_{side}") / np.maximum(s.column(f"n_{side}"), 1) for side in ("chosen", "rejected")]
    return per_token[0] - per_token[1]


def detectable(s: Scored) -> dict:
    """Smallest true effects these pairs would show with power 0.8 in a two-sided test at .05.

    `from_half`: accuracy against ½. `between_models`: against a second model of this accuracy, if its errors are
    unrelated to this one's; `evalkit diff` says it for two real models. Null where no effect that large exists.
    """
    p = share(s.hit_N, s.group_N)
    df = degrees_of_freedom(numbered(s.group_N)[1])
    independent = 2 * p.value * (1 - p.value) / p.n_effective
    return {
        "from_half": _at_most(0.5, minimum_detectable((0.25 / p.n_effective) ** 0.5, df=df)),
        "between_models": _at_most(1.0, minimum_detectable(independent**0.5, df=df)),
    }


def _at_most(largest: float, effect: float) -> float | None:
    return effect if 0 < effect <= largest else None


def undecided(s: Scored) -> dict | None:
    """Pairs whose log-ratio margin is within the measured noise, and the accuracy if all were wrong or all right.

    None where there is no `Scored.noise`.
    """
    if s.open_N is None:
        return None
    return {
        "within_nats": s.noise,
        "n": int(s.open_N.sum()),
        "share": float(s.open_N.mean()),
        "low": float(s.closed(0.0).mean()),
        "high": float(s.closed(1.0).mean()),
    }


def flips(s: Scored) -> dict | None:
    """Does training change which response is likelier? Ranking by log π_ref against log π, ties split.

    `difficulty` c = log π_ref(rejected) - log π_ref(chosen): the policy ranks a pair right iff margin/β > c (Chen et
    al., arXiv 2405.19534). None without a reference.
    """
    if s.reference is None:
        return None
    before_N, after_N, c_N = hits(s.difference("ref")), hits(s.difference("policy")), -s.difference("ref")
    table = {
        "kept_right": before_N * after_N,
        "lost": before_N * (1 - after_N),
        "won": (1 - before_N) * after_N,
        "kept_wrong": (1 - before_N) * (1 - after_N),
    }

    def within(rows_N: np.ndarray) -> dict | None:
        if not rows_N.any():
            return None
        ranking, reward = float(after_N[rows_N].mean()), float(s.hit_N[rows_N].mean())
        return {"n": int(rows_N.sum()), "ranking": ranking, "reward": reward}

    return {name: float(v.sum()) for name, v in table.items()} | {
        "difficulty": summary(c_N),
        "reference_wrong": within(c_N > 0),
        "reference_right": within(c_N < 0),
    }


def displacement(s: Scored) -> dict | None:
    """Where likelihood went: shares of pairs, and mean change a token in nats (Razin et al., arXiv 2410.08847).

    `drift` is the mean log-ratio a token over both sides, which accuracy and win rate only share near the reference.
    None without a reference.
    """
    if s.reference is None:
        return None
    up_chosen_N, up_rejected_N = (s.column(f"policy_{x}") - s.column(f"ref_{x}") for x in ("chosen", "rejected"))
    fell_N = up_chosen_N < 0
    per_token = {
        side: change_N / np.maximum(s.column(f"n_{side}"), 1)
        for side, change_N in (("chosen", up_chosen_N), ("rejected", up_rejected_N))
    }
    return {
        "chosen_fell": share(fell_N * 1.0, s.group_N).as_dict(),
        "both_fell": float((fell_N & (up_rejected_N < 0)).mean()),
        "right_though_chosen_fell": float((fell_N & (s.margin_N > 0)).mean()),
        "per_token": {side: summary(v) for side, v in per_token.items()},
        "drift": float(np.mean([v.mean() for v in per_token.values()])),
    }


def idealised(s: Scored) -> dict | None:
    """Ranking accuracy of a perfect optimiser on divided votes: log π_ref's difference + logit(p)/β > 0.

    From π* ∝ π_ref·exp(r/β), r(w) - r(l) = logit(p) (arXiv 2405.19534, section 3), w the response with more votes:
    the rejected one where p_chosen is below ½. None where no label is soft.
    """
    soft_N = (s.label_N > 0) & (s.label_N < 1)
    if s.reference is None or not soft_N.any():
        return None
    p_N, group_N = s.label_N[soft_N], s.group_N[soft_N]
    ideal_N = s.difference("ref")[soft_N] + np.log(p_N / (1 - p_N)) / s.beta
    differences = {"ideal": ideal_N, "seen": s.difference("policy")[soft_N]}
    return {name: share_won(d_N * np.sign(p_N - 0.5), group_N).as_dict() for name, d_N in differences.items()}


def comparability(s: Scored) -> dict:
    """Pooled AUC: chance that a chosen response of any prompt beats a rejected one of any prompt.

    Its standard error is that of the placement values, summed by group (Obuchowski, Biometrics 53 (1997), 567-578).
    `agreement` is how often reward and mean likelihood rank a pair alike.
    """
    chosen_N, rejected_N = s.rewards.chosen, s.rewards.rejected
    above_N, below_N = placement(chosen_N, rejected_N), 1 - placement(rejected_N, chosen_N)
    auc, se = float(above_N.mean()), clustered_se(above_N + below_N, s.group_N)
    agree_N = np.sign(mean_likelihood(s)) == np.sign(s.margin_N)
    reach = critical(0.95, degrees_of_freedom(numbered(s.group_N)[1])) * se
    ends = {"low": max(0.0, auc - reach), "high": min(1.0, auc + reach)} if se == se else {}
    return {"auc": auc, "se": se, **ends, "agreement": float(agree_N.mean())}


def risk_coverage(s: Scored) -> dict:
    """Accuracy of the surest pairs at each coverage, and AURC: mean share of errors over all coverages.

    Equal |margin| counts as one: its pairs enter with their mean. `aurc_random` is what a margin that knows nothing
    gives.
    """
    level_N = -np.abs(s.margin_N)
    _, index_N, count_L = np.unique(level_N, return_inverse=True, return_counts=True)
    mean_L = np.bincount(index_N, weights=s.hit_N) / count_L
    kept_N = np.cumsum(np.repeat(mean_L, count_L)) / np.arange(1, len(level_N) + 1)
    at = [max(1, round(c * len(level_N))) for c in COVERAGES]
    curve = [{"coverage": c, "accuracy": float(kept_N[k - 1])} for c, k in zip(COVERAGES, at, strict=True)]
    return {"aurc": float(1 - kept_N.mean()), "aurc_random": float(1 - s.hit_N.mean()), "curve": curve}
