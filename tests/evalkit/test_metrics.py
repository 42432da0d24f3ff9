"""Accuracy and its interval against hand-worked numbers and simulation."""

import numpy as np
import pytest

from evalkit.metrics import share_won, summary
from prefkit.statistics import design_effect


def test_a_tie_counts_one_half_and_strict_counts_it_wrong():
    p = share_won(np.array([1.0, 0.0, -1.0, 2.0]), np.array(list("abcd")))
    assert (p.value, p.strict, p.tie_rate) == (0.625, 0.5, 0.25)
    assert (p.n, p.n_groups) == (4, 4)


def test_few_groups_are_said_so():
    assert "only 4 groups" in share_won(np.ones(4), np.array(list("abcd"))).method
    assert "only" not in share_won(np.ones(12), np.arange(12)).method


def test_independent_pairs_have_a_design_effect_of_about_one():
    won = np.random.default_rng(0).random(20_000) < 0.6
    assert design_effect(won.astype(float), np.arange(20_000)) == pytest.approx(1.0, abs=0.02)


def test_copies_of_one_pair_count_once():
    won = (np.random.default_rng(1).random(500) < 0.6).astype(float)
    copies = share_won(np.repeat(won - 0.5, 4), np.repeat(np.arange(500), 4))
    single = share_won(won - 0.5, np.arange(500))
    assert copies.n_effective == pytest.approx(500, rel=0.01)
    assert (copies.low, copies.high) == pytest.approx((single.low, single.high), abs=2e-3)


def test_when_every_pair_is_right_a_group_counts_once():
    p = share_won(np.ones(40), np.repeat(np.arange(20), 2))
    assert p.n_effective == pytest.approx(20)
    assert p.high == pytest.approx(1.0)
    assert 0.8 < p.low < 0.9


def test_the_interval_covers_the_truth_when_pairs_of_a_prompt_go_together():
    rng, hits = np.random.default_rng(2), 0
    for _ in range(400):
        rate = np.repeat(rng.beta(2, 2, 120), 4)  # mean one half, strongly correlated within a prompt
        p = share_won((rng.random(480) < rate) - 0.5, np.repeat(np.arange(120), 4))
        hits += p.low <= 0.5 <= p.high
    assert 0.92 <= hits / 400 <= 0.985


def test_summary_of_one_value():
    assert summary(np.array([2.0])) == {"mean": 2.0, "sd": 0.0, "q25": 2.0, "median": 2.0, "q75": 2.0}
