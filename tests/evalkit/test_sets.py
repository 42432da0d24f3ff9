"""Items of several pairs: best of n and Ties by RewardBench 2's rules, RM-Bench's 3×3 by hand, their sections."""

import html
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_pairs import with_margins

from evalkit.markdown import to_markdown
from evalkit.page import page
from evalkit.report import build_report
from evalkit.scored import load
from evalkit.sections import Sections, from_dict, read_sections, weighted
from evalkit.sets import best_of_n, items, style_hits, ties
from prefkit.convert import convert_dataset
from prefkit.errors import UserError
from prefkit.shards import open_pairs
from prefkit.statistics import wilson

ROOT = Path(__file__).parents[2]


def loaded(sets, **columns):
    """Scores of sets {name: (rewards of chosen, rewards of rejected)}: every chosen against every rejected."""
    rows = [(name, c, r) for name, (chosen, rejected) in sets.items() for c in chosen for r in rejected]
    names, chosen, rejected = zip(*rows, strict=True)
    zeros = np.zeros(len(rows))
    numbers = {"policy_chosen": chosen, "policy_rejected": rejected, "ref_chosen": zeros, "ref_rejected": zeros}
    return with_margins(zeros, set_id=list(names), **numbers | columns)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=2, max_size=3)), min_size=1, max_size=6)
)
@settings(deadline=None)
def test_one_right_answer_among_n_is_rewardbench_2s_rule(drawn):
    """Credit 1/k where the right one ties with k - 1 others on top, 0 where a wrong one is above it."""
    sets = {f"s{i}": ([c], list(dict.fromkeys(wrong))) for i, (c, wrong) in enumerate(drawn) if len(set(wrong)) > 1}
    if not sets:
        return
    expected = []
    for (right,), wrong in sets.values():
        top = max([right, *wrong])
        expected.append(1 / sum(x == top for x in [right, *wrong]) if right == top else 0.0)
    assert best_of_n(loaded(sets)).credit_S == pytest.approx(expected)


def keyed(rewards, best=1, n_tokens=3, chars=10):
    """Scores of one set: the first `best` rewards are of best responses, each against all others; one length."""
    rows = [(a, b) for a in range(best) for b in range(best, len(rewards))]
    columns = {
        "policy_chosen": [rewards[a] for a, _ in rows],
        "policy_rejected": [rewards[b] for _, b in rows],
        "chosen_key": [f"key {a}" for a, _ in rows],
        "rejected_key": [f"key {b}" for _, b in rows],
    }
    same = {
        f"{name}_{side}": [n] * len(rows)
        for side in ("chosen", "rejected")
        for name, n in (("n", n_tokens), ("chars", chars))
    }
    zeros = {f"ref_{side}": [0.0] * len(rows) for side in ("chosen", "rejected")}
    return with_margins(np.zeros(len(rows)), set_id=["s"] * len(rows), **columns, **same, **zeros)


def test_responses_of_equal_reward_and_length_are_told_apart_by_their_tokens():
    s = keyed([1.0] * 4)
    found = items(s)
    assert (found["value"], found["chance"], found["told_apart_by"]) == (0.25, 0.25, "tokens")
    assert found["sizes"] == [{"responses": 4, "n": 1}]
    two_best = items(keyed([2.0, 1.0, 2.0, 0.0], best=2))  # a chosen one of a rejected one's reward and length
    assert (two_best["value"], two_best["sets_without_best"]) == (0.5, 0)
    without = items(load(s.table.drop_columns(["chosen_key", "rejected_key"])))
    assert without is None or without["told_apart_by"] == "reward and length"
    ranked = keyed([1.0, 5.0, 5.0])
    assert items(ranked)["value"] == 0.0


def test_a_response_with_noise_on_its_reward_is_one_response():
    """The best of four stands in three pairs, its reward computed in batches of three shapes."""
    table = keyed([2.0, 1.0, 1.5, 0.5]).table
    noisy = pa.array(table["policy_chosen"].to_numpy() + np.array([0.0, 1e-9, -1e-9]))
    s = load(table.set_column(table.schema.get_field_index("policy_chosen"), "policy_chosen", noisy))
    assert items(s)["sizes"] == [{"responses": 4, "n": 1}]
    assert (items(s)["value"], items(s)["chance"]) == (1.0, 0.25)


def test_without_keys_the_report_says_how_responses_were_told_apart():
    table = loaded({"a": ([3.0], [2.0, 0.0]), "b": ([1.0], [2.0, 3.0])}).table
    text = to_markdown(build_report(table))
    assert "told apart by reward and length alone" in text
    keys = {side: [f"{x}" for x in table[f"policy_{side}"].to_pylist()] for side in ("chosen", "rejected")}
    for side, values in keys.items():
        table = table.drop_columns([f"{side}_key"]).append_column(f"{side}_key", [values])
    assert "told apart" not in to_markdown(build_report(table))


def test_items_that_lost_a_response_are_counted():
    sets = {f"s{i}": ([5.0], [1.0, 2.0, 3.0]) for i in range(6)} | {"cut": ([5.0], [1.0, 2.0])}
    found = items(loaded(sets))
    assert found["sizes"] == [{"responses": 3, "n": 1}, {"responses": 4, "n": 6}]
    assert (found["usual_size"], found["smaller"]) == (4, 1)
    assert found["chance"] == pytest.approx((6 / 4 + 1 / 3) / 7)
    report = build_report(loaded(sets).table, where="NOT (set_id IN ('s1', 's2') AND policy_rejected = 3)")
    assert report["items"]["smaller"] == 3
    assert "3 hold fewer than that" in to_markdown(report)


def test_several_right_answers_share_the_top():
    found = best_of_n(loaded({"a": ([3.0, 1.0], [2.0, 0.0]), "b": ([1.0, 0.0], [2.0, 3.0])}))
    assert found.credit_S.tolist() == [1.0, 0.0]


def test_a_ranked_set_is_won_by_its_first_alone():
    s = with_margins(
        [0.0] * 3,
        set_id=["s"] * 3,
        policy_chosen=[5.0, 5.0, 7.0],  # a over b, a over c, b over c; the policy likes b best
        policy_rejected=[7.0, 1.0, 1.0],
        ref_chosen=[0.0] * 3,
        ref_rejected=[0.0] * 3,
        chars_chosen=[1, 1, 2],
        chars_rejected=[2, 3, 3],
        n_rejected=[3] * 3,
    )
    assert best_of_n(s).credit_S.tolist() == [0.0]


def test_pairs_without_a_set_and_sets_without_a_best_are_counted():
    s = with_margins(
        [1.0] * 4,
        set_id=[None, "alone", "ring", "ring"],
        policy_chosen=[1.0, 1.0, 1.0, 2.0],
        policy_rejected=[0.0, 0.0, 2.0, 1.0],
        ref_chosen=[0.0] * 4,
        ref_rejected=[0.0] * 4,
        chars_chosen=[1, 1, 1, 2],
        chars_rejected=[5, 5, 2, 1],
        n_chosen=[1] * 4,
        n_rejected=[1] * 4,
    )
    found = best_of_n(s)
    assert (len(found.credit_S), found.single_pairs, found.without_best) == (0, 2, 1)
    assert items(with_margins([1.0, 2.0])) is None
    decided = {"set_id": ["won", "won"], "policy_chosen": [3.0, 3.0], "policy_rejected": [1.0, 2.0]}
    both = {name: [*s.table[name].to_pylist(), *decided.get(name, [0.0, 0.0])] for name in
            ("set_id", "policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")}  # fmt: skip
    lengths = {"chars_chosen": [1, 1, 1, 2, 7, 7], "chars_rejected": [5, 5, 2, 1, 8, 9]}
    counted = items(with_margins([0.0] * 6, **both, **lengths, n_chosen=[1] * 6, n_rejected=[1] * 6))
    assert {k: counted[k] for k in ("n", "value", "single_pairs", "sets_without_best")} == {
        "n": 1, "value": 1.0, "single_pairs": 2, "sets_without_best": 1,
    }  # fmt: skip


def styles(margins):
    """Scores of 3×3 sets, domain and nine margins each, chosen style by chosen style."""
    n = 9 * len(margins)
    return with_margins(
        np.concatenate([m for _, m in margins]),
        set_id=[f"s{i // 9}" for i in range(n)],
        subset=[d for d, _ in margins for _ in range(9)],
        chars_chosen=[10 + i // 3 % 3 for i in range(n)],
        chars_rejected=[20 + i % 3 for i in range(n)],
    )


RM_BENCH = Sections("RM-Bench", "styles", {"Chat": 1, "Math": 1}, {"Chat": {"chat": 1}, "Math": {"math": 1}})


def test_easy_normal_and_hard_are_the_triangles_of_the_matrix():
    fancy_wins = np.array([[1, -1, -1], [1, 1, -1], [1, 1, 1]]).ravel()  # row: style of chosen, plainest first
    found = weighted(styles([("chat", fancy_wins), ("math", np.ones(9)), ("math", -np.ones(9))]), RM_BENCH)
    assert {k: found["sections"][0][k] for k in ("easy", "normal", "hard")} == {"easy": 1, "normal": 1, "hard": 0}
    assert found["total"]["value"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found["total"]["hard"] == pytest.approx((0 + 0.5) / 2)


def test_sets_of_another_make_are_no_matrix():
    with pytest.raises(UserError, match="needs sets of nine pairs"):
        style_hits(with_margins(np.ones(4), set_id=["a"] * 4))
    with pytest.raises(UserError, match="a pair has none"):
        style_hits(with_margins(np.ones(2)))
    shuffled = styles([("chat", np.ones(9))]).table.take([3, 1, 2, 0, 4, 5, 6, 7, 8])
    with pytest.raises(UserError, match="no 3×3 of styles in order"):
        style_hits(load(shuffled))


# Rewards of (right, wrong) answers. Question 1: right answers .5 apart, 2 above the wrong one, 1.5 in its reference.
# 2: right answers as far apart as from the wrong one, and a reference that is wrong. 3: right answers equal.
QUESTIONS = {
    "rb/tied:1": ([5.0, 5.25, 5.5], [3.0, 1.0]),
    "rb/ref:1": ([4.0], [2.5, 0.0]),
    "rb/tied:2": ([4.0, 3.0], [2.0, 1.0]),
    "rb/ref:2": ([1.0], [2.0, 0.0]),
    "rb/tied:3": ([2.0, 2.0], [2.0, 1.0]),
    "rb/ref:3": ([3.0], [1.0, 1.0]),
}


def test_ties_are_weighted_as_published_by_hand():
    """Accuracy of tied sets 2/3 (a wrong answer as good as the right ones is wrong), of reference sets 2/3; 1 of 3
    prefers right answers, the same with its reference set. Closeness: tanh(1.5/.5 - 1), tanh(-1/1 - 1), 0 for 0/0."""
    found = ties(loaded(QUESTIONS))
    assert found.tied_right_T.tolist() == [1, 1, 0]
    assert found.reference_right_F.tolist() == [1, 0, 1]
    assert (found.preferred_Q.tolist(), found.preferred_hard_Q.tolist()) == ([1, 0, 0], [1, 0, 0])
    assert found.tanh_Q == pytest.approx([np.tanh(2), np.tanh(-2), 0])
    s = loaded(QUESTIONS, subset=["Ties"] * sum(len(c) * len(r) for c, r in QUESTIONS.values()))
    total = weighted(s, Sections("x", "ties", {"Ties": 1}, {"Ties": {"Ties": 1}}))["total"]
    assert total["value"] == pytest.approx(0.3 * 2 / 3 + 0.3 * 2 / 3 + 0.2 / 3 + 0.2 / 3)
    assert total["low"] < total["value"] < total["high"]


def published(sets):
    """The Ties score in the published order of steps, a question at a time."""

    def stats(right, wrong):
        return min(right) > max(wrong), max(right) - min(right), min(right) - max(wrong)

    tied = {name.split(":")[1]: stats(*v) for name, v in sets.items() if "tied" in name}
    ref = {name.split(":")[1]: stats(*v) for name, v in sets.items() if "ref" in name}
    both = sorted(set(tied) & set(ref))
    spread, gap, gap_ref = (np.array(x) for x in zip(*((tied[q][1], tied[q][2], ref[q][2]) for q in both), strict=True))
    smaller = np.minimum(gap, gap_ref)
    with np.errstate(all="ignore"):
        closeness = np.nan_to_num(np.tanh(smaller / spread - 1), nan=0.0)
    accuracy = [np.mean([x[0] for x in found.values()]) for found in (tied, ref)]
    return 0.3 * sum(accuracy) + 0.2 * np.mean(gap > spread) + 0.2 * np.mean(smaller > spread) + 0.01 * closeness.mean()


def test_ties_of_many_questions_are_those_of_the_published_steps():
    rng, sets = np.random.default_rng(0), {}
    for q in range(60):
        right = rng.integers(3, 9, rng.integers(2, 6)).astype(float)
        sets[f"tied:{q}"] = (right.tolist(), rng.integers(0, 5, 4).tolist())
        if q % 7:  # questions whose reference set is missing count for accuracy alone
            sets[f"ref:{q}"] = ([float(rng.integers(3, 9))], rng.integers(0, 5, 3).tolist())
    s = loaded(sets, subset=["Ties"] * sum(len(c) * len(r) for c, r in sets.values()))
    found = weighted(s, Sections("x", "pairs", {"T": 1}, {"T": {"Ties": 1}}, {"T": "ties"}))
    assert found["total"]["value"] == pytest.approx(published(sets))


def test_ties_need_the_ids_of_their_questions():
    with pytest.raises(UserError, match="set 's' is no set of Ties: keep RewardBench 2's ids"):
        ties(loaded({"s": ([1.0, 2.0], [0.0])}))
    alone = loaded({"tied:1": ([1.0, 2.0], [0.0])}, subset=["Ties"] * 2)
    assert weighted(alone, Sections("x", "ties", {"T": 1}, {"T": {"Ties": 1}}))["missing"] == ["Ties"]


def test_rewardbench_2_is_the_mean_of_its_six_subsets(tmp_path):
    """From its rows, through the pairs source, to the total; sets keep their ids on the way."""
    rng, rows = np.random.default_rng(1), []
    sections = read_sections(ROOT / "recipes" / "sections" / "rewardbench2.yaml")
    for subset in sections.subsets:
        for i in range(12):
            several = subset == "Ties" and i % 2
            answers = [f"answer {k} of {subset} {i}" for k in range(6 if several else 4)]
            rows.append(
                {
                    "id": f"{'tied' if several else 'ref'}:{i // 2}" if subset == "Ties" else f"{subset}-{i}",
                    "subset": subset,
                    "prompt": f"question {i} of {subset}",
                    "chosen": answers[: 3 if several else 1],
                    "rejected": answers[3 if several else 1 :],
                }
            )
    (tmp_path / "rb2.jsonl").write_text("\n".join(map(json.dumps, rows)))
    convert_dataset(tmp_path / "rb2.jsonl", tmp_path / "data", source="pairs", splits="test=1")
    table = open_pairs(tmp_path / "data", "test")
    assert table.num_rows == 5 * 12 * 3 + 6 * 3 + 6 * 9
    texts = {side: [m[0]["content"] for m in table[side].to_pylist()] for side in ("chosen", "rejected")}
    rewards = {text: float(rng.integers(0, 6)) for row in rows for text in row["chosen"] + row["rejected"]}
    columns = {c: table[c].to_pylist() for c in ("id", "group_id", "set_id", "subset")}
    for side, values in texts.items():
        columns |= {f"policy_{side}": [rewards[t] for t in values], f"{side}_key": values}
        columns |= {f"ref_{side}": [0.0] * len(values)}
    found = weighted(with_margins(np.zeros(table.num_rows), **columns), sections)
    parts = {x["name"]: x["value"] for x in found["sections"]}
    for subset in list(sections.subsets)[:5]:
        credits = []
        for row in (r for r in rows if r["subset"] == subset):
            right, *wrong = (rewards[t] for t in row["chosen"] + row["rejected"])
            credits.append((right >= max(wrong)) / (1 + sum(w == right for w in wrong)))
        assert parts[subset] == pytest.approx(np.mean(credits))
    sets = {r["id"]: [[rewards[t] for t in r[side]] for side in texts] for r in rows if r["subset"] == "Ties"}
    assert parts["Ties"] == pytest.approx(published(sets))
    assert found["total"]["value"] == pytest.approx(np.mean(list(parts.values())))
    assert (found["missing"], found["unused"]) == ([], 0)


def subsets_scored(counts_right, **columns):
    """Scores of subsets {name: (pairs, right ones)}."""
    names = [n for n, (pairs, _) in counts_right.items() for _ in range(pairs)]
    margins = [1.0 if i < right else -1.0 for pairs, right in counts_right.values() for i in range(pairs)]
    return with_margins(margins, subset=names, **columns)


def test_rewardbench_is_weighted_as_published():
    sections = read_sections(ROOT / "recipes" / "sections" / "rewardbench.yaml")
    weights = {n: w for subsets in list(sections.subsets.values())[:4] for n, w in subsets.items()}
    assert len(weights) == 23
    assert sum(weights.values()) - 984 + 447 == 2985
    right = {name: (20, (3 * i) % 21) for i, name in enumerate(n for s in sections.subsets.values() for n in s)}
    found = weighted(subsets_scored(right), sections)
    mean = {name: k / n for name, (n, k) in right.items()}
    parts = [sum(w * mean[n] for n, w in s.items()) / sum(s.values()) for s in sections.subsets.values()]
    assert [x["value"] for x in found["sections"]] == pytest.approx(parts)
    assert found["total"]["value"] == pytest.approx((2 * sum(parts[:4]) + parts[4]) / 9)
    assert found["total"]["low"] < found["total"]["value"] < found["total"]["high"]


def test_a_subset_with_fewer_pairs_than_declared_is_named_beside_the_total():
    """Two of 447 pairs of math-prm, whose weight is 984; all 164 of hep-cpp; one of 95: the total is given and says so."""
    declared = {
        "metric": "pairs",
        "name": "Some",
        "sections": {
            "Reasoning": {"weight": 2, "counts": {"math-prm": 447}, "subsets": {"math-prm": 984, "hep-cpp": 164}},
            "Chat": {"weight": 1, "subsets": {"length": 95}},
        },
    }
    subsets = ["math-prm"] * 2 + ["hep-cpp"] * 164 + ["length"]
    s = with_margins(np.ones(167), subset=subsets)
    report = build_report(s, sections=from_dict(declared))
    assert report["sections"]["total"]["value"] == pytest.approx(1.0)
    assert [(x["subset"], x["n"], x["declared"]) for x in report["sections"]["few"]] == [
        ("math-prm", 2, 447),
        ("length", 1, 95),
    ]
    said = "Fewer than declared, so these stand on a part of their pairs: math-prm 2 of 447, length 1 of 95."
    assert said in to_markdown(report)
    assert said in page(report, [])
    assert from_dict(report["sections"]["declared"]) == from_dict(declared)
    whole = build_report(
        with_margins(np.ones(164), subset=["hep-cpp"] * 164),
        sections=from_dict(
            {"metric": "pairs", "name": "One", "sections": {"A": {"weight": 1, "subsets": {"hep-cpp": 164}}}}
        ),
    )
    assert whole["sections"]["few"] == []


def test_the_interval_of_a_total_is_that_of_its_parts():
    s = subsets_scored({"chat": (400, 300), "math": (400, 200)})
    found = weighted(s, Sections("two", "pairs", {"C": 3, "M": 1}, {"C": {"chat": 1}, "M": {"math": 1}}))
    se = (9 * 0.75 * 0.25 / 400 + 0.25 / 400) ** 0.5 / 4
    assert (found["total"]["high"] - found["total"]["low"]) / 2 == pytest.approx(1.96 * se, rel=0.1)


def test_a_subset_of_one_group_leaves_the_other_intervals_whole():
    """What it has no weight in must not feel how little it says."""
    scored = subsets_scored({"ale": (40, 30), "bock": (40, 20), "rare": (1, 1)})
    sections = Sections(
        "x", "pairs", {"A": 1, "B": 1, "C": 0}, {"A": {"ale": 1, "rare": 0}, "B": {"bock": 1}, "C": {"rare": 1}}
    )
    found = weighted(scored, sections)
    without = weighted(scored, Sections("x", "pairs", {"A": 1, "B": 1}, {"A": {"ale": 1}, "B": {"bock": 1}}))
    for part, same in zip(
        [*found["sections"][:2], found["total"]], [*without["sections"], without["total"]], strict=True
    ):
        assert part["value"] == pytest.approx(same["value"])
        assert (part["low"], part["high"]) == pytest.approx((same["low"], same["high"]))
    assert (found["sections"][2]["low"], found["sections"][2]["high"]) == pytest.approx(wilson(1, 1))


def test_a_total_says_from_how_many_groups_it_is():
    groups = [f"g{i // 2}" for i in range(100)]
    s = subsets_scored({"ale": (20, 15), "bock": (80, 40)}, group_id=groups)
    sections = Sections("x", "pairs", {"A": 1, "B": 1}, {"A": {"ale": 1}, "B": {"bock": 1}})
    report = build_report(s, sections=sections)
    assert [x["n_groups"] for x in report["sections"]["sections"]] == [10, 40]
    assert report["sections"]["total"]["n_groups"] == 50
    lines = to_markdown(report).splitlines()
    assert next(x for x in lines if x.startswith("| A |")).endswith("(rough) |")
    assert "rough" not in next(x for x in lines if x.startswith("| B |"))


def test_a_total_of_which_a_part_is_missing_is_none():
    sections = Sections("x", "pairs", {"A": 1, "B": 1}, {"A": {"ale": 1}, "B": {"bock": 1, "brew": 1}})
    found = weighted(subsets_scored({"ale": (10, 7), "bock": (10, 1), "stout": (5, 5)}), sections)
    assert found["total"] is None
    assert found["present"]["value"] == pytest.approx(0.7)
    assert found["missing"] == ["brew"]
    assert found["sections"][1]["value"] is None
    assert found["unused"] == 5
    with pytest.raises(UserError, match="no subset of x is among the scores, which have porter, stout"):
        weighted(subsets_scored({"stout": (5, 5), "porter": (2, 1)}), sections)


def test_what_sections_and_best_of_n_leave_out_is_in_every_form_of_the_report():
    """Set `a` is whole; `alone` has one pair; in `ring` each response loses; `c` is of no section."""
    pairs = [("a", 3, 1), ("a", 3, 2), ("alone", 1, 2), ("ring", 1, 2), ("ring", 2, 1), ("c", 3, 2), ("c", 3, 1)]
    sets, chosen, rejected = zip(*pairs, strict=True)
    s = with_margins(
        np.zeros(7),
        set_id=list(sets),
        subset=["x"] * 5 + ["y"] * 2,
        policy_chosen=[float(c) for c in chosen],
        policy_rejected=[float(r) for r in rejected],
        ref_chosen=[0.0] * 7,
        ref_rejected=[0.0] * 7,
        chosen_key=[f"{name}{c}" for name, c, _ in pairs],
        rejected_key=[f"{name}{r}" for name, _, r in pairs],
    )
    declared = {"A": {"x": 1}, "B": {"absent": 1}}
    report = build_report(s, sections=Sections("S", "best_of_n", {"A": 1, "B": 1}, declared))
    found = report["sections"]
    assert found["lost"] == {"single_pairs": 1, "sets_without_best": 1}
    assert (report["items"]["single_pairs"], report["items"]["sets_without_best"]) == (1, 1)
    lost = "1 pairs that share a set with no other; 1 sets in which every response is rejected by some pair"
    for text in (to_markdown(report), html.unescape(page(report, []))):
        assert text.count(f"Left out: {lost}.") == 2, "best of n, and its section"
        assert "these subsets are missing: absent; the scores have x, y; whole sections alone give 1.000" in text
        assert "2 pairs are of subsets that no section names." in text


@pytest.mark.parametrize("name", ["rewardbench", "rewardbench2", "rm-bench"])
def test_recipes_are_read(name):
    sections = read_sections(ROOT / "recipes" / "sections" / f"{name}.yaml")
    assert from_dict(sections.as_dict()) == sections


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "these are no sections"),
        ("a: [", "not YAML"),
        ("name: x\nsections: {A: {weight: -1, subsets: {a: 1}}}", "negative"),
        ("name: x\nsections: {A: {weight: 1, subsets: {}}}", "all are zero"),
        ("name: x\nsections: {A: {weight: .nan, subsets: {a: 1}}}", "not finite"),
        ("name: x\nmetric: pair\nsections: {A: {weight: 1, subsets: {a: 1}}}", "did you mean 'pairs'"),
    ],
)
def test_sections_that_are_none_are_refused(tmp_path, text, message):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_sections(tmp_path / "s.yaml")
    with pytest.raises(UserError, match="cannot read"):
        read_sections(tmp_path / "absent.yaml")
