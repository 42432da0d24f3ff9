"""Judgements made with `prefkit label` and `evalkit side-by-side`; licences are those of the texts judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from itertools import groupby
from pathlib import Path

from prefkit.judgements.store import Store
from prefkit.schema import Pair
from prefkit.sources import Record, Source, Tie, Unused

VOTE = ("id", "judge_name", "outcome", "winner", "flags", "time")
PRODUCER = ("response", "name", "origin")


@dataclass(frozen=True)
class Options:
    """`machines`: whether judgements of models count beside those of people."""

    machines: bool = False


def files(path: Path, options: Options) -> list[Path]:
    """The database, whole in one file, so that its digest says what is in it."""
    store = Store(str(path), create=False)
    store.settle()
    store.close()
    return [path]


def records(paths: list[Path], options: Options) -> Iterator[tuple[str, Record]]:
    """One record an item: its texts, what stands about it in any of the databases, and who made its responses."""
    kinds = ("person", "model") if options.machines else ("person",)
    with ExitStack() as stack:
        stores = [(p.name, stack.enter_context(closing(Store(str(p), create=False)))) for p in paths]
        items = merge(*(_items(name, store, kinds) for name, store in stores), key=lambda item: item[1]["id"])
        for _, same in groupby(items, key=lambda item: item[1]["id"]):
            (position, record), *others = same
            for place, other in others:
                position += f" {place}"
                known = {v["id"] for v in record["votes"]}  # a copy of a database repeats its votes
                record["votes"] += [v for v in other["votes"] if v["id"] not in known]
                record["producers"] += other["producers"]
            yield position, record


def _items(name: str, store: Store, kinds: Sequence[str]) -> Iterator[tuple[str, Record]]:
    """The items of one database in order of their ids."""
    after = ""
    while items := store.items(after=after):
        after = items[-1].id
        ids = [item.id for item in items]
        votes, producers = store.votes(ids, kinds), store.producers(ids)
        for item in items:
            kept = {k: getattr(item, k) for k in ("id", "group_id", "prompt", "responses", "origin")}
            kept["votes"] = [{k: getattr(v, k) for k in VOTE} for v in votes if v.item_id == item.id]
            kept["producers"] = [{k: getattr(p, k) for k in PRODUCER} for p in producers if p.item_id == item.id]
            yield f"{name}:{item.id}", kept


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
            "judges": len(votes),
            "ties": ties,
            "skips": len(record["votes"]) - len(votes),
            "producers": {"chosen": chosen["producers"], "rejected": rejected["producers"]},
        },
        licenses=_aligned(origins, "license"),
        urls=_aligned(origins, "url"),
        authors=_aligned(origins, "author"),
    )


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
    split_warning="the splits of the data that was judged are not carried over: its test pairs may be in train",
)
