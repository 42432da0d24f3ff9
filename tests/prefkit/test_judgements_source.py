"""Judgements become pairs: majority, soft labels, ties and what says nothing, with a balanced ledger."""

import json
import time
import uuid
from contextlib import closing

import pytest
from sqlalchemy import select

from prefkit import convert_dataset
from prefkit.cli import app
from prefkit.cli import run as run_cli
from prefkit.errors import UserError
from prefkit.judgements import snapshot as snapshot_module
from prefkit.judgements import tables
from prefkit.judgements.drafts import drafts_of_file, drafts_of_pairs
from prefkit.judgements.items import Draft, Judgement, Response, item_id
from prefkit.judgements.snapshot import snapshot
from prefkit.judgements.store import Store
from prefkit.schema import PAIRS
from prefkit.shards import Manifest, open_pairs
from prefkit.sources import Slice, Tie, Unused, source_options
from prefkit.sources.judgements import SOURCE
from prefkit.stats import describe
from prefkit.stats_text import lines


def text(words, role="assistant"):
    return [{"role": role, "content": words}]


DRAFT = Draft(
    text("Why is the sky blue?", "user"),
    [Response(text("Rayleigh."), "m1", {"license": "CC BY-SA 4.0", "author": "R"}), Response(text("Paint."), "m2")],
    "sky/1",
    {"license": "CC BY-SA 3.0", "subset": "sky"},
)


def judged(tmp_path, votes, drafts=(DRAFT,), kind="person", name="labels.db"):
    """A file in which judge n gave votes[n] to the first draft: right, wrong, tie or skip."""
    judge(str(tmp_path / name), votes, drafts, kind)
    return tmp_path / name


def judge(db, votes, drafts=(DRAFT,), kind="person"):
    store = Store(db)
    batch = store.add_batch("labels", "test", drafts).batch_id
    item = store.item(item_id(drafts[0]))
    right = item.responses.index(drafts[0].responses[0].messages)
    for n, vote in enumerate(votes):
        winner = {"right": right, "wrong": 1 - right}.get(vote)
        outcome = vote if winner is None else "better"
        store.record(
            store.judge(f"judge {n}", kind), Judgement(str(uuid.uuid4()), batch, item.id, (0, 1), outcome, winner)
        )
    store.close()


@pytest.mark.parametrize(("splits", "count"), [("train=.5,test=.5", 1), ("test=1", 0)])
def test_convert_tells_that_splits_are_not_carried_over(tmp_path, splits, count):
    manifest = convert_dataset(judged(tmp_path, ["right"]), tmp_path / "out", splits=splits)
    assert sum("not carried over" in w for w in manifest.warnings) == count


def test_a_store_on_a_server_is_converted_as_its_copy_in_a_file(tmp_path, postgres, monkeypatch, capsys):
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))
    other = Draft(text("And grass?", "user"), [Response(text("Green.")), Response(text("Chlorophyll."))], "grass/1")
    votes = ["right", "wrong", "right", "tie", "skip"]
    for db in (str(tmp_path / "labels.db"), postgres):
        judge(db, votes, [DRAFT, other])
        judge(db, ["wrong"], [other])
    of_file = convert_dataset(tmp_path / "labels.db", tmp_path / "file", splits="train=1")
    assert run_cli(app, ["convert", postgres, "--out", str(tmp_path / "server"), "--splits", "train=1"]) == 0
    made = [open_pairs(tmp_path / name, "train").drop_columns(["created", "meta"]) for name in ("file", "server")]
    assert made[0].equals(made[1])
    assert made[0].num_rows == 2
    of_server = Manifest.read(tmp_path / "server")
    assert of_server.sources == of_file.sources
    folder = tmp_path / "cache/judgements"
    first = snapshot(postgres, folder)
    assert snapshot(postgres, folder) == first
    judge(postgres, ["right"] * 6)  # of judge 5, who had not voted
    assert snapshot(postgres, folder) != first
    assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []
    assert folder.stat().st_mode & 0o77 == 0
    assert run_cli(app, ["convert", postgres, "--out", str(tmp_path / "none"), "--where", "margin > 9"]) == 2
    said = capsys.readouterr()
    assert "not one pair came out" in said.err
    kept = "".join(p.read_text(errors="replace") for p in (tmp_path / "server").rglob("*") if p.is_file())
    assert "hush-hush" not in said.out + said.err + kept


def test_a_copy_of_a_store_has_every_row_of_one_moment(tmp_path, postgres, monkeypatch):
    many = [
        Draft(text(f"q{n}", "user"), [Response(text(f"a{n}")), Response(text(f"b{n}"))], f"g{n}") for n in range(700)
    ]
    judge(postgres, ["right"], many)
    plain = snapshot_module._copy

    def copy(source, target):
        list(source.execute(select(tables.judge)))  # the moment
        judge(postgres, ["wrong", "wrong"], many)
        return plain(source, target)

    monkeypatch.setattr(snapshot_module, "_copy", copy)
    copied = Store(str(snapshot(postgres, tmp_path)), create=False)
    counts = {
        table.name: len(list(copied.engine.connect().execute(select(table))))
        for table in (tables.item, tables.producer, tables.batch_item, tables.judgement)
    }
    copied.close()
    assert counts == {"item": 700, "producer": 1400, "batch_item": 700, "judgement": 1}


def test_a_store_without_rows_and_one_that_may_not_be_read(tmp_path, postgres, monkeypatch):
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))
    Store(postgres).close()
    with closing(Store(str(snapshot(postgres, tmp_path / "copies")), create=False)) as copied:
        assert not copied.has_unsettled()
    with closing(Store(postgres)) as store, store.engine.begin() as c:
        c.exec_driver_sql("CREATE ROLE reader LOGIN")
        c.exec_driver_sql("GRANT SELECT ON item, schema_version TO reader")
    with pytest.raises(UserError, match=r"cannot copy the database: permission denied .*reader:\*\*\*@"):
        snapshot(postgres.replace("postgres:hush-hush@", "reader:hush-hush@"), tmp_path / "copies")
    assert not list((tmp_path / "copies").glob(".*"))


def outcome(path, **options):
    options = source_options(SOURCE, options)
    ((position, record),) = SOURCE.records([Slice(path, path.name)], options)
    assert position == f"labels.db:{item_id(DRAFT)}"
    try:
        (made,) = SOURCE.to_pairs(record, options)
    except Unused as unused:
        return unused.reason
    return made


@pytest.mark.parametrize(
    ("votes", "chosen", "p_chosen"),
    [
        (["right"], "Rayleigh.", None),
        (["wrong"], "Paint.", None),
        (["right", "right"], "Rayleigh.", 1.0),
        (["right", "wrong", "right"], "Rayleigh.", 2 / 3),
        (["right", "tie"], "Rayleigh.", 0.75),
        (["wrong", "skip"], "Paint.", None),
        (["wrong", "both_bad", "tie", "wrong"], "Paint.", 0.75),
    ],
)
def test_the_majority_is_chosen_and_several_judges_make_a_soft_label(tmp_path, votes, chosen, p_chosen):
    pair = outcome(judged(tmp_path, votes))
    assert pair.chosen == text(chosen)
    assert pair.rejected != pair.chosen
    assert pair.p_chosen == pytest.approx(p_chosen)
    assert pair.meta["judges"] == sum(v != "skip" for v in votes)


@pytest.mark.parametrize(("votes", "reason"), [([], "unjudged"), (["skip"], "skipped"), (["skip", "skip"], "skipped")])
def test_items_that_say_nothing_are_counted_by_reason(tmp_path, votes, reason):
    assert outcome(judged(tmp_path, votes)) == reason


@pytest.mark.parametrize("votes", [["tie"], ["right", "wrong"], ["tie", "both_bad"]])
def test_no_majority_is_a_tie(tmp_path, votes):
    assert isinstance(outcome(judged(tmp_path, votes)), Tie)


def test_origin_and_producers_are_aligned_with_the_sides(tmp_path):
    pair = outcome(judged(tmp_path, ["wrong"]))
    assert pair.licenses == ["CC BY-SA 3.0", "", "CC BY-SA 4.0"]
    assert pair.authors == ["", "", "R"]
    assert pair.urls == []
    assert pair.meta["producers"] == {"chosen": ["m2"], "rejected": ["m1"]}
    assert (pair.subset, pair.group_key, pair.source_id) == ("sky", "sky/1", item_id(DRAFT))
    assert (pair.score_chosen, pair.score_rejected, pair.margin) == (None, None, None)


def test_machines_count_only_where_asked(tmp_path):
    path = judged(tmp_path, ["right"], kind="model")
    assert outcome(path) == "unjudged"
    assert outcome(path, machines="true").chosen == text("Rayleigh.")


def test_only_a_database_is_recognised(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    assert SOURCE.recognises(judged(tmp_path, []))
    assert not SOURCE.recognises(tmp_path / "pairs.jsonl")


def test_convert_balances_and_takes_votes_that_sit_in_the_write_ahead_log(tmp_path):
    from prefkit.convert import convert_dataset

    others = [Draft(text(f"q {n}", "user"), [Response(text("a")), Response(text(f"b {n}"))], f"g{n}") for n in range(4)]
    path = judged(tmp_path, ["right", "wrong", "right"], [DRAFT, *others])
    still_open = Store(str(path))  # as while the page is served: the last votes are not in labels.db itself yet
    batch = still_open.add_batch("labels", "more", others).batch_id
    still_open.record(still_open.judge("ann"), Judgement("1", batch, item_id(others[0]), (0, 1), "tie"))
    still_open.record(still_open.judge("ann"), Judgement("2", batch, item_id(others[1]), (0, 1), "skip"))
    before = path.read_bytes()
    manifest = convert_dataset(path, tmp_path / "out", source="judgements")
    assert path.read_bytes() != before  # settled before it was hashed
    still_open.close()
    ledgers = manifest.sources["judgements"]
    assert ledgers["records"]["read"] == 5
    assert ledgers["records"]["used"] == 1
    assert ledgers["records"]["unused"] == {"only_ties": 1, "skipped": 1, "unjudged": 2}
    (pair,) = open_pairs(tmp_path / "out").to_pylist()
    assert pair["chosen"] == text("Rayleigh.")
    assert pair["p_chosen"] == pytest.approx(2 / 3)


def test_how_often_the_response_shown_first_won_is_counted_and_described(tmp_path):
    others = [Draft(text(f"q {n}", "user"), [Response(text("a")), Response(text(f"b {n}"))], f"g{n}") for n in range(3)]
    path = judged(tmp_path, ["right", "tie", "skip"], [DRAFT, *others])
    store = Store(str(path))
    batch, judge = store.add_batch("labels", "more", others).batch_id, store.judge("ann")
    for n, (shown, winner) in enumerate([((1, 0), 1), ((1, 0), 1), ((0, 1), 1)]):
        store.record(judge, Judgement(f"{n}", batch, item_id(others[n]), shown, "better", winner))
    right = int(store.item(item_id(DRAFT)).responses.index(DRAFT.responses[0].messages))
    store.close()
    first = 2 + (right == 0)  # the first vote of all was shown (0, 1)
    manifest = convert_dataset(path, tmp_path / "out", source="judgements", splits="test=1")
    assert manifest.tables == {"positions": {"first_won": first, "second_won": 4 - first}}
    wins = describe(tmp_path / "out").first_wins
    assert (wins.value, wins.n_groups) == (first / 4, 4)
    assert wins.low < wins.value < wins.high
    assert any(
        line.startswith(f"position   shown first won in {first / 4:.3f}") for line in lines(describe(tmp_path / "out"))
    )


@pytest.mark.parametrize(("votes", "made"), [(["right", "wrong"], 0), (["right", "right"], 1), (["wrong", "skip"], 1)])
@pytest.mark.parametrize("workers", [1, 2])
def test_databases_of_two_annotators_are_votes_about_the_same_items(tmp_path, votes, made, workers):
    other = Draft(text("more", "user"), [Response(text("a")), Response(text("b"))], "g")
    paths = [
        judged(tmp_path, [votes[0]], [DRAFT, other], name="ann.db"),
        judged(tmp_path, [votes[1]], name="bob.db"),
    ]
    manifest = convert_dataset(paths, tmp_path / "out", splits="test=1", workers=workers)
    ledger = manifest.sources["judgements"]
    assert ledger["records"]["read"] == 2
    assert ledger["candidates"]["pairs"] == made
    assert ledger["candidates"]["ties"] == 1 - made
    for pair in open_pairs(tmp_path / "out").to_pylist():
        assert pair["p_chosen"] == (1.0 if "skip" not in votes else None)
        assert json.loads(pair["meta"])["positions"] == [f"{n}.db:{item_id(DRAFT)}" for n in ("ann", "bob")]


def test_votes_in_a_copy_of_a_database_count_once(tmp_path):
    path = judged(tmp_path, ["right", "wrong", "right"])
    copy = tmp_path / "copy.db"
    SOURCE.files(path, None)
    copy.write_bytes(path.read_bytes())
    convert_dataset([path, copy], tmp_path / "out", splits="test=1")
    (pair,) = open_pairs(tmp_path / "out").to_pylist()
    assert pair["p_chosen"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("then", ["wrong", None], ids=["changed", "undone"])
def test_an_older_copy_brings_no_vote_back(tmp_path, then):
    path = judged(tmp_path, ["right"])
    SOURCE.files(path, None)
    (tmp_path / "backup.db").write_bytes(path.read_bytes())
    store = Store(str(path))
    judge, batch = store.judge("judge 0"), store.add_batch("labels", "test", [DRAFT]).batch_id
    if then is None:
        store.undo(str(uuid.uuid4()), judge, batch)
    else:
        item = store.item(item_id(DRAFT))
        wrong = 1 - item.responses.index(DRAFT.responses[0].messages)
        store.record(judge, Judgement(str(uuid.uuid4()), batch, item.id, (0, 1), "better", wrong))
    store.close()
    manifest = convert_dataset([tmp_path / "backup.db", path], tmp_path / "out", splits="test=1")
    assert manifest.splits["test"]["rows"] == (0 if then is None else 1)
    assert [p["chosen"] for p in open_pairs(tmp_path / "out").to_pylist()] == ([] if then is None else [text("Paint.")])


@pytest.mark.parametrize("order", [1, -1])
def test_a_group_known_to_one_database_holds_for_all_and_attribution_is_not_lost(tmp_path, order):
    def draft(group, origin):
        return Draft(DRAFT.prompt, DRAFT.responses, group, origin)

    other = Draft(text("q3", "user"), [Response(text("a")), Response(text("b"))], "cluster")
    paths = [
        judged(tmp_path, ["right"], [draft("cluster", {"license": "CC BY-SA 3.0"}), other], name="a.db"),
        judged(tmp_path, ["right"], [draft("prompthash", {})], name="c.db"),
    ]
    found = [r for _, r in SOURCE.records([Slice(p, p.name) for p in paths[::order]], source_options(SOURCE, {}))]
    assert {r["group_id"] for r in found} == {"cluster"}
    assert [r["origin"] for r in found if r["id"] == item_id(DRAFT)] == [{"license": "CC BY-SA 3.0"}]


def test_a_group_that_a_later_batch_knows_joins_the_items_of_an_earlier_one(tmp_path):
    def draft(n, group, origin=None):
        return Draft(text(f"q{n}", "user"), [Response(text("a")), Response(text("b"))], group, origin or {})

    path = judged(tmp_path, [], [draft(n, f"old{n}") for n in range(3)])
    store = Store(str(path))
    store.add_batch("labels", "later", [draft(n, "cluster", {"license": "CC BY-SA 4.0"}) for n in range(4)])
    store.close()
    found = [r for _, r in SOURCE.records([Slice(path, path.name)], source_options(SOURCE, {}))]
    assert len(found) == 4
    assert {r["group_id"] for r in found} == {"cluster"}
    assert {r["origin"].get("license") for r in found} == {"CC BY-SA 4.0"}


def later(path, then, name="judge 0"):
    """The judge's next word about the draft in a database: right, wrong, or undone."""
    store = Store(str(path))
    judge, batch = store.judge(name), store.add_batch("labels", "test", [DRAFT]).batch_id
    item = store.item(item_id(DRAFT))
    right = item.responses.index(DRAFT.responses[0].messages)
    if then == "undone":
        store.undo(str(uuid.uuid4()), judge, batch)
    else:
        winner = {"right": right, "wrong": 1 - right}[then]
        store.record(judge, Judgement(str(uuid.uuid4()), batch, item.id, (0, 1), "better", winner))
    store.settle()
    store.close()
    time.sleep(0.01)  # times are in milliseconds


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("one", "other", "votes"),
    [
        (["wrong"], ["right"], ["right"]),
        (["right"], ["undone"], []),
        (["undone"], ["wrong"], ["wrong"]),
        (["undone", "right"], ["wrong"], ["wrong"]),
        (["undone", "right"], [], ["right"]),
    ],
)
def test_of_copies_that_went_on_separately_a_judges_latest_word_stands(tmp_path, one, other, votes, order):
    paths = [judged(tmp_path, ["wrong"], name="a.db"), tmp_path / "b.db"]
    SOURCE.files(paths[0], None)
    paths[1].write_bytes(paths[0].read_bytes())
    for path, words in zip(paths, (one, other), strict=True):
        for then in words:
            later(path, then)
    ((_, record),) = SOURCE.records([Slice(p, p.name) for p in paths[::order]], source_options(SOURCE, {}))
    right = record["responses"].index(DRAFT.responses[0].messages)
    assert [{right: "right", 1 - right: "wrong"}[v["winner"]] for v in record["votes"]] == votes


def test_in_copies_of_one_database_a_name_is_one_judge_of_new_items_too(tmp_path):
    other = Draft(text("more", "user"), [Response(text("a")), Response(text("b"))], "g")
    paths = [judged(tmp_path, ["right"], [other], name="a.db"), tmp_path / "b.db"]
    SOURCE.files(paths[0], None)
    paths[1].write_bytes(paths[0].read_bytes())
    for path, then in zip(paths, ("right", "wrong"), strict=True):
        later(path, then)
        later(path, then, name="bob")
    convert_dataset(paths, tmp_path / "out", splits="test=1")
    pairs = {p["source_id"]: p for p in open_pairs(tmp_path / "out").to_pylist()}
    assert pairs[item_id(DRAFT)]["chosen"] == text("Paint.")
    assert json.loads(pairs[item_id(DRAFT)]["meta"])["judges"] == 2


def test_votes_that_come_while_a_database_is_read_are_told(tmp_path):
    path = judged(tmp_path, ["right"])
    SOURCE.files(path, None)
    found = SOURCE.records([Slice(path, path.name)], source_options(SOURCE, {}))
    open_page = Store(str(path))
    next(found)
    open_page.judge("ann")
    with pytest.raises(UserError, match="judgements were added while it was read"):
        list(found)
    open_page.close()


def test_pairs_of_a_data_set_become_items_that_hide_which_was_chosen():
    import pyarrow as pa

    row = dict.fromkeys(PAIRS.names) | {
        "prompt": text("q", "user"),
        "chosen": text("good"),
        "rejected": text("bad"),
        "group_id": "g",
    }
    row |= {"licenses": ["p", "c", "r"], "urls": [], "authors": None, "source": "s", "flags": []}
    rows = [
        row | {"id": "1"},
        row | {"id": "2", "rejected": text("good")},
        row | {"id": "3", "prompt": text("other", "user")},
    ]
    made = drafts_of_pairs(pa.Table.from_pylist(rows, PAIRS))
    assert made.left_out == {"identical responses": 1}
    assert len(made.items) == 2
    assert [(r.producer, r.origin) for r in made.items[0].responses] == [
        ("chosen", {"license": "c"}),
        ("rejected", {"license": "r"}),
    ]
    assert made.items[0].origin == {"source": "s", "license": "p"}
    assert drafts_of_pairs(pa.Table.from_pylist(rows, PAIRS), limit=1).left_out["limit"] == 2


def test_json_lines_become_items_and_what_does_not_is_counted(tmp_path):
    lines = [
        '{"prompt": "q1", "responses": ["a", "b"]}',
        '{"prompt": [{"role": "user", "content": "q2"}], "responses": ["a", [{"role": "assistant", "content": "\\ud800"}]]}',
        '{"prompt": "q3", "responses": ["a", "a"]}',
        '{"prompt": "q4", "responses": ["a", "b", "c"]}',
        '{"prompt": "", "responses": ["a", "b"]}',
        '{"prompt": "q5", "responses": ["a", ""]}',
        '{"prompt": ',
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(lines) + "\n")
    made = drafts_of_file(path)
    assert {d.prompt[0]["content"] for d in made.items} == {"q1", "q2"}
    reasons = {"identical responses", "not two responses", "no prompt", "empty response", "damaged line"}
    assert made.left_out == dict.fromkeys(reasons, 1)
