"""What an earlier conversion refused (`_rejects/` of a data set), converted again after a fix; licences are those kept.

A refused pair is checked again, a refused line goes through its own source again. A post of a dump cannot: its pairs
need the other posts of its question, so it is refused as before, and the dump has to be converted again. What repeats
an evaluation set, or was never compared with those given, is refused as before too, unless there are some now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from prefkit.checks import CHECKS, CONTAMINATED
from prefkit.errors import UserError
from prefkit.schema import Pair
from prefkit.shards import Manifest, read_shard
from prefkit.sources import Record, Refused, Slice, Source, Tie, get_source, source_options

NAME = "rejects"
EXAMPLES = 5  # of a reason
KEPT = ("set_id", "score_chosen", "score_rejected", "margin", "p_chosen", "source", "subset", "source_id")


@dataclass(frozen=True)
class RejectsOptions:
    """`compared`: evaluation sets are given, so what repeated one is compared with them instead of being refused."""

    compared: bool = False


def files(path: Path, options: RejectsOptions) -> list[Path]:
    """The tables of rejects of a data set."""
    return [path / f for f in Manifest.read(path).files if f.startswith("_rejects/")]


def records(slices: list[Slice], options: RejectsOptions) -> Iterator[tuple[str, Record]]:
    """Rows of `finish.REJECTS`, each with the settings of the conversion that refused it."""
    for piece in slices:
        config = Manifest.read(piece.path.parents[1]).config
        for row in read_shard(piece.path).to_pylist():
            known = config["options"] if config["source"] == row["source"] else {}  # not of a replay's own
            yield row["position"] or piece.name, row | {"options": known, "against": bool(config.get("against"))}


def to_pairs(record: Record, options: RejectsOptions) -> Iterator[Pair | Tie]:
    """The pair that was refused, or what the source of the line makes of it now."""
    raw = _json(record)
    if record["source"] == NAME and record["kind"] == "record":  # a row that an earlier replay refused
        yield from to_pairs(raw, options)
        return
    if CONTAMINATED in record["reasons"] and not options.compared:
        raise Refused(CONTAMINATED)
    if record["kind"] == "candidate":
        kept = {k: raw[k] for k in KEPT if k in raw} | {k: raw.get(k) or [] for k in ("licenses", "urls", "authors")}
        anew = CHECKS.keys() - ({CONTAMINATED} if not options.compared else set())
        kept["flags"] = [f for f in raw["flags"] if f not in anew]
        kept["created"] = datetime.fromisoformat(raw["created"]) if raw.get("created") else None
        texts = {side: raw[side] for side in ("prompt", "chosen", "rejected")}
        meta = json.loads(raw["meta"] or "{}")
        yield Pair(**({"source": record["source"]} | kept | texts), group_key=raw["group_key"], meta=meta)
        return
    source = get_source(record["source"])
    uncompared = record["against"] and not options.compared
    if source.to_pairs is None or source.records is not None or uncompared:
        raise Refused(record["reason"])
    yield from source.to_pairs(raw, source_options(source, record["options"]))


def _json(record: Record) -> dict:
    try:
        raw = json.loads(record["raw"])
    except ValueError:
        raise Refused(record["reason"]) from None
    if not isinstance(raw, dict):
        raise Refused(record["reason"])
    return raw


def recognises(path: Path) -> bool:
    """Never by itself: a data set is refused as input unless this source is named."""
    return False


SOURCE = Source(
    name=NAME,
    summary="what an earlier conversion refused: a data set's folder (prefkit rejects --replay)",
    licence="that of what was refused",
    to_pairs=to_pairs,
    records=records,
    recognises=recognises,
    files=files,
    options=RejectsOptions,
)


class Refusals(NamedTuple):
    """How many there are of a reason, and the positions of the first."""

    n: int
    first: tuple[str, ...]


def summarise(data: Path) -> dict[str, dict[str, Refusals]]:
    """The rejects of each reason, apart for records and candidates; `UserError` where there is no data set."""
    found: dict[str, dict[str, Refusals]] = {"record": {}, "candidate": {}}
    for row in rows(data):
        reasons = found.setdefault(row["kind"], {})
        n, first = reasons.get(row["reason"], (0, ()))
        reasons[row["reason"]] = Refusals(n + 1, (*first, row["position"]) if n < EXAMPLES else first)
    return found


def refused_shares(manifest: Manifest) -> dict[str, float]:
    """Which share of all records that were read, and of all candidates that were made, was refused."""
    shares = {}
    for name, all_of_them in (("records", "read"), ("candidates", "made")):
        ledgers = [ledger[name] for ledger in manifest.sources.values()]
        refused = sum(n for ledger in ledgers for n in ledger["rejected"].values())
        shares[name] = refused / max(sum(ledger[all_of_them] for ledger in ledgers), 1)
    return shares


def rows(data: Path, reason: str | None = None) -> Iterator[Record]:
    """The rejects of a data set, or those that have a reason among theirs; `UserError` for a reason that none has."""
    seen: set[str] = set()
    hits = 0
    for file in files(data, RejectsOptions()):
        for batch in read_shard(file).to_batches(1000):
            for row in batch.to_pylist():
                seen.update(row["reasons"])
                if reason is None or reason in row["reasons"]:
                    hits += 1
                    yield row
    if reason is not None and not hits:
        raise UserError(f"nothing was refused as {reason!r}", data, f"reasons: {', '.join(sorted(seen)) or 'none'}")
