"""Implicit rewards, margins and accuracy: computed here and nowhere else, for training and evaluation alike.

Functions take numpy arrays or torch tensors of [P] pairs, fp64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def implicit_reward(logps: Any, ref_logps: Any, beta: float) -> Any:
    """β·(log π(y|x) − log π_ref(y|x)), sums over response tokens; arXiv 2305.18290 section 4 without its constant."""
    return beta * (logps - ref_logps)


def hits(margins: Any) -> Any:
    """1 where the margin is positive, ½ where it is exactly zero, 0 elsewhere, as float."""
    return (margins > 0) * 1.0 + (margins == 0) * 0.5


@dataclass(frozen=True)
class PairRewards:
    """Rewards of [P] pairs."""

    chosen: Any
    rejected: Any

    @property
    def margins(self) -> Any:
        """Reward of chosen minus reward of rejected: positive where the model agrees with the judgement."""
        return self.chosen - self.rejected


def pair_rewards(
    policy_chosen: Any, policy_rejected: Any, ref_chosen: Any, ref_rejected: Any, beta: float
) -> PairRewards:
    """Rewards of both sides from summed log-probabilities."""
    return PairRewards(
        implicit_reward(policy_chosen, ref_chosen, beta), implicit_reward(policy_rejected, ref_rejected, beta)
    )


def reward_sums(rewards: PairRewards) -> dict[str, Any]:
    """Sums over pairs under the field's names; divide by the number of pairs, once, after all were added."""
    return {
        "rewards/chosen": rewards.chosen.sum(),
        "rewards/rejected": rewards.rejected.sum(),
        "rewards/accuracies": hits(rewards.margins).sum(),
        "rewards/margins": rewards.margins.sum(),
    }
