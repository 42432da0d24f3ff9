"""A pair is followed back to its rows, and on to its scores where there are some."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dumps import answer, many, question, write_dump

from prefkit import convert_dataset, open_pairs
from prefkit.errors import UserError
from prefkit.trace import find
from prefkit.trace import follow as way_of
from prefkit.trace_scores import report_steps, score_steps


def follow(name, data):
    return way_of(find(name, data))


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


def test_files_of_one_name_are_told_apart(tmp_path):
    files = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "rows.jsonl")
        files[-1].write_text(f'{{"prompt": "{name}", "chosen": "good", "rejected": "bad"}}')
    manifest = convert_dataset(files, tmp_path / "out", splits="train=1")
    assert [i["name"] for i in manifest.inputs] == ["a/rows.jsonl", "b/rows.jsonl"]
    for pair in open_pairs(tmp_path / "out").to_pylist():
        read = dict(follow(pair["id"], tmp_path / "out"))["read record"]
        assert f'{{"prompt": "{pair["prompt"][0]["content"]}"' in read


@pytest.mark.parametrize("name", ["rows.json.gz", "rows.tsv", "rows.csv.gz", "rows.jsonl.gz", "rows.jsonl"])
def test_the_record_is_that_of_the_position_in_any_format(tmp_path, name):
    rows = [{"prompt": f"Why {n}?\n\nSay.", "chosen": "Because.", "rejected": "No."} for n in range(3)]
    text = json.dumps(rows, indent=1) if ".json." in name else "\n".join(map(json.dumps, rows))
    if "sv" in name:
        table = io.StringIO()
        writer = csv.DictWriter(table, list(rows[0]), delimiter="\t" if ".tsv" in name else ",")
        writer.writeheader()
        writer.writerows(rows)
        text = table.getvalue()
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    convert_dataset(tmp_path / name, tmp_path / "out", splits="train=1")
    for pair in open_pairs(tmp_path / "out").to_pylist():
        read = dict(follow(pair["id"], tmp_path / "out"))["read record"].partition("  ")[2]
        assert json.loads(read.replace(" ⏎ ", "\n"))["prompt"] == pair["prompt"][0]["content"]


def test_a_pair_by_its_source_id_or_how_one_begins(tmp_path):
    rows = [question(1), answer(2, 1, 5), answer(31, 1, 1), answer(3, 1, 0)]
    convert_dataset(write_dump(tmp_path / "beer", rows), tmp_path / "out", splits="train=.5,test=.5")
    pairs = {p["source_id"]: p for p in open_pairs(tmp_path / "out").to_pylist()}
    assert set(pairs) == {"beer/1/2-31", "beer/1/2-3", "beer/1/31-3"}
    for name, pair in pairs.items():  # beer/1/2-3 is whole, though it also begins another one
        assert pair["id"] in dict(follow(name, tmp_path / "out"))["pair"]
        assert name in dict(follow(pair["id"][:12], tmp_path / "out"))["pair"]
    assert "beer/1/31-3" in dict(follow("beer/1/3", tmp_path / "out"))["pair"]


def test_unknown_and_ambiguous_ids_list_candidates(tmp_path):
    convert_dataset(write_dump(tmp_path / "in", many(20)), tmp_path / "out")
    pairs = open_pairs(tmp_path / "out").to_pylist()
    with pytest.raises(UserError, match=r"no pair has the id 'xyz' .*: prefkit show prints ids"):
        follow("xyz", tmp_path / "out")
    name = pairs[-1]["source_id"]
    with pytest.raises(
        UserError, match=f"no pair has the id '{name}9' .*: near it: {name} \\({pairs[-1]['id'][:12]}\\)"
    ):
        follow(name + "9", tmp_path / "out")
    with pytest.raises(UserError, match=rf"{len(pairs)} pairs are made of or called .*: choose of in/.* …$"):
        follow("", tmp_path / "out")


def test_a_position_names_the_pairs_made_of_it_or_why_there_are_none(tmp_path):
    lines = [
        {"prompt": "Why?", "chosen": "Because of the tide.", "rejected": "No idea."},
        {"prompt": "Why not?", "chosen": "", "rejected": "No."},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines) + "no JSON\n"
    (tmp_path / "mine.jsonl").write_text(text)
    convert_dataset(tmp_path / "mine.jsonl", tmp_path / "out")
    assert dict(follow("mine.jsonl:1", tmp_path / "out"))["text chosen"] == "assistant: Because of the tide."
    with pytest.raises(UserError, match=r"the candidate at mine\.jsonl:2 was refused: empty_chosen"):
        follow("mine.jsonl:2", tmp_path / "out")
    with pytest.raises(UserError, match=r"the record at mine\.jsonl:3 was refused: malformed_record"):
        follow("mine.jsonl:3", tmp_path / "out")


def test_scores_and_report(tmp_path):
    row = {"id": "a", "policy": "p", "reference": "r", "beta": 0.5, "n_chosen": 2, "n_rejected": 1}
    row |= {"policy_chosen": -1.0, "policy_rejected": -3.0, "ref_chosen": -2.0, "ref_rejected": -2.5}
    pq.write_table(pa.Table.from_pylist([row | {"id": "z"}, row]), tmp_path / "scores.parquet")
    kept = {
        "id": "a",
        "prompt_tokens": ["<s>", "Q", ":"],
        "chosen_tokens": ["Yes", "</s>"],
        "rejected_tokens": ["</s>"],
    }
    kept |= {"policy_chosen": [-0.75, -0.25], "policy_rejected": [-3.0]}
    pq.write_table(pa.Table.from_pylist([kept]), tmp_path / "tokens.parquet")
    steps = dict(score_steps("a", tmp_path))
    assert steps["tokens chosen"] == "3 | 2: … '<s>' 'Q' ':' | 'Yes' '</s>' …, first log π -0.750, -0.250 …"
    assert steps["log π rejected"] == "p -3.000000, r -2.500000 over 1 tokens"
    assert steps["scores"] == "scores.parquet row 1, β 0.5"
    assert "not in" in score_steps("b", tmp_path)[0].text
    with pytest.raises(UserError, match="no such file"):
        score_steps("a", tmp_path / "nowhere")
    pair = {"id": "a", "reward_chosen": 0.5, "reward_rejected": -0.25, "margin": 0.75, "hit": 1.0, "rank": 1}
    pair |= {"policy": "p"}
    pq.write_table(pa.Table.from_pylist([pair]), tmp_path / "pairs.parquet")
    steps = dict(report_steps("a", tmp_path))
    assert steps["rewards"] == "chosen +0.500000, rejected -0.250000, margin +0.750000"
    assert steps["report"].startswith("pairs.parquet row 0: counts 1 towards the accuracy, rank 1 of 1")
    both = [
        pair | {"policy": "sft", "rank": 7, "id": "b"},
        pair | {"policy": "sft"},
        pair | {"policy": "dpo", "rank": 2},
    ]
    more = [pair | {"policy": "dpo", "id": name} for name in "bc"]  # a report's policies may share a part of the pairs
    pq.write_table(pa.Table.from_pylist([*both, *more]), tmp_path / "pairs.parquet")
    texts = [step.text for step in report_steps("a", tmp_path)]
    assert [t.rpartition(" of ")[2] for t in texts[::2]] == ["sft", "dpo"]
    assert "row 1: counts 1 towards the accuracy, rank 1 of 2" in texts[1]
    assert "row 2: counts 1 towards the accuracy, rank 2 of 3" in texts[3]
