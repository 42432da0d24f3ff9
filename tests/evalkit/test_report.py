"""From a scores file to the number: ledger of definitions, worked by hand."""

import html
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from scored_pairs import random_scores, scores, with_margins, write

from evalkit import compare_scores, pair_frame
from evalkit.cli import app
from evalkit.findings import findings
from evalkit.lines import headline
from evalkit.markdown import to_markdown
from evalkit.page import page
from evalkit.report import build_report, pair_table
from evalkit.report_files import write_report
from evalkit.scored import load
from evalkit.scores import read_scores, write_scores
from evalkit.sections import Sections, read_sections
from evalkit.shown import pairs_of
from prefkit.cli import run
from prefkit.errors import UserError
from prefkit.unseen import visible


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
    assert json.loads(first)["schema_version"] == 6
    assert headline(json.loads(first)) in (tmp_path / "a" / "report.md").read_text()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["pairs.parquet", "report.json", "report.md"]


HOSTILE = "a|b\n# c <b>d</b> <!-- e [f](g) [h][i] ![j](k) `l` ``m`` *n* &lt; \\*o \u202ep"


def test_names_from_outside_stay_text_in_markdown(tmp_path):
    """A Markdown reader that lets HTML through finds no part of a name but text and code, nor more lines."""
    reader = MarkdownIt("commonmark", {"html": True}).enable("table")

    def read(name):
        folder = tmp_path / name[:1]
        folder.mkdir()
        found = {"run_data": name, "prompts": 1, "exact": 0, "near": 0}
        columns = {"policy": [name] * 2, "subset": [name, "other"], "reference": [name] * 2}
        write(scores(policy_chosen=[-3.0, -6.0], **columns), folder, overlap=found, dropped={name: 2}, data=name)
        both = to_markdown(build_report(folder, folder, where=f"policy <> 'x{name}'"))
        return [token for block in reader.parse(both) for token in (block, *(block.children or ()))]

    plain, hostile = read("plain"), read(HOSTILE)
    assert [t.type for t in hostile] == [t.type for t in plain]
    shown = " ".join(visible(HOSTILE.replace("\n", " ")).split())
    texts = {t.content for t in hostile if t.type == "inline"}
    assert sum("e [f" in t for t in texts) >= 6
    whole = [t.content for t in hostile if t.type in ("text", "code_inline") and "h][i" in t.content]
    assert all(shown in t for t in whole)
    assert not {"html_inline", "html_block", "link_open", "image", "em_open"} & {t.type for t in hostile}
    assert len(whole) == sum("plain" in t.content for t in plain if t.type in ("text", "code_inline"))


@pytest.mark.parametrize("character", ["\n", "\r", "\u2028", "\x1b"])
def test_no_name_forges_a_line_on_the_terminal(tmp_path, capsys, character):
    name = f"dpo{character}ok   dpo: accuracy 1.000"
    for out in ("scores", "other"):
        write(random_scores(90, 30, policy=[name] * 90), tmp_path / out, policy=name)
    both, report = (str(tmp_path / n) for n in ("scores", "report"))
    run(app, ["report", both, str(tmp_path / "other"), "--out", report])
    run(app, ["gate", report, "--min-accuracy", ".9"])
    run(app, ["verify", report])
    run(app, ["diff", both, both])
    printed = capsys.readouterr().out
    assert f"‹U+{ord(character):04X}›ok   dpo" in printed
    assert not any(line.startswith("ok   dpo") for line in printed.splitlines())
    assert "\x1b" not in printed


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
        (lambda t: t.set_column(10, "policy_chosen", pa.array([-1.0, -1e300])), "no log-probability, first in pair p1"),
        (lambda t: t.set_column(16, "p_chosen", pa.array([1.5, None])), "no share of votes"),
        (lambda t: t.set_column(1, "group_id", pa.array([None, "g"])), "group_id is missing in 1 rows"),
        (lambda t: t.set_column(8, "n_chosen", pa.array(["x", "y"])), "another type"),
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


def test_modes_are_their_formulas():
    table = random_scores(80, 40, norm_chosen=np.arange(80.0), norm_rejected=np.full(80, 40.0))
    c = {name: table[name].to_numpy() for name in table.column_names if name not in ("set_id", "p_chosen")}
    per = {f"{w}_{s}": c[f"{w}_{s}"] / c[f"n_{s}"] for w in ("policy", "ref") for s in ("chosen", "rejected")}
    expected = {
        "implicit": (c["policy_chosen"] - c["ref_chosen"]) - (c["policy_rejected"] - c["ref_rejected"]),
        "normalised": per["policy_chosen"] - per["ref_chosen"] - per["policy_rejected"] + per["ref_rejected"],
        "sum": c["policy_chosen"] - c["policy_rejected"],
        "mean": per["policy_chosen"] - per["policy_rejected"],
        "norm": c["norm_rejected"] - c["norm_chosen"],
    }
    for mode, margin in expected.items():
        s = load(table, mode)
        assert s.margin_N == pytest.approx(0.5 * margin), mode
        assert build_report(s)["accuracy"]["value"] == pytest.approx(np.mean((margin > 0) + 0.5 * (margin == 0)))


def test_modes_that_these_scores_cannot_give_are_refused():
    table = scores(policy_chosen=[-3.0], ref_chosen=[None], ref_rejected=[None], reference=[None])
    with pytest.raises(UserError, match="normalised needs a reference"):
        build_report(table, mode="normalised")
    with pytest.raises(UserError, match="hold no norms"):
        build_report(table, mode="norm")
    with pytest.raises(UserError, match="did you mean 'mean'"):
        build_report(table, mode="men")


def test_a_condition_takes_any_slice():
    table = random_scores(300, 90)
    whole = load(table)
    part = build_report(table, where="subset = 'ale' AND abs(margin) > 0.2 AND n_chosen > n_rejected")
    rows = (np.asarray(table["subset"]) == "ale") & (np.abs(whole.margin_N) > 0.2) & (whole.difference("n") > 0)
    assert part["n"] == rows.sum()
    assert part["accuracy"]["value"] == pytest.approx(whole.hit_N[rows].mean())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("subset = 'none'", "leaves no pair of 30"),
        ("beer > 3", "bad --where"),
        ("margin > (SELECT avg(margin) FROM pairs)", "looks beyond its row"),
        ("random() < 0.5", "differs from run to run"),
        ("id IN (SELECT * FROM '/etc/passwd')", "looks beyond its row"),
        ("1); DROP TABLE pairs; --", "bad --where"),
    ],
)
def test_conditions_that_are_none_or_unsafe_are_refused(where, message):
    with pytest.raises(UserError, match=message):
        build_report(random_scores(30, 10), where=where)


@pytest.mark.parametrize(
    ("where", "outcome"),
    [
        ("subset = 'ale'", False),
        ("label_margin > 0.5", False),
        ("ref_chosen > ref_rejected AND n_chosen > 9", False),
        ("subset <> 'margin'", False),
        ("margin > 0", True),
        ("n_chosen > 9 AND hit = 1", True),
        ("ref_chosen < policy_chosen", True),
        ('abs(reward_chosen) + "reward_rejected" > 0', True),
    ],
)
def test_a_condition_stands_in_every_headline_and_says_when_it_looks_at_the_outcome(tmp_path, capsys, where, outcome):
    write(random_scores(300, 90, label_margin=np.linspace(0, 1, 300)), tmp_path / "scores")
    out = tmp_path / "out"
    assert run(app, ["report", str(tmp_path / "scores"), "--out", str(out), "--where", where]) == 0
    run(app, ["gate", str(out), "--min-accuracy", "0", "--max-displacement", "1"])
    run(app, ["diff", str(tmp_path / "scores"), str(tmp_path / "scores"), "--where", where])
    headline, _, *checks, verdict, _ = capsys.readouterr().out.splitlines()
    assert len(checks) == 2 + outcome
    assert [c.startswith("FAIL") for c in checks] == [True] * outcome + [False, False]
    header = html.unescape((out / "report.html").read_text().split("</header>")[0])
    shown = (out / "report.md").read_text().splitlines()[2].replace("\\", "")
    for text in (headline, *checks, verdict, header, shown):
        assert f"only pairs where {where}" in text
        assert (", which looks at the outcome" in text) == outcome


def test_prompts_that_were_trained_on_stand_in_every_headline(tmp_path, capsys):
    """Three of twenty exactly: the number, the gate, a comparison and both pages say that it is no held-out one."""
    table = random_scores(90, 30)
    overlap = {"run_data": "beer", "prompts": 20, "exact": 3, "near": 4, "unknown": ""}
    write(table, tmp_path / "seen", overlap=overlap)
    write(random_scores(90, 30, policy=["other"] * 90), tmp_path / "unseen", overlap=overlap | {"exact": 0, "near": 0})
    said = "3 of 20 prompts were trained on, 4 more nearly: no held-out number"
    out = str(tmp_path / "out")
    assert run(app, ["report", str(tmp_path / "seen"), str(tmp_path / "unseen"), "--out", out]) == 0
    seen, unseen, verdict, _ = capsys.readouterr().out.splitlines()
    assert said in seen
    assert said not in unseen
    assert f"note: dpo: {said}" in verdict
    run(app, ["gate", out, "--min-accuracy", "0", "--max-displacement", "1", "--no-worse-than", str(tmp_path / "seen")])
    assert [said in line for line in capsys.readouterr().out.splitlines()] == [
        False,
        True,
        True,
        False,
        False,
        True,
        True,
    ]
    assert said in (tmp_path / "out" / "report.html").read_text().split("</header>")[0]
    assert said in (tmp_path / "out" / "report.md").read_text().splitlines()[2]


def test_how_little_of_the_data_a_number_stands_on_is_said_wherever_it_is(tmp_path, capsys):
    """4,700 of 5,000 dropped, the first 5,000 of 9,000 read, 3 cut, and 60 margins within the noise."""
    margins = np.repeat([2.0, -2.0, 0.5, -0.5], [200, 40, 36, 24])
    truncated = np.arange(300) < 3
    table = scores(policy_chosen=margins - 5, ref_chosen=[-5.0] * 300, beta=[1.0] * 300, truncated=truncated)
    about = {"dropped": {"response over max_tokens": 4700}, "in_split": 9000, "asked": {"limit": 5000}}
    write(table, tmp_path / "scores", read=5000, noise={"max": 0.6, "pairs": 64, "p95": 0.1, "how": ""}, **about)
    said = [
        "only the first 5,000 pairs of 9,000",
        "4,700 of 5,000 pairs read were dropped",
        "3 of 300 pairs were cut to fit",
        "60 undecided within the noise: accuracy between 0.667 and 0.867",  # 200 / 300 and 260 / 300
    ]
    assert run(app, ["report", str(tmp_path / "scores"), "--out", str(tmp_path / "out")]) == 0
    run(app, ["gate", str(tmp_path / "out"), "--min-accuracy", "0", "--no-worse-than", str(tmp_path / "scores")])
    headline, _, *checks = capsys.readouterr().out.splitlines()
    pages = [(tmp_path / "out" / "report.md").read_text(), (tmp_path / "out" / "report.html").read_text()]
    for text in (headline, *checks, pages[0].splitlines()[2], pages[1].split("</header>")[0]):
        assert [s for s in said if s not in text] == []
    write(table, tmp_path / "few", read=310, dropped={"tie": 10})
    assert build_report(tmp_path / "few")["caveats"] == ["3 of 300 pairs were cut to fit"]


def test_even_votes_are_left_out_and_counted_as_scoring_does():
    """160 of 400 labels are ½: the number is that of the others, and says so."""
    margins = np.random.default_rng(0).normal(1, 1, 400)
    even = np.arange(400) < 160
    report = build_report(with_margins(margins, p_chosen=np.where(even, 0.5, 1.0)))
    assert report["n"] == 240
    assert report["tied_labels"] == 160
    assert report["accuracy"]["value"] == pytest.approx((margins[160:] > 0).mean())
    assert "160 pairs left out, whose p_chosen is ½" in headline(report)
    with pytest.raises(UserError, match="½ in all 400 pairs"):
        build_report(with_margins(margins, p_chosen=[0.5] * 400))


def test_a_headline_says_what_reference_and_policy_alone_would_do():
    table = scores(policy_chosen=[-3.0, -6.0], ref_chosen=[-6.0, -5.5])
    assert " · reference alone 0.000 · policy alone 0.500 · " in headline(build_report(table))


def test_pairs_within_the_noise_are_marked_each(tmp_path):
    """Margins 2, .5, -.5 and -2 at β 1 with a noise of .6: the middle two."""
    table = scores(policy_chosen=[-3.0, -4.5, -5.5, -7.0], ref_chosen=[-5.0] * 4, beta=[1.0] * 4)
    write(table, tmp_path / "s", noise={"max": 0.6, "pairs": 4, "p95": 0.1, "how": ""})
    assert pair_frame(tmp_path / "s")["undecided"].tolist() == [False, True, True, False]
    assert pair_frame(table)["undecided"].isna().all()
    shown = pairs_of(load(tmp_path / "s"), [], 4, None, None)
    assert [p["undecided"] for p in shown] == [False, True, True, False]
    assert 'value="±"' in page(build_report(tmp_path / "s"), shown)
    assert 'value="±"' not in page(build_report(table), [])


def test_counts_of_flips_are_whole_however_many():
    flips = {"kept_right": 1234567.0, "won": 2.5, "lost": 0.0, "kept_wrong": 0.25, "reference_wrong": None}
    said = dict(findings(build_report(random_scores(40, 20)) | {"flips": flips}))["Flips"]
    assert said.startswith(
        "ranking by log π, 1234567 pairs were right and stayed so, 2.5 won, 0 lost, 0.25 stayed wrong"
    )


def test_a_page_says_what_limits_all_its_policies_once(tmp_path):
    for name in ("dpo", "sft"):
        write(random_scores(90, 30, policy=[name] * 90), tmp_path / name, read=900, dropped={"too long": 810})
    header = page(build_report(tmp_path / "dpo", tmp_path / "sft"), []).split("</header>")[0]
    assert header.count("<strong>810 of 900 pairs read were dropped</strong>") == 1


def test_a_page_says_how_many_pairs_each_policy_has():
    one, two = random_scores(90, 30), random_scores(50, 20, policy=["other"] * 50)
    header = page(build_report(one, two), []).split("</header>")[0]
    assert re.search(r"90 pairs of \d+ groups", header)
    assert re.search(r"other: 50 pairs of \d+ groups", header)


def test_a_folder_of_several_policies_says_what_to_give(tmp_path, capsys):
    for name in ("sft", "dpo"):
        write(random_scores(90, 30, policy=[name] * 90), tmp_path / name)
    assert run(app, ["report", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.endswith(f": name those of each policy: {tmp_path / 'dpo'} {tmp_path / 'sft'}\n")
    assert run(app, ["report", *said.split(": ")[-1].split(), "--out", str(tmp_path / "out")]) == 0


def test_a_number_without_a_reference_is_not_called_an_implicit_reward(tmp_path, capsys):
    table = random_scores(90, 30, reference=[None] * 90, norm_chosen=[1.0] * 90, norm_rejected=[2.0] * 90)
    for side in ("chosen", "rejected"):
        at = table.schema.get_field_index(f"ref_{side}")
        table = table.set_column(at, f"ref_{side}", pa.nulls(90, pa.float64()))
    write(table, tmp_path / "scores")
    for mode in ("sum", "mean", "norm"):
        out = str(tmp_path / mode)
        assert run(app, ["report", str(tmp_path / "scores"), "--out", out, "--mode", mode, "--pairs", "0"]) == 0
        run(app, ["gate", out, "--min-accuracy", "0"])
        headline, _, check = capsys.readouterr().out.splitlines()
        pages = [(tmp_path / mode / name).read_text() for name in ("report.md", "report.html")]
        for text in (headline, check, *pages):
            assert "reference-free" in text
            assert "implicit" not in text
    assert headline.startswith("reference-free −‖log π‖₂ accuracy 1.000")


def test_several_policies_stand_side_by_side_and_keep_their_names():
    one, two = random_scores(90, 30), random_scores(90, 30, policy=["dpo"] * 90)
    report = build_report(one, two, one)
    assert [report["policy"], *(r["policy"] for r in report["others"])] == ["dpo (1)", "dpo (2)", "dpo (3)"]
    assert [c["second"] for c in report["comparisons"]] == ["dpo (2)", "dpo (3)"]
    assert report["others"][0]["accuracy"] == build_report(two)["accuracy"]
    assert "## Side by side" in to_markdown(report)


def test_a_frame_of_several_policies_and_where_it_was_scored():
    frame = pd.concat([random_scores(60, 20, policy=[name] * 60).to_pandas() for name in ("b", "a")])
    report = build_report(frame)
    assert [report["policy"], report["others"][0]["policy"]] == ["b", "a"]


def test_a_report_names_no_path_of_the_machine(tmp_path):
    write(random_scores(40, 20), tmp_path, data_path="/home/me/data", run={"digests": {}, "data_path": "/home/me"})
    assert "/home/me" not in json.dumps(build_report(tmp_path))


@pytest.mark.parametrize("lost", [None, float("nan"), pd.NA])
def test_rows_whose_policy_is_missing_are_not_lost_in_silence(lost):
    frame = pd.concat([random_scores(60, 20, policy=[name] * 60).to_pandas() for name in ("b", "a")])
    frame["policy"] = frame["policy"].astype(object)
    frame.iloc[100:, frame.columns.get_loc("policy")] = lost
    with pytest.raises(UserError, match="policy is missing in 20 rows"):
        build_report(frame)


def test_two_policies_of_one_name_in_a_frame_are_asked_for_distinct_names():
    frame = random_scores(60, 20).to_pandas()
    with pytest.raises(UserError, match="need distinct names"):
        build_report(pd.concat([frame, frame]))


def test_frames_in_and_frames_out():
    frame = random_scores(60, 20).to_pandas()
    assert build_report(frame)["n"] == 60
    pairs = pair_frame(frame, where="margin > 0")
    assert set(pairs["hit"]) == {1.0}
    assert compare_scores(frame, frame)["verdict"] == "not distinguishable"
    with pytest.raises(UserError, match="columns missing: policy_chosen"):
        build_report(frame.drop(columns="policy_chosen"))


SMALL = {
    "one pair": with_margins([1.0]),
    "one wrong pair": with_margins([-1.0]),
    "all ties": with_margins([0.0] * 12),
    "all right": with_margins([2.0] * 12),
    "one group": with_margins([1.0, -1.0, 0.5], group_id=["g"] * 3),
    "huge margins": with_margins([1e6, -1e6, 1e11] * 4),
    "no lengths": with_margins([1.0, -1.0] * 6, n_chosen=[0] * 12, n_rejected=[0] * 12),
}


@pytest.mark.parametrize("name", SMALL)
def test_little_data_gives_a_report_that_says_so(tmp_path, name):
    s = SMALL[name]
    report = build_report(s)
    write_report(report, pair_table(s), tmp_path)
    html = page(report, pairs_of(s, [], 50, None, None))
    for text in ((tmp_path / "report.md").read_text(), html):
        assert not re.search(r"\b(nan|inf|None)\b", text)
    assert 0 <= report["accuracy"]["low"] <= report["accuracy"]["value"] <= report["accuracy"]["high"] <= 1
    if report["n_groups"] < 30:
        assert "read it as a rough guide" in report["accuracy"]["method"]
    if report["n_groups"] == 1:
        assert report["intervals"]["margin"]["low"] is None


def test_the_command_writes_four_files_and_one_line(tmp_path, capsys):
    write(random_scores(200, 60), tmp_path / "scores")
    assert run(app, ["report", str(tmp_path / "scores"), "--out", str(tmp_path / "out"), "--pairs", "20"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == headline(json.loads((tmp_path / "out" / "report.json").read_text()))
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["_run.log", "pairs.parquet", "report.html", "report.json", "report.md"]
    assert run(app, ["report", str(tmp_path / "scores"), "--out", str(tmp_path / "out")]) == 2
    assert "report.json exists already" in capsys.readouterr().err


def test_commands_say_no_by_their_exit_code(tmp_path, capsys):
    write(random_scores(200, 60), tmp_path / "scores")
    out = str(tmp_path / "out")
    run(app, ["report", str(tmp_path / "scores"), "--out", out, "--where", "margin > 0"])
    assert run(app, ["gate", out, "--min-accuracy", "0.9"]) == 1
    assert run(app, ["gate", out, "--min-accuracy", "0.9", "--allow-outcome"]) == 0
    assert run(app, ["gate", out, "--min-accuracy", "1"]) == 1
    assert run(app, ["gate", out]) == 2
    assert run(app, ["verify", out]) == 0
    (tmp_path / "scores").rename(tmp_path / "away")
    assert run(app, ["verify", out]) == 1, "the number was not computed"
    assert run(app, ["verify", out, "--scores", str(tmp_path / "away")]) == 0
    (tmp_path / "away").rename(tmp_path / "scores")
    (tmp_path / "out" / "pairs.parquet").write_bytes(b"")
    assert run(app, ["verify", out]) == 1
    swapped = random_scores(200, 60)
    swapped = swapped.set_column(11, "policy_rejected", swapped["policy_chosen"])
    write(swapped, tmp_path / "other")
    assert run(app, ["diff", str(tmp_path / "scores"), str(tmp_path / "other"), "-n", "2"]) == 0
    assert len(capsys.readouterr().out.rpartition("the largest changes:\n")[2].splitlines()) == 2
    assert run(app, ["diff", str(tmp_path / "scores"), str(tmp_path / "scores"), "--out", str(tmp_path / "d")]) == 0
    assert "not distinguishable" in capsys.readouterr().out
    assert json.loads((tmp_path / "d" / "diff.json").read_text())["accuracy"]["p"] == 1.0
    assert run(app, ["diff", str(tmp_path / "scores"), str(tmp_path / "other"), "--out", str(tmp_path / "d")]) == 2
    said = capsys.readouterr()
    assert "diff.json exists already" in said.err
    assert said.out == "", "before the work"


def test_scores_from_before_the_new_columns_are_read(tmp_path):
    table = random_scores(50, 20)
    old = table.drop_columns(["norm_chosen", "norm_rejected", "label_margin", "style_chosen", "style_rejected"])
    pq.write_table(old, tmp_path / "scores.parquet")
    assert build_report(tmp_path)["accuracy"] == build_report(table)["accuracy"]


def test_reports_need_no_torch(tmp_path):
    write(random_scores(40, 20), tmp_path / "scores")
    commands = [["report", "scores", "--out", "r"], ["verify", "r"], ["gate", "r", "--min-accuracy", "0"]]
    commands += [["diff", "scores", "scores"], ["report", "scores", "scores", "--out", "both"]]
    program = (
        "import sys; from evalkit.cli import app; from prefkit.cli import run\n"
        f"failed = sum(run(app, c) for c in {commands!r})\n"
        "sys.exit(failed or ' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_scoring_noted_is_in_the_report(tmp_path):
    noise = {"pairs": 64, "max": 0.5, "p95": 0.2, "how": "batches"}
    overlap = {"run_data": "beer", "prompts": 20, "exact": 3, "near": 4, "unknown": "what base was trained on"}
    write(random_scores(80, 20), tmp_path, noise=noise, overlap=overlap, dropped={"tie": 2})
    report = build_report(tmp_path)
    s = load(tmp_path)
    assert report["undecided"]["n"] == (np.abs(s.margin_N / s.beta) <= 0.5).sum() > 0
    for text in (to_markdown(report), page(report, [])):
        assert "20 prompts, 3 were trained on exactly and 4 nearly" in text
        assert "Not known: what base was trained on." in text
        assert "within the measured noise of 0.5 nats" in text
        assert "tie 2" in text
    assert build_report(tmp_path, mode="sum")["undecided"] is None


def test_overlap_that_could_not_be_checked_is_not_silent(tmp_path):
    overlap = {"run_data": "", "prompts": 20, "exact": 0, "near": 0, "unknown": "data is gone"}
    write(random_scores(80, 20), tmp_path, overlap=overlap)
    report = build_report(tmp_path)
    for text in (to_markdown(report), page(report, [])):
        assert "Not known: data is gone." in text
        assert "0 were trained on" not in text


@pytest.mark.parametrize("column", ["norm_chosen", "n_rejected"])
def test_numbers_that_cannot_be_are_refused(tmp_path, column):
    table = random_scores(80, 20, norm_chosen=[1.0] * 80, norm_rejected=[1.0] * 80)
    at = table.schema.get_field_index(column)
    wrong = pa.array([float("nan") if column[1] == "o" else -5, *table[column].to_pylist()[1:]], table.schema[at].type)
    write(table.set_column(at, column, wrong), tmp_path)
    with pytest.raises(UserError, match=f"{column} is (not finite|below 0)"):
        build_report(tmp_path)


@pytest.mark.parametrize("recipe", ["rewardbench", "rewardbench2", "rm-bench"])
def test_sections_are_in_every_form_of_the_report(recipe):
    sections = read_sections(Path(__file__).parents[2] / "recipes" / "sections" / f"{recipe}.yaml")
    names = [n for subsets in sections.subsets.values() for n in subsets]
    sets = [x for name in names for x in (["tied:1", "ref:1"] if name == "Ties" else [name]) for _ in range(9)]
    columns = {"subset": [x if ":" not in x else "Ties" for x in sets], "set_id": sets}
    n = len(sets)
    columns |= {"chars_chosen": np.arange(n) // 3 % 3, "chars_rejected": 10 + np.arange(n) % 3}
    s = with_margins(np.random.default_rng(0).normal(0.3, 1, n), **columns)
    report = build_report(s, sections=sections)
    total = f"{report['sections']['total']['value']:.3f}"
    assert f"| total |  | {total} |" in to_markdown(report)
    assert total in page(report, [])
    assert ("hard" in report["sections"]["total"]) == (recipe == "rm-bench")
    lacking = build_report(load(s.table.slice(9)), sections=sections) if recipe != "rm-bench" else None
    if lacking:
        assert lacking["sections"]["total"] is None
        assert f"these subsets are missing: {names[0]}" in to_markdown(lacking)
        assert "No total" in page(lacking, [])


@pytest.mark.parametrize("first", ["styles", "pairs"])
def test_sections_of_several_metrics_show_the_averages_that_only_some_have(first):
    other = {"styles": "pairs", "pairs": "styles"}[first]
    mixed = Sections("mix", first, {"A": 1, "B": 1}, {"A": {"a": 1}, "B": {"b": 9}}, {"B": other})
    n = np.arange(18)
    columns = {"chars_chosen": n // 3 % 3, "chars_rejected": 10 + n % 3, "set_id": [f"s{i // 9}" for i in n]}
    s = with_margins(np.ones(18), subset=["a"] * 9 + ["b"] * 9, **columns)
    report = build_report(s, sections=mixed)
    assert ["hard" in x for x in report["sections"]["sections"]] == [first == "styles", first == "pairs"]
    assert "hard" not in report["sections"]["total"], "a mean over pairs has none"
    rows = [line for line in to_markdown(report).splitlines() if line.startswith(("| A |", "| B |", "| total |"))]
    assert [row.count("| 1.000") for row in rows] == ([4, 1, 1] if first == "styles" else [1, 4, 1])
    assert page(report, []).count('<th class="n">hard</th>') == 1
    json.dumps(report, allow_nan=False)


ROW = st.tuples(
    st.sampled_from([-800.0, -3.0, -1.0, 0.0, 1e-9, 2.0, 500.0]),  # log π of chosen above that of rejected
    st.sampled_from([-2.0, 0.0, 3.0]),
    st.integers(0, 3),  # group
    st.integers(0, 40),  # tokens of chosen
    st.sampled_from([None, 0.6, 1.0]),
    st.sampled_from([None, "s", "t"]),
    st.sampled_from(["", "ale", "</script>"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=14), st.sampled_from(["implicit", "normalised", "sum", "mean"]))
def test_any_scores_make_a_whole_report(rows, mode):
    up, ref, group, n, p, sets, subset = zip(*rows, strict=True)
    table = scores(
        policy_chosen=np.array(up) - 900,
        policy_rejected=[-900.0] * len(rows),
        ref_chosen=np.array(ref) - 900,
        ref_rejected=[-900.0] * len(rows),
        group_id=[f"g{g}" for g in group],
        n_chosen=n,
        p_chosen=p,
        set_id=sets,
        subset=subset,
    )
    report = build_report(table, mode=mode)
    json.dumps(report, allow_nan=False)
    for name, share in (("accuracy", report["accuracy"]), *report["baselines"].items()):
        assert 0 <= share["low"] <= share["value"] <= share["high"] <= 1, name
    assert sum(report["histogram"]["counts"]) == len(rows)
    assert sum(r["n"] for r in report["slices"]["subset"]) == len(rows)
    flips = report["flips"]
    assert sum(flips[k] for k in ("kept_right", "lost", "won", "kept_wrong")) == pytest.approx(len(rows))
    assert to_markdown(report)
    html = page(report, pairs_of(load(table, mode), [], 5, None, None))
    assert html.count("</script>") == 2  # the data's and the program's own


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("pairs.parquet", b"mine", 2),
        ("report.md", b"my notes", 2),
        ("report.html", b"<p>mine</p>", 2),
        ("report.md", b"# My notes", 2),
        ("report.html", b"<!doctype html>mine", 2),
        ("other.txt", b"mine", 0),
    ],
)
def test_nobody_elses_file_is_written_over(tmp_path, name, content, code, capsys):
    write_scores(random_scores(20, 9), tmp_path / "scores.parquet")
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(content)
    assert run(app, ["report", str(tmp_path / "scores.parquet"), "--out", str(out)]) == code
    if code:
        assert f"{name} is there already, and none of ours" in capsys.readouterr().err
        assert (out / name).read_bytes() == content


def test_what_an_interrupted_report_left_is_written_over(tmp_path):
    write_scores(random_scores(20, 9), tmp_path / "scores.parquet")
    command = ["report", str(tmp_path / "scores.parquet"), "--out", str(tmp_path / "out")]
    assert run(app, command) == 0
    (tmp_path / "out" / "report.json").unlink()
    (tmp_path / "out" / "report.html").write_text("<!doctype html>half")
    assert run(app, command) == 0
    assert "half" not in (tmp_path / "out" / "report.html").read_text()[:40]


@pytest.mark.parametrize("others", ["abc", [1], None, [{}]])
@pytest.mark.parametrize("accuracy", [{}, {"value": 0.9}, "high", None])
def test_a_report_of_another_shape_is_one_line(tmp_path, others, accuracy, capsys):
    write_report(build_report(random_scores_loaded()), pair_table(random_scores_loaded()), tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    for changed in ({"others": others}, {"accuracy": accuracy}, {"others": others, "accuracy": accuracy}):
        (tmp_path / "report.json").write_text(json.dumps(report | changed))
        assert run(app, ["gate", str(tmp_path), "--min-accuracy", "0.1"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def random_scores_loaded():
    return load(random_scores(20, 9))
