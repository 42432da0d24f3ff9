"""Two policies on the same pairs: tests that are valid with and without groups, and what must not be compared."""

import html
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest, t
from scored_pairs import random_scores, scores, with_margins, write

from evalkit.diff import changed_pairs, compare, jointly
from evalkit.lines import verdict_line
from evalkit.report import build_report, pair_table
from evalkit.report_commands import report as report_command
from evalkit.report_files import write_report
from evalkit.scored import load
from evalkit.sides import side
from prefkit.errors import UserError


def two(margins_a, margins_b, **columns):
    return side(with_margins(margins_a, **columns)), side(with_margins(margins_b, **columns))


def test_single_pairs_are_compared_by_mcnemars_mid_p():
    a = [1.0] * 50 + [1.0] * 6 + [-1.0] * 16 + [-1.0] * 20
    b = [2.0] * 50 + [-1.0] * 6 + [0.5] * 16 + [-1.0] * 20
    found = compare(*two(a, b))
    assert found["accuracy"]["test"] == "McNemar, mid-p"
    assert (found["accuracy"]["won"], found["accuracy"]["lost"]) == (16, 6)
    assert found["accuracy"]["p"] == pytest.approx(0.0347, abs=5e-5)
    assert found["accuracy"]["p_exact"] == pytest.approx(binomtest(6, 22).pvalue)
    assert found["verdict"] == "better"
    assert compare(*two(b, a))["verdict"] == "worse"


def test_pairs_of_one_prompt_and_ties_go_to_the_sign_flip():
    a, b = [1.0, -1.0] * 20, [1.0, 1.0] * 20
    grouped = compare(*two(a, b, group_id=[f"g{i // 4}" for i in range(40)]))
    assert grouped["accuracy"]["test"] == "sign-flip over groups"
    assert grouped["accuracy"]["p"] == 2 / 2**10  # ten groups, all the same way
    tied = compare(*two(a, [0.0] * 40))
    assert tied["accuracy"]["test"] == "sign-flip over groups"


def test_copies_of_a_pair_do_not_make_a_verdict():
    """Five of six prompts prefer the second; written twenty times each, they still are six."""
    a, b = [-1.0] * 5 + [1.0], [1.0] * 5 + [-1.0]
    once = compare(*two(a, b))
    often = compare(*two(np.repeat(a, 20), np.repeat(b, 20), group_id=[f"g{i // 20}" for i in range(120)]))
    assert once["verdict"] == often["verdict"] == "not distinguishable"
    assert "would show a difference of" in verdict_line(often)
    assert "fewer than 30 groups" in verdict_line(often)


def test_the_same_scores_are_no_different():
    found = compare(*two([1.0, -1.0, 2.0], [1.0, -1.0, 2.0]))
    assert (found["accuracy"]["p"], found["accuracy"]["difference"]) == (1.0, 0.0)
    assert found["detectable"] is None  # nothing differs, so how much pairs differ is not known


def test_a_difference_that_is_the_same_everywhere_still_has_an_interval():
    """Of none in n, Wilson's bound is z²/(n + z²); with 100 pairs in 25 groups of four, t of 24 and n = 25."""
    q = 1.96**2 / (100 + 1.96**2)

    def ends(*sides):
        found = compare(*sides)["accuracy"]
        return found["low"], found["high"]

    alike, wrong = [1.0, -1.0] * 50, [-1.0] * 100
    assert ends(*two(alike, alike)) == pytest.approx((-q, q), abs=1e-5)
    assert ends(*two(wrong, [1.0] * 100)) == pytest.approx((1 - 2 * q, 1.0), abs=1e-5)
    assert ends(*two([1.0] * 100, wrong)) == pytest.approx((-1.0, 2 * q - 1), abs=1e-5)
    z = t.ppf(0.975, 24)
    groups = [f"g{i // 4}" for i in range(100)]
    assert ends(*two(alike, alike, group_id=groups)) == pytest.approx((-(z**2) / (25 + z**2), z**2 / (25 + z**2)))
    won_and_lost = [1.0, 1.0, -1.0, -1.0] * 25, [-1.0, 1.0, 1.0, -1.0] * 25  # one of each in every group
    assert ends(*two(*won_and_lost, group_id=groups)) == pytest.approx((-(z**2) / (25 + z**2), z**2 / (25 + z**2)))


def test_the_interval_of_two_models_that_seem_alike_holds_a_rare_difference():
    """One pair in a hundred is won by the second; sixty pairs often show none, and then zero width would miss it."""
    rng, held, none = np.random.default_rng(0), [], 0
    for _ in range(200):
        won = rng.random(60) < 0.01
        found = compare(*two(np.where(won, -1.0, 1.0), np.ones(60)))["accuracy"]
        none += not won.any()
        held.append(found["low"] <= 0.01 <= found["high"])
    assert none > 80
    assert np.mean(held) > 0.95


def test_of_ten_equal_policies_few_reports_call_one_better_or_worse():
    """The shares of reports that docs/evaluation.md names."""
    rng, by_report, single = np.random.default_rng(0), [], []
    for _ in range(120):
        sides = [side(with_margins(rng.normal(0.3, 1, 100), policy=[f"p{i}"] * 100)) for i in range(11)]
        found = jointly([compare(sides[0], s) for s in sides[1:]])
        by_report.append(any(c["verdict"] != "not distinguishable" for c in found))
        single.append(any(c["accuracy"]["p"] < 0.05 for c in found))
    assert round(np.mean(single), 2) == 0.28
    assert round(np.mean(by_report), 2) == 0.03


def test_the_line_says_on_what_it_stands_the_same_everywhere(tmp_path, capsys):
    whole = random_scores(90, 30)
    part = random_scores(90, 30, policy=["other"] * 90, beta=[0.1] * 90, reference=["base"] * 90).slice(10)
    for name, table in (("a", whole), ("b", part), ("c", random_scores(90, 30, policy=["third"] * 90))):
        write(table, tmp_path / name, manifest=name)
    report_command(*(tmp_path / n for n in "abc"), out=tmp_path / "report", pairs=0)
    printed = [line for line in capsys.readouterr().out.splitlines() if " against " in line]
    assert len(printed) == 2
    for text in ("on 80 pairs of", "0 more pairs are its own alone, 10 the other's", "different data sets",
                 "their references or β differ", "by Holm over 2 comparisons"):  # fmt: skip
        assert text in printed[0]
    for name in ("report.md", "report.html"):
        text = html.unescape((tmp_path / "report" / name).read_text())
        assert all(line in text for line in printed)


def test_two_models_of_equal_skill_are_rarely_told_apart():
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        skill = np.repeat(rng.normal(0.3, 1, 40), 4)
        a, b = (skill + rng.normal(0, 1, 160) for _ in range(2))
        found.append(compare(*two(a, b, group_id=[f"g{i // 4}" for i in range(160)]))["accuracy"]["p"])
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.08


def test_differences_are_paired_and_their_intervals_hold_them():
    a, b = load(random_scores(600, 150, seed=1)), load(random_scores(600, 150, seed=1, policy=["other"] * 600))
    moved = b.table.set_column(
        b.table.schema.get_field_index("policy_chosen"),
        "policy_chosen",
        pa.array(b.column("policy_chosen") + 1.0),
    )
    found = compare(side(a), side(load(moved)))
    assert found["margin"]["difference"] == pytest.approx(0.5)
    assert (found["margin"]["low"], found["margin"]["high"]) == pytest.approx((0.5, 0.5))
    assert found["nll"]["high"] < 0
    assert found["accuracy"]["low"] <= found["accuracy"]["difference"] <= found["accuracy"]["high"]


def test_only_shared_pairs_are_compared_and_the_rest_is_counted():
    whole = random_scores(100, 50)
    found = compare(side(load(whole.slice(0, 80))), side(load(whole.slice(30).take(list(range(69, -1, -1))))))
    assert (found["n"], found["only_first"], found["only_second"]) == (50, 30, 20)
    assert found["accuracy"]["difference"] == 0


def test_scores_of_another_data_set_are_refused():
    with pytest.raises(UserError, match=r"no pair of dpo \(2\) is among those of dpo \(1\)"):
        compare(side(load(random_scores(20, 10, seed=1))), side(load(random_scores(20, 10, seed=2))))


def test_modes_are_not_mixed():
    table = random_scores(20, 10)
    with pytest.raises(UserError, match="one was scored as implicit, the other as sum"):
        compare(side(load(table)), side(load(table, "sum")))


def test_equal_names_are_told_apart_by_what_differs():
    """Two checkpoints called `final`: by the folder above; else by reference, weights, scores, or at last a number."""

    def called(records, references=("sft", "sft"), shas=(None, None)):
        sides = [
            side(replace(with_margins([1.0, -1.0], policy=["final"] * 2, reference=[ref] * 2), record=r, sha256=sha))
            for r, ref, sha in zip(records, references, shas, strict=True)
        ]
        found = compare(*sides)
        return found["first"], found["second"]

    paths = [{"policy_path": f"/runs/{name}/final", "policy_digest": f"{name * 9}"} for name in "ab"]
    assert called(paths) == ("final (a)", "final (b)")
    assert called([paths[0]] * 2, ("sft", "base")) == ("final (sft)", "final (base)")
    assert called([{"policy_digest": c * 64} for c in "12"]) == ("final (111111111111)", "final (222222222222)")
    assert called([paths[0]] * 2, shas=("3" * 64, "4" * 64)) == ("final (333333333333)", "final (444444444444)")
    assert called([None, None]) == ("final (1)", "final (2)")


def test_references_are_one_by_their_weights_not_their_names():
    def same(digests, names, betas=(0.5, 0.5)):
        sides = [
            side(replace(with_margins([1.0, -1.0], beta=b, reference=[n] * 2), record={"reference_digest": d}))
            for d, n, b in zip(digests, names, betas, strict=True)
        ]
        found = compare(*sides)
        noted = "their references or β differ" in verdict_line(found)
        assert noted == (not found["same_reference"] or not found["same_beta"])
        return found["same_reference"], found["same_beta"]

    assert same("ab", ("sft", "sft")) == (False, True)
    assert same("aa", ("sft", "copy")) == (True, True)
    assert same((None, "a"), ("sft", "sft")) == (True, True)
    assert same((None, "a"), ("sft", "base")) == (False, True)
    assert same("aa", ("sft", "sft"), (0.5, 0.1)) == (True, False)


def test_changed_pairs_come_largest_first():
    found = changed_pairs(*two([1.0, -1.0, 5.0, 2.0], [-1.0, 1.5, 6.0, -9.0])).to_pylist()
    assert [p["id"] for p in found] == ["p3", "p1", "p0"]
    assert (found[0]["margin_first"], found[0]["margin_second"], found[0]["hit_second"]) == (2.0, -9.0, 0.0)


def test_one_group_gives_a_difference_without_an_interval():
    found = compare(*two([1.0, -1.0], [1.0, 1.0], group_id=["g", "g"]))
    assert np.isnan(found["accuracy"]["low"])
    assert found["verdict"] == "not distinguishable"
    assert "nan" not in verdict_line(found)


def test_a_report_stands_for_its_scores(tmp_path):
    tables = {name: random_scores(200, 60, seed=4, policy=[name] * 200) for name in ("sft", "dpo")}
    tables["dpo"] = tables["dpo"].set_column(
        10, "policy_chosen", pa.array(tables["dpo"]["policy_chosen"].to_numpy() + 0.7)
    )
    for name, table in tables.items():
        folder = write(table, tmp_path / name)
        write_report(build_report(folder), pair_table(load(folder)), tmp_path / f"{name}-report")
    of_scores = compare(*(side(tmp_path / name) for name in tables))
    of_reports = compare(*(side(tmp_path / f"{name}-report") for name in tables))
    assert json.dumps(of_reports) == json.dumps(of_scores)
    with pytest.raises(UserError, match="mode and pairs already"):
        side(tmp_path / "sft-report", mode="sum")
    (tmp_path / "sft-report" / "pairs.parquet").write_bytes((tmp_path / "dpo-report" / "pairs.parquet").read_bytes())
    with pytest.raises(UserError, match="not the pairs that report"):
        side(tmp_path / "sft-report")


def test_a_report_of_several_policies_is_ambiguous(tmp_path):
    both = [load(scores(policy_chosen=[-3.0, -6.0], policy=[name] * 2)) for name in ("a", "b")]
    write_report(build_report(*both), pair_table(*both), tmp_path)
    with pytest.raises(UserError, match="several policies"):
        side(tmp_path)


def test_few_groups_could_only_show_what_t_says():
    """Six groups of four pairs: t of 5 degrees of freedom, not the normal, for size and power alike."""
    groups = [f"g{i // 4}" for i in range(24)]
    margins = np.random.default_rng(0).normal(0.2, 1, (2, 24))
    found = compare(*(side(with_margins(m, group_id=groups)) for m in margins))
    assert found["detectable"] == pytest.approx((t.ppf(0.975, 5) + t.ppf(0.8, 5)) * found["accuracy"]["se"])
