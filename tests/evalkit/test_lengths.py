"""What length explains: margins made of length alone, of nothing but quality, and of both."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import rankdata, spearmanr, t
from scored_pairs import random_scores, with_margins

from evalkit.control import FOLDS, beyond, explained, logistic
from evalkit.lengths import lengths, ranks
from evalkit.scored import load


def made(margin_of, n=2000, seed=0):
    """Pairs whose margin is a function of D and noise; chosen is the longer one more often than not."""
    rng = np.random.default_rng(seed)
    d = rng.integers(-40, 61, n)
    margins = margin_of(d, rng.normal(0, 1, n))
    return with_margins(margins, n_chosen=100 + d, n_rejected=[100] * n)


def test_a_margin_of_length_alone_has_no_accuracy_left():
    found = lengths(made(lambda d, noise: 0.1 * d + 0.01 * noise))
    assert found["spearman"] > 0.99
    assert found["chosen_longer"]["value"] == 1.0
    assert found["chosen_shorter"]["value"] == 0.0
    assert found["balanced"]["value"] == 0.5
    assert 0.49 < found["balanced"]["low"] < 0.5 < found["balanced"]["high"] < 0.51
    assert found["balanced"]["n_groups"] == found["chosen_longer"]["n"] + found["chosen_shorter"]["n"]
    assert found["controlled"]["value"] == pytest.approx(0.5, abs=0.05)


def test_a_margin_that_is_length_and_nothing_else_is_a_tie_once_length_is_controlled():
    """What rounding leaves of it is no judgement."""
    found = lengths(made(lambda d, noise: 0.1 * d, n=200))
    assert found["controlled"]["value"] == 0.5
    assert found["beyond"]["p"] is None


def test_one_group_says_nothing_of_what_goes_beyond_length():
    m, d = np.random.default_rng(0).normal(0, 1, (2, 40))
    assert beyond(m, d[:, None], np.zeros(40, int))["p"] is None
    assert beyond(m, d[:, None], np.arange(40))["p"] > 1e-3


def test_the_balanced_accuracy_weighs_both_sorts_alike_and_covers():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(150):
        d = np.where(rng.random(400) < 0.8, 50, -50)
        right = rng.random(400) < np.where(d > 0, 0.9, 0.5)
        s = with_margins(np.where(right, 1.0, -1.0), n_chosen=100 + d, n_rejected=[100] * 400)
        found = lengths(s)["balanced"]
        covered += found["low"] <= 0.7 <= found["high"]
    assert 0.9 <= covered / 150 <= 0.99


def test_a_preference_at_every_length_is_kept_whole():
    found = lengths(made(lambda d, noise: 1.0 + 0.1 * noise))
    assert found["controlled"]["value"] == 1.0
    assert abs(found["spearman"]) < 0.1


def test_what_adds_nothing_to_length_says_so_and_what_adds_shows():
    noise_only = lengths(made(lambda d, noise: noise))["beyond"]
    telling = lengths(made(lambda d, noise: 0.5 + noise))["beyond"]
    assert noise_only["p"] > 0.01
    assert telling["p"] < 1e-6
    assert telling["bits_per_pair"] > 20 * noise_only["bits_per_pair"]


def test_beyond_length_is_rarely_found_where_it_is_not():
    found = [lengths(made(lambda d, noise: noise, n=300, seed=i))["beyond"]["p"] for i in range(200)]
    assert 0.01 <= np.mean(np.array(found) < 0.05) <= 0.1


def test_correlations_are_scipys():
    s = load(random_scores(300, 60))
    found = lengths(s)
    d = s.difference("n")
    assert found["spearman"] == pytest.approx(spearmanr(s.margin_N, d).statistic)
    assert found["pearson"] == pytest.approx(np.corrcoef(s.margin_N, d)[0, 1])


def test_equal_values_share_their_mean_rank():
    values = np.random.default_rng(0).integers(0, 9, 40)
    assert ranks(values).tolist() == rankdata(values).tolist()


def test_slopes_are_fitted_without_the_groups_own_fold():
    rng = np.random.default_rng(1)
    m, d, group = rng.normal(size=90), rng.normal(size=90), np.repeat(np.arange(30), 3)
    fold = (np.random.default_rng(0).permutation(30) % FOLDS)[group]
    found = explained(m, d[:, None], group)
    for k in range(FOLDS):
        slope = np.polyfit(d[fold != k], m[fold != k], 1)[0]
        assert found[fold == k] == pytest.approx(slope * d[fold == k])
    assert explained(m[:9], d[:9, None], group[:9]) is None
    assert explained(m, np.full((90, 1), 3.0), group) == pytest.approx(0.0)


def test_the_logistic_fit_is_that_of_a_general_optimiser():
    x = np.random.default_rng(2).normal(0.3, 1, (200, 2))
    best = minimize(lambda w: np.logaddexp(0, -x @ w).sum(), np.zeros(2))
    found = logistic(x, np.arange(200))
    assert found["weights"] == pytest.approx(best.x, abs=1e-4)
    assert found["log_likelihood"] == pytest.approx(-best.fun)


def naive_fit(x, group):
    """Weights, errors clustered by group and log L of P = σ(x·w): a general optimiser, and the sandwich by loops."""
    best = minimize(lambda w: np.logaddexp(0, -x @ w).sum(), np.zeros(x.shape[1]), tol=1e-10)
    bread, meat = np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1],) * 2)
    for g in np.unique(group):
        score = np.zeros(x.shape[1])
        for row in x[group == g]:
            miss = 1 / (1 + np.exp(row @ best.x))
            score += miss * row
            bread += miss * (1 - miss) * np.outer(row, row)
        meat += np.outer(score, score)
    n_groups = len(np.unique(group))
    covariance = n_groups / (n_groups - 1) * np.linalg.inv(bread) @ meat @ np.linalg.inv(bread)
    return best.x, np.sqrt(np.diag(covariance)), -best.fun


def test_what_goes_beyond_length_is_a_likelihood_ratio_in_bits_and_a_test_clustered_by_group():
    rng, group = np.random.default_rng(6), np.repeat(np.arange(30), 4)
    m, d = rng.normal(0.4, 1, 120) + rng.normal(0, 1, 30)[group], rng.normal(0.2, 1, 120)
    found = beyond(m, d[:, None], group)
    weights, errors, both = naive_fit(np.column_stack([m, d]), group)
    *_, alone = naive_fit(d[:, None], group)
    assert found["likelihood_ratio"] == pytest.approx(2 * (both - alone), rel=1e-4)
    assert found["bits_per_pair"] == pytest.approx((both - alone) / 120 / np.log(2), rel=1e-4)
    assert found["z"] == pytest.approx(weights[0] / errors[0], rel=1e-3)
    assert found["p"] == pytest.approx(2 * t.sf(weights[0] / errors[0], 29), rel=1e-2)
    assert abs(found["z"] / beyond(m, d[:, None], np.arange(120))["z"] - 1) > 0.1, "groups matter here"


def test_classes_that_separate_have_no_p_but_a_finite_ratio():
    found = lengths(made(lambda d, noise: 1.0 + 0.1 * noise))["beyond"]
    assert found["p"] is None
    assert np.isfinite(found["likelihood_ratio"])


def test_equal_lengths_and_equal_margins_explain_nothing():
    same = lengths(with_margins([1.0, -2.0] * 6, n_chosen=[5] * 12, n_rejected=[5] * 12))
    assert (same["spearman"], same["beyond"], same["balanced"]) == (None, None, None)
    ties = lengths(with_margins([0.0] * 12))
    assert (ties["spearman"], ties["beyond"]) == (None, None)
    assert ties["controlled"]["value"] == 0.5
