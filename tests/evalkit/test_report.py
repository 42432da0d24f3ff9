"""From a scores file to the number: ledger of definitions, worked by hand."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evalkit.report import build_report, headline, pair_table, to_markdown, write_report
from evalkit.scored import load
from evalkit.scores import SCORES, read_scores, write_scores
from prefkit.errors import UserError


def scores(**columns) -> pa.Table:
    n = len(columns["policy_chosen"])
    row = {
        "id": [f"p{i}" for i in range(n)],
        "group_id": [f"g{i}" for i in range(n)],
        "policy": ["dpo"] * n,
        "reference": ["sft"] * n,
        "beta": [0.5] * n,
        "n_chosen": [3] * n,
        "n_rejected": [4] * n,
        "policy_rejected": [-5.0] * n,
        "ref_chosen": [-4.0] * n,
        "ref_rejected": [-5.0] * n,
        "chars_chosen": [10] * n,
        "chars_rejected": [20] * n,
        "truncated": [False] * n,
    } | columns
    return pa.table({f.name: pa.array(row.get(f.name, [None] * n), f.type) for f in SCORES}, schema=SCORES)


def test_rewards_margins_and_accuracy_by_hand():
    report = build_report(scores(policy_chosen=[-3.0, -4.0, -6.0]))  # margins .5, 0, -1
    assert report["margin"]["mean"] == pytest.approx(-0.5 / 3)
    assert report["accuracy"]["value"] == pytest.approx(0.5)
    assert report["accuracy"]["strict"] == pytest.approx(1 / 3)
    assert report["rewards"]["chosen"]["median"] == 0.0
    assert (report["n"], report["n_groups"], report["beta"]) == (3, 3, 0.5)


def test_baselines_stand_beside_the_number():
    table = scores(policy_chosen=[-3.0, -6.0], chars_chosen=[30, 20], ref_chosen=[-6.0, -4.0])
    baselines = build_report(table)["baselines"]
    assert baselines["longer_wins"]["value"] == 0.75  # one longer, one equal
    assert baselines["reference_only"]["value"] == 0.5
    assert baselines["reference_free"]["value"] == 0.5


def test_without_a_reference_the_reward_is_the_log_probability():
    table = scores(
        policy_chosen=[-3.0, -6.0], ref_chosen=[None, None], ref_rejected=[None, None], reference=[None, None]
    )
    report = build_report(table)
    assert report["margin"]["mean"] == pytest.approx(0.5 * (2 - 1) / 2)
    assert "reference_only" not in report["baselines"]


def test_each_pair_has_its_row():
    rows = pair_table(load(scores(policy_chosen=[-3.0, -4.0, -6.0]))).to_pylist()  # margins .5, 0, -1
    assert [r["hit"] for r in rows] == [1.0, 0.5, 0.0]
    assert [r["rank"] for r in rows] == [3, 2, 1]
    assert [r["margin"] for r in rows] == pytest.approx([0.5, 0.0, -1.0])


def test_swapping_the_sides_mirrors_the_number():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 200))
    right = build_report(scores(policy_chosen=a, policy_rejected=b))
    names = {"ref_chosen": [-5.0] * 200, "ref_rejected": [-4.0] * 200}
    wrong = build_report(scores(policy_chosen=b, policy_rejected=a, **names))
    assert right["accuracy"]["value"] == pytest.approx(1 - wrong["accuracy"]["value"])
    assert right["accuracy"]["low"] == pytest.approx(1 - wrong["accuracy"]["high"])


def test_report_files_are_the_same_twice_and_name_their_scores(tmp_path):
    table = scores(policy_chosen=[-3.0, -6.0])
    write_scores(table, tmp_path / "scores.parquet")
    for out in ("a", "b"):
        write_report(build_report(tmp_path), pair_table(load(table)), tmp_path / out)
    first = (tmp_path / "a" / "report.json").read_bytes()
    assert first == (tmp_path / "b" / "report.json").read_bytes()
    assert json.loads(first)["schema_version"] == 2
    assert headline(json.loads(first)) in (tmp_path / "a" / "report.md").read_text()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["pairs.parquet", "report.json", "report.md"]


def test_markdown_keeps_a_hostile_policy_name_in_one_line():
    table = scores(policy_chosen=[-3.0], policy=["a|b\n# c"])
    assert "\n# c" not in to_markdown(build_report(table))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.slice(0, 0), "no pair was scored"),
        (lambda t: t.drop_columns(["beta"]), "columns missing: beta"),
        (lambda t: t.set_column(10, "policy_chosen", pa.array([float("nan"), -1.0])), "not finite, first in pair p0"),
        (
            lambda t: t.set_column(12, "ref_chosen", pa.array([None, -1.0])),
            "ref_chosen is not finite, first in pair p0",
        ),
        (lambda t: t.set_column(7, "beta", pa.array([0.1, 0.2])), "2 values of beta"),
        (lambda t: t.set_column(7, "beta", pa.array([-0.1, -0.1])), "β is -0.1"),
        (lambda t: pa.concat_tables([t, t]), "scored twice"),
        (lambda t: t.set_column(5, "policy", pa.array(["x", "y"])), "2 values of policy"),
    ],
)
def test_scores_that_would_give_a_wrong_number_are_refused(tmp_path, change, message):
    pq.write_table(change(scores(policy_chosen=[-3.0, -6.0])), tmp_path / "scores.parquet")
    with pytest.raises(UserError, match=message):
        read_scores(tmp_path)


def test_no_scores_and_no_parquet(tmp_path):
    with pytest.raises(UserError, match="no scores"):
        read_scores(tmp_path)
    (tmp_path / "scores.parquet").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="not a readable Parquet"):
        read_scores(tmp_path)
