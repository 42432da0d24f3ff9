"""Judgements made with `prefkit label` and `evalkit side-by-side`; licences are those of the texts judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefkit.errors import UserError
from prefkit.schema import Pair
from prefkit.sources import Record, Slice, Source, Tie, Unused

if TYPE_CHECKING:
    from prefkit.judgements.store import Store  # imported when used: SQLAlchemy takes a third of a second

VOTE = ("id", "judge_name", "outcome", "winner", "shown", "flags", "time")
PRODUCER = ("response", "name", "origin")


@dataclass(frozen=True)
class Options:
    """`machines`: whether judgements of models count beside those of people."""

    machines: bool = False


def files(path: Path, options: Options) -> list[Path]:
    """The database, whole in one file, so that its digest says what is in it."""
    from prefkit.judgements.store import Store

    store = Store(str(path), create=False)
    store.settle()
    store.close()
    return [path]


def records(slices: list[Slice], options: Options) -> Iterator[tuple[str, Record]]:
    """One record an item: its texts, what stands about it in any of the databases, and who made its responses.

    Databases that share a judgement are copies of one: there a name is one judge, of whom the latest word stands, and
    what any copy saw withdrawn or replaced does not. A group that any of them puts items in holds for all. `UserError`
    where judgements are added meanwhile.
    """
    from prefkit.judgements.store import Store

    kinds = ("person", "model") if options.machines else ("person",)
    with ExitStack() as stack:
        stores = [(s.name, stack.enter_context(closing(Store(str(s.path), create=False)))) for s in slices]
        group = _groups(_by_item(chain.from_iterable(_group_ids(store) for _, store in stores)))
        families = _families([store for _, store in stores])
        streams = (_items(name, store, kinds, family) for (name, store), family in zip(stores, families, strict=True))
        for _, same in groupby(merge(*streams, key=itemgetter("id")), key=itemgetter("id")):
            found = list(same)
            record = found[0] | {"group_id": group.get(found[0]["group_id"], found[0]["group_id"])}
            record["positions"] = [f["position"] for f in found]
            record["origin"] = {k: v for f in reversed(found) for k, v in f["origin"].items()}
            record["producers"] = [p for f in found for p in f["producers"]]
            record["votes"] = _standing([word for f in found for word in f["words"]])
            yield record["positions"][0], record
        for piece, (_, store) in zip(slices, stores, strict=True):
            if store.has_unsettled():
                raise UserError("judgements were added while it was read", piece.path, "run the command again")


class _Word(NamedTuple):
    """What a judge says of an item in one database: the events there, oldest first, and the vote that stands."""

    judge: tuple[int, str, str]  # family of the database, kind, name
    events: list[str]
    time: str  # of the last event
    vote: dict | None


def _standing(words: list[_Word]) -> list[dict]:
    """The votes of each judge's last word: of copies that went on separately the latest, of the others the newer."""
    votes = []
    for judge in dict.fromkeys(w.judge for w in words):
        copies = [w for w in words if w.judge == judge]
        passed = {event for w in copies for event in w.events[:-1]}
        last = [w for w in copies if w.events[-1] not in passed]
        vote = max(last, key=lambda w: (w.time, w.events[-1])).vote
        votes += [vote] if vote is not None else []
    return votes


def _families(stores: list[Store]) -> list[int]:
    """The number of the first database of which each is a copy, for they share judgements; its own where of none."""
    parent = list(range(len(stores)))

    def root(n: int) -> int:
        while parent[n] != n:
            n = parent[n]
        return n

    seen: dict[str, int] = {}
    for n, store in enumerate(stores if len(stores) > 1 else []):
        for event in store.event_ids():
            one, other = root(seen.setdefault(event, n)), root(n)
            parent[max(one, other)] = min(one, other)
    return [root(n) for n in range(len(stores))]


def _items(name: str, store: Store, kinds: Sequence[str], family: int) -> Iterator[dict]:
    """The items of one database in order of their ids."""
    for items in _pages(store):
        ids = [item.id for item in items]
        producers = _by(store.producers(ids), lambda p: p.item_id)
        members = _by(store.memberships(ids), lambda m: m.item_id)
        votes = {(v.item_id, v.judge_kind, v.judge_name): v for v in store.votes(ids, kinds)}
        events = _by(store.events(ids, kinds), lambda e: e.item_id)
        for item in items:
            kept = {k: getattr(item, k) for k in ("id", "group_id", "prompt", "responses")}
            kept["position"] = f"{name}:{item.id}"
            origins = [item.origin, *(m.origin for m in members.get(item.id, []))]
            kept["origin"] = {k: v for origin in reversed(origins) for k, v in origin.items()}
            kept["producers"] = [{k: getattr(p, k) for k in PRODUCER} for p in producers.get(item.id, [])]
            kept["words"] = []
            for judge, said in _by(events.get(item.id, []), lambda e: (e.judge_kind, e.judge_name)).items():
                vote = votes.get((item.id, *judge))
                kept_vote = {k: getattr(vote, k) for k in VOTE} if vote is not None else None
                kept["words"].append(_Word((family, *judge), [e.id for e in said], said[-1].time, kept_vote))
            yield kept


def _by(rows: Iterable[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Rows by a key, in their order."""
    found: dict[Any, list[Any]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _pages(store: Store) -> Iterator[list]:
    after = ""
    while items := store.items(after=after):
        after = items[-1].id
        yield items


def _group_ids(store: Store) -> Iterator[tuple[str, str]]:
    for items in _pages(store):
        yield from ((item.id, item.group_id) for item in items)
        yield from ((m.item_id, m.group_id) for m in store.memberships(item.id for item in items))


def _by_item(pairs: Iterable[tuple[str, str]]) -> Iterable[set[str]]:
    found: dict[str, set[str]] = {}
    for item, group in pairs:
        found.setdefault(item, set()).add(group)
    return found.values()


def _groups(joined: Iterable[set[str]]) -> dict[str, str]:
    """The smallest name of all groups that an item joins, for each that is not the smallest itself."""
    parent: dict[str, str] = {}

    def root(group: str) -> str:
        while group in parent:
            group = parent[group]
        return group

    for groups in joined:
        first, *rest = sorted({root(g) for g in groups})
        parent.update(dict.fromkeys(rest, first))
    return {group: root(group) for group in parent}


def to_pairs(record: Record, options: Options) -> Iterable[Pair | Tie]:
    """The majority of the standing judgements; a tie is half a win for each side, and skips say nothing.

    p_chosen = (wins of chosen + ½ ties) / n, where more than one judge answered. Unused: identical, unjudged, skipped.
    """
    a, b = (_response(messages, i, record["producers"]) for i, messages in enumerate(record["responses"]))
    if a["messages"] == b["messages"]:
        raise Unused("identical")
    if not record["votes"]:
        raise Unused("unjudged")
    votes = [v for v in record["votes"] if v["outcome"] != "skip"]
    if not votes:
        raise Unused("skipped")
    wins = [sum(v["winner"] == side for v in votes) for side in (0, 1)]
    ties = len(votes) - sum(wins)
    if wins[0] == wins[1]:
        yield Tie()
        return
    chosen, rejected = (a, b) if wins[0] > wins[1] else (b, a)
    origins = [record["origin"], chosen["origin"], rejected["origin"]]
    yield Pair(
        record["prompt"],
        chosen["messages"],
        rejected["messages"],
        source="judgements",
        group_key=record["group_id"],
        subset=record["origin"].get("subset", ""),
        source_id=record["id"],
        p_chosen=(max(wins) + ties / 2) / len(votes) if len(votes) > 1 else None,
        created=datetime.fromisoformat(max(v["time"] for v in votes)).replace(microsecond=0),
        flags=sorted({f for v in votes for f in v["flags"]}),
        meta={
            "positions": record["positions"],
            "judges": len(votes),
            "ties": ties,
            "skips": len(record["votes"]) - len(votes),
            "producers": {"chosen": chosen["producers"], "rejected": rejected["producers"]},
        },
        licenses=_aligned(origins, "license"),
        urls=_aligned(origins, "url"),
        authors=_aligned(origins, "author"),
    )


def counts(record: Record) -> dict[str, int]:
    """How often judges preferred what they were shown first, and second: orders are random, so as often as not."""
    decided = [v for v in record["votes"] if v["winner"] is not None]
    first = sum(v["winner"] == v["shown"][0] for v in decided)
    return {"positions.first_won": first, "positions.second_won": len(decided) - first}


def recognises(path: Path) -> bool:
    """Whether a file is a SQLite database by its first bytes; whether it is ours shows when it is opened."""
    if not path.is_file():
        return False
    with path.open("rb") as f:
        return f.read(16) == b"SQLite format 3\0"


def _aligned(origins: list[dict], key: str) -> list[str]:
    """Of prompt, chosen and rejected, in this order; empty where none is known."""
    return [o.get(key, "") for o in origins] if any(key in o for o in origins) else []


def _response(messages: list, index: int, producers: list[dict]) -> dict:
    mine = [p for p in producers if p["response"] == index]
    origin: dict = next((p["origin"] for p in mine if p["origin"]), {})
    return {"messages": messages, "producers": sorted({p["name"] for p in mine if p["name"]}), "origin": origin}


SOURCE = Source(
    name="judgements",
    summary="labels.db or votes.db: the majority of what people judged",
    licence="that of the texts judged, carried along",
    options=Options,
    files=files,
    records=records,
    to_pairs=to_pairs,
    recognises=recognises,
    counts=counts,
    split_warning="the splits of the data that was judged are not carried over: its test pairs may be in train",
)
