"""Which rows each optimizer step takes: a pure function of their sizes, the step's size, epochs and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """Row indices of every optimizer step of the training, and where its epochs would end (in steps)."""

    steps: list[np.ndarray]
    epoch_ends: list[int]

    def epoch_at(self, step: int) -> float:
        """Epochs passed after so many steps, fractions included."""
        starts = [0, *self.epoch_ends]
        done = int(np.searchsorted(self.epoch_ends, step, side="right"))
        if done == len(self.epoch_ends):
            return float(done)
        return done + (step - starts[done]) / (starts[done + 1] - starts[done])


def schedule(units: Sequence[int], per_step: int, epochs: float, max_steps: int, seed: int, shuffled: bool) -> Schedule:
    """Cut each epoch's (seeded) order into steps closed by the row that reaches `per_step` units.

    `max_steps` > 0 overrides `epochs`, which may be a fraction. The last step of an epoch may be short.
    """
    steps: list[np.ndarray] = []
    ends: list[int] = []
    counts = np.asarray(units)
    limit = max_steps if max_steps > 0 else None
    while (len(steps) < limit) if limit else (len(ends) < epochs):
        rng = np.random.default_rng([seed, len(ends)])
        order = rng.permutation(len(counts)) if shuffled else np.arange(len(counts))
        start = total = 0
        epoch: list[np.ndarray] = []
        for i, row in enumerate(order):
            total += counts[row]
            if total >= per_step or i == len(order) - 1:
                epoch.append(order[start : i + 1])
                start, total = i + 1, 0
        part, end = epochs - len(ends), len(steps) + len(epoch)
        steps += epoch if limit or part >= 1 else epoch[: max(1, round(len(epoch) * part))]
        ends.append(end)
    return Schedule(steps[:limit], ends)
