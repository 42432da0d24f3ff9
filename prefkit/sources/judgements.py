"""Judgements made with `prefkit label` and `evalkit side-by-side`; licences are those of the texts judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

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

    A vote that any of them saw withdrawn or replaced does not stand (one may be an older copy of another), and a group
    that any of them puts items in holds for all.
    """
    from prefkit.judgements.store import Store

    kinds = ("person", "model") if options.machines else ("person",)
    with ExitStack() as stack:
        stores = [(s.name, stack.enter_context(closing(Store(str(s.path), create=False)))) for s in slices]
        group = _groups(_by_item(chain.from_iterable(_group_ids(store) for _, store in stores)))
        streams = (_items(name, store, kinds) for name, store in stores)
        for _, same in groupby(merge(*streams, key=itemgetter("id")), key=itemgetter("id")):
            found = list(same)
            record = found[0] | {"group_id": group.get(found[0]["group_id"], found[0]["group_id"])}
            record["positions"] = [f["position"] for f in found]
            record["origin"] = {k: v for f in reversed(found) for k, v in f["origin"].items()}
            record["producers"] = [p for f in found for p in f["producers"]]
            gone = {event for f in found for event in f["superseded"]}
            votes = {v["id"]: v for f in found for v in f["votes"] if v["id"] not in gone}
            record["votes"] = list(votes.values())
            yield record["positions"][0], record


def _items(name: str, store: Store, kinds: Sequence[str]) -> Iterator[dict]:
    """The items of one database in order of their ids."""
    for items in _pages(store):
        ids = [item.id for item in items]
        votes, producers, gone = store.votes(ids, kinds), store.producers(ids), store.superseded(ids)
        for item in items:
            kept = {k: getattr(item, k) for k in ("id", "group_id", "prompt", "responses", "origin")}
            kept["position"] = f"{name}:{item.id}"
            kept["votes"] = [{k: getattr(v, k) for k in VOTE} for v in votes if v.item_id == item.id]
            kept["producers"] = [{k: getattr(p, k) for k in PRODUCER} for p in producers if p.item_id == item.id]
            kept["superseded"] = gone
            yield kept


def _pages(store: Store) -> Iterator[list]:
    after = ""
    while items := store.items(after=after):
        after = items[-1].id
        yield items


def _group_ids(store: Store) -> Iterator[tuple[str, str]]:
    return ((item.id, item.group_id) for items in _pages(store) for item in items)


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
