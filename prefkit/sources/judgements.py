"""Judgements made with `prefkit label` and `evalkit side-by-side`; licences are those of the texts judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from prefkit.errors import UserError
from prefkit.schema import Pair
from prefkit.sources import Record, Slice, Source, Tie, Unused


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
    """One record an item, over all databases. `UserError` where judgements are added meanwhile."""
    from prefkit.judgements.merged import merged
    from prefkit.judgements.store import Store

    kinds = ("person", "model") if options.machines else ("person",)
    with ExitStack() as stack:
        stores = [(s.name, stack.enter_context(closing(Store(str(s.path), create=False)))) for s in slices]
        for record in merged(stores, kinds):
            yield record["positions"][0], record
        for piece, (_, store) in zip(slices, stores, strict=True):
            if store.has_unsettled():
                raise UserError("judgements were added while it was read", piece.path, "run the command again")


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
