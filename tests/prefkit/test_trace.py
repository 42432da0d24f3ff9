"""A pair is followed back to its rows, and on to its scores where there are some."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dumps import answer, many, question, write_dump

from prefkit import convert_dataset, open_pairs
from prefkit.errors import UserError
from prefkit.trace import follow, score_steps


def test_from_line_to_shard(tmp_path):
    rows = [question(1), answer(2, 1, 5, body="<p>Good.</p>"), answer(3, 1, 0)]
    folder = write_dump(tmp_path / "in", rows)
    text = (folder / "Posts.xml").read_text("utf-8-sig").replace("Good.", "Go&#x0E;od.")
    (folder / "Posts.xml").write_text(text, "utf-8-sig", newline="")
    convert_dataset(folder, tmp_path / "out", splits="train=1")
    (pair,) = open_pairs(tmp_path / "out").to_pylist()
    steps = dict(follow(pair["id"][:8], tmp_path / "out"))
    assert steps["read chosen"].startswith('in/Posts.xml:4  <row Id="2"')
    assert "illegal_character 1" in steps["repair chosen"]
    assert steps["text chosen"] == "assistant: Good."
    assert steps["scores"] == "chosen 3 from 5 votes, rejected 0 from 0 votes"
    assert "margin 0.8750" in steps["pair"]
    assert steps["group"].startswith(pair["group_id"])
    assert steps["shard"] == "train/data-00000-of-00001.arrow row 0"
    (folder / "Posts.xml").write_bytes(b"something else")
    assert "not at hand" in dict(follow(pair["id"], tmp_path / "out"))["read chosen"]


def test_unknown_and_ambiguous_ids(tmp_path):
    convert_dataset(write_dump(tmp_path / "in", many(20)), tmp_path / "out")
    with pytest.raises(UserError, match="no pairs have an id"):
        follow("xyz", tmp_path / "out")
    with pytest.raises(UserError, match="pairs have an id"):
        follow("", tmp_path / "out")


def test_scores(tmp_path):
    row = {"id": "a", "policy": "p", "reference": "r", "beta": 0.5, "policy_chosen": -1.0, "policy_rejected": -3.0}
    row |= {"ref_chosen": -2.0, "ref_rejected": -2.5}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "scores.parquet")
    (tmp_path / "trace.jsonl").write_text(json.dumps({"id": "a", "boundary": "Answer:|Yes"}) + "\n")
    steps = [tuple(s) for s in score_steps("a", tmp_path)]
    assert ("tokens boundary", "Answer:|Yes") in steps
    assert ("rewards", "chosen 0.500000, rejected -0.250000, margin 0.750000: right") in steps
    assert "not in scores.parquet" in score_steps("b", tmp_path)[0].text
    with pytest.raises(UserError, match="no scores there"):
        score_steps("a", tmp_path / "nowhere")
