"""What every candidate passes at the end, whatever its source: checks, --where, and the settling of both ledgers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from prefkit import checks, near, tables
from prefkit.checks import CONTAMINATED
from prefkit.conditions import rows_where
from prefkit.contamination import Evaluation
from prefkit.schema import Reject
from prefkit.shingles import texts_of
from prefkit.split import KEYS
from prefkit.tables import Candidates

REJECTS = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("kind", pa.string()),  # record: a post, a line; candidate: a pair
        pa.field("reason", pa.string()),  # the first of the reasons, under which it is counted
        pa.field("reasons", pa.list_(pa.string())),
        pa.field("position", pa.string()),
        pa.field("raw", pa.string()),
    ]
)


class Rules(NamedTuple):
    """What decides about candidates: severities of the checks, an SQL condition, texts that must not be trained on."""

    checks: Mapping[str, str]
    where: str | None
    evaluation: Evaluation | None


class Finished(NamedTuple):
    """Rows that go on to be published, and what was refused on the way, as the columns of `REJECTS`."""

    kept: Candidates
    rejects: pa.Table


def finish(
    source: str,
    rules: Rules,
    made: Candidates,
    fates: list[str],
    rejects: list[Reject],
    tally: Counter[str],
    seconds: dict[str, float],
) -> Finished:
    """Check and filter candidates and settle what became of each record; counts both ledgers in `tally`."""
    found, reasons = checks.run(made, rules.checks, seconds)
    matches: dict[int, dict] = {}
    if rules.evaluation is not None and rules.checks[CONTAMINATED] != "off":
        matches = rules.evaluation.matches(found)
        if rules.checks[CONTAMINATED] == "flag":
            marked = np.isin(np.arange(found.rows), list(matches))
            found = found._replace(table=checks.with_flags(found.table, {CONTAMINATED: marked}))
            matches = {}
        for i in matches:
            reasons[i] = f"{reasons[i]} {CONTAMINATED}".lstrip()
    bad = np.flatnonzero(reasons != "")
    for i, row in zip(bad.tolist(), found.spelled(bad).to_pylist(), strict=True):
        tally[f"candidates.rejected.{reasons[i].partition(' ')[0]}"] += 1
        rejects.append(reject_of(reasons[i], row, matches.get(i)))
    checked = found.filter(reasons == "")
    kept = checked.filter(matching(checked, rules.where))
    tally["candidates.filtered"] += checked.rows - kept.rows
    for fate in _settle(fates, [("used", kept.table), ("filtered", checked.table), ("rejected_pairs", found.table)]):
        if fate != "rejected":  # counted where it was refused
            tally["records.used" if fate == "used" else f"records.unused.{fate}"] += 1
    kinds = ["record"] * (len(rejects) - len(bad)) + ["candidate"] * len(bad)
    return Finished(kept, rejects_table(source, kinds, rejects))


def _settle(fates: list[str], by_pairs: list[tuple[str, pa.Table]]) -> list[str]:
    """Fates of all records; one without its own takes the best of what its pairs came to."""
    settled = list(fates)
    for fate, table in by_pairs:
        for i in np.unique(table["_records"].combine_chunks().flatten().to_numpy()).tolist():
            settled[i] = settled[i] or fate
    assert all(settled)
    return settled


def reject_of(reasons: str, row: dict, match: dict | None) -> Reject:
    """A row with its messages as a reject; `match` is what it has in common with an evaluation set."""
    positions = json.loads(row["meta"]).get("positions", [])
    kept = {k: v for k, v in row.items() if not k.startswith("_") and k != "id"}
    kept["created"] = row["created"].isoformat() if row["created"] else None
    kept |= {"matches": match} if match else {}
    return Reject(reasons, " ".join(positions), json.dumps(kept, ensure_ascii=False))


def rejects_table(source: str, kinds: list[str], rejects: list[Reject]) -> pa.Table:
    """Refused records and candidates as the columns of `REJECTS`; of several reasons the first counts."""
    rows = [
        [source, kind, *_reasons(r.reason), r.position, r.raw.encode(errors="replace").decode()]
        for kind, r in zip(kinds, rejects, strict=True)
    ]
    return pa.table([pa.array([r[i] for r in rows], f.type) for i, f in enumerate(REJECTS)], schema=REJECTS)


def _reasons(text: str) -> tuple[str, list[str]]:
    return text.partition(" ")[0], text.split(" ")


def matching(made: Candidates, where: str | None) -> np.ndarray:
    """Whether the SQL expression over the columns is true of each row: bool[n]."""
    if where is None:
        return np.ones(made.rows, dtype=bool)
    table, keep = made.spelled(), np.zeros(made.rows, dtype=bool)
    plain_time = table["created"].cast(pa.timestamp("s"))  # zoned times would need an extension of duckdb
    table = table.set_column(table.schema.get_field_index("created"), "created", plain_time)
    keep[rows_where(table, where)] = True
    return keep


def row_keys(made: Candidates) -> np.ndarray:
    """Of each row: its id, group key and prompt as integers, about how many bytes it takes, and its responses without
    their order (with the side that won), so that a label that another row contradicts is found."""
    keys = np.zeros(made.rows, dtype=KEYS)
    ids = np.frombuffer(bytes.fromhex("".join(made.table["id"].to_pylist())), dtype=">u8").reshape(-1, 2)
    keys["id_high"], keys["id_low"] = ids[:, 0], ids[:, 1]
    keys["group"] = tables.hash64_column(made.table["group_key"])
    chosen, rejected = (made.table[c].to_numpy() for c in ("_chosen", "_rejected"))
    keys["prompt"], keys["answers"], keys["first"] = (
        made.table["_prompt"].to_numpy(),
        chosen + rejected,
        chosen < rejected,
    )
    sizes = tables.content_bytes(made.cells)
    keys["bytes"] = np.minimum(400 + sum(sizes[made.side(name)] for name in tables.SIDES), 2**32 - 1)
    return keys


def prompt_signatures(made: Candidates) -> np.ndarray:
    """`near.SIGNATURE` of each prompt that a row has, by its first row."""
    _, first = np.unique(made.table["_prompt"].to_numpy(), return_index=True)
    first.sort()
    prompts = made.cells.take(pa.array(made.side("prompt")[first]))
    keys = made.table["_prompt"].to_numpy()[first]
    groups = tables.hash64_column(made.table["group_key"].take(pa.array(first)))
    return near.signatures(texts_of(prompts), keys, groups, first)
