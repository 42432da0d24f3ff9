"""What every candidate passes at the end, whatever its source: checks, --where, and the settling of both ledgers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from prefkit import checks, tables
from prefkit.errors import UserError
from prefkit.schema import Reject
from prefkit.split import KEYS

REJECTS = pa.schema(
    [
        pa.field("source", pa.string()),
        pa.field("kind", pa.string()),  # record: a post, a line; candidate: a pair
        pa.field("reason", pa.string()),
        pa.field("position", pa.string()),
        pa.field("raw", pa.string()),
    ]
)


class Finished(NamedTuple):
    """Rows that go on to be published, and what was refused on the way, as the columns of `REJECTS`."""

    kept: pa.Table
    rejects: pa.Table


def finish(
    source: str, where: str | None, table: pa.Table, fates: list[str], rejects: list[Reject], tally: Counter[str]
) -> Finished:
    """Check and filter candidates and settle what became of each record; counts both ledgers in `tally`."""
    table, reasons = checks.run(table, tally)
    good = reasons == ""
    bad = table.filter(pa.array(~good))
    for reason, row in zip(reasons[~good], bad.to_pylist(), strict=True):
        tally[f"candidates.rejected.{reason}"] += 1
        rejects.append(_reject_of(reason, row))
    checked = table.filter(pa.array(good))
    kept = filtered(checked, where)
    tally["candidates.filtered"] += checked.num_rows - kept.num_rows
    for fate in _settle(fates, [("used", kept), ("filtered", checked), ("rejected_pairs", table)]):
        if fate != "rejected":  # counted where it was refused
            tally["records.used" if fate == "used" else f"records.unused.{fate}"] += 1
    n_records = len(rejects) - bad.num_rows
    kinds = ["record"] * n_records + ["candidate"] * bad.num_rows
    return Finished(kept, rejects_table(source, kinds, rejects))


def _settle(fates: list[str], by_pairs: list[tuple[str, pa.Table]]) -> list[str]:
    """Fates of all records; one without its own takes the best of what its pairs came to."""
    settled = list(fates)
    for fate, table in by_pairs:
        for i in np.unique(table["_records"].combine_chunks().flatten().to_numpy()):
            settled[i] = settled[i] or fate
    assert all(settled)
    return settled


def _reject_of(reason: str, row: dict) -> Reject:
    positions = json.loads(row["meta"]).get("positions", [])
    kept = {k: row[k] for k in ("prompt", "chosen", "rejected", "group_key", "source_id", "meta")}
    return Reject(reason, " ".join(positions), json.dumps(kept, ensure_ascii=False))


def rejects_table(source: str, kinds: list[str], rejects: list[Reject]) -> pa.Table:
    """Refused records and candidates as the columns of `REJECTS`."""
    rows = [
        [source, kind, r.reason, r.position, r.raw.encode(errors="replace").decode()]
        for kind, r in zip(kinds, rejects, strict=True)
    ]
    return pa.table([pa.array([r[i] for r in rows], f.type) for i, f in enumerate(REJECTS)], schema=REJECTS)


def filtered(table: pa.Table, where: str | None) -> pa.Table:
    """The rows, in their order, for which the SQL expression over the columns is true."""
    if where is None:
        return table
    plain_time = table["created"].cast(pa.timestamp("s"))  # zoned times would need an extension of duckdb
    visible = table.drop_columns("_records").append_column("_row", pa.array(np.arange(table.num_rows)))
    visible = visible.set_column(visible.schema.get_field_index("created"), "created", plain_time)
    with duckdb.connect(config={"threads": 1, "enable_external_access": False}) as db:
        try:
            db.register("pairs", visible)
            rows = db.execute(f"SELECT _row FROM pairs WHERE ({where}\n)").fetchnumpy()["_row"]  # noqa: S608
        except duckdb.Error as e:
            columns = ", ".join(c for c in visible.column_names if not c.startswith("_"))
            raise UserError(f"bad --where {where!r}: {e}", fix=f"an SQL condition over {columns}") from None
    return table.take(pa.array(np.sort(np.asarray(rows, dtype=np.int64))))


def check_condition(where: str | None) -> None:
    """UserError unless the expression can be decided of each row alone, and always alike."""
    if where is None:
        return
    with duckdb.connect(config={"threads": 1, "enable_external_access": False}) as db:
        (tree,) = db.execute("SELECT json_serialize_sql(?)", [f"SELECT 1 WHERE ({where}\n)"]).fetchone() or ("{}",)
        unsteady = db.execute("SELECT function_name FROM duckdb_functions() WHERE stability != 'CONSISTENT'").fetchall()
    nodes = list(_nodes(json.loads(tree)))
    if any(node.get("class") in ("SUBQUERY", "WINDOW") for node in nodes):
        raise UserError(f"bad --where {where!r}: it looks beyond its row", fix="leave out SELECT and OVER")
    called = {(name,) for node in nodes if (name := node.get("function_name"))} & set(unsteady)
    if called:
        what = f"bad --where {where!r}: {', '.join(sorted(n for (n,) in called))} differs from run to run"
        raise UserError(what, fix="use hash(id) for a sample, and dates written out")


def _nodes(tree: Any) -> Iterator[dict]:
    if isinstance(tree, dict):
        yield tree
    for child in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nodes(child)


def row_keys(table: pa.Table) -> np.ndarray:
    """Of each row: its id, group key and prompt as integers, and about how many bytes it takes."""
    keys = np.zeros(table.num_rows, dtype=KEYS)
    ids = np.frombuffer(bytes.fromhex("".join(table["id"].to_pylist())), dtype=">u8").reshape(-1, 2)
    keys["id_high"], keys["id_low"] = ids[:, 0], ids[:, 1]
    keys["group"] = tables.hash64_column(table["group_key"])
    prompts = tables.turn_json(table["prompt"].combine_chunks())
    known = {p: i for i, p in enumerate(dict.fromkeys(prompts))}
    keys["prompt"] = tables.hash64(known)[[known[p] for p in prompts]] if prompts else 0
    sizes = np.full(table.num_rows, 400)
    for column in ("prompt", "chosen", "rejected"):
        sizes += tables.content_bytes(table[column].combine_chunks())
    keys["bytes"] = sizes
    return keys
