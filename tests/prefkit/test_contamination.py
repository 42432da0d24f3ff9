"""Pairs that repeat an evaluation set are refused, with the matching text and where it stands."""

import json

import pyarrow as pa
import pytest
from dumps import answer, question, write_dump

from prefkit import convert_dataset, open_pairs
from prefkit.errors import UserError

SECRET = "A farmer has seventeen sheep and all but nine of them run away one night"  # 15 words
SHORT = "How many roads must a man walk down"  # 8 words


def dump(tmp_path, *bodies):
    rows = []
    for i, text in enumerate(bodies):
        rows.append(question(10 * i + 1, body=f"<p>{text}</p>"))
        rows += [answer(10 * i + 2, 10 * i + 1, 5), answer(10 * i + 3, 10 * i + 1, 1)]
    return write_dump(tmp_path / "in", rows)


def rejects(folder):
    with pa.memory_map(str(folder / "_rejects/data-00000-of-00001.arrow")) as source:
        return pa.ipc.open_stream(source).read_all().to_pylist()


def write_eval(path, *texts):
    path.write_text("".join(json.dumps({"id": i, "turns": [{"content": t}]}) + "\n" for i, t in enumerate(texts)))
    return path


def test_thirteen_words_in_a_row_are_found_in_any_field(tmp_path):
    quoted = f"Well: “{SECRET.upper().replace(' ', ',  ')}”. Is it &lt;nine&gt;?"
    partly = " ".join(SECRET.split()[:12])
    folder = dump(tmp_path, quoted, partly, "Nothing of the kind is in here at all, I say")
    found = write_eval(tmp_path / "eval.jsonl", "unrelated words that nobody wrote here or there at any time", SECRET)
    manifest = convert_dataset(folder, tmp_path / "out", against=[found], splits="train=1")
    assert manifest.sources["stack-exchange-dump"]["candidates"]["rejected"] == {"contaminated_eval": 1}
    assert manifest.sources["stack-exchange-dump"]["records"]["unused"]["rejected_pairs"] == 3
    (row,) = rejects(tmp_path / "out")
    match = json.loads(row["raw"])["matches"]
    assert match["side"] == "prompt"
    assert match["evaluation"] == "eval.jsonl:2"
    assert match["text"].lower().replace(", ", " ") == " ".join(SECRET.split()[:13]).lower()
    assert open_pairs(tmp_path / "out").num_rows == 2


def test_a_short_text_counts_as_a_whole(tmp_path):
    folder = dump(tmp_path, f"Dylan asked: {SHORT}?", "How many roads must a man build?")
    manifest = convert_dataset(folder, tmp_path / "out", against=[write_eval(tmp_path / "e.jsonl", SHORT)])
    assert manifest.sources["stack-exchange-dump"]["candidates"]["rejected"] == {"contaminated_eval": 1}


def test_a_very_short_question_counts_where_a_prompt_ends_with_it(tmp_path):
    rows = [{"prompt": p, "chosen": c, "rejected": "Nobody said."} for p, c in PROMPTS]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    chat = [{"role": "user", "content": "And Macbeth?"}, {"role": "assistant", "content": "Go on"}]
    other = {"category": "writing", "answer": "Yes", "messages": chat}
    (tmp_path / "more.jsonl").write_text(json.dumps(other))
    found = [write_eval(tmp_path / "e.jsonl", "Who wrote Hamlet?", SECRET), tmp_path / "more.jsonl"]
    convert_dataset(tmp_path / "in.jsonl", tmp_path / "out", against=found, splits="train=1")
    raw = [json.loads(r["raw"]) for r in rejects(tmp_path / "out")]
    assert [r["prompt"][-1]["content"] for r in raw] == ["who wrote HAMLET", "Who wrote Hamlet", "and Macbeth…"]
    assert [r["matches"]["evaluation"] for r in raw] == ["e.jsonl:1", "e.jsonl:1", "more.jsonl:1"]


PROMPTS = [
    ("who wrote HAMLET", "Shakespeare did, they say."),
    ([{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Who wrote Hamlet"}], "Shakespeare."),
    ("and Macbeth…", "The same man."),
    *((word, "That is all there is to say.") for word in ("Writing!", "Yes", "user", "Go on", "content")),
    ("Tell me: who wrote Hamlet?", "Shakespeare did, they say."),
    ("What is a question about Denmark?", "Who wrote Hamlet?"),
]


@pytest.mark.parametrize(("severity", "pairs", "flags"), [("flag", 1, ["contaminated_eval"]), ("off", 1, [])])
def test_it_is_flagged_or_left_as_one_chooses(tmp_path, severity, pairs, flags):
    folder, found = dump(tmp_path, SECRET), write_eval(tmp_path / "e.jsonl", SECRET)
    chosen = {"contaminated_eval": severity, "too_short": "off"}
    convert_dataset(folder, tmp_path / "out", against=[found], checks=chosen, splits="train=1")
    table = open_pairs(tmp_path / "out")
    assert table.num_rows == pairs
    assert table["flags"].to_pylist() == [flags]


def test_what_is_compared_with_is_in_the_manifest(tmp_path):
    folder, found = dump(tmp_path, "Clean"), write_eval(tmp_path / "e.jsonl", SECRET)
    clean, compared = convert_dataset(folder, tmp_path / "a"), convert_dataset(folder, tmp_path / "b", against=[found])
    assert clean.config["against"] == []
    assert [e["name"] for e in compared.config["against"]] == ["e.jsonl"]


@pytest.mark.parametrize("bad", ["none.jsonl", "few.jsonl"])
def test_refusals(tmp_path, bad):
    write_eval(tmp_path / "few.jsonl", "…", "?!")
    with pytest.raises(UserError):
        convert_dataset(dump(tmp_path, "Clean"), tmp_path / "out", against=[tmp_path / bad])


@pytest.mark.parametrize("names", [[], ["bench.txt"], ["_rejects/a.jsonl"]])
def test_a_set_of_which_nothing_can_be_read_is_refused(tmp_path, names):
    sets = tmp_path / "sets"
    sets.mkdir()
    for name in names:
        (sets / name).parent.mkdir(exist_ok=True)
        (sets / name).write_text(SECRET)
    with pytest.raises(UserError, match="no file of this evaluation set can be read"):
        convert_dataset(dump(tmp_path, "Clean"), tmp_path / "out", against=[sets])


def test_of_a_data_set_its_pairs_are_compared_and_not_its_rejects(tmp_path):
    convert_dataset(dump(tmp_path, SECRET), tmp_path / "old", splits="train=.5,test=.5")
    manifest = convert_dataset(tmp_path / "in", tmp_path / "new", against=[tmp_path / "old"])
    assert manifest.sources["stack-exchange-dump"]["candidates"]["rejected"] == {"contaminated_eval": 1}
    assert all(e["name"].startswith(("old/train/data-", "old/test/data-")) for e in manifest.config["against"])


def test_a_disk_that_fills_up_leaves_no_half_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    found, folder = write_eval(tmp_path / "e.jsonl", SECRET), dump(tmp_path, SECRET)
    monkeypatch.setattr(pa.ipc.RecordBatchFileWriter, "write_table", full)
    with pytest.raises(UserError, match="make room"):
        convert_dataset(folder, tmp_path / "out", against=[found])
    monkeypatch.undo()
    manifest = convert_dataset(tmp_path / "in", tmp_path / "out", against=[found])
    assert manifest.sources["stack-exchange-dump"]["candidates"]["rejected"] == {"contaminated_eval": 1}
