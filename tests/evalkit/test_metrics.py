"""Accuracy and its interval against hand-worked numbers and simulation."""

import gzip
import json
from collections import Counter
from dataclasses import replace
from statistics import stdev

import numpy as np
import pyarrow as pa
import pytest
from scored_pairs import random_scores, scores, with_margins

from evalkit.lines import headline
from evalkit.markdown import to_markdown
from evalkit.metrics import (
    comparability,
    detectable,
    displacement,
    flips,
    histogram,
    idealised,
    risk_coverage,
    share,
    share_won,
    summary,
    undecided,
)
from evalkit.page import page
from evalkit.recompute import same
from evalkit.report import build_report
from evalkit.scored import load
from evalkit.slices import slices
from prefkit import plots
from prefkit.statistics import design_effect, wilson


def test_a_tie_counts_one_half_and_strict_counts_it_wrong():
    p = share_won(np.array([1.0, 0.0, -1.0, 2.0]), np.array(list("abcd")))
    assert (p.value, p.strict, p.tie_rate) == (0.625, 0.5, 0.25)
    assert (p.n, p.n_groups) == (4, 4)


def test_few_groups_are_said_so():
    assert "only 4 groups" in share_won(np.ones(4), np.array(list("abcd"))).method
    assert "only 29 groups" in share_won(np.ones(29), np.arange(29)).method
    assert share_won(np.ones(30), np.arange(30)).method == "Wilson on effective n"


def test_slices_of_few_groups_are_marked_in_every_form_of_the_report():
    few = ["few"] * 20 + ["many"] * 180
    groups = [f"g{i // 4}" if i < 20 else f"g{i}" for i in range(200)]
    report = build_report(with_margins([1.0, -1.0] * 100, subset=few, group_id=groups))
    rows = {line.split(" | ")[0]: line for line in to_markdown(report).splitlines() if line.startswith("| ")}
    assert rows["| few"].endswith("] (rough) | 1.000 |")
    assert "rough" not in rows["| many"]
    assert page(report, []).count("] (rough)</td>") == 1


def test_a_number_of_few_groups_is_marked_wherever_it_is_shown():
    report = build_report(with_margins([1.0, 1.0, -1.0] * 8))
    assert "] (rough) on 24 pairs of 24 groups" in headline(report)
    assert "fewer than 30 groups" in page(report, []).split("</header>")[0]
    assert "(rough)" not in headline(build_report(with_margins([1.0, 1.0, -1.0] * 10)))


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


# how many of PandaLM's 999 test pairs share each of its 170 instructions
PANDALM_SIZES = np.repeat([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [11, 8, 13, 24, 17, 25, 26, 14, 12, 20])


def drawn(rng, p, correlation, sizes):
    """Hits of pairs in groups of these sizes, right with probability p and correlated within a group (beta-binomial)."""
    both = (1 - correlation) / correlation
    rate = np.repeat(rng.beta(p * both, (1 - p) * both, len(sizes)), sizes)
    return (rng.random(len(rate)) < rate) * 1.0


def test_the_interval_covers_the_truth_at_pandalms_cluster_sizes():
    """6,000 simulated sets; pairs of an instruction go together as strongly as pairs of a hard or an easy question do."""
    assert (len(PANDALM_SIZES), PANDALM_SIZES.sum()) == (170, 999)
    rng, group, covered = np.random.default_rng(2), np.repeat(np.arange(170), PANDALM_SIZES), []
    for p in (0.5, 0.7, 0.9):
        for correlation in (0.05, 0.2):
            for _ in range(1000):
                found = share(drawn(rng, p, correlation, PANDALM_SIZES), group)
                covered.append(found.low <= p <= found.high)
    assert len(covered) == 6000
    assert np.mean(covered) == pytest.approx(0.948, abs=5e-4), "as docs/evaluation.md says"


# prompts whose pairs are many or few, as questions' answers are: mean 20, geometric
@pytest.mark.parametrize(
    ("groups", "p", "held", "by_the_normal"),
    [
        (20, 0.5, 0.939, 0.907),
        (20, 0.9, 0.920, 0.876),
        (10, 0.5, 0.958, 0.875),
        (10, 0.9, 0.937, 0.855),
        (5, 0.5, 0.982, 0.828),
        (5, 0.9, 0.988, 0.831),
    ],
)
def test_the_interval_covers_the_truth_with_few_groups_of_unequal_sizes(groups, p, held, by_the_normal):
    """1,200 simulated sets, with Student's t and with the normal in its place: the table of docs/evaluation.md."""
    rng, covered, forgetful, false = np.random.default_rng(3), [], [], []
    for correlation in (0.05, 0.2):
        both = (1 - correlation) / correlation
        for _ in range(600):
            sizes = rng.geometric(1 / 20, groups)
            rate = np.repeat(rng.beta(p * both, (1 - p) * both, groups), sizes)
            found = share((rng.random(sizes.sum()) < rate) * 1.0, np.repeat(np.arange(groups), sizes))
            covered.append(found.low <= p <= found.high)
            low, high = wilson(found.value * found.n_effective, found.n_effective)
            forgetful.append(low <= p <= high)
            false.append(found.p_half < 0.05)
    assert np.mean(covered) == pytest.approx(held, abs=1e-3)
    assert np.mean(forgetful) == pytest.approx(by_the_normal, abs=1e-3)
    if p == 0.5:
        assert np.mean(false) <= 0.075
        assert np.mean(false) == pytest.approx(1 - np.mean(covered), abs=1e-9)


@pytest.mark.parametrize(
    ("p", "held", "by_the_normal"), [(0.5, 0.941, 0.937), (0.9, 0.913, 0.907), (0.95, 0.868, 0.858)]
)
def test_a_few_large_groups_among_single_pairs_decide_and_are_said_to(p, held, by_the_normal):
    """120 groups of which twenty hold ten pairs: fewer than 95 of 100 intervals hold the truth, and each is marked."""
    sizes = np.repeat([1, 10], [100, 20])
    rng, group, covered, forgetful = np.random.default_rng(3), np.repeat(np.arange(120), sizes), [], []
    for correlation in (0.2, 0.67):
        for _ in range(600):
            found = share(drawn(rng, p, correlation, sizes), group)
            covered.append(found.low <= p <= found.high)
            low, high = wilson(found.value * found.n_effective, found.n_effective)
            forgetful.append(low <= p <= high)
            assert found.rough
    assert np.mean(covered) == pytest.approx(held, abs=1e-3), "as docs/evaluation.md says"
    assert np.mean(forgetful) == pytest.approx(by_the_normal, abs=1e-3)
    assert "decided by as few as 25 groups" in found.method


@pytest.mark.parametrize(
    ("sizes", "rough"),
    [
        ([1] * 29, True),
        ([1] * 30, False),
        ([10] * 30, False),
        ([1] * 1000 + [4] * 5, False),
        ([1] * 100 + [10] * 20, True),
    ],
)
def test_groups_that_decide(sizes, rough):
    """(Σ v)² / Σ v², v = m (m + 2), by hand: 29, 30, 30, 3120² / 11880 = 819, 2700² / 288900 = 25."""
    n = sum(sizes)
    assert share(np.arange(n) % 2 * 1.0, np.repeat(np.arange(len(sizes)), sizes)).rough == rough


def test_groups_of_one_pair_each_keep_the_plain_interval():
    found = share_won(np.array([1.0, 1.0, 1.0, -1.0]), np.arange(4))
    assert (found.low, found.high) == wilson(3, 4)


def test_an_interval_that_forgets_the_groups_does_not_cover():
    """The simulation can fail: the same sets, each pair taken for itself."""
    rng, group, covered = np.random.default_rng(2), np.repeat(np.arange(170), PANDALM_SIZES), []
    for _ in range(400):
        rate = np.repeat(rng.beta(0.7 * 4, 0.3 * 4, 170), PANDALM_SIZES)
        found = share((rng.random(999) < rate) * 1.0, np.arange(len(group)))
        covered.append(found.low <= 0.7 <= found.high)
    assert np.mean(covered) < 0.9


def longer_wins(pairs):
    """Characters of chosen minus rejected, each pair a group."""
    difference = np.array([len(chosen) - len(rejected) for chosen, rejected in pairs], float)
    return share_won(difference, np.arange(len(difference)))


LLMBAR = [
    ("Natural", 0.565),
    ("Adversarial_GPTInst", 0.130),
    ("Adversarial_GPTOut", 0.447),
    ("Adversarial_Manual", 0.185),
    ("Adversarial_Neighbor", 0.119),
]


@pytest.mark.parametrize(("name", "value"), LLMBAR)
def test_longer_wins_on_llmbar(real_data, name, value):
    rows = json.loads((real_data / "pairs" / "llmbar" / f"{name}.json").read_text())
    pairs = [(r[f"output_{r['label']}"], r[f"output_{3 - r['label']}"]) for r in rows]
    assert longer_wins(pairs).value == pytest.approx(value, abs=5e-4)


def test_longer_wins_on_hh_and_pandalm(real_data):
    with gzip.open(real_data / "pairs" / "hh-rlhf" / "harmless-base.test.jsonl.gz") as f:
        rows = [json.loads(line) for line in f]
    answers = [[r[side].rpartition("\n\nAssistant:")[2] for side in ("chosen", "rejected")] for r in rows]
    hh = longer_wins(answers)
    assert (hh.value, hh.low, hh.high) == pytest.approx((0.445, 0.43, 0.47), abs=6e-3)
    items = json.loads((real_data / "pairs" / "pandalm" / "testset-v1.json").read_text())
    pairs = []
    for item in items:
        (label, votes), *_ = Counter(item[f"annotator{k}"] for k in (1, 2, 3)).most_common()
        if votes > 1 and label != 0:
            pairs.append([str(item[f"response{k}"]) for k in (label, 3 - label)])
    found = longer_wins(pairs)
    assert len(pairs) == 894
    assert (found.value, found.low, found.high) == pytest.approx((0.674, 0.64, 0.70), abs=5e-3)


def test_the_pair_that_docs_evaluation_works_by_hand():
    """Right by reward, a probability of .54, and wrong by log π: margin/β is 1.5 and the difficulty 4.5."""
    table = scores(policy_chosen=[-41.0], policy_rejected=[-38.0], ref_chosen=[-44.0], ref_rejected=[-39.5], beta=[0.1])
    report = build_report(table)
    assert [report["rewards"][side]["mean"] for side in ("chosen", "rejected")] == pytest.approx([0.30, 0.15])
    assert report["margin"]["mean"] == pytest.approx(0.15)
    assert report["calibration"]["curve"][0]["confidence"] == pytest.approx(0.54, abs=5e-3)
    assert report["flips"]["difficulty"]["mean"] == pytest.approx(4.5)
    assert report["flips"]["reference_wrong"] == {"n": 1, "ranking": 0.0, "reward": 1.0}


def test_flips_and_difficulty_by_hand():
    table = scores(
        policy_chosen=[-1.0, -9.0, -1.0, -9.0, -5.0],  # against -5: right, wrong, right, wrong, tied
        ref_chosen=[-1.0, -1.0, -9.0, -9.0, -1.0],  # right, right, wrong, wrong, right
    )
    found = flips(load(table))
    assert [found[k] for k in ("kept_right", "lost", "won", "kept_wrong")] == [1.5, 1.5, 1, 1]
    assert found["reference_wrong"] == {"n": 2, "ranking": 0.5, "reward": 0.75}  # margins 8, 0 at β ½
    assert found["difficulty"]["median"] == -4
    assert flips(load(scores(policy_chosen=[-1.0], reference=[None], ref_chosen=[None], ref_rejected=[None]))) is None


def test_ranking_within_difficulty_follows_from_margins_and_the_reference():
    """A pair is ranked right where margin/β exceeds its difficulty: counted without looking at the policy's log π."""
    s = load(random_scores(500, 100))
    found, c = flips(s), s.column("ref_rejected") - s.column("ref_chosen")
    ranked, right = s.margin_N / 0.5 > c, s.margin_N > 0
    for name, rows in (("reference_wrong", c > 0), ("reference_right", c < 0)):
        assert found[name] == pytest.approx(
            {"n": rows.sum(), "ranking": ranked[rows].mean(), "reward": right[rows].mean()}
        )
    assert found["reference_wrong"]["ranking"] != found["reference_wrong"]["reward"]
    assert [found[k] for k in ("kept_right", "lost", "won", "kept_wrong")] == [
        (ranked & (c < 0)).sum(), (~ranked & (c < 0)).sum(), (ranked & (c > 0)).sum(), (~ranked & (c > 0)).sum(),
    ]  # fmt: skip
    quartiles = [found["difficulty"][k] for k in ("q25", "median", "q75")]
    assert quartiles == pytest.approx(np.percentile(c, [25, 50, 75]))
    assert (found["difficulty"]["mean"], found["difficulty"]["sd"]) == pytest.approx((c.mean(), stdev(c)))


def test_displacement_by_hand():
    """Chosen moved -.5, -.5, +1, -3, -1 over five tokens, rejected -2, +1, -.5, -1, -2 over four."""
    table = scores(
        policy_chosen=[-4.5, -4.5, -3.0, -7.0, -5.0], policy_rejected=[-7.0, -4.0, -5.5, -6.0, -7.0], n_chosen=[5] * 5
    )
    found = displacement(load(table))
    assert found["chosen_fell"]["value"] == pytest.approx(4 / 5)
    assert found["both_fell"] == pytest.approx(3 / 5)
    assert found["right_though_chosen_fell"] == pytest.approx(2 / 5)
    assert found["per_token"]["chosen"]["mean"] == pytest.approx(-4.0 / 5 / 5)
    assert found["per_token"]["rejected"]["mean"] == pytest.approx(-4.5 / 5 / 4)
    assert found["drift"] == pytest.approx((-4.0 / 25 - 4.5 / 20) / 2)


def test_a_perfect_optimiser_on_divided_votes():
    """π* ∝ π_ref exp(r/β) with r(w) - r(l) = logit(p), ranked by its own log-probabilities."""
    rng = np.random.default_rng(0)
    p, ref = rng.uniform(0.05, 0.95, 300).astype(np.float32), rng.normal(0, 2, (2, 300))
    reward = np.log(p / (1 - p)).astype(float)
    table = scores(
        policy_chosen=ref[0] + reward / 0.5, policy_rejected=ref[1], ref_chosen=ref[0], ref_rejected=ref[1], p_chosen=p
    )
    found = idealised(load(table))
    assert found["ideal"] == found["seen"]
    assert 0.5 < found["ideal"]["value"] < 1
    assert idealised(load(scores(policy_chosen=[-1.0]))) is None


def test_pooled_auc_counts_all_pairs_of_rewards():
    s = load(random_scores(200, 40, seed=3))
    wins = (s.rewards.chosen[:, None] > s.rewards.rejected) + 0.5 * (s.rewards.chosen[:, None] == s.rewards.rejected)
    found = comparability(s)
    assert found["auc"] == pytest.approx(wins.mean())
    assert found["low"] < found["auc"] < found["high"]


def test_the_error_of_the_auc_is_that_of_repeated_draws():
    rng, found, said = np.random.default_rng(0), [], []
    for _ in range(300):
        chosen, rejected = rng.normal(0.5, 1, 200), rng.normal(0, 1, 200)
        s = load(
            scores(policy_chosen=chosen, policy_rejected=rejected, ref_chosen=[0.0] * 200, ref_rejected=[0.0] * 200)
        )
        auc = comparability(s)
        found.append(auc["auc"])
        said.append(auc["se"])
    assert np.mean(said) == pytest.approx(np.std(found), rel=0.15)


def test_the_error_of_the_auc_knows_of_groups():
    """What lifts a question's chosen answers lowers its rejected ones; taken for themselves they have half the error."""
    rng, found, said, forgetful = np.random.default_rng(0), [], [], []
    for _ in range(200):
        ease = np.repeat(rng.normal(0, 1, 40), 6)
        chosen, rejected = rng.normal(0.5, 1, 240) + ease, rng.normal(0, 1, 240) - ease
        zeros = {f"ref_{side}": [0.0] * 240 for side in ("chosen", "rejected")}
        rewards = {"policy_chosen": chosen, "policy_rejected": rejected, **zeros}
        grouped = comparability(load(scores(**rewards, group_id=[f"g{i // 6}" for i in range(240)])))
        found.append(grouped["auc"])
        said.append(grouped["se"])
        forgetful.append(comparability(load(scores(**rewards)))["se"])
    assert np.mean(said) == pytest.approx(np.std(found), rel=0.15)
    assert np.mean(forgetful) < 0.6 * np.std(found)


def test_agreement_is_of_reward_and_mean_likelihood():
    """Rewards +, +, -, 0, + and mean log π +, -, +, 0, +, though the last one's sum is smaller: three agree."""
    s = load(
        scores(
            policy_chosen=[-3.0, -20.0, -3.0, -8.0, -9.0],
            policy_rejected=[-8.0] * 5,
            ref_chosen=[-5.0, -30.0, -2.0, -8.0, -12.0],
            ref_rejected=[-8.0] * 5,
            n_chosen=[2, 4, 2, 4, 9],
            n_rejected=[4] * 5,
        )
    )
    assert np.sign(s.margin_N).tolist() == [1, 1, -1, 0, 1]
    assert comparability(s)["agreement"] == 0.6


def test_risk_and_coverage_by_hand():
    s = with_margins([4.0, -3.0, 2.0, 1.0])
    found = risk_coverage(s)
    assert found["aurc"] == pytest.approx(1 - np.mean([1, 1 / 2, 2 / 3, 3 / 4]))
    assert found["curve"][-1] == {"coverage": 1.0, "accuracy": 0.75}
    tied = risk_coverage(with_margins([1.0, -1.0, 1.0, -1.0]))
    assert tied["aurc"] == pytest.approx(tied["aurc_random"])


def test_pairs_within_the_noise_are_undecided():
    s = replace(with_margins([1.0, 0.001, -0.001, -1.0], beta=0.5), record={"noise": {"max": 0.01}})
    found = undecided(s)
    assert (found["n"], found["low"], found["high"]) == (2, 0.25, 0.75)
    assert undecided(replace(s, record=None)) is None


def test_noise_of_a_policy_without_a_reference_is_that_of_its_sums():
    alone = {"reference": [None] * 2, "ref_chosen": [None] * 2, "ref_rejected": [None] * 2}
    table, record = scores(policy_chosen=[-5.0, -3.0], **alone), {"noise": {"max": 0.01}}
    assert undecided(replace(load(table), record=record))["n"] == 1
    assert undecided(replace(load(table, "mean"), record=record)) is None


def test_no_effect_is_detectable_where_none_is_large_enough():
    assert detectable(with_margins([1.0, -1.0] * 4, group_id=list("aaaabbbb")))["from_half"] is None
    assert 0 < detectable(with_margins([1.0, -1.0] * 50))["from_half"] < 0.5


def test_detectable_effects_on_paper_and_the_spread_of_independent_models():
    """80 of 100 right: z(.975) + z(.8) = 2.8016 errors, of √(.25/100) against ½, of √(2·.8·.2/100) between models."""
    found = detectable(with_margins([1.0] * 80 + [-1.0] * 20))
    assert found["from_half"] == pytest.approx(2.8016 * 0.05, abs=1e-5)
    assert found["between_models"] == pytest.approx(2.8016 * 0.056569, abs=1e-5)
    right = np.random.default_rng(0).random((2, 4000, 100)) < 0.8
    spread = np.std(right[0].mean(axis=1) - right[1].mean(axis=1))
    assert found["between_models"] == pytest.approx(2.8016 * spread, rel=0.05)


def test_ties_are_neither_above_nor_below_zero():
    found = histogram(np.array([-3.0, 0.0, 0.0, 1e-3, 7.0]))
    drawn = plots.histogram(**found, what="Pairs")
    assert 'aria-label="Pairs: 1 below zero, 2 above, 2 at zero"' in drawn
    assert drawn.count('class="faint"') == 1
    assert 0.0 in histogram(np.random.default_rng(0).normal(0, 0.37, 999))["edges"]


def test_a_histogram_ends_where_99_percent_of_sizes_do():
    values = np.append(np.linspace(-1, 1, 990), [50.0] * 10)
    found = histogram(values)
    assert found["edges"][-1] == pytest.approx(np.quantile(np.abs(values), 0.99))
    assert found["counts"].sum() == 1000
    assert found["counts"][-1] >= 10


def by_holm(p):
    """For each the largest of (how many are not smaller than it) · p over it and all smaller ones, at most 1."""
    return [max(min(1.0, sum(r >= q for r in p) * q) for q in p if q <= mine) for mine in p]


def test_slices_hold_each_pair_once_and_their_tests_are_adjusted():
    s = load(random_scores(900, 200, label_margin=[None, *[0.1, 0.4, 0.9] * 299, 0.2, 0.2]))
    found = slices(s)
    for kind, rows in found.items():
        assert sum(r["n"] for r in rows) == 900, kind
        assert [r["p_holm"] for r in rows] == pytest.approx(by_holm([r["p_half"] for r in rows]))
    assert [r["name"] for r in found["subset"]] == ["ale", "bock", "stout"]
    ale = s.hit_N[np.asarray(s.table["subset"]) == "ale"]
    assert found["subset"][0]["value"] == pytest.approx(ale.mean())
    assert [(r["name"], r["n"]) for r in found["label margin"]] == [
        ("0 to ¼", 301), ("¼ to ½", 299), ("¾ to 1", 299), ("unknown", 1),
    ]  # fmt: skip
    assert found["length"][0]["name"] == "chosen < half"


def test_within_10_percent_is_one_thing():
    lengths = [
        (90, 100),
        (100, 90),
        (89, 100),
        (100, 89),
        (91, 100),
        (49, 100),
        (50, 100),
        (200, 100),
        (201, 100),
        (0, 0),
    ]
    s = with_margins([1.0] * 10, n_chosen=[a for a, _ in lengths], n_rejected=[b for _, b in lengths])
    found = {r["name"]: r["n"] for r in slices(s)["length"]}
    assert found == {
        "chosen < half": 1, "chosen shorter": 2, "within 10 %": 4, "chosen longer": 2, "chosen > twice": 1,
    }  # fmt: skip
    assert build_report(s)["lengths"]["within_10_percent"]["n"] == found["within 10 %"]


def test_no_number_depends_on_the_order_of_the_rows():
    table = random_scores(400, 60, seed=5)
    order = np.random.default_rng(0).permutation(400)
    one, other = build_report(table), build_report(table.take(pa.array(order)))
    assert same(json.loads(json.dumps(one)), json.loads(json.dumps(other)))


def test_summary_of_one_value():
    assert summary(np.array([2.0])) == {"mean": 2.0, "sd": 0.0, "q25": 2.0, "median": 2.0, "q75": 2.0}
