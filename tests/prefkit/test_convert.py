"""The whole way on small dumps: ledgers, groups, duplicates, resuming, and the same bytes whatever the workers."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import datasets
import duckdb
import pyarrow as pa
import pytest
from dumps import answer, many, question, tree_digest, write_dump

from prefkit import convert, convert_dataset, open_pairs, plan
from prefkit.errors import UserError
from prefkit.ledgers import ledgers_out_of_balance
from prefkit.schema import PAIRS, pair_id
from prefkit.shards import Manifest, verify

DUMP = "stack-exchange-dump"


def ledgers(manifest):
    found = manifest.sources[DUMP]
    assert ledgers_out_of_balance(found) == []
    return found["records"], found["candidates"]


def test_every_post_has_a_fate(tmp_path):
    rows = [
        question(1, accepted=3),
        answer(2, 1, 5),
        answer(3, 1, 9),
        answer(4, 1, 5),
        question(10),
        answer(11, 10, 1),
        question(20),
        question(30),
        answer(31, 30, 4),
        answer(32, 30, 3),
        answer(41, 40, 1),
        {"Id": 50, "PostTypeId": 5, "Score": 0, "Body": ""},
        question(60, DeletionDate="2020-01-01T00:00:00"),
        {"Id": 1000000001, "PostTypeId": 1, "Score": 0, "OwnerUserId": -1, "Body": "x", "Title": "x"},
        answer(71, 1, 9, OwnerUserId=-2),
        '  <row Id="80" PostTypeId="2" Score="1" Body="no end',
        answer(81, 1, 1) | {"Score": "many"},
    ]
    manifest = convert_dataset(write_dump(tmp_path / "in", rows), tmp_path / "out")
    records, candidates = ledgers(manifest)
    assert records == {
        "read": 17,
        "used": 4,  # question 1 with answers 2, 3, 4
        "unused": {
            "answer_bot": 1,
            "deleted": 1,
            "fabricated": 1,
            "no_answers": 1,
            "only_ties": 3,  # question 30
            "other_type": 1,
            "single_answer": 2,
        },
        "rejected": {"malformed_row": 1, "missing_number": 1, "orphan_answer": 1},
    }
    assert {k: v for k, v in candidates.items() if v} == {"made": 4, "pairs": 2, "ties": 2}
    rejects = pa.ipc.open_stream(pa.memory_map(str(tmp_path / "out/_rejects/data-00000-of-00001.arrow"))).read_all()
    found = {r["reason"]: r for r in rejects.to_pylist()}
    assert found["malformed_row"]["position"] == "in/Posts.xml:18"
    assert found["malformed_row"]["raw"].endswith('Body="no end')
    assert json.loads(found["orphan_answer"]["raw"])["id"] == 41
    assert verify(tmp_path / "out") == []


def test_scores_margins_attribution(tmp_path):
    rows = [
        question(1, accepted=2, title="Ale & lager <3", body="<p>Which?</p>", OwnerUserId=7, Tags="|ale|lager|"),
        answer(2, 1, 3, ContentLicense="CC BY-SA 4.0", OwnerDisplayName="user9"),
        answer(3, 1, -2, CreationDate="2011-01-01T00:00:00.000"),
    ]
    folder = write_dump(tmp_path / "beer.stackexchange.com", rows)
    convert_dataset(folder, tmp_path / "out", splits="train=1")
    (pair,) = open_pairs(tmp_path / "out").to_pylist()
    assert pair["prompt"] == [{"role": "user", "content": "Ale & lager <3\n\nWhich?"}]
    assert (pair["score_chosen"], pair["score_rejected"], pair["margin"]) == (3.0, -1.0, 0.9375)
    assert pair["source_id"] == "beer/1/2-3"
    assert pair["subset"] == "beer"
    assert pair["licenses"] == ["CC BY-SA 4.0", "CC BY-SA 4.0", "CC BY-SA 2.5"]
    home = "https://beer.stackexchange.com"
    assert pair["urls"] == [f"{home}/questions/1", f"{home}/a/2", f"{home}/a/3"]
    assert pair["authors"] == [f"{home}/users/7", "user9", ""]
    assert pair["created"].isoformat() == "2019-05-02T10:00:00+00:00"
    assert pair["id"] == pair_id(pair["prompt"], pair["chosen"], pair["rejected"])
    meta = json.loads(pair["meta"])
    assert meta["positions"] == [f"beer.stackexchange.com/Posts.xml:{n}" for n in (3, 4, 5)]
    assert (meta["votes_chosen"], meta["votes_rejected"], meta["tags"]) == (3, -2, ["ale", "lager"])


def test_order_of_rows_changes_nothing(tmp_path):
    rows = many(30)
    for name, order in (("forth", rows), ("back", rows[::-1])):
        convert_dataset(write_dump(tmp_path / name / "in", order), tmp_path / name / "out")
    forth, back = (open_pairs(tmp_path / n / "out").drop_columns("meta") for n in ("forth", "back"))
    assert forth.equals(back)


def test_duplicate_questions_and_equal_prompts_share_a_split(tmp_path):
    rows = many(40, 3)
    ids = [r["Id"] for r in rows if r["PostTypeId"] == 1]
    for r in rows:
        if r["Id"] in (ids[30], ids[31]):
            r |= {"Title": "The same", "Body": "<p>prompt</p>"}
    links = list(pairwise(ids[:20]))
    convert_dataset(write_dump(tmp_path / "in", rows, links), tmp_path / "out", splits="train=.5,test=.5")
    groups = {}
    for split in ("train", "test"):
        for row in open_pairs(tmp_path / "out", split).to_pylist():
            groups.setdefault(row["group_id"], set()).add((split, int(row["source_id"].split("/")[1])))
    assert all(len({split for split, _ in members}) == 1 for members in groups.values())
    together = [{number for _, number in members} for members in groups.values()]
    assert set(ids[:20]) in together
    assert {ids[30], ids[31]} in together
    assert len(together) == 20  # of forty


def test_two_snapshots_of_a_site(tmp_path):
    old = write_dump(tmp_path / "old", [question(1), answer(2, 1, 1), answer(3, 1, 0)])
    new = write_dump(tmp_path / "new", [question(1), answer(2, 1, 0), answer(3, 1, 9, body="<p>Now good.</p>")])
    manifest = convert_dataset([old, new], tmp_path / "out", options={"site": "beer"}, splits="train=1")
    records, _ = ledgers(manifest)
    assert records["unused"] == {"repeated_post": 3}
    (pair,) = open_pairs(tmp_path / "out").to_pylist()
    assert pair["chosen"][0]["content"] == "Now good."
    apart = convert_dataset([old, new], tmp_path / "apart", splits="train=1")  # two sites, as far as the names tell
    assert ledgers(apart)[0]["used"] == 6


def test_checks_and_where_and_limit(tmp_path):
    rows = [
        question(1),
        answer(2, 1, 5, body="<p>same  text</p>"),
        answer(3, 1, 1, body="<p>same text</p>"),
        answer(4, 1, 0, body="<p>\u200b </p>"),
        *[r | {"Id": r["Id"] + 100} | ({"ParentId": r["ParentId"] + 100} if "ParentId" in r else {}) for r in many(9)],
    ]
    folder = write_dump(tmp_path / "in", rows)
    records, candidates = ledgers(
        convert_dataset(folder, tmp_path / "a", where="score_chosen >= 3 and set_id < 'in/120'")
    )
    assert candidates["rejected"] == {"empty_rejected": 2, "identical_pair": 1}
    assert records["unused"]["rejected_pairs"] == 4
    assert candidates["filtered"] > 0
    assert records["unused"]["filtered"] > 0
    assert min(open_pairs(tmp_path / "a")["score_chosen"].to_pylist()) >= 3
    records, _ = ledgers(convert_dataset(folder, tmp_path / "b", limit=4))
    assert records["unused"]["over_limit"] > 0
    assert len({r.split("/")[1] for r in open_pairs(tmp_path / "b")["source_id"].to_pylist()}) <= 4


@pytest.mark.parametrize(("most", "pairs"), [(None, 10), (3, 3), (12, 12), (99, 15)])
def test_how_many_pairs_a_question_keeps(tmp_path, most, pairs):
    rows = [question(1), *(answer(n, 1, 4**n) for n in range(2, 8))]
    manifest = convert_dataset(write_dump(tmp_path / "in", rows), tmp_path / "out", max_pairs=most)
    _, candidates = ledgers(manifest)
    assert (candidates["made"], candidates["pairs"], candidates["capped"]) == (15, pairs, 15 - pairs)


def test_a_prompt_of_lines_keeps_so_many_pairs_too(tmp_path):
    rows = [{"prompt": f"Why {n % 2}?", "chosen": f"Because of {n}.", "rejected": "No."} for n in range(10)]
    rows += [rows[0], {"prompt": "Alone?", "chosen": "Yes.", "rejected": "No."}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    manifest = convert_dataset(tmp_path / "in.jsonl", tmp_path / "out", max_pairs=2, splits="train=1")
    candidates = manifest.sources["pairs"]["candidates"]
    assert {k: v for k, v in candidates.items() if v} == {"made": 12, "pairs": 5, "capped": 6, "duplicate": 1}
    assert sorted(p[0]["content"] for p in open_pairs(tmp_path / "out", "train")["prompt"].to_pylist()) == [
        "Alone?", "Why 0?", "Why 0?", "Why 1?", "Why 1?"
    ]  # fmt: skip
    assert verify(tmp_path / "out") == []
    assert "--max-pairs 2" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(UserError, match="max_pairs 0"):
        convert_dataset(tmp_path / "in.jsonl", tmp_path / "none", max_pairs=0)


@pytest.fixture
def sliced(monkeypatch):
    """Slices and buckets so small that a small dump has many of each."""
    monkeypatch.setattr(plan, "SLICE_BYTES", 20_000)


def test_the_same_bytes_for_any_number_of_workers(tmp_path, sliced):
    folder = write_dump(tmp_path / "in", many(300))
    convert_dataset(folder, tmp_path / "one", workers=1)
    convert_dataset(folder, tmp_path / "two", workers=2)
    assert tree_digest(tmp_path / "one") == tree_digest(tmp_path / "two")
    assert Manifest.read(tmp_path / "one").sources[DUMP]["candidates"]["pairs"] > 1000
    assert not (tmp_path / "one/.work").exists()


def test_killed_and_run_again(tmp_path, sliced):
    folder = write_dump(tmp_path / "in", many(1500))
    convert_dataset(folder, tmp_path / "whole", workers=1)
    code = (
        "import sys; from prefkit import plan, convert_dataset\n"
        f"plan.SLICE_BYTES = {plan.SLICE_BYTES}\n"
        "convert_dataset(sys.argv[1], sys.argv[2], workers=1)"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "out")]
    killed = 0
    for phase, enough in (("map", 5), ("pair", 5)):
        process = subprocess.Popen(command)
        deadline = time.time() + 60
        while process.poll() is None and time.time() < deadline:
            if len(list(tmp_path.glob(f"out/.work/{phase}-*.json"))) >= enough:
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
                break
            time.sleep(0.002)
        process.wait()
    assert killed == 2
    assert not (tmp_path / "out/manifest.json").exists()
    with pytest.raises(UserError, match="is not finished"):
        Manifest.read(tmp_path / "out")
    log = (tmp_path / "out/_run.log").read_text()
    with pytest.raises(UserError, match="unfinished conversion"):
        convert_dataset(folder, tmp_path / "out", workers=1, seed=1)
    assert (tmp_path / "out/_run.log").read_text() == log
    marks = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out/.work/map-*.json")}
    assert marks
    subprocess.run(command, check=True)
    assert tree_digest(tmp_path / "out") == tree_digest(tmp_path / "whole")


def test_positions_are_true_in_every_slice(tmp_path, sliced):
    folder = write_dump(tmp_path / "in", many(200))
    convert_dataset(folder, tmp_path / "out")
    lines = (folder / "Posts.xml").read_text("utf-8-sig").splitlines()
    for row in open_pairs(tmp_path / "out").to_pylist():
        question_id, answers = row["source_id"].split("/")[1:]
        ids = [question_id, *answers.split("-")]
        positions = [int(p.rpartition(":")[2]) for p in json.loads(row["meta"])["positions"]]
        assert all(f'<row Id="{i}" ' in lines[n - 1] for i, n in zip(ids, positions, strict=True))


def test_datasets_and_plain_pyarrow_read_it(tmp_path):
    convert_dataset(write_dump(tmp_path / "in", many(60)), tmp_path / "out", splits="train=.6,dev=.2,test=.2")
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert list(loaded) == ["train", "dev", "test"]
    for split, data in loaded.items():
        table = open_pairs(tmp_path / "out", split)
        assert table.schema.equals(PAIRS)
        assert data.num_rows == table.num_rows > 0
        assert data[0]["prompt"] == table["prompt"][0].as_py()
        (shard,) = (tmp_path / "out" / split).glob("*.arrow")
        with pa.memory_map(str(shard)) as source:
            assert pa.ipc.open_stream(source).read_all().equals(table)


def test_an_empty_split_is_readable(tmp_path):
    manifest = convert_dataset(write_dump(tmp_path / "in", many(1)), tmp_path / "out", splits="a=.5,b=.5")
    assert any("is empty" in w for w in manifest.warnings)
    assert (
        sum(len(d) for d in datasets.load_from_disk(str(tmp_path / "out")).values())
        == open_pairs(tmp_path / "out").num_rows
    )


def test_parquet_holds_the_same(tmp_path):
    folder = write_dump(tmp_path / "in", many(30))
    convert_dataset(folder, tmp_path / "a")
    convert_dataset(folder, tmp_path / "p", format="parquet")
    assert open_pairs(tmp_path / "p", "train").cast(PAIRS).equals(open_pairs(tmp_path / "a", "train"))
    assert verify(tmp_path / "p") == []
    (count,) = duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/p/train/*.parquet' WHERE margin >= 0.5").fetchall()[0]
    assert count == open_pairs(tmp_path / "p", "train").num_rows


def test_refusals_leave_nothing_that_looks_finished(tmp_path):
    folder = write_dump(tmp_path / "in", many(3))
    convert_dataset(folder, tmp_path / "out")
    with pytest.raises(UserError, match="already holds a data set"):
        convert_dataset(folder, tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with pytest.raises(UserError, match="not empty"):
        convert_dataset(folder, tmp_path / "mine")
    for arguments in (
        {"where": "nonsense >"},
        {"splits": "a=2"},
        {"source": "nope"},
        {"options": {"sit": "x"}},
        {"limit": 0},
    ):
        with pytest.raises(UserError):
            convert_dataset(folder, tmp_path / "new", **arguments)
        assert not (tmp_path / "new").exists()


def test_an_output_that_cannot_be_written_is_told_before_inputs_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(UserError, match="cannot make the output folder"):
        convert_dataset(tmp_path / "nowhere", tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_a_data_set_finished_meanwhile_is_not_overwritten(tmp_path, monkeypatch):
    folder, make_plan = write_dump(tmp_path / "in", many(3)), convert.make_plan

    def finish_first(*arguments):
        monkeypatch.setattr(convert, "make_plan", make_plan)
        convert_dataset(folder, tmp_path / "out")
        return make_plan(*arguments)

    monkeypatch.setattr(convert, "make_plan", finish_first)
    with pytest.raises(UserError, match="already holds a data set"):
        convert_dataset(folder, tmp_path / "out", seed=1)
    assert Manifest.read(tmp_path / "out").config["seed"] == 0
    assert verify(tmp_path / "out") == []


def test_damaged_cut_and_missing_links_are_told(tmp_path):
    folder = write_dump(tmp_path / "in", many(4), [(1, 6)])
    good = (folder / "PostLinks.xml").read_bytes()
    broken = b'<row Id="8" PostId="1" RelatedPostId= /><row Id="9" PostId="1" LinkTypeId="1" />'
    states = {
        "sound": (good, {"duplicates": 1}, ""),
        "damaged": (good.replace(b"</postlinks>", broken + b"</postlinks>"), {"damaged": 1, "duplicates": 1, "other_type": 1}, "1 duplicate link damaged"),
        "cut": (good.replace(b"</postlinks>", b""), {"duplicates": 1}, "cut short"),
        "rowless": (b"<postlinks></postlinks>", {}, "no row in it"),
        "empty": (b"", {}, "no row in it"),
    }  # fmt: skip
    for name, (content, counts, warning) in states.items():
        (folder / "PostLinks.xml").write_bytes(content)
        manifest = convert_dataset(folder, tmp_path / name)
        told = [w for w in manifest.warnings if "site is unknown" not in w and "empty" not in w]
        assert manifest.links == counts, name
        assert warning in " ".join(told)
        assert bool(told) == bool(warning), (name, told)


def test_a_lone_posts_file_uses_the_links_beside_it(tmp_path):
    folder = write_dump(tmp_path / "in", many(4), [(1, 6)])
    manifest = convert_dataset(folder / "Posts.xml", tmp_path / "out", splits="train=1")
    assert manifest.links == {"duplicates": 1}
    assert [i["name"] for i in manifest.inputs] == ["Posts.xml", "PostLinks.xml"]
    assert manifest.splits["train"]["groups"] == 3
    assert open_pairs(tmp_path / "out")["subset"][0].as_py() == "in"  # "Posts" would be the name of every site
    with pytest.raises(UserError, match="links alone make no pairs"):
        convert_dataset(folder / "PostLinks.xml", tmp_path / "links")


def test_files_that_are_not_read_change_nothing(tmp_path, sliced):
    folder = write_dump(tmp_path / "in", many(60))
    convert_dataset(folder, tmp_path / "alone")
    (folder / "Comments.xml").write_bytes(b"v" * 500_000)
    convert_dataset(folder, tmp_path / "beside")
    assert tree_digest(tmp_path / "alone") == tree_digest(tmp_path / "beside")


def test_a_digest_names_slices_and_buckets(tmp_path, monkeypatch):
    folder, digests = write_dump(tmp_path / "in", many(60)), set()
    for size in (20_000, 30_000):
        monkeypatch.setattr(plan, "SLICE_BYTES", size)
        digests.add(plan.make_plan(folder, tmp_path / "work", plan.Settings()).digest)
    assert len(digests) == 2


def test_an_input_twice_is_refused(tmp_path):
    folder = write_dump(tmp_path / "in", many(3))
    for again in (folder, tmp_path / "in" / ".." / "in"):
        with pytest.raises(UserError, match="given twice"):
            convert_dataset([folder, again], tmp_path / "out")
    with pytest.raises(UserError, match="in two inputs"):
        convert_dataset([folder, folder / "Posts.xml"], tmp_path / "out")


def test_a_number_that_no_column_holds_is_refused(tmp_path):
    rows = [*many(2), answer(90, 1, 2**63), answer(2**64, 1, 1)]
    records, _ = ledgers(convert_dataset(write_dump(tmp_path / "in", rows), tmp_path / "out"))
    assert records["rejected"] == {"implausible_id": 1, "missing_number": 1}


def test_after_a_crash_the_same_command_goes_on(tmp_path, monkeypatch):
    folder = write_dump(tmp_path / "in", many(9))
    convert_dataset(folder, tmp_path / "whole")
    with monkeypatch.context() as m:
        m.setattr(convert, "publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            convert_dataset(folder, tmp_path / "out")
    convert_dataset(folder, tmp_path / "out")
    assert tree_digest(tmp_path / "out") == tree_digest(tmp_path / "whole")


def test_no_machine_in_what_is_published(tmp_path):
    convert_dataset(write_dump(tmp_path / "in", many(20)), tmp_path / "out")
    for name in tree_digest(tmp_path / "out"):
        assert str(tmp_path).encode() not in (tmp_path / "out" / name).read_bytes(), name


@pytest.mark.parametrize("kind", ["pairs", "dump"])
def test_an_input_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, kind):
    """Its digest in the manifest would be of other bytes."""
    if kind == "dump":
        given = write_dump(tmp_path / "in", many(9))
        file = given / "Posts.xml"
    else:
        given = file = tmp_path / "in.jsonl"
        file.write_text(json.dumps({"prompt": "Why?", "chosen": "Because of that.", "rejected": "No."}) + "\n")
    real = convert.prepare

    def prepare(plan):
        with file.open("ab") as f:
            f.write(b"\n")
        real(plan)

    monkeypatch.setattr(convert, "prepare", prepare)
    with pytest.raises(UserError, match="changed while it was read"):
        convert_dataset(given, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(convert, "prepare", real)
    convert_dataset(given, tmp_path / "out")
