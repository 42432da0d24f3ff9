"""What was refused is kept whole, with all its reasons, and can be converted again."""

import json

import pytest
from dumps import answer, question, write_dump

from prefkit import convert_dataset, open_pairs
from prefkit.cli import app, run
from prefkit.errors import UserError
from prefkit.shards import Manifest, verify
from prefkit.sources.rejects import rows, summarise


@pytest.fixture
def refused(tmp_path):
    """A pair with two faults, one with one, a good one, and an orphan."""
    posts = [
        question(1), answer(2, 1, 5, body="<p>[deleted]</p>"), answer(3, 1, 1, body="<p>[deleted]</p>"),
        question(10), answer(11, 10, 5), answer(12, 10, 1, body="<p>\u200b</p>"), answer(13, 10, 3, body="<p>Good.</p>"),
        answer(21, 20, 1),
    ]  # fmt: skip
    convert_dataset(write_dump(tmp_path / "in", posts), tmp_path / "out", splits="train=1")
    return tmp_path / "out"


def test_all_reasons_and_the_first_counts(refused):
    found = summarise(refused)
    assert found["record"] == {"orphan_answer": (1, ("in/Posts.xml:10",))}
    assert {name: refusals.n for name, refusals in found["candidate"].items()} == {
        "identical_pair": 1,
        "empty_rejected": 2,
    }
    assert found["candidate"]["identical_pair"].first == ("in/Posts.xml:3 in/Posts.xml:4 in/Posts.xml:5",)
    (row,) = rows(refused, "deleted_placeholder")
    assert row["reasons"] == ["identical_pair", "deleted_placeholder"]
    assert row["reason"] == "identical_pair"
    assert json.loads(row["raw"])["chosen"] == [{"role": "assistant", "content": "[deleted]"}]
    with pytest.raises(UserError, match="nothing was refused as 'typo'"):
        list(rows(refused, "typo"))


@pytest.mark.parametrize(("most", "code", "said"), [("0.12", 1, 2), ("0.5", 1, 1), ("0.75", 0, 0)])
def test_more_refused_than_is_allowed_is_a_no(refused, capsys, most, code, said):
    """One of eight records and three of four candidates were refused."""
    assert run(app, ["rejects", str(refused), "--at-most", most]) == code
    lines = capsys.readouterr().out.splitlines()
    assert sum("more than" in line for line in lines) == said
    assert ("75.00% of the candidates were refused, more than 50.00%" in lines) == (most == "0.5")


def test_the_first_five_positions_of_a_reason_are_shown(tmp_path, capsys):
    lines = ["{broken"] * 7 + [json.dumps({"prompt": "Why?", "chosen": "Because.", "rejected": "No."})]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    convert_dataset(tmp_path / "in.jsonl", tmp_path / "out", source="pairs")
    assert run(app, ["rejects", str(tmp_path / "out")]) == 0
    shown = "in.jsonl:1, in.jsonl:2, in.jsonl:3, in.jsonl:4, in.jsonl:5 …"
    assert f"  malformed_record     {shown}" in capsys.readouterr().out.splitlines()


def test_replayed_pairs_are_what_they_would_have_been(refused, tmp_path):
    severities = {"empty_rejected": "flag"}
    manifest = convert_dataset(refused, tmp_path / "again", source="rejects", checks=severities, splits="train=1")
    assert manifest.sources["rejects"]["records"]["rejected"] == {"orphan_answer": 1}
    assert manifest.sources["rejects"]["candidates"]["rejected"] == {"identical_pair": 1}
    convert_dataset(tmp_path / "in", tmp_path / "lenient", checks=severities, splits="train=1")
    again = {r["id"]: r for r in open_pairs(tmp_path / "again").to_pylist()}
    lenient = {r["id"]: r for r in open_pairs(tmp_path / "lenient").to_pylist()}
    assert len(again) == 2
    for number, row in again.items():
        assert {k: v for k, v in row.items() if k not in ("group_id", "meta")} == {
            k: v for k, v in lenient[number].items() if k not in ("group_id", "meta")
        }
        assert json.loads(row["meta"]) == json.loads(lenient[number]["meta"])
    assert verify(tmp_path / "again") == []


def test_lines_go_through_their_source_again(tmp_path):
    good = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    lines = [json.dumps(good), json.dumps({"frage": "Wie?", **{k: good[k] for k in ("chosen", "rejected")}}), "{broken"]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    convert_dataset(tmp_path / "in.jsonl", tmp_path / "out", splits="train=1")
    assert summarise(tmp_path / "out")["record"] == {
        "malformed_record": (1, ("in.jsonl:3",)),
        "missing_prompt": (1, ("in.jsonl:2",)),
    }
    with pytest.raises(UserError, match="this is a data set already"):
        convert_dataset(tmp_path / "out", tmp_path / "no")
    manifest = convert_dataset(tmp_path / "out", tmp_path / "again", source="rejects")
    assert manifest.sources["rejects"]["records"]["rejected"] == {"malformed_record": 1, "missing_prompt": 1}


def test_the_command(refused, tmp_path, capsys):
    assert run(app, ["rejects", str(refused), "-n", "1", "--reason", "orphan_answer"]) == 0
    shown = capsys.readouterr().out
    assert "candidates  2 empty_rejected, 1 identical_pair" in shown
    assert "in/Posts.xml:10" in shown
    assert run(app, ["rejects", str(refused), "--replay"]) == 2
    assert (
        run(app, ["rejects", str(refused), "--replay", "--out", str(tmp_path / "r"), "--check", "empty_rejected=flag"])
        == 0
    )
    assert "2 pairs in 1 group\n" in capsys.readouterr().out


def test_replayed_pairs_lie_where_their_questions_lie(tmp_path):
    posts = []
    for q in range(10, 410, 10):  # one sound pair and two with an empty answer, of each of 40 questions
        posts += [question(q), answer(q + 1, q, 5), answer(q + 2, q, 1), answer(q + 3, q, 0, body="<p>\u200b</p>")]
    convert_dataset(write_dump(tmp_path / "in", posts), tmp_path / "out", splits="train=.5,test=.5", seed=7)
    command = [
        "rejects",
        str(tmp_path / "out"),
        "--replay",
        "--out",
        str(tmp_path / "r"),
        "--check",
        "empty_rejected=off",
    ]
    assert run(app, command) == 0

    def places(folder):
        return {r["set_id"]: s for s in ("train", "test") for r in open_pairs(folder, s).to_pylist()}

    assert places(tmp_path / "r") == places(tmp_path / "out")
    assert sorted(set(places(tmp_path / "out").values())) == ["test", "train"]


def test_a_replay_keeps_what_was_chosen_and_lets_no_evaluation_text_back_in(tmp_path):
    secret = "A farmer has seventeen sheep and all but nine of them run away one night"
    link = {"rejected": "[here](https://example.org/a/very/long/address/indeed)"}
    pairs = [
        {"prompt": secret, "chosen": "Nine of them are left.", "rejected": "Eight."},
        {"prompt": "Where is it?", "chosen": "Over there, behind the barn, as always."} | link,
        {"prompt": "Why?", "chosen": "", "rejected": "No reason was given by anybody here."},
        {"chosen": "A line that was never compared,", "rejected": "for it has no prompt."},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    (tmp_path / "eval.jsonl").write_text(json.dumps({"text": secret}))
    given = {"checks": {"link_only": "reject"}, "where": "len(prompt[1].content) < 1000", "splits": "train=1"}
    convert_dataset(tmp_path / "in.jsonl", tmp_path / "out", against=[tmp_path / "eval.jsonl"], **given)
    replay = ["rejects", str(tmp_path / "out"), "--replay", "--check", "empty_chosen=off", "--out"]
    assert run(app, [*replay, str(tmp_path / "a")]) == 0
    assert [p["prompt"][0]["content"] for p in open_pairs(tmp_path / "a").to_pylist()] == ["Why?"]
    again = Manifest.read(tmp_path / "a")
    assert again.sources["rejects"]["records"]["rejected"] == {"contaminated_eval": 1, "missing_prompt": 1}
    assert again.sources["rejects"]["candidates"]["rejected"] == {"link_only": 1}
    assert again.config["where"] == given["where"]
    assert run(app, [*replay, str(tmp_path / "b"), "--against", str(tmp_path / "eval.jsonl")]) == 0
    assert Manifest.read(tmp_path / "b").sources["rejects"]["candidates"]["rejected"]["contaminated_eval"] == 1
    replay[1], replay[4] = str(tmp_path / "a"), "link_only=off"  # a replay can be replayed
    assert run(app, [*replay, str(tmp_path / "c")]) == 0
    assert Manifest.read(tmp_path / "c").sources["rejects"]["records"]["rejected"] == {
        "contaminated_eval": 1,
        "missing_prompt": 1,
    }
    replay[4] = "contaminated_eval=off"
    assert run(app, [*replay, str(tmp_path / "d")]) == 0
    assert [p["prompt"][0]["content"] for p in open_pairs(tmp_path / "d").to_pylist()] == [secret]
    replay[4] = "contaminated_eval=flag"
    assert run(app, [*replay, str(tmp_path / "e")]) == 2


def test_nothing_to_replay_writes_nothing(tmp_path, capsys):
    sound = [question(1), answer(2, 1, 5), answer(3, 1, 1)]
    for name, posts, words in (
        ("none", sound, "nothing was refused"),
        ("orphans", [*sound, answer(21, 20, 1)], "refused posts need their dump"),
    ):
        convert_dataset(write_dump(tmp_path / f"{name}.in", posts), tmp_path / name, splits="train=1")
        assert run(app, ["rejects", str(tmp_path / name), "--replay", "--out", str(tmp_path / "r")]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "flags",
    [["--replay", "--out", "r", "--reason", "x"], ["--out", "r"], ["--check", "too_long=off"], ["--against", "x"]],
)
def test_flags_that_would_be_passed_over_are_refused(refused, flags, capsys):
    assert run(app, ["rejects", str(refused), *flags]) == 2
    assert "--replay" in capsys.readouterr().err


def test_contradicted_labels_and_flags_of_the_source_come_back(tmp_path):
    one = {
        "prompt": "Why is it so?",
        "chosen": "Because of the tide, which comes and goes.",
        "rejected": "I do not know that, and why should I?",
    }
    other = one | {"chosen": one["rejected"], "rejected": one["chosen"]}
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in (one, other)))
    convert_dataset(tmp_path / "in.jsonl", tmp_path / "out", checks={"conflicting_labels": "reject"}, splits="train=1")
    assert summarise(tmp_path / "out")["candidate"] == {"conflicting_labels": (2, ("in.jsonl:1", "in.jsonl:2"))}
    lenient = {"conflicting_labels": "flag"}
    again = convert_dataset(tmp_path / "out", tmp_path / "again", source="rejects", checks=lenient, splits="train=1")
    assert again.flags == {"conflicting_labels": 2}
    posts = [question(1, OwnerUserId=7), answer(2, 1, 5, body="<p>Yes.</p>", OwnerUserId=7), answer(3, 1, 1)]
    convert_dataset(write_dump(tmp_path / "dump", posts), tmp_path / "strict", checks={"too_short": "reject"})
    convert_dataset(tmp_path / "strict", tmp_path / "mended", source="rejects", checks={"too_short": "off"})
    (row,) = open_pairs(tmp_path / "mended").to_pylist()
    assert row["flags"] == ["self_answer"]
    assert row["created"].year == 2019
