"""What a set of scored pairs says, as plain functions of numpy arrays; definitions in docs/evaluation.md."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from prefkit.statistics import design_effect, wilson
from train.core.rewards import hits

FEW_GROUPS = 10


@dataclass(frozen=True)
class Proportion:
    """A share of pairs with its 95 % interval; `value` counts a tie as one half, `strict` as wrong."""

    value: float
    low: float
    high: float
    strict: float
    tie_rate: float
    n: int
    n_groups: int
    n_effective: float
    method: str

    def as_dict(self) -> dict:
        """Plain numbers for report.json."""
        return asdict(self)


def share_won(difference_N: np.ndarray, group_N: np.ndarray) -> Proportion:
    """Share of pairs whose difference favours the chosen response, ties ½.

    The interval is Wilson's with k = Σ wins on n_eff = n / max(1, design effect of the prompt groups): pairs of one
    prompt are not independent, so they count for less than as many pairs of different prompts.
    """
    won = hits(difference_N)
    n = len(won)
    n_groups = len(np.unique(group_N))
    n_effective = n / max(1.0, design_effect(won, group_N))
    low, high = wilson(float(won.mean()) * n_effective, n_effective)
    method = "Wilson on effective n"
    if n_groups < FEW_GROUPS:
        method += f"; only {n_groups} groups, read it as a rough guide"
    return Proportion(
        value=float(won.mean()),
        low=low,
        high=high,
        strict=float((difference_N > 0).mean()),
        tie_rate=float((difference_N == 0).mean()),
        n=n,
        n_groups=n_groups,
        n_effective=float(n_effective),
        method=method,
    )


def summary(value_N: np.ndarray) -> dict:
    """Mean, standard deviation and quartiles."""
    q25, q50, q75 = np.quantile(value_N, [0.25, 0.5, 0.75])
    sd = float(value_N.std(ddof=1)) if len(value_N) > 1 else 0.0
    return {"mean": float(value_N.mean()), "sd": sd, "q25": float(q25), "median": float(q50), "q75": float(q75)}
