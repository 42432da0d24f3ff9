"""One pair, followed from its lines in the dump to its row in the shards."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit import archives
from prefkit.errors import UserError
from prefkit.file_formats import file_format, is_readable
from prefkit.readers import read_records
from prefkit.shards import Manifest, read_shard, shards_of
from prefkit.sources import rejects
from prefkit.wording import counted
from prefkit.xmlrows import REFERENCE, Damaged, parse

SHOWN_CHARS = 300
SHOWN_NAMES = 5


class Step(NamedTuple):
    """One stage of a pair's way: its name and what is known there."""

    stage: str
    text: str


class Found(NamedTuple):
    """A pair and where it stands."""

    data: Path
    manifest: Manifest
    table: pa.Table
    split: str
    shard: str
    number: int

    @property
    def row(self) -> dict:
        """All columns of the pair."""
        return self.table.slice(self.number, 1).to_pylist()[0]


def follow(found: Found) -> list[Step]:
    """The way of a pair from the input to the shards.

    The raw rows are shown where the input still lies where `convert` read it and still has the same sha256.
    """
    row, meta = found.row, json.loads(found.row["meta"] or "{}")
    steps = []
    names = ("prompt", "chosen", "rejected") if len(meta.get("positions", [])) == 3 else ("record",)
    for name, position in zip(names, meta.get("positions", []), strict=False):
        raw = raw_record(position, found.data, found.manifest)
        steps.append(Step(f"read {name}", f"{position}  {short(raw) if raw else 'input not at hand, or changed'}"))
        if raw and raw.startswith("<row"):
            steps.append(Step(f"repair {name}", _repairs(raw)))
    for name in ("prompt", "chosen", "rejected"):
        steps.append(Step(f"text {name}", short(" ⏎⏎ ".join(f"{m['role']}: {m['content']}" for m in row[name]))))
    if row["score_chosen"] is not None:
        sides = (f"{side} {row[f'score_{side}']:g}{_votes(side, meta)}" for side in ("chosen", "rejected"))
        steps.append(Step("scores", ", ".join(sides)))
    margin = f", margin {row['margin']:.4f}" if row["margin"] is not None else ""
    steps.append(Step("pair", f"{row['id']}  {row['source']} {row['source_id']}{margin}"))
    steps.append(Step("group", f"{row['group_id']} → split {found.split} (seed {found.manifest.config['seed']})"))
    steps.append(Step("shard", f"{found.shard} row {found.number}"))
    return steps


def _votes(side: str, meta: dict) -> str:
    return f" from {meta[f'votes_{side}']} votes" if f"votes_{side}" in meta else ""


def find(name: str, data: Path) -> Found:
    """The one pair of this id, source id (both whole or by their first characters) or position of one of its records.

    A `UserError` for none or several, and for a position whose record was refused.
    """
    manifest = Manifest.read(data)
    shards = [(split, shard) for split in manifest.splits for shard in shards_of(manifest, split)]
    tables = [Found(data, manifest, read_shard(data / shard), split, shard, -1) for split, shard in shards]
    hits = _named(name, tables, pc.equal) or _named(name, tables, pc.starts_with) or _made_of(name, tables)
    if len(hits) == 1:
        return hits[0]
    near, known = hits, name
    while not near and (known := known[:-1]):
        near = _named(known, tables, pc.starts_with)
    listed = ", ".join(f"{h.row['source_id']} ({h.row['id'][:12]})" for h in near[:SHOWN_NAMES])
    listed += " …" if len(near) > SHOWN_NAMES else ""
    if hits:
        raise UserError(f"{len(hits):,} pairs are made of or called {name!r}", data, f"choose of {listed}")
    if refused := next((row for row in rejects.rows(data) if row["position"] == name), None):
        why = ", ".join(refused["reasons"])
        fix = f"prefkit rejects {data} --reason {refused['reason']} -n 10 shows such records"
        raise UserError(f"the {refused['kind']} at {name} was refused: {why}", data, fix)
    raise UserError(f"no pair has the id {name!r}", data, f"near it: {listed}" if near else "prefkit show prints ids")


def _named(name: str, tables: list[Found], matches: Callable[..., pa.ChunkedArray]) -> list[Found]:
    """The pairs of whose two ids one matches, with their row numbers."""
    found = []
    for place in tables:
        marks = [pc.fill_null(matches(place.table[column], name), False) for column in ("id", "source_id")]
        found += [place._replace(number=n) for n in np.flatnonzero(pc.or_(*marks).to_numpy()).tolist()]
    return found


def _made_of(position: str, tables: list[Found]) -> list[Found]:
    """The pairs that a record at `NAME:LINE` is in."""
    found = []
    for place in tables:
        marks = pc.fill_null(pc.match_substring(place.table["meta"], json.dumps(position, ensure_ascii=False)), False)
        found += [place._replace(number=n) for n in np.flatnonzero(marks.to_numpy()).tolist()]
    return [f for f in found if position in json.loads(f.row["meta"] or "{}").get("positions", [])]


def raw_record(position: str, data: Path, manifest: Manifest) -> str | None:
    """The record at `NAME:LINE` as it stands in the input, None where the input is gone or is another one now."""
    name, _, line = position.rpartition(":")
    known = {i["name"]: i["sha256"] for i in manifest.inputs}
    if name not in known or not line.isdigit():
        return None
    for path in _paths(data):
        if path.is_file() and path.name == name.rpartition("/")[2] and _sha256(path) == known[name]:
            text = _line(path, int(line))
            return text.strip() if text is not None else None
    return None


def _paths(data: Path) -> list[Path]:
    """Where the inputs lay, from the log that is not part of the data set."""
    log = data / "_run.log"
    lines = log.read_text("utf-8").splitlines() if log.is_file() else []
    return [Path(note["input"]) for note in map(json.loads, lines) if "input" in note]


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _line(path: Path, number: int) -> str | None:
    if path.suffix == ".7z":
        return _line_in_archive(path, number)
    if is_readable(path) and (file_format(path) != "jsonl" or path.suffix == ".zst"):
        place = f"{path.name}:{number}"
        return next((json.dumps(r, ensure_ascii=False, default=str) for p, r in read_records(path) if p == place), None)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as f:
        return next((raw.decode("utf-8", "replace") for raw in islice(f, number - 1, number)), None)


def _line_in_archive(path: Path, number: int) -> str | None:
    posts = next(m for m in archives.members(path) if m.lower().endswith("posts.xml"))
    seen, found = 1, bytearray()

    def look(data: bytes) -> None:
        nonlocal seen
        for piece in data.splitlines(keepends=True):
            if seen == number:
                found.extend(piece)
            seen += piece.endswith(b"\n")

    archives.stream(path, {posts: look})
    return found.decode("utf-8", "replace") or None


def _repairs(raw: str) -> str:
    tally: Counter[str] = Counter()
    rows = parse(raw.encode(), 0, tally)
    if not rows or isinstance(rows[0][1], Damaged):
        return "no row on this line by itself"
    done = ", ".join(f"{k.removeprefix('repairs.')} {n}" for k, n in tally.items() if n)
    references = counted(len(REFERENCE.findall(raw.encode())), "character reference")
    return done or f"nothing; {references} resolved, HTML → Markdown"


def short(text: str) -> str:
    """One line of a text, cut after `SHOWN_CHARS` with its length."""
    flat = text.replace("\n", " ⏎ ")
    return flat if len(flat) <= SHOWN_CHARS else f"{flat[:SHOWN_CHARS]}… ({len(flat)} characters)"
