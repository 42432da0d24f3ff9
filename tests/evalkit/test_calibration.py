"""Calibration against plain loops, scipy's optimiser, and margins whose temperature is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scored_pairs import random_scores, scores, with_margins

from evalkit.calibration import FOLDS, best_scale, brier_of, calibration, intervals, nll_of
from evalkit.findings import findings
from evalkit.markdown import to_markdown
from evalkit.metrics import idealised
from evalkit.recompute import same
from evalkit.report import build_report
from evalkit.scored import load


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_nll_and_brier_are_their_formulas_for_soft_labels_too():
    rng = np.random.default_rng(0)
    m, p = rng.normal(0, 2, 50), rng.random(50)
    expected = [-(q * np.log(sigmoid(x)) + (1 - q) * np.log(1 - sigmoid(x))) for x, q in zip(m, p, strict=True)]
    assert nll_of(m, p) == pytest.approx(expected)
    assert brier_of(m, p) == pytest.approx((p - sigmoid(m)) ** 2)
    assert np.isfinite(nll_of(np.array([-800.0, 800.0]), np.array([1.0, 0.0]))).all()


@pytest.mark.parametrize("seed", range(5))
def test_the_fitted_scale_is_that_of_a_general_optimiser(seed):
    rng = np.random.default_rng(seed)
    m = rng.normal(0.3, 3, 200)
    p = rng.choice([1.0, 0.7], 200)
    best = minimize_scalar(lambda a: nll_of(a * m, p).mean(), bounds=(0, 20), method="bounded", options={"xatol": 1e-9})
    assert best_scale(m, p) == pytest.approx(best.x, abs=1e-5)


def drawn(n, temperature, seed=0):
    """Margins m of pairs that hold with probability σ(m / temperature)."""
    rng = np.random.default_rng(seed)
    size = rng.gamma(2, 2, n)
    return with_margins(np.where(rng.random(n) < sigmoid(size / temperature), size, -size))


def test_ties_do_not_hide_the_temperature_of_the_others():
    rng = np.random.default_rng(0)
    m = np.where(rng.random(2000) < 0.8, 0.01, -0.01) * (rng.random(2000) < 0.4)
    found = calibration(with_margins(m))
    share = (m > 0).sum() / (m != 0).sum()
    assert found["temperature"] == pytest.approx(0.01 / np.log(share / (1 - share)), rel=1e-3)


def test_a_known_temperature_is_found_and_mends_the_error():
    s = drawn(20_000, 3.0)
    found = calibration(s)
    assert found["temperature"] == pytest.approx(3.0, rel=0.05)
    assert found["nll_after"] < found["nll"]
    assert found["ece"] > 0.1
    assert found["signed"] == pytest.approx(found["ece"], abs=1e-9)  # it claims too much throughout
    assert calibration(drawn(20_000, 1.0))["ece"] < 0.02


def test_the_error_is_that_of_ten_bins_of_equal_size():
    s = load(random_scores(1000, 1000))
    order = np.argsort(np.abs(s.margin_N))
    confidence, right = sigmoid(np.abs(s.margin_N)), (s.margin_N > 0) * 1.0
    bins = np.array_split(order, 10)
    expected = sum(len(b) / 1000 * abs(confidence[b].mean() - right[b].mean()) for b in bins)
    found = calibration(s)
    assert found["ece"] == pytest.approx(expected)
    assert [b["n"] for b in found["curve"]] == [100] * 10


def test_errors_are_those_of_plain_loops_for_margins_of_both_signs_and_soft_labels():
    rng = np.random.default_rng(4)
    m, p = rng.normal(0.2, 2, 300), rng.choice([1.0, 0.75, 0.25], 300)
    s = with_margins(m, p_chosen=p)
    found, confidence, truth = calibration(s), [], []
    for margin, label in zip(s.margin_N, p, strict=True):
        claimed = 1 / (1 + np.exp(-margin))
        confidence.append(max(claimed, 1 - claimed))
        truth.append(label if claimed > 0.5 else 1 - label)
    assert found["signed"] == pytest.approx(np.mean(confidence) - np.mean(truth))
    ranked = sorted(zip(confidence, truth, strict=True))
    bins = [ranked[i : i + 30] for i in range(0, 300, 30)]
    means = [[np.mean(x) for x in zip(*b, strict=True)] for b in bins]
    assert [[b["confidence"], b["accuracy"]] for b in found["curve"]] == [pytest.approx(x) for x in means]
    assert found["ece"] == pytest.approx(np.mean([abs(c - a) for c, a in means]))


def test_the_nll_after_is_of_groups_the_temperature_was_not_fitted_on():
    rng = np.random.default_rng(5)
    group = np.repeat(np.arange(12), 3)
    m = rng.normal(0.8, 2, 36) + rng.normal(0, 1, 12)[group]
    found = calibration(with_margins(m, group_id=[f"g{g:02d}" for g in group]))
    fold, losses = (np.random.default_rng(0).permutation(12) % FOLDS)[group], []
    for k in range(FOLDS):
        rest = m[fold != k]
        fit = minimize_scalar(lambda a, rest=rest: np.logaddexp(0, -a * rest).mean(), bounds=(0, 50), method="bounded")
        losses += np.logaddexp(0, -fit.x * m[fold == k]).tolist()
    assert found["nll_after"] == pytest.approx(np.mean(losses), abs=1e-5)
    best = minimize_scalar(lambda a: np.logaddexp(0, -a * m).mean(), bounds=(0, 50), method="bounded")
    assert found["nll_after"] > best.fun + 1e-4, "fitted on itself it would be smaller"


def test_intervals_are_of_means_alone_and_hold_the_value():
    """The percentiles of a sum of |gaps| lie above the truth, so the calibration error is given without an interval."""
    s = load(random_scores(300, 100))
    found, values = intervals(s), calibration(s) | {"margin": s.margin_N.mean()}
    assert set(found) == {"margin", "nll", "brier"}
    assert all(found[k]["low"] < values[k] < found[k]["high"] for k in found)


@pytest.mark.parametrize(
    ("margins", "best", "said"),
    [
        ([1.0, 2.0, 3.0] * 4, 0.0, "best temperature 0, for no margin is wrong (NLL 0.0"),
        (
            [-1.0, -2.0, -3.0] * 4,
            None,
            "no temperature would mend it, for on average margins do not point to the better response",
        ),
        ([0.0] * 12, None, "no temperature would mend it, for on average margins do not point to the better response"),
    ],
    ids=["always right", "always wrong", "all ties"],
)
def test_where_no_temperature_between_is_best_it_is_said_which_end_is(margins, best, said):
    found = calibration(with_margins(margins))
    assert found["temperature"] == best
    assert said in to_markdown(build_report(with_margins(margins)))
    assert np.isfinite([found["nll"], found["brier"], found["ece"], found["nll_after"]]).all()
    assert not found["reliable"]


def test_one_small_margin_that_is_wrong_has_a_temperature():
    """A hundred margins of 1, one of .02, and one of -.0001: the best 1/T by scipy is finite, and none is said to be 0."""
    margins = np.r_[np.ones(100), 0.02, -0.0001]
    least = minimize_scalar(lambda a: np.logaddexp(0, -np.exp(a) * margins).mean(), bounds=(0, 12), method="bounded")
    report = build_report(with_margins(margins))
    assert report["calibration"]["temperature"] == pytest.approx(np.exp(-least.x), rel=1e-3)
    assert "no margin is wrong" not in dict(findings(report))["Calibration"]


def test_a_temperature_that_runs_away_is_said_to_be_no_better_than_guessing():
    """Margins right as often as wrong, the right ones a hair larger: T of thousands, and nothing learned."""
    m = np.random.default_rng(0).permutation([1.001, -1.0] * 300)
    found = calibration(with_margins(m))
    assert found["temperature"] > 1000
    assert found["nll_after"] >= np.log(2)
    assert "cross-fitted, no better than saying ½ of each)" in to_markdown(build_report(with_margins(m)))
    assert "saying ½" not in to_markdown(build_report(drawn(2000, 3.0)))


def test_a_label_below_one_half_is_the_same_pair_with_its_sides_exchanged():
    rng = np.random.default_rng(0)
    numbers = {f"{w}_{side}": rng.normal(-9, 2, 400) for w in ("policy", "ref") for side in ("chosen", "rejected")}
    p = rng.choice(np.delete(np.arange(9) / 8, 4), 400).astype(np.float32)
    turned = p < 0.5
    other = {"chosen": "rejected", "rejected": "chosen"}
    exchanged = {
        f"{w}_{side}": np.where(turned, numbers[f"{w}_{other[side]}"], numbers[f"{w}_{side}"])
        for w in ("policy", "ref")
        for side in other
    }
    as_told = load(scores(**numbers, p_chosen=p))
    with_sides_exchanged = load(scores(**exchanged, p_chosen=np.maximum(p, 1 - p)))
    assert same(calibration(as_told), calibration(with_sides_exchanged))
    assert same(idealised(as_told), idealised(with_sides_exchanged))
    assert build_report(as_told)["contrary_labels"] == turned.sum() > 0
    assert f"{turned.sum()} pairs have p_chosen below ½" in to_markdown(build_report(as_told))
    assert "p_chosen" not in to_markdown(build_report(with_sides_exchanged))


def test_soft_labels_move_the_temperature():
    s = drawn(4000, 1.0)
    labels = replace(
        s, table=s.table.set_column(s.table.schema.get_field_index("p_chosen"), "p_chosen", [[0.6] * 4000])
    )
    assert calibration(labels)["nll"] != calibration(s)["nll"]
    assert calibration(labels)["temperature"] != calibration(s)["temperature"]
