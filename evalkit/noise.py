"""The noise floor: how far a margin moves when nothing changes but the shape of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from evalkit.models import Models, Role
from train.core.logprobs import Scored, response_logps, separate_logps
from train.core.rows import Row

SAMPLE = 64  # pairs
UNMEASURED = "not measured: each response is always computed by itself, so no other shape of batch is at hand"
HOW = "each response alone against shared batches"


class Noise(NamedTuple):
    """|difference| of the unscaled margin (policy's log-ratio minus reference's, in nats) over a sample of pairs."""

    pairs: int
    max: float
    p95: float
    how: str

    @property
    def line(self) -> str:
        """What `evalkit score` prints of it."""
        return f"{self.max:.1e} nats at most over {self.pairs} pairs, {self.how}"


def noise_floor(models: Models, rows: Sequence[Row], budget: int, seed: int = 0) -> Noise | None:
    """Score some rows twice, packed and each response by itself, and compare the margins of their pairs.

    None where no model is ever computed but by itself: both numbers would be of one shape, and their difference zero.
    """
    order = np.random.default_rng(seed).permutation(len(rows))
    sample: list[Row] = []
    for i in order:
        if sum(len(r.pairs) for r in sample) >= SAMPLE:
            break
        sample.append(rows[i])

    unshared = [role for role in models.roles if _alone(models, role, sample)]
    if len(unshared) == len(models.roles):
        return None

    def margins(alone: bool) -> np.ndarray:
        sides = [_differences(sample, _scores(models, role, sample, budget, alone)) for role in models.roles]
        return sides[0] - sides[1] if models.referenced else sides[0]

    off_P = np.abs(margins(alone=True) - margins(alone=False))
    how = HOW + "".join(f"; the {role} is always computed so, and its part not measured" for role in unshared)
    return Noise(len(off_P), float(off_P.max()), float(np.quantile(off_P, 0.95)), how)


def _alone(models: Models, role: Role, rows: Sequence[Row]) -> bool:
    with models.open(role) as model:
        return models.sharing(model, rows).alone


def _scores(models: Models, role: Role, rows: Sequence[Row], budget: int, alone: bool) -> list[Scored]:
    """Without the cache: the numbers must be computed to differ."""
    with models.open(role) as model:
        sharing = models.sharing(model, rows)
        if alone or sharing.alone:
            return separate_logps(model, rows)
        return response_logps(model, rows, budget, sharing.packed)


def _differences(rows: Sequence[Row], scored: Sequence[Scored]) -> np.ndarray:
    """log-probability of the chosen minus that of the rejected response, of every pair."""
    return np.array([s.logps_R[w] - s.logps_R[x] for r, s in zip(rows, scored, strict=True) for w, x in r.pairs])
