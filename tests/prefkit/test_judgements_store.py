"""The store: what stands after any sequence of events, and what survives double submits, other writers and kill -9."""

import json
import sqlite3
import subprocess
import sys
import uuid
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

from prefkit.errors import UserError
from prefkit.judgements.items import Draft, Judgement, Response, item_id
from prefkit.judgements.merged import memberships
from prefkit.judgements.queue import Queue, blind_order, item_sequence
from prefkit.judgements.store import Store


def text(words, role="assistant"):
    return [{"role": role, "content": words}]


def draft(n, producers=("one", "two")):
    sides = [Response(text(f"answer {side} to {n}"), name) for side, name in zip("xy", producers, strict=True)]
    return Draft(text(f"question {n}", "user"), sides, f"group-{n}")


def event(batch, item, outcome="better", winner=0, id=None):
    return Judgement(id or str(uuid.uuid4()), batch, item, (1, 0), outcome, winner if outcome == "better" else None)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    sqlite = request.param == "sqlite"
    store = Store(str(tmp_path / "labels.db") if sqlite else request.getfixturevalue("postgres"))
    yield store
    store.close()


@pytest.fixture
def batch(store):
    return store.add_batch("labels", "test", [draft(n) for n in range(5)]).batch_id


def test_import_is_idempotent_and_keeps_order(store):
    drafts = [draft(n) for n in (3, 1, 2)]
    first = store.add_batch("labels", "test", drafts)
    assert (first.items, first.new) == (3, 3)
    again = store.add_batch("labels", "test", reversed(drafts))
    assert (again.batch_id, again.items, again.new) == (first.batch_id, 3, 0)
    assert store.item_ids(first.batch_id) == [item_id(d) for d in drafts]
    assert len(store.producers(store.item_ids(first.batch_id))) == 6


def test_a_comparison_is_the_same_item_whichever_side_comes_first():
    d = draft(0)
    swapped = Draft(d.prompt, d.responses[::-1], d.group_id)
    assert item_id(swapped) == item_id(d)


def test_the_order_of_responses_in_the_store_tells_nothing(store):
    drafts = [draft(n, ("good", "bad")) for n in range(400)]
    made = store.add_batch("labels", "test", drafts)
    first = Counter(p.name for p in store.producers(store.item_ids(made.batch_id)) if p.response == 0)
    assert 150 < first["good"] < 250


def test_the_same_event_twice_is_one_event(store, batch):
    ann, item = store.judge("ann"), store.item_ids(batch)[0]
    once = event(batch, item)
    store.record(ann, once)
    store.record(ann, once)
    (vote,) = store.votes([item])
    assert (vote.outcome, vote.winner, vote.shown, vote.judge_name) == ("better", 0, [1, 0], "ann")


def test_an_id_cannot_be_used_for_something_else(store, batch):
    one, other = store.item_ids(batch)[:2]
    store.record(store.judge("ann"), event(batch, one, id="x"))
    with pytest.raises(ValueError, match="already used"):
        store.record(store.judge("ann"), event(batch, other, id="x"))
    with pytest.raises(ValueError, match="already used"):
        store.record(store.judge("ben"), event(batch, one, id="x"))


@pytest.mark.parametrize(
    ("outcome", "winner", "shown"),
    [
        ("better", None, (0, 1)),
        ("tie", 0, (0, 1)),
        ("better", 2, (0, 1)),
        ("best", 0, (0, 1)),
        ("undo", None, (0, 1)),
        ("tie", None, (0, 0)),
    ],
)
def test_judgements_that_make_no_sense_are_refused(store, batch, outcome, winner, shown):
    with pytest.raises(ValueError, match=r"outcome|permutation"):
        store.record(store.judge("ann"), Judgement("x", batch, store.item_ids(batch)[0], shown, outcome, winner))


def test_undo_is_a_new_event_and_a_repeated_undo_is_one(store, batch):
    ann, (first, second, *_) = store.judge("ann"), store.item_ids(batch)
    store.record(ann, event(batch, first))
    store.record(ann, event(batch, second, "tie"))
    assert store.undo("u1", ann, batch) == second
    assert store.undo("u1", ann, batch) == second
    assert store.judged(ann) == {first: "better"}
    assert store.undo("u2", ann, batch) == first
    assert store.undo("u3", ann, batch) is None


@pytest.mark.parametrize("statement", ["UPDATE judgement SET winner = 1", "DELETE FROM judgement"])
def test_the_database_itself_refuses_to_change_the_past(store, batch, statement):
    store.record(store.judge("ann"), event(batch, store.item_ids(batch)[0]))
    with store.engine.connect() as c, pytest.raises(DBAPIError, match="append-only"):
        c.exec_driver_sql(statement)


STEPS = st.lists(
    st.tuples(st.sampled_from(["better", "tie", "skip", "undo"]), st.integers(0, 2), st.integers(0, 1)), max_size=30
)


@settings(max_examples=60)
@given(STEPS)
def test_any_sequence_of_votes_and_undos_leaves_what_a_plain_stack_says(steps):
    store = Store(":memory:")
    batch = store.add_batch("labels", "test", [draft(n) for n in range(3)]).batch_id
    items, judges = store.item_ids(batch), [store.judge("ann"), store.judge("ben")]
    stacks = {j: [] for j in judges}  # (item, outcome), oldest first; a new vote on an item replaces the old
    events = 0
    for outcome, item, who in steps:
        stack = stacks[judges[who]]
        if outcome == "undo":
            events += bool(stack)
            undone = store.undo(str(uuid.uuid4()), judges[who], batch)
            assert undone == (stack.pop()[0] if stack else None)
            continue
        events += 1
        store.record(judges[who], event(batch, items[item], outcome))
        stacks[judges[who]] = [s for s in stack if s[0] != items[item]] + [(items[item], outcome)]
    for judge in judges:
        assert store.judged(judge) == dict(stacks[judge])
    with store.engine.connect() as c:
        assert c.exec_driver_sql("SELECT count(*) FROM judgement").scalar() == events
    store.close()


WRITER = """
import sys, uuid
from prefkit.judgements.items import Judgement
from prefkit.judgements.store import Store
db, batch, judge, n = sys.argv[1:]
store = Store(db)
number = store.judge(judge)
items = store.item_ids(batch)
for i in range(int(n)):
    event = str(uuid.uuid4())
    store.record(number, Judgement(event, batch, items[i % len(items)], (0, 1), "tie"))
    print(event, flush=True)
"""


def test_every_acknowledged_event_survives_kill_9(tmp_path):
    db = str(tmp_path / "labels.db")
    store = Store(db)
    batch = store.add_batch("labels", "test", [draft(n) for n in range(5)]).batch_id
    store.close()
    acknowledged = []
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", WRITER, db, batch, "ann", "100000"], stdout=subprocess.PIPE, text=True
        ) as writer:
            acknowledged += [writer.stdout.readline().strip() for _ in range(40)]
            writer.kill()
            acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
    with sqlite3.connect(db) as c:
        kept = {row[0] for row in c.execute("SELECT id FROM judgement")}
        assert c.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(acknowledged) >= 120
    assert set(acknowledged) <= kept


def test_two_writers_at_once_lose_nothing(tmp_path):
    db = str(tmp_path / "labels.db")
    store = Store(db)
    batch = store.add_batch("labels", "test", [draft(n) for n in range(5)]).batch_id
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, db, batch, who, "150"], stdout=subprocess.PIPE, text=True)
        for who in ("ann", "ben")
    ]
    printed = [writer.communicate(timeout=60)[0].split() for writer in writers]
    assert [w.returncode for w in writers] == [0, 0]
    with store.engine.connect() as c:
        kept = {row.id for row in c.exec_driver_sql("SELECT id FROM judgement")}
    assert kept == set(printed[0]) | set(printed[1])
    assert len(kept) == 300
    assert len(store.votes(store.item_ids(batch))) == 10  # five items, each judge's latest
    store.close()


def test_a_database_of_the_first_version_is_brought_up_to_date(tmp_path):
    path = tmp_path / "labels.db"
    store = Store(str(path))
    old = draft(1)
    store.add_batch("labels", "t", [old])
    store.close()
    with sqlite3.connect(path) as c:
        for column in ("group_id", "origin"):
            c.execute(f"ALTER TABLE batch_item DROP COLUMN {column}")
        c.execute("UPDATE schema_version SET version = 1")
    store = Store(str(path), create=False)
    assert memberships(store, [item_id(old)]) == []
    store.add_batch("labels", "again", [replace(old, group_id="h")])
    assert [m.group_id for m in memberships(store, [item_id(old)])] == ["h"]
    store.close()


@pytest.mark.parametrize("url", ["sqlite+aiosqlite:///x.db", "postgresql+asyncpg://x/y"])
def test_a_driver_that_is_not_there_is_named(url):
    with pytest.raises(UserError, match="is not installed"):
        Store(url)


def test_a_newer_schema_is_refused(tmp_path):
    path = tmp_path / "labels.db"
    Store(str(path)).close()
    with sqlite3.connect(path) as c:
        c.execute("UPDATE schema_version SET version = 3")
    with pytest.raises(UserError, match="schema version 3"):
        Store(str(path))


def test_what_is_no_labels_database_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such labels database"):
        Store(str(tmp_path / "absent.db"), create=False)
    (tmp_path / "text.db").write_text("not a database at all, but long enough to have a header" * 20)
    with pytest.raises(UserError, match="cannot open"):
        Store(str(tmp_path / "text.db"))
    with sqlite3.connect(tmp_path / "foreign.db") as c:
        c.execute("CREATE TABLE other (x)")
    content = (tmp_path / "foreign.db").read_bytes()
    with pytest.raises(UserError, match="not a labels database"):
        Store(str(tmp_path / "foreign.db"))
    assert (tmp_path / "foreign.db").read_bytes() == content
    with pytest.raises(UserError, match="no folder"):
        Store(str(tmp_path / "absent" / "labels.db"))
    with pytest.raises(UserError, match="a folder"):
        Store(str(tmp_path))
    for url in ("nonsense://x", "mysql://host/name"):
        with pytest.raises(UserError, match="unknown kind"):
            Store(url)


def test_readers_never_wait_for_a_writer(tmp_path):
    Store(str(tmp_path / "labels.db")).close()
    with sqlite3.connect(tmp_path / "labels.db") as c:
        assert c.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_urls_and_paths_name_the_same_file(tmp_path):
    Store(str(tmp_path / "labels.db")).close()
    Store(f"sqlite:///{tmp_path / 'labels.db'}", create=False).close()


def test_texts_of_any_kind_come_back_as_they_were(store):
    words = "naïve \x00 \u2028 𝔘 '; DROP TABLE item; -- ${x} {{y}}"
    d = Draft(text(words, "user"), [Response(text("a")), Response(text(words))], "g")
    made = store.add_batch("labels", "test", [d])
    item = store.item(store.item_ids(made.batch_id)[0])
    assert item.prompt == d.prompt
    assert {json.dumps(r) for r in item.responses} == {json.dumps(r.messages) for r in d.responses}


def test_a_judge_goes_through_all_items_in_an_order_of_their_own_and_resumes(store, batch):
    seen = []
    while (at := Queue(store, batch, "ann").position()[0]) is not None:  # a new queue each time: as after a restart
        seen.append(at)
        store.record(store.judge("ann"), event(batch, at, "skip" if len(seen) == 1 else "tie"))
    assert sorted(seen) == sorted(store.item_ids(batch))
    progress = Queue(store, batch, "ann").position()[1]
    assert (progress.done, progress.total, progress.skipped) == (5, 5, 1)
    assert Queue(store, batch, "ben").position()[1].done == 0
    orders = {tuple(item_sequence(seen, judge, seed)) for judge in ("ann", "ben") for seed in (0, 1)}
    assert len(orders) > 1


def test_sides_are_random_by_item_and_judge_and_fixed_by_the_seed():
    orders = [blind_order(str(i), "ann", 0) for i in range(2000)]
    assert orders == [blind_order(str(i), "ann", 0) for i in range(2000)]
    assert 900 < sum(o == (0, 1) for o in orders) < 1100
    other = [blind_order(str(i), "ben", 0) for i in range(2000)]
    assert 900 < sum(a == b for a, b in zip(orders, other, strict=True)) < 1100
    assert {blind_order(str(i), "ann", 0, 3) for i in range(100)} == {
        (a, b, 3 - a - b) for a in range(3) for b in range(3) if a != b
    }


@pytest.mark.parametrize("db", ["", "sqlite://", "postgresql://h:abc/x"])
def test_a_store_that_could_keep_nothing_is_refused(db):
    with pytest.raises(UserError, match=r"no file to keep judgements in|not a database URL"):
        Store(db)


def test_a_write_that_fails_says_nothing_of_what_was_written(tmp_path):
    store = Store(str(tmp_path / "labels.db"))
    with store.engine.connect() as c:  # the pool gives this connection again
        c.exec_driver_sql("PRAGMA query_only = ON")
    with pytest.raises(UserError, match="cannot write to the database") as found:
        store.add_batch("labels", "t", [draft(1, ("secret model", "other"))])
    assert "secret" not in str(found.value)
    store.close()


def test_undo_reaches_what_was_judged_in_an_earlier_batch(store):
    items = [draft(n) for n in range(3)]
    first = store.add_batch("labels", "a", items[:2]).batch_id
    later = store.add_batch("labels", "b", items).batch_id
    ann = store.judge("ann")
    store.record(ann, event(first, item_id(items[0])))
    assert store.undo("u1", ann, later) == item_id(items[0])
    assert store.judged(ann) == {}


def test_a_page_left_open_for_months_is_a_number_that_fits(store):
    batch, ann = store.add_batch("labels", "a", [draft(1)]).batch_id, store.judge("ann")
    store.record(ann, replace(event(batch, item_id(draft(1))), milliseconds=10**12))
    assert [v.milliseconds for v in store.votes([item_id(draft(1))])] == [2**31 - 1]
