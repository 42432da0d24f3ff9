"""Several databases of judgements read as one: each item with its texts, who made them, and each judge's last word."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Row, select

from prefkit.judgements import tables as t
from prefkit.judgements.store import CHUNK, Store

VOTE = ("id", "judge_name", "outcome", "winner", "shown", "flags", "time")
PRODUCER = ("response", "name", "origin")


def merged(stores: Sequence[tuple[str, Store]], kinds: Sequence[str]) -> Iterator[dict]:
    """Items in order of id, out of databases given with their names.

    Each has `id`, `group_id`, `prompt`, `responses`, `positions` (`name:id` in each database), `origin`, `producers`
    and `votes`. Databases that share a judgement are copies of one: there a name is one judge, of whom the latest word
    stands, and what any copy saw withdrawn or replaced does not. A group that any of them puts items in holds for all.
    """
    names = _smallest(_by_first(pair for _, store in stores for pair in _group_ids(store)))
    copies = _smallest(_by_first(_events_of_all([store for _, store in stores]))) if len(stores) > 1 else {}
    streams = (_items(name, store, kinds, copies.get(n, n)) for n, (name, store) in enumerate(stores))
    for _, same in groupby(merge(*streams, key=itemgetter("id")), key=itemgetter("id")):
        found = list(same)
        yield {k: found[0][k] for k in ("id", "prompt", "responses")} | {
            "group_id": names.get(found[0]["group_id"], found[0]["group_id"]),
            "positions": [f["position"] for f in found],
            "origin": {k: v for f in reversed(found) for k, v in f["origin"].items()},
            "producers": [p for f in found for p in f["producers"]],
            "votes": _standing([word for f in found for word in f["words"]]),
        }


def memberships(store: Store, item_ids: Iterable[str]) -> list[Row]:
    """Group and origin of the given items as each batch knew them, oldest batch first."""
    b = t.batch_item.c
    query = select(b.item_id, b.group_id, b.origin).join(t.batch, t.batch.c.id == b.batch_id)
    of_groups = query.where(b.group_id.is_not(None)).order_by(t.batch.c.created, t.batch.c.id)
    return store.rows(of_groups, b.item_id, item_ids)


class _Word(NamedTuple):
    """What a judge says of an item in one database: the events there, oldest first, and the vote that stands."""

    judge: tuple[int, str, str]  # first of the databases that are copies of one, kind, name
    events: list[str]
    time: str  # of the last event
    vote: dict | None


def _standing(words: list[_Word]) -> list[dict]:
    """The votes of each judge's last word: of copies that went on separately the latest, of the others the newer."""
    votes = []
    for copies in _by(words, lambda w: w.judge).values():
        passed = {event for w in copies for event in w.events[:-1]}
        last = [w for w in copies if w.events[-1] not in passed]
        vote = max(last, key=lambda w: (w.time, w.events[-1])).vote
        votes += [vote] if vote is not None else []
    return votes


def _items(name: str, store: Store, kinds: Sequence[str], family: int) -> Iterator[dict]:
    """The items of one database in order of their ids."""
    for items in _pages(store):
        ids = [item.id for item in items]
        producers = _by(store.producers(ids), attrgetter("item_id"))
        members = _by(memberships(store, ids), attrgetter("item_id"))
        votes = {(v.item_id, v.judge_kind, v.judge_name): v for v in store.votes(ids, kinds)}
        events = _by(_events(store, ids, kinds), attrgetter("item_id"))
        for item in items:
            kept = {k: getattr(item, k) for k in ("id", "group_id", "prompt", "responses")}
            kept["position"] = f"{name}:{item.id}"
            origins = [item.origin, *(m.origin for m in members.get(item.id, []))]
            kept["origin"] = {k: v for origin in reversed(origins) for k, v in origin.items()}
            kept["producers"] = [{k: getattr(p, k) for k in PRODUCER} for p in producers.get(item.id, [])]
            kept["words"] = []
            for judge, said in _by(events.get(item.id, []), attrgetter("judge_kind", "judge_name")).items():
                vote = votes.get((item.id, *judge))
                kept_vote = {k: getattr(vote, k) for k in VOTE} if vote is not None else None
                kept["words"].append(_Word((family, *judge), [e.id for e in said], said[-1].time, kept_vote))
            yield kept


def _events(store: Store, item_ids: Iterable[str], kinds: Sequence[str]) -> list[Row]:
    """All that was ever said of the given items, oldest first."""
    rows = store.rows(store.with_judge(t.judgement, kinds), t.judgement.c.item_id, item_ids)
    return sorted(rows, key=attrgetter("seq"))


def _events_of_all(stores: list[Store]) -> Iterator[tuple[str, int]]:
    """The id of every judgement with the number of each database that has it."""
    for n, store in enumerate(stores):
        with store.engine.connect() as c:
            yield from ((event, n) for event in c.execute(select(t.judgement.c.id)).scalars())


def _pages(store: Store) -> Iterator[list[Row]]:
    """The items in order of id, a chunk at a time: a labeller may write meanwhile."""
    after = ""
    query = select(t.item).order_by(t.item.c.id).limit(CHUNK)
    while True:
        with store.engine.connect() as c:
            items = list(c.execute(query.where(t.item.c.id > after)))
        if not items:
            return
        after = items[-1].id
        yield items


def _group_ids(store: Store) -> Iterator[tuple[str, str]]:
    for items in _pages(store):
        yield from ((item.id, item.group_id) for item in items)
        yield from ((m.item_id, m.group_id) for m in memberships(store, [item.id for item in items]))


def _by_first(pairs: Iterable[tuple[Any, Any]]) -> Iterable[set[Any]]:
    """The second of all pairs that have one first."""
    found: dict[Any, set[Any]] = {}
    for first, second in pairs:
        found.setdefault(first, set()).add(second)
    return found.values()


def _smallest(joined: Iterable[set[Any]]) -> dict[Any, Any]:
    """The smallest of all that are joined with each, for each that is not the smallest itself."""
    parent: dict[Any, Any] = {}

    def root(one: Any) -> Any:
        while one in parent:
            one = parent[one]
        return one

    for together in joined:
        first, *rest = sorted({root(one) for one in together})
        parent.update(dict.fromkeys(rest, first))
    return {one: root(one) for one in parent}


def _by(rows: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Rows by a key, in their order."""
    found: dict[Any, list[Any]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found
