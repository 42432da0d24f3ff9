"""Files of pairs: shapes, refusals, and the published Stack Exchange set."""

import csv
import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from prefkit import convert_dataset, open_pairs
from prefkit.checks import CHECKS
from prefkit.cli import app, run
from prefkit.errors import UserError
from prefkit.ledgers import ledgers_out_of_balance
from prefkit.sources import SOURCES, get_source, source_options

U, A, S = ({"role": r} for r in ("user", "assistant", "system"))
ROW = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
WHOLE = [U | {"content": "Why?"}]


def converted(tmp_path, rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), "utf-8")
    manifest = convert_dataset(path, tmp_path / "out", source="pairs", splits="train=1", options=options)
    assert ledgers_out_of_balance(manifest.sources["pairs"]) == []
    return manifest, open_pairs(tmp_path / "out").to_pylist()


SHAPES = {
    "strings": ROW,
    "messages": {"prompt": WHOLE, "chosen": [A | {"content": "Because."}], "rejected": [A | {"content": "No."}]},
    "implicit": {"chosen": [*WHOLE, A | {"content": "Because."}], "rejected": [*WHOLE, A | {"content": "No."}]},
    "repeated prompt": {"prompt": WHOLE, "chosen": [*WHOLE, A | {"content": "Because."}], "rejected": [*WHOLE, A | {"content": "No."}]},
    "sharegpt": {
        "prompt": [{"from": "human", "value": "Why?"}],
        "chosen": {"from": "gpt", "value": "Because."},
        "rejected": {"from": "gpt", "value": "No."},
    },
    "typed parts": {
        "prompt": [U | {"content": [{"type": "text", "text": "Why?"}]}],
        "chosen": [A | {"content": [{"type": "text", "value": "Because."}]}],
        "rejected": [A | {"content": "No."}],
    },
}  # fmt: skip


@pytest.mark.parametrize("row", SHAPES.values(), ids=SHAPES)
def test_shapes(tmp_path, row):
    _, (pair,) = converted(tmp_path, [row])
    assert pair["prompt"] == [{"role": "user", "content": "Why?"}]
    assert pair["chosen"] == [{"role": "assistant", "content": "Because."}]
    assert pair["rejected"] == [{"role": "assistant", "content": "No."}]
    assert json.loads(pair["meta"])["positions"] == ["rows.jsonl:1"]


def test_an_implicit_prompt_ends_with_the_last_shared_user_turn(tmp_path):
    talk = [U | {"content": "Hi"}, A | {"content": "Hello"}, U | {"content": "Why?"}]
    row = {"chosen": [*talk, A | {"content": "a"}], "rejected": [*talk, A | {"content": "b"}]}
    _, (pair,) = converted(tmp_path, [row])
    assert [m["content"] for m in pair["prompt"]] == ["Hi", "Hello", "Why?"]


REFUSED = {
    "missing_text": {"prompt": "a", "chosen": "b"},
    "missing_prompt": {"chosen": "b", "rejected": "c"},
    "prompt_mismatch": {"prompt": WHOLE, "chosen": [U | {"content": "Who?"}, A | {"content": "b"}], "rejected": "c"},
    "bad_message": {"prompt": "a", "chosen": [{"text": "b"}], "rejected": "c"},
    "malformed_record": '{"prompt": "a", ',
    "bad_number": ROW | {"margin": "much"},
    "huge number": ROW | {"margin": 10**400},
    "endless integer": '{"prompt": ' + "9" * 5000 + "}",
}  # fmt: skip
UNSOUND = {
    "empty_prompt": ROW | {"prompt": " \n\u200b"},
    "empty_chosen": ROW | {"chosen": ""},
    "empty_rejected": ROW | {"rejected": "\ufeff"},
    "identical_pair": ROW | {"chosen": "Caf\u00e9  au lait", "rejected": "Cafe\u0301 au\nlait "},
    "bad_role": ROW | {"prompt": [{"role": "critic", "content": "x"}]},
    "lone surrogate": ROW | {"prompt": [{"role": "cri\ud83dtic", "content": "x"}]},
    "role_alternation": ROW | {"prompt": [U | {"content": "a"}, U | {"content": "b"}]},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_records_are_kept_raw(tmp_path, reason):
    bad = REFUSED[reason]
    reason = {"huge number": "bad_number", "endless integer": "malformed_record"}.get(reason, reason)
    manifest, pairs = converted(tmp_path, [bad, ROW])
    assert manifest.sources["pairs"]["records"]["rejected"] == {reason: 1}
    assert len(pairs) == 1
    (reject,) = (
        pa.ipc.open_stream(pa.memory_map(str(tmp_path / "out/_rejects/data-00000-of-00001.arrow")))
        .read_all()
        .to_pylist()
    )
    assert (reject["reason"], reject["position"], reject["kind"]) == (reason, "rows.jsonl:1", "record")
    assert (reject["raw"] if isinstance(bad, str) else json.loads(reject["raw"])) == (
        bad.strip() if isinstance(bad, str) else bad
    )


@pytest.mark.parametrize("packed", [False, True])
def test_equal_scores_are_ties(tmp_path, packed):
    rows = [ROW | {"prompt": f"Why {n}?", "score_chosen": n, "score_rejected": 3} for n in (3, 4)]
    rows.append(ROW | {"prompt": "And?", "score_chosen": 3, "score_rejected": 3, "p_chosen": 0.7})  # says which
    path = tmp_path / f"rows.{'parquet' if packed else 'jsonl'}"
    if packed:
        pq.write_table(pa.Table.from_pylist([r | {"p_chosen": r.get("p_chosen")} for r in rows]), path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    manifest = convert_dataset(path, tmp_path / "out", splits="train=1")
    ledgers = manifest.sources["pairs"]
    assert (ledgers["candidates"]["ties"], ledgers["candidates"]["pairs"]) == (1, 2)
    assert ledgers["records"]["unused"] == {"only_ties": 1}


@pytest.mark.parametrize("packed", [False, True])
def test_pairs_with_tools_are_refused_for_they_would_lose_them(tmp_path, packed):
    call = A | {"content": "Let me see.", "tool_calls": [{"name": "look"}]}
    rows = [
        {"prompt": WHOLE, "chosen": [call], "rejected": [A | {"content": "No.", "tool_calls": []}]},
        SHAPES["messages"] | {"tools": [{"name": "look"}]},
        SHAPES["messages"] | {"tools": []},
    ]
    as_json = [ROW | {"tools": t} for t in ('[{"name": "look"}]', "[]", None)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps(r) + "\n" for r in as_json))
    pq.write_table(pa.Table.from_pylist(as_json), tmp_path / "text.parquet")
    for name in ("text.jsonl", "text.parquet"):
        ledgers = convert_dataset(tmp_path / name, tmp_path / f"{name}.out", splits="train=1").sources["pairs"]
        assert ledgers["records"] == {"read": 3, "used": 2, "unused": {}, "rejected": {"tools_unsupported": 1}}
    path = tmp_path / f"rows.{'parquet' if packed else 'jsonl'}"
    if packed:
        pq.write_table(pa.Table.from_pylist([r | {"tools": r.get("tools", [])} for r in rows]), path)
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    manifest = convert_dataset(path, tmp_path / "out", splits="train=1")
    assert manifest.sources["pairs"]["records"]["rejected"] == {"tools_unsupported": 2}
    assert manifest.sources["pairs"]["candidates"]["pairs"] == 1


@pytest.mark.parametrize("reason", UNSOUND)
def test_refused_pairs(tmp_path, reason):
    manifest, pairs = converted(tmp_path, [UNSOUND[reason], ROW])
    ledgers = manifest.sources["pairs"]
    assert ledgers["candidates"]["rejected"] == {"bad_role" if reason == "lone surrogate" else reason: 1}
    assert ledgers["records"]["unused"] == {"rejected_pairs": 1}
    assert len(pairs) == 1


def test_broken_characters_are_repaired_and_counted(tmp_path):
    row = ROW | {"chosen": "a\ud83db\x00c\x1bd\r\ne\ud83c\udf6e"}
    manifest, (pair,) = converted(tmp_path, [row])
    assert pair["chosen"][0]["content"] == "a\ufffdbcd\ne\U0001f36e"
    assert manifest.repairs == {"carriage_return": 1, "control_character": 1, "lone_surrogate": 1}


def test_columns_scores_system_and_groups(tmp_path):
    rows = [
        {"q": f"prompt {i}", "good": "a", "bad": "b", "system": "Be brief.", "margin": 0.5, "p_chosen": "0.75", "thread": "t", "note": i}
        for i in range(8)
    ]  # fmt: skip
    _, pairs = converted(tmp_path, rows, prompt="q", chosen="good", rejected="bad", group="thread")
    assert len({p["group_id"] for p in pairs}) == 1
    assert pairs[0]["prompt"][0] == {"role": "system", "content": "Be brief."}
    assert (pairs[0]["margin"], pairs[0]["p_chosen"]) == (0.5, 0.75)
    assert sorted(json.loads(p["meta"])["note"] for p in pairs) == list(range(8))


def test_no_system_message_is_lost(tmp_path):
    told = {"role": "system", "content": "Be brief."}
    rows = [
        ROW | {"prompt": "text", "first": "Be brief."},
        ROW | {"prompt": "messages", "first": [told]},
        ROW | {"prompt": "as JSON", "first": json.dumps([told])},
        ROW | {"prompt": "none", "first": ""},
        ROW | {"prompt": "null", "first": None},
        ROW | {"prompt": [told, U | {"content": "its own, the same"}], "first": "Be brief."},
        ROW | {"prompt": [S | {"content": "Be long."}, U | {"content": "its own"}], "first": "Be brief."},
        ROW | {"prompt": "no system", "first": [U | {"content": "x"}]},
        ROW | {"prompt": "a number", "first": 7},
    ]
    manifest, pairs = converted(tmp_path, rows, system="first")
    assert manifest.sources["pairs"]["records"]["rejected"] == {"bad_message": 2}
    found = {p["prompt"][-1]["content"]: p for p in pairs}
    assert len(found) == 7
    for asked in ("text", "messages", "as JSON", "its own, the same"):
        assert found[asked]["prompt"][:-1] == [told]
        assert "first" not in json.loads(found[asked]["meta"])
    for asked in ("none", "null"):
        assert len(found[asked]["prompt"]) == 1
    assert found["its own"]["prompt"][0]["content"] == "Be long."
    assert json.loads(found["its own"]["meta"])["first"] == "Be brief."


def test_a_bom_inside_a_csv_cell_stays(tmp_path):
    (tmp_path / "rows.csv").write_bytes('\ufeffprompt,chosen,rejected\r\nq,"one é\n\ufefftwo é",b\r\n'.encode())
    convert_dataset(
        tmp_path / "rows.csv", tmp_path / "out", source="pairs", splits="train=1", checks={"too_short": "off"}
    )
    (pair,) = open_pairs(tmp_path / "out").to_pylist()
    assert pair["chosen"][0]["content"] == "one é\n\ufefftwo é"


@pytest.mark.parametrize("name", ["prompt", "system", "group"])
def test_a_named_column_that_is_absent_refuses_the_record(tmp_path, name):
    talk = {k: [*WHOLE, A | {"content": k}] for k in ("chosen", "rejected")}
    manifest, pairs = converted(tmp_path, [talk, talk | {"it": WHOLE if name == "prompt" else "x"}], **{name: "it"})
    assert manifest.sources["pairs"]["records"]["rejected"] == {f"missing_{name}": 1}
    assert len(pairs) == 1


def test_exact_duplicates_stay_once(tmp_path):
    manifest, pairs = converted(tmp_path, [ROW, ROW, ROW | {"chosen": "Other."}])
    assert manifest.sources["pairs"]["candidates"]["duplicate"] == 1
    assert len(pairs) == 2
    assert len({p["group_id"] for p in pairs}) == 1  # one prompt


def write_json(path, rows):
    path.write_text(json.dumps(rows))


def write_jsonl_gz(path, rows):
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))


def write_jsonl_zst(path, rows):
    path.write_bytes(zstandard.compress("\n".join(map(json.dumps, rows)).encode()))


def write_csv(path, rows):
    with path.open("w", newline="") as f:
        out = csv.DictWriter(f, rows[0])
        out.writeheader()
        out.writerows(rows)


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_arrow(path, rows):
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), table.schema) as out:
        out.write_table(table)


FILES = {"a.json": write_json, "a.jsonl.gz": write_jsonl_gz, "a.jsonl.zst": write_jsonl_zst}
FILES |= {"a.csv": write_csv, "a.parquet": write_parquet, "a.arrow": write_arrow}


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path, name):
    rows = [{"prompt": f"line one\nline two, {i}", "chosen": 'say "yes"', "rejected": "no"} for i in range(5)]
    FILES[name](tmp_path / name, rows)
    convert_dataset(tmp_path / name, tmp_path / "out", splits="train=1")
    found = open_pairs(tmp_path / "out").to_pylist()
    assert sorted(p["prompt"][0]["content"] for p in found) == [r["prompt"] for r in rows]
    cut = tmp_path / f"cut.{name}"
    cut.write_bytes((tmp_path / name).read_bytes()[:60])
    if name != "a.csv":
        with pytest.raises(UserError, match="cannot read"):
            convert_dataset(cut, tmp_path / "cut")
        assert not (tmp_path / "cut/manifest.json").exists()


def test_json_lines_under_a_json_name_are_cut_at_line_feeds_alone(tmp_path):
    rows = [ROW | {"prompt": f"{i}: a\u2028b\u0085c"} for i in range(3)]
    (tmp_path / "a.json").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), "utf-8")
    manifest = convert_dataset(tmp_path / "a.json", tmp_path / "out", splits="train=1")
    assert manifest.sources["pairs"]["records"] == {"read": 3, "used": 3, "unused": {}, "rejected": {}}


def test_times_in_nanoseconds_are_read_with_and_without_pandas(tmp_path):
    when = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    nested = pa.StructArray.from_arrays([pa.array([[1]], pa.list_(pa.duration("ns")))], ["took"])
    talk = {side: pa.array([SHAPES["messages"][side]]) for side in ("prompt", "chosen", "rejected")}
    empty = pa.array([[]], talk["chosen"].type)  # a reject, whose raw record is kept
    table = pa.table(talk | {"when": when, "more": nested})
    pq.write_table(pa.concat_tables([table, table.set_column(1, "chosen", empty)]), tmp_path / "rows.parquet")
    made = convert_dataset(tmp_path / "rows.parquet", tmp_path / "with", splits="train=1")
    command = [sys.executable, "-m", "prefkit.cli", "convert", tmp_path / "rows.parquet", "--out", tmp_path / "without"]
    subprocess.run([*map(str, command), "--splits", "train=1"], check=True, capture_output=True)
    ledger = made.sources["pairs"]
    assert (ledger["records"]["used"], ledger["records"]["rejected"]) == (1, {"missing_text": 1})
    for kept in sorted((tmp_path / "with").rglob("*.arrow")):
        assert kept.read_bytes() == (tmp_path / "without" / kept.relative_to(tmp_path / "with")).read_bytes()


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv"])
def test_invalid_utf8_in_files_is_replaced_and_counted(tmp_path, name):
    row = ROW | {"prompt": "caf\u00e9 \u00fc"}
    if name == "a.csv":
        write_csv(tmp_path / name, [row])
    else:
        (tmp_path / name).write_text(json.dumps(row, ensure_ascii=False), "utf-8")
    good = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(good.replace("\u00e9".encode(), b"\xe9"))
    manifest = convert_dataset(tmp_path / name, tmp_path / "out", splits="train=1")
    assert open_pairs(tmp_path / "out")["prompt"][0].as_py()[0]["content"] == "caf\ufffd \u00fc"
    assert manifest.repairs == {"invalid_utf8": 1}


UNREADABLE = {
    "gz whose stream is damaged": ("a.jsonl.gz", gzip.compress(b"{}" * 9)[:10] + b"\xff" * 40),
    "deep JSON": ("a.json", b"[" * 200_000),
    "an endless integer": ("a.json", b"[" + b"9" * 5000 + b"]"),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_unreadable_files_are_the_users_error(tmp_path, what):
    name, content = UNREADABLE[what]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="cannot read the file"):
        convert_dataset(tmp_path / name, tmp_path / "out", source="pairs")


def test_limit_is_the_first_records(tmp_path):
    write_json(tmp_path / "a.json", [ROW | {"prompt": str(i)} for i in range(9)])
    write_json(tmp_path / "b.json", [ROW | {"prompt": str(i)} for i in range(9, 20)])
    manifest = convert_dataset([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "out", limit=12)
    assert manifest.sources["pairs"]["records"]["read"] == 12


def transcript(*turns: dict) -> str:
    """As HH writes conversations."""
    return "".join(f"\n\n{'Human' if m['role'] == 'user' else 'Assistant'}: {m['content']}" for m in turns)


def test_transcripts_are_conversations(tmp_path):
    begin = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nI mean: why?"
    rows = [
        {"chosen": f"{begin}\n\nAssistant: Because.", "rejected": f"{begin}\n\nAssistant: No.\nHuman: x"},
        {"chosen": f"{begin}\n\nAssistant: Because.", "rejected": f"{begin}\n\nAssistant:"},
        {"chosen": f"{begin}\n\nHuman: Well?\n\nAssistant: Because.", "rejected": f"{begin}\n\nAssistant: No."},
        {"chosen": "Because.", "rejected": "No."},
        {"prompt": "Why?", "chosen": f"{begin}\n\nAssistant: Because.", "rejected": "No."},
    ]
    manifest, (asked, quoted) = converted(tmp_path, rows)
    assert asked["prompt"] == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Why?\n\nI mean: why?"},
    ]
    assert asked["chosen"] == [{"role": "assistant", "content": "Because."}]
    assert asked["rejected"] == [{"role": "assistant", "content": "No.\nHuman: x"}]
    assert quoted["chosen"][0]["content"] == rows[4]["chosen"]  # beside a prompt, a text is what it is
    assert manifest.sources["pairs"]["candidates"]["rejected"] == {"empty_rejected": 1, "role_alternation": 1}
    assert manifest.sources["pairs"]["records"]["rejected"] == {"missing_prompt": 1}


def test_real_transcripts_written_back_are_what_was_read(real_data, tmp_path):
    file = real_data / "pairs/hh-rlhf/harmless-base.test.jsonl.gz"
    with gzip.open(file) as f:
        rows = [json.loads(line) for line in f]
    manifest = convert_dataset(file, tmp_path / "out", splits="train=1")
    pairs = open_pairs(tmp_path / "out").to_pylist()
    assert manifest.sources["pairs"]["candidates"]["rejected"]["empty_chosen"] == 4  # as SOURCE.md counts them
    assert len(pairs) == len(rows) - 13
    for pair in pairs:
        row = rows[int(json.loads(pair["meta"])["positions"][0].rpartition(":")[2]) - 1]
        assert pair["prompt"][-1]["role"] == "user"
        for side in ("chosen", "rejected"):
            assert transcript(*pair["prompt"], *pair[side]) == row[side]


PAIRED = {
    "qid": 7,
    "question": "Why?",
    "date": "2013/04/05",
    "metadata": ["https://unix.stackexchange.com/questions/7", "https://unix.stackexchange.com", "https://unix.stackexchange.com/users/1/"],
    "response_j": "Because.",
    "response_k": "No.",
}  # fmt: skip


def test_stack_exchange_paired(tmp_path):
    base = tmp_path / "stack-exchange-paired" / "data"
    for folder, qids in (("reward", (7, 8)), ("rl", (7, 9))):
        (base / folder).mkdir(parents=True)
        write_parquet(
            base / folder / "train-00000-of-00001.parquet",
            [PAIRED | {"qid": q, "response_j": f"{folder} {q}"} for q in qids],
        )
    manifest = convert_dataset(tmp_path / "stack-exchange-paired", tmp_path / "out", splits="train=1")
    pairs = {p["chosen"][0]["content"]: p for p in open_pairs(tmp_path / "out").to_pylist()}
    assert len(pairs) == 4
    assert pairs["reward 7"]["group_id"] == pairs["rl 7"]["group_id"]
    one = pairs["reward 7"]
    assert (one["subset"], one["source_id"], one["urls"][0]) == ("unix", "unix/7", PAIRED["metadata"][0])
    assert one["created"].year == 2013
    assert one["score_chosen"] is None
    assert manifest.config["source"] == "stack-exchange-paired"
    only = convert_dataset(base, tmp_path / "rl", source="stack-exchange-paired", options={"folders": "rl"})
    assert only.sources["stack-exchange-paired"]["records"]["read"] == 2


def test_what_a_file_holds_tells_its_source_before_its_name(tmp_path):
    """The published set under any name, other pairs under its name, and folders of both."""
    (tmp_path / "reward").mkdir()
    (tmp_path / "mine").mkdir()
    write_parquet(tmp_path / "reward" / "train-00000-of-00001.parquet", [PAIRED])
    write_json(tmp_path / "questions.json", [PAIRED])
    write_json(tmp_path / "stack_exchange_paired.json", [ROW])
    write_json(tmp_path / "mine" / "rows.json", [ROW])
    told = {"reward": "stack-exchange-paired", "questions.json": "stack-exchange-paired"}
    told |= {"stack_exchange_paired.json": "pairs", "mine": "pairs"}
    for number, (name, source) in enumerate(told.items()):
        manifest = convert_dataset(tmp_path / name, tmp_path / f"out{number}", splits="train=1")
        assert manifest.config["source"] == source, name
    with pytest.raises(UserError, match="this is a data set already"):
        convert_dataset(tmp_path / "out0", tmp_path / "again")


def test_the_published_slice(real_data, tmp_path):
    manifest = convert_dataset(
        real_data / "pairs/stack-exchange-paired/stack_exchange_paired_tiny.json", tmp_path / "out"
    )
    assert manifest.sources["stack-exchange-paired"]["records"] == {
        "read": 25,
        "used": 25,
        "unused": {},
        "rejected": {},
    }
    assert sum(s["groups"] for s in manifest.splits.values()) == 8


def test_options_are_checked_and_coerced():
    source = get_source("stack-exchange-dump")
    assert source_options(source, {"keep_answer_bot": "true", "site": "beer"}).keep_answer_bot is True
    with pytest.raises(UserError, match="did you mean 'site'"):
        source_options(source, {"sitee": "beer"})
    with pytest.raises(UserError, match="is not true or false: give true or false"):
        source_options(source, {"keep_answer_bot": "perhaps"})


def test_every_source_and_check_is_documented():
    page = (Path(__file__).parents[2] / "docs/convert.md").read_text("utf-8")
    assert [n for n in (*SOURCES, *CHECKS) if f"`{n}`" not in page] == []
    assert [n for n, check in CHECKS.items() if f"\n| `{n}` | {check.severity} | " not in page] == []
    for name in SOURCES:
        source = get_source(name)
        assert source.name == name
        assert source.join is not None or source.to_pairs is not None


def test_several_responses_become_the_pairs_of_a_set_in_order(tmp_path):
    styles = {"prompt": "Why?", "chosen": ["c1", "c2", "c3"], "rejected": ["r1", "r2", "r3"], "id": "q7"}
    best_of_four = {"prompt": "How?", "chosen": ["good"], "rejected": ["bad", "worse", "worst"]}
    other = best_of_four | {"chosen": ["fine"]}
    messages = {"prompt": WHOLE, "chosen": [[A | {"content": "yes"}]], "rejected": [[A | {"content": c}] for c in "no"]}
    manifest, pairs = converted(tmp_path, [styles, best_of_four, other, messages, ROW])
    assert manifest.sources["pairs"]["candidates"]["made"] == 9 + 3 + 3 + 2 + 1
    sets: dict = {}
    for pair in pairs:
        sets.setdefault(pair["set_id"], []).append((pair["chosen"][0]["content"], pair["rejected"][0]["content"]))
    assert sets.pop(None) == [("Because.", "No.")]
    assert sets.pop("pairs/q7") == [(f"c{i}", f"r{j}") for i in (1, 2, 3) for j in (1, 2, 3)]
    assert sorted(len(s) for s in sets.values()) == [2, 3, 3]
    named = [ROW | {"chosen": c, "set_id": 4} for c in ("a", "b")]
    (tmp_path / "x").mkdir()
    _, pairs = converted(tmp_path / "x", named)
    assert {p["set_id"] for p in pairs} == {"pairs/4"}


def test_one_record_with_a_message_list_is_no_wrapper(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(ROW | {"prompt": WHOLE}))
    (tmp_path / "wrapped.json").write_text(json.dumps({"version": 1, "data": [ROW | {"prompt": WHOLE}]}))
    for name in ("one", "wrapped"):
        manifest = convert_dataset(tmp_path / f"{name}.json", tmp_path / name, splits="train=1")
        assert manifest.sources["pairs"]["candidates"]["pairs"] == 1


def test_a_data_set_in_the_folder_is_no_input(tmp_path):
    folder = tmp_path / "in"
    (folder / "x.jsonl").mkdir(parents=True)  # a folder, whatever its name
    for name in ("a.jsonl", "sub/b.jsonl", ".hidden/c.jsonl", "._a.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(ROW | {"prompt": name}) + "\n")
    first = convert_dataset(folder, folder / "one")
    (folder / "cut/.work").mkdir(parents=True)
    (folder / "cut/.work/read-000000.jsonl").write_text("{}")
    second = convert_dataset(folder, folder / "two")
    assert [i["name"] for i in first.inputs] == ["in/a.jsonl", "in/sub/b.jsonl"]
    assert second.inputs == first.inputs


def test_folders_of_the_published_set_are_named_as_they_are(tmp_path):
    for name in ("reward", "rl"):
        (tmp_path / "set" / name).mkdir(parents=True)
        row = {"qid": 1, "question": f"{name}?", "response_j": "so it is", "response_k": "it is not"}
        (tmp_path / "set" / name / "x.jsonl").write_text(json.dumps(row) + "\n")
    arguments = {"source": "stack-exchange-paired", "splits": "train=1"}
    both = convert_dataset(tmp_path / "set", tmp_path / "out", options={"folders": "reward, rl"}, **arguments)
    assert both.sources["stack-exchange-paired"]["records"]["read"] == 2
    with pytest.raises(UserError, match="no folder 'rewrd' with files in it"):
        convert_dataset(tmp_path / "set", tmp_path / "new", options={"folders": "rewrd,rl"}, **arguments)


@pytest.mark.parametrize("workers", [1, 2])
def test_files_of_which_no_pair_came_are_told(tmp_path, workers):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, rows in {"a": [ROW], "b": [{"question": "Why?", "best": "x"}], "c": []}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    manifest = convert_dataset(folder, tmp_path / "out", splits="train=1", workers=workers)
    assert manifest.warnings == ["no pair was made of it (2 of the inputs: in/b.jsonl, in/c.jsonl)"]


def test_files_of_a_folder_that_are_not_read_are_told(tmp_path):
    folder = tmp_path / "set"
    (folder / "more").mkdir(parents=True)
    row = {"prompt": "Why is it so?", "chosen": "Because of the tide, of course.", "rejected": "I do not know that."}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    assert convert_dataset(folder, tmp_path / "quiet", splits="train=1").warnings == []
    for name in ("README.md", "more/rows.xlsx", "a.txt", "b.txt", ".hidden", "_notes"):
        (folder / name).write_text("x")
    (warning,) = convert_dataset(folder, tmp_path / "out", splits="train=1").warnings
    assert warning == "not read, as the names tell no format: 4 files of set, README.md, a.txt, b.txt …"


def test_a_split_of_a_data_set_is_no_input_and_what_datasets_notes_is_no_record(tmp_path):
    row = {"prompt": "Why is it so?", "chosen": "Because of the tide, of course.", "rejected": "I do not know that."}
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    convert_dataset(tmp_path / "in.jsonl", tmp_path / "data", splits="train=1")
    with pytest.raises(UserError, match="this is a split of a data set already"):
        convert_dataset(tmp_path / "data/train", tmp_path / "out")
    shutil.copytree(tmp_path / "data/train", tmp_path / "saved")  # as `datasets` saves one split
    manifest = convert_dataset(tmp_path / "saved", tmp_path / "out", splits="train=1")
    assert manifest.sources["pairs"]["records"] == {"read": 1, "used": 1, "unused": {}, "rejected": {}}
    assert manifest.warnings == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("in.csv", "prompt;chosen;rejected\na;b;c\n", "stand apart by ';', a .csv needs commas"),
        (
            "in.jsonl",
            '{"prompt": "a", "completion": "b", "label": true}',
            "one response a record, with its '?label'?, is no",
        ),
        ("in.jsonl", '{"id": 1, "prompt": {"text": "a"}}', "what no column holds has to be written first"),
        ("in.jsonl", '{"question": "a", "output_1": "b", "output_2": "c", "label": 2}', "'?label'? seems to say which"),
    ],
)
def test_what_is_nearly_pairs_is_told_what_it_lacks(tmp_path, name, text, said, capsys):
    (tmp_path / name).write_text(text)
    assert run(app, ["convert", str(tmp_path / name), "--out", str(tmp_path / "out"), "--source", "pairs"]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_label_beside_the_columns_that_were_named_is_warned_of(tmp_path):
    row = {"input": "Why is it so?", "output_1": "Because of the tide, of course.", "output_2": "I do not know that."}
    (tmp_path / "in.jsonl").write_text(json.dumps(row | {"label": 2}) + "\n")
    named = {"prompt": "input", "chosen": "output_1", "rejected": "output_2"}
    manifest = convert_dataset(tmp_path / "in.jsonl", tmp_path / "out", options=named, splits="train=1")
    said = "the column label is not read, output_1 is taken for better than output_2 in every record: is that so?"
    assert manifest.warnings == [said]
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    assert convert_dataset(tmp_path / "in.jsonl", tmp_path / "none", options=named, splits="train=1").warnings == []
