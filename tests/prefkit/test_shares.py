"""Shares of pairs of shared prompts: one share is Wilson's, and the interval of a weighted mean holds the truth."""

import numpy as np
import pytest

from prefkit.shares import share, weighted_shares
from prefkit.statistics import wilson


def test_pairs_of_their_own_groups_are_wilsons():
    found = share(np.array([1.0] * 7 + [0.0] * 3), np.arange(10))
    assert (found.low, found.high) == pytest.approx(wilson(7, 10))
    assert (found.value, found.n_effective, found.df) == (0.7, 10, np.inf)


def test_one_share_keeps_its_interval_and_equal_ones_weigh_as_one():
    rng = np.random.default_rng(0)
    credit_N, group_N = rng.integers(0, 2, 60).astype(float), rng.integers(0, 20, 60)
    alone = share(credit_N, group_N)
    parts = [(credit_N, group_N)] * 2
    ((value, ends),) = weighted_shares(parts, np.array([[0.25, 0.75]]))
    assert (value, *ends) == pytest.approx(alone[:3])


def test_shares_of_nothing_but_hits_leave_room_for_a_miss():
    parts = [(np.ones(20), np.arange(20)), (np.ones(20), np.arange(20, 40))]
    ((value, ends),) = weighted_shares(parts, np.array([[0.5, 0.5]]))
    assert (value, ends.high) == (1.0, 1.0)
    assert wilson(20, 20).low < ends.low < 1


def test_opposed_shares_of_few_groups_are_not_certain():
    """Two groups correlate fully whatever is true: noise that must not cancel the width."""
    group_N, credit_N = np.repeat([0, 1], 5), np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 1.0])
    ((value, ends),) = weighted_shares([(credit_N, group_N), (1 - credit_N, group_N)], np.array([[0.5, 0.5]]))
    assert value == 0.5
    assert ends.high - ends.low > 0.5


@pytest.mark.parametrize("shared", [False, True])
def test_the_interval_of_a_weighted_mean_holds_the_truth(shared):
    """Subsets of .95 and .6, of prompts of their own or the same ones."""
    rng, covered, sets = np.random.default_rng(1), 0, 600
    for _ in range(sets):
        skill = rng.normal(0, 1, 60)
        groups = [np.repeat(np.arange(30), 2), np.repeat(np.arange(30) + (0 if shared else 30), 2)]
        parts = [
            ((skill[g] + rng.normal(0, 1, 60) < z).astype(float), g) for g, z in zip(groups, (2.33, 0.36), strict=True)
        ]
        ((_, ends),) = weighted_shares(parts, np.array([[0.5, 0.5]]))
        covered += ends.low <= (0.95 + 0.6) / 2 <= ends.high
    assert 0.93 <= covered / sets <= 0.985
