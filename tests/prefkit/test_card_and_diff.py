"""The card says what the manifest says, safely; diff finds exactly what came, went and moved."""

import json
import shlex

import py7zr
import pytest
import yaml
from dumps import answer, many, question, write_dump

from prefkit import convert_dataset, open_pairs
from prefkit.card import card, command
from prefkit.cli import app, run
from prefkit.diff import diff
from prefkit.shards import Manifest, verify

HALVES = "train=.5,test=.5"


@pytest.fixture
def made(tmp_path):
    folder = write_dump(tmp_path / "beer.stackexchange.com", many(40), [(1, 6)])
    convert_dataset(folder, tmp_path / "a", splits=HALVES)
    return folder, tmp_path / "a"


def test_the_card_has_header_ledgers_licence_and_command(made, tmp_path):
    folder, data = made
    text, manifest = (data / "README.md").read_text("utf-8"), Manifest.read(data)
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "cc-by-sa-4.0"
    assert [f["split"] for f in header["configs"][0]["data_files"]] == ["train", "test"]
    assert all(list(data.glob(f["path"])) for f in header["configs"][0]["data_files"])
    records = manifest.sources["stack-exchange-dump"]["records"]
    assert f"| records | read | {records['read']:,} |" in text
    assert f"{records['unused']['capped']:,} capped" in text if "capped" in records["unused"] else True
    assert "CC BY-SA" in text
    words = shlex.split(command(manifest))
    assert f"\n{command(manifest)}\n" in text
    words[words.index("beer.stackexchange.com")] = str(folder)
    words[words.index("DIR")] = str(tmp_path / "again")
    assert run(app, words[1:]) == 0
    assert (tmp_path / "again/README.md").read_text("utf-8") == text
    assert verify(data) == []


@pytest.mark.parametrize("given", [["new/Posts.xml"], ["old", "new"], ["a/beer", "b/beer"], ["a/beer.7z", "b/beer.7z"]])
def test_the_command_of_the_card_names_what_was_given(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    for name in given:
        folder = write_dump(tmp_path / name.removesuffix("/Posts.xml").replace(".7z", ".in"), many(10), [(1, 6)])
        if name.endswith(".7z"):
            with py7zr.SevenZipFile(tmp_path / name, "w") as out:
                out.writeall(folder, "")
    for name in ("one", "two"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "nobody here ever asks anything like this one"}\n')
    convert_dataset(given, "out", against=["one.jsonl", "two.jsonl"], options={"site": "beer"})
    words = shlex.split(command(Manifest.read("out")))
    words[words.index("DIR")] = "again"
    if given == ["new/Posts.xml"]:
        monkeypatch.chdir(tmp_path / "new")  # a file is named without its folder
        words = [f"../{w}" if w.endswith(".jsonl") else w for w in words]
    assert run(app, words[1:]) == 0
    assert Manifest.read("again").files == Manifest.read(tmp_path / "out").files


def test_hostile_names_stay_text(tmp_path):
    folder = write_dump(tmp_path / "a|b<script>`", many(3))
    manifest = convert_dataset(folder, tmp_path / "out")
    table = card(manifest).partition("### Inputs")[2]
    assert "<script>" not in table
    assert "a\\|b&lt;script&gt;" in table


def test_the_same_is_no_difference(made, tmp_path):
    folder, data = made
    convert_dataset(folder, tmp_path / "b", splits=HALVES)
    found = diff(data, tmp_path / "b")
    assert found.is_empty()
    assert found.both == open_pairs(data).num_rows
    assert not found.settings | found.inputs | found.counts
    assert run(app, ["diff", str(data), str(tmp_path / "b")]) == 0


def test_what_came_went_and_moved(made, tmp_path, capsys):
    _, data = made
    rows = many(40)
    rows = [r for r in rows if r.get("ParentId", r["Id"]) != 11]  # one question fewer
    rows += [question(9001, body="<p>brand new</p>"), answer(9002, 9001, 5), answer(9003, 9001, 1)]
    folder = write_dump(tmp_path / "new/beer.stackexchange.com", rows, [(1, 6)])
    convert_dataset(folder, tmp_path / "b", splits=HALVES, seed=5)
    found = diff(data, tmp_path / "b")

    def places(path):
        return {r["id"]: s for s in ("train", "test") for r in open_pairs(path, s).to_pylist()}

    before, now = places(data), places(tmp_path / "b")
    moved = [i for i in before if i in now and before[i] != now[i]]
    assert (found.only_a, found.only_b, found.both) == (len(before.keys() - now), 1, len(before.keys() & now))
    assert sum(found.moved.values()) == len(moved) > 0
    assert found.settings == {"seed": (0, 5)}
    assert found.counts["records.read"] == (200, 198)
    assert run(app, ["diff", str(data), str(tmp_path / "b")]) == 1
    shown = capsys.readouterr().out
    assert f"only in {tmp_path / 'b'}: beer/9001/9002-9003\n" in shown
    assert "setting  seed: 0 → 5\n" in shown
    assert "count    records.read: 200 → 198\n" in shown


def test_what_is_set_otherwise_is_said_as_people_type_it(made, tmp_path, capsys):
    folder, data = made
    (tmp_path / "eval.jsonl").write_text(
        '{"prompt": "It is of a kind that none of the others is: of nine words or more", "chosen": "a", "rejected": "b"}\n'
    )
    other = {"checks": {"too_short": "off"}, "options": {"votes": False}, "against": [tmp_path / "eval.jsonl"]}
    convert_dataset(folder, tmp_path / "b", splits="train=.5,test=.25,dev=.25", **other)
    run(app, ["diff", str(data), str(tmp_path / "b")])
    said = [line.removeprefix("setting  ") for line in capsys.readouterr().out.splitlines() if "setting" in line]
    assert said[:-1] == [
        "options.votes: true → false",
        "splits.test: 0.5 → 0.25",
        "splits.dev: not given → 0.25",
        "checks.too_short: not given → off",
    ]
    assert said[-1].startswith("against.eval.jsonl: not given → ")


def test_evaluation_sets_of_one_name_are_told_apart(tmp_path):
    text = "which hops go into the kettle at the very end of a long boil and why"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test.jsonl").write_text(json.dumps({"prompt": f"{name}: {text}"}) + "\n")
    row = {"prompt": "Why is it so?", "chosen": "Because of the tide, of course.", "rejected": "I do not know that."}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    sets = [tmp_path / name / "test.jsonl" for name in ("one", "two")]
    manifest = convert_dataset(tmp_path / "in.jsonl", tmp_path / "out", against=sets)
    assert [found["name"] for found in manifest.config["against"]] == ["one/test.jsonl", "two/test.jsonl"]
    assert "--against one --against two" in card(manifest)
