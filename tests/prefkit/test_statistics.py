"""Intervals and tests against published values, scipy, enumeration and simulation."""

import json
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from prefkit.statistics import (
    FOLDED,
    Interval,
    cluster_bootstrap,
    clustered_se,
    cohen_kappa,
    critical,
    degrees_of_freedom,
    design_effect,
    fleiss_kappa,
    half_test,
    holm,
    krippendorff_alpha,
    mcnemar,
    minimum_detectable,
    numbered,
    sign_flip,
    two_sided,
    wilson,
)

NEWCOMBE_1998_TABLE_I = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


@pytest.mark.parametrize(("k", "n", "low", "high"), NEWCOMBE_1998_TABLE_I)
def test_published_values(k, n, low, high):
    assert wilson(k, n) == pytest.approx(Interval(low, high), abs=5e-5)


def test_nothing_seen_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("k", "n", "confidence"), [(-1, 2, 0.95), (3, 2, 0.95), (1, 2, 0), (1, 2, 1)])
def test_impossible_counts_are_refused(k, n, confidence):
    with pytest.raises(ValueError, match="wilson needs"):
        wilson(k, n, confidence)


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0.5, 0.999))
def test_contains_the_share_stays_in_range_and_mirrors(n, share, confidence):
    k = share * n
    low, high = wilson(k, n, confidence)
    assert 0 <= low <= k / n <= high <= 1
    mirrored = wilson(n - k, n, confidence)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=1e-9)


@given(st.integers(1, 3000), st.floats(0, 1), st.sampled_from([np.inf, 1.0, 3.7, 50.0]))
def test_the_test_of_one_half_is_the_interval_read_backwards(n, share, df):
    low, high = wilson(share * n, n, df=df)
    p = half_test(share, n, df)
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (not low <= 0.5 <= high)


# Student 1908 and every table since: two-sided 95 %
@pytest.mark.parametrize(("df", "t"), [(1, 12.706), (2, 4.303), (5, 2.571), (10, 2.228), (30, 2.042), (np.inf, 1.960)])
def test_published_quantiles_of_t(df, t):
    assert critical(0.95, df) == pytest.approx(t, abs=5e-4)
    assert two_sided(critical(0.95, df), df) == pytest.approx(0.05)


def test_groups_of_one_size_have_one_degree_less_than_their_number():
    assert degrees_of_freedom(np.full(7, 20)) == pytest.approx(6)
    assert degrees_of_freedom(np.array([100, 1, 1, 1])) == 1.0
    assert degrees_of_freedom(np.array([9])) == 1.0
    assert degrees_of_freedom(np.ones(4, int)) == np.inf


# Fagerland, Lydersen, Laake 2013 (doi 10.1186/1471-2288-13-91): airway measurement, table 1; complete response, table 2
@pytest.mark.parametrize(("b", "c", "exact", "mid_p"), [(1, 7, 0.0703, 0.0391), (6, 16, 0.0525, 0.0347)])
def test_published_mcnemar(b, c, exact, mid_p):
    assert mcnemar(b, c) == pytest.approx((exact, mid_p), abs=5e-5)
    assert mcnemar(c, b) == mcnemar(b, c)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test(b, c):
    found = mcnemar(b, c)
    assert found.exact == pytest.approx(binomtest(b, b + c).pvalue if b + c else 1.0, rel=1e-9)
    assert 0 < found.mid_p <= found.exact <= 1


def test_mcnemar_of_many_pairs_stays_a_number():
    assert mcnemar(400_000, 402_000).exact == pytest.approx(binomtest(400_000, 802_000).pvalue, rel=1e-6)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_stepping_down_rejects(p_values):
    adjusted, order = holm(p_values), sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected = set()
    for rank, i in enumerate(order):
        if p_values[i] * (len(p_values) - rank) > 0.05:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(adjusted) if p <= 0.05} == rejected


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9))
def test_sign_flip_counts_all_flips_of_few_groups(sums):
    kept = [s for s in sums if s]
    flips = [abs(sum(k * s for k, s in zip(signs, kept, strict=True))) for signs in product((-1, 1), repeat=len(kept))]
    assert sign_flip(np.array(sums, float)) == pytest.approx(np.mean([f >= abs(sum(kept)) for f in flips]))


def test_sign_flip_of_single_pairs_is_the_exact_mcnemar_test():
    sums = np.array([1.0] * 60 + [-1.0] * 35 + [0.0] * 100)
    assert sign_flip(sums) == pytest.approx(mcnemar(60, 35).exact, abs=0.004)
    assert sign_flip(sums) == sign_flip(sums)


def test_sign_flip_holds_its_level_when_groups_are_large():
    rng = np.random.default_rng(0)
    found = [sign_flip(rng.normal(0, 1, 60) * rng.integers(1, 20, 60), draws=400, seed=i) for i in range(600)]
    assert 0.03 <= np.mean(np.array(found) < 0.05) <= 0.075


def test_clustered_standard_error_is_the_formula_and_the_plain_one_for_single_values():
    rng = np.random.default_rng(3)
    values, clusters = rng.normal(size=50), rng.integers(0, 9, 50)
    mean, total = values.mean(), 0.0
    for c in set(clusters):
        total += sum(v - mean for v, k in zip(values, clusters, strict=True) if k == c) ** 2
    n_clusters = len(set(clusters))
    assert clustered_se(values, clusters) == pytest.approx((n_clusters / (n_clusters - 1) * total) ** 0.5 / 50)
    assert clustered_se(values, np.arange(50)) == pytest.approx(values.std(ddof=1) / 50**0.5)
    assert np.isnan(clustered_se(values, np.zeros(50)))
    assert design_effect(values, clusters) == pytest.approx(
        (clustered_se(values, clusters) / clustered_se(values, np.arange(50))) ** 2
    )


@given(st.lists(st.integers(-3, 300), min_size=1, max_size=30))
def test_clusters_are_numbered_as_unique_numbers_them(clusters):
    _, index, sizes = np.unique(np.array(clusters), return_inverse=True, return_counts=True)
    for kind in (np.int64, str):
        found = numbered(np.array(clusters).astype(kind))
        assert len(found[1]) == len(sizes)
        assert kind is str or (found[0].tolist(), found[1].tolist()) == (index.tolist(), sizes.tolist())


def test_an_effect_of_the_detectable_size_is_found_in_four_of_five():
    rng, n = np.random.default_rng(4), 400
    effect = minimum_detectable(1 / n**0.5)
    z = (rng.normal(effect, 1, (4000, n)).mean(axis=1)) * n**0.5
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.03)


def mean_of(totals):
    return totals[:, 1:] / totals[:, :1]


def test_bootstrap_of_a_mean_has_the_width_of_its_standard_error():
    rng = np.random.default_rng(5)
    sizes = rng.integers(1, 9, 300)
    clusters = np.repeat(np.arange(300), sizes)
    values = rng.normal(0, 1, 300)[clusters] + rng.normal(0, 1, len(clusters))
    sums = np.stack([np.bincount(clusters), np.bincount(clusters, weights=values)], axis=1).astype(float)
    (found,) = cluster_bootstrap(sums, mean_of)
    se = clustered_se(values, clusters)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * se, rel=0.08)
    assert cluster_bootstrap(sums, mean_of) == [found]


def test_bootstrap_covers_the_truth():
    rng, covered = np.random.default_rng(6), 0
    for i in range(400):
        values = rng.normal(1, 1, 80)
        sums = np.stack([np.ones(80), values], axis=1)
        low, high = cluster_bootstrap(sums, mean_of, replicates=400, seed=i)[0]
        covered += low <= 1 <= high
    assert 0.91 <= covered / 400 <= 0.975


def test_bootstrap_of_very_many_clusters_joins_them_without_narrowing_the_interval():
    values = np.random.default_rng(7).normal(0, 1, 12 * FOLDED)
    (found,) = cluster_bootstrap(np.stack([np.ones_like(values), values], axis=1), mean_of, replicates=1000)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 / len(values) ** 0.5, rel=0.08)


def test_bootstrap_says_nothing_where_nothing_can_be_said():
    (one,) = cluster_bootstrap(np.array([[3.0, 2.0]]), mean_of)
    assert np.isnan(one.low)
    assert np.isnan(one.high)
    rare = np.array([[1.0, 1.0], *([[0.0, 0.0]] * 4)])  # a third of the replicates have no pair at all
    assert np.isnan(cluster_bootstrap(rare, mean_of)[0].low)


def test_kappas_of_the_textbooks():
    fleiss_1971 = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert fleiss_kappa(np.array(fleiss_1971)) == pytest.approx(0.210, abs=5e-4)
    first = np.repeat([1, 1, 0, 0], [20, 5, 10, 15])
    second = np.repeat([1, 0, 1, 0], [20, 5, 10, 15])
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_alpha_of_krippendorffs_own_example():
    rows = [
        [1, 1, 0, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
        [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [0, 5, 5, 5], [0, 0, 1, 1], [0, 3, 0, 0],
    ]  # fmt: skip
    counts = np.array([[sum(v == k for v in row) for k in range(1, 6)] for row in rows])
    assert krippendorff_alpha(counts) == pytest.approx(0.743, abs=5e-4)


def test_agreement_needs_judgements():
    with pytest.raises(ValueError, match="same number"):
        fleiss_kappa(np.array([[1, 1], [2, 1]]))
    assert np.isnan(fleiss_kappa(np.array([[3, 0], [3, 0]])))
    assert np.isnan(krippendorff_alpha(np.array([[1, 0], [0, 1]])))


def test_pandalm_agrees_as_published(real_data):
    items = json.loads((real_data / "pairs" / "pandalm" / "testset-v1.json").read_text())
    votes = [Counter(item[f"annotator{k}"] for k in (1, 2, 3)) for item in items]
    counts = np.array([[v[label] for label in (0, 1, 2)] for v in votes])
    assert fleiss_kappa(counts) == pytest.approx(0.8642, abs=5e-5)
    assert np.mean(counts.max(axis=1) == 3) == pytest.approx(0.880, abs=5e-4)
    pairs = [("annotator1", "annotator2"), ("annotator1", "annotator3"), ("annotator2", "annotator3")]
    kappas = [cohen_kappa(*(np.array([i[k] for i in items]) for k in p)) for p in pairs]
    assert sorted(round(k, 2) for k in kappas) == [0.85, 0.86, 0.88]


@pytest.mark.parametrize("clusters", [6, 12])
def test_the_bootstrap_of_few_clusters_holds_the_mean(clusters):
    """Plain percentiles held it in 84 and 92 of 100."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(300):
        sums = rng.normal(0, 1, clusters)[:, None] + rng.normal(0, 1, (clusters, 4))
        totals = np.column_stack([sums.sum(axis=1), np.full(clusters, 4)])
        (ends,) = cluster_bootstrap(totals, lambda t: t[:, :1] / t[:, 1:], replicates=1000)
        held += ends.low <= 0 <= ends.high
    assert 0.91 <= held / 300 <= 0.985
