"""What style explains: effects that were put in are found, and a judge of style alone is left with guessing."""

import numpy as np
import pytest
from scored_pairs import with_margins

from evalkit.control import FOLDS, explained, slopes
from evalkit.markdown import to_markdown
from evalkit.report import build_report
from evalkit.scored import load
from evalkit.scores import STYLES
from evalkit.style import style

WEIGHTS = {"tokens": 0.01, "heading": 0.4, "list": -0.1, "bold": 0.2, "code": 0.0}


def judged(quality, noise=1.0, n=1500, seed=0):
    """Pairs whose margin is quality·(chosen is better) + WEIGHTS·(style, length) + noise; the chosen is the richer one."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson((2, 3, 2, 0.5), (2, n, 4)) + np.array([1, 0])[:, None, None]
    tokens = 100 + rng.integers(0, 80, (2, n)) + 10 * counts.sum(axis=2)
    d = np.column_stack([tokens[0] - tokens[1], counts[0] - counts[1]])
    margins = quality + d @ np.array(list(WEIGHTS.values())) + noise * rng.normal(size=n)
    columns = {f"n_{side}": tokens[i] for i, side in enumerate(("chosen", "rejected"))}
    for i, side in enumerate(("chosen", "rejected")):
        columns[f"style_{side}"] = [dict(zip(STYLES, row, strict=True)) for row in counts[i].tolist()]
    return with_margins(margins, group_id=[f"g{g}" for g in rng.integers(0, n // 3, n)], **columns)


def test_known_effects_are_found():
    found = style(judged(quality=0.5))["slopes"]
    for name, weight in WEIGHTS.items():
        assert found[name]["slope"] == pytest.approx(weight, abs=0.08), name
        assert abs(found[name]["slope"] - weight) < 1.5 * (found[name]["high"] - found[name]["slope"]), "3 errors"


def test_intervals_of_effects_hold_them_where_groups_share_an_error():
    rng, held, sets = np.random.default_rng(0), np.zeros(2), 300
    for _ in range(sets):
        group = rng.integers(0, 40, 160)
        x = rng.normal(size=(160, 2)) + rng.normal(size=(40, 2))[group]
        m = x @ [1.0, -0.5] + rng.normal(size=40)[group] + rng.normal(size=160)
        held += [s["low"] <= w <= s["high"] for s, w in zip(slopes(m, x, group), (1.0, -0.5), strict=True)]
    assert (held / sets > 0.91).all()
    assert (held / sets < 0.985).all()


def test_a_judge_of_style_alone_is_left_with_guessing():
    s = judged(quality=0.0, noise=0.3)
    found = style(s)
    assert s.hit_N.mean() > 0.6
    assert found["controlled"]["value"] == pytest.approx(0.5, abs=0.05)
    assert found["beyond"]["bits_per_pair"] < 0.01


def test_quality_is_kept_where_style_is_taken_away():
    plain = with_margins(0.7 + np.random.default_rng(9).normal(size=1500)).hit_N.mean()
    found = style(judged(quality=0.7))
    assert found["controlled"]["value"] == pytest.approx(plain, abs=0.04)
    assert found["beyond"]["p"] < 1e-6


def test_several_features_are_fitted_on_other_groups_by_least_squares():
    rng = np.random.default_rng(3)
    m, group = rng.normal(size=200), rng.integers(0, 50, 200)
    d = np.column_stack([rng.normal(0, 100, 200), rng.integers(0, 4, 200), np.full(200, 7.0)])
    found = explained(m, d, group)
    fold = (np.random.default_rng(0).permutation(50) % FOLDS)[group]
    for k in range(FOLDS):
        others = np.column_stack([np.ones(200), d[:, :2]])[fold != k]
        weights = np.linalg.lstsq(others, m[fold != k], rcond=None)[0]
        assert found[fold == k] == pytest.approx(d[fold == k, :2] @ weights[1:])


def test_scores_without_counts_or_style_say_nothing():
    assert style(with_margins([1.0, -1.0])) is None
    bare = [dict.fromkeys(STYLES, 0)] * 2
    assert style(with_margins([1.0, -1.0], style_chosen=bare, style_rejected=bare)) is None


def test_few_groups_give_effects_without_ends_and_the_report_says_it():
    s = judged(quality=0.5)
    text = to_markdown(build_report(s))
    assert "**Style.** accuracy without what length and style explain 0." in text
    assert "list item -0." in text
    few = load(s.table.slice(0, 4))
    assert all(np.isnan(k["low"]) for k in style(few)["slopes"].values())
    assert "One more of each" in to_markdown(build_report(few))


@pytest.mark.parametrize(("groups", "known"), [(1, False), (2, False), (3, True)])
def test_a_slope_that_one_or_two_groups_make_has_no_interval(groups, known):
    """It fits them, whatever its error is."""
    rng, group = np.random.default_rng(0), np.repeat(np.arange(60), 4)
    x = rng.normal(size=(len(group), 2))
    x[:, 1] = group < groups
    first, second = slopes(x[:, 0] + rng.normal(size=60)[group], x, group)
    assert first["low"] < first["slope"] < first["high"]
    assert second["n_groups"] == groups
    assert (not np.isnan(second["low"])) is known
    assert (not np.isnan(second["high"])) is known
