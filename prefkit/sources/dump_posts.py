"""Rows of a Stack Exchange dump as columns: posts by question, and what lies in the tables beside them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefkit import tables
from prefkit.errors import UserError
from prefkit.sources import MapOutput, Slice
from prefkit.sources.dump_files import DumpOptions, address, is_utf16, members_of, tables_in, token
from prefkit.sources.dump_tables import Links, Rows, Users, Votes
from prefkit.xmlrows import Damaged, Framer, Row, byte_range, elements, utf16

QUESTION, ANSWER = 1, 2
UNKNOWN_SITE = "the site is unknown: no urls, and other dumps of it count as another; add --options.site"
NO_LINKS = "no PostLinks.xml, so no duplicate questions are known"
PART_BYTES = 32 << 20  # a stream is written out each time it has grown by so much
FABRICATED = {
    "1000000001",
    "1000000010",
}  # canaries in every dump since 2025-06 (https://meta.stackexchange.com/q/412018)
CARRIED = {
    "title": "Title",
    "tags": "Tags",
    "owner": "OwnerUserId",
    "owner_name": "OwnerDisplayName",
    "created": "CreationDate",
    "license": "ContentLicense",
    "wiki": "CommunityOwnedDate",
    "closed": "ClosedDate",
}
COLUMNS = ("line", "question", "kind", "id", "votes", "accepted", "body", *CARRIED)
POSTS = pa.schema(
    [
        ("key", pa.uint64()),
        ("line", pa.int64()),
        ("site", pa.string()),
        ("question", pa.int64()),
        ("kind", pa.int8()),
        ("id", pa.int64()),
        ("votes", pa.int64()),
        ("accepted", pa.int64()),
        ("title", pa.string()),
        ("body", pa.string()),
        ("tags", pa.string()),
        ("owner", pa.string()),
        ("owner_name", pa.string()),
        ("created", pa.string()),
        ("license", pa.string()),
        ("wiki", pa.string()),
        ("closed", pa.string()),
    ]
)


def map_slice(piece: Slice, options: DumpOptions, out: MapOutput) -> None:
    """The rows of a stretch: posts by question, everything else aside."""
    if piece.kind == "archive":
        return _map_archive(piece, options, out)
    table, _, encoding = piece.kind.partition("-")
    if piece.start == 0:
        if table == "posts":
            _refuse_other_xml(piece.path)
        _warn_at_start(table, piece, options, out)
    chunks = _counted(byte_range(piece.path, piece.start, piece.stop), piece.stop - piece.start, out, table == "posts")
    framer, taker = Framer(), TAKERS[table](piece.subset, options, out)
    for data in utf16(chunks) if encoding else chunks:
        _parse_into(taker, framer.feed(data), out)
    _parse_into(taker, framer.close(), out)
    taker.close()
    if table == "postlinks" and piece.start == 0:
        _warn_if_no_links(piece.name, out)
    if piece.stop == piece.path.stat().st_size:
        with piece.path.open("rb") as f:
            f.seek(max(0, piece.stop - 256))
            _warn_if_cut(f.read().replace(b"\0", b""), piece.name, out)
    return None


def _parse_into(taker: Any, blocks: Iterable[tuple[int, bytes]], out: MapOutput) -> None:
    for line, block in blocks:
        repairs: Counter[str] = out.tally if isinstance(taker, _Posts) else Counter()
        taker.take(elements(block, line, repairs))


def _refuse_other_xml(path: Path) -> None:
    chunks, framer = byte_range(path, 0, path.stat().st_size), Framer()
    for data in utf16(chunks) if is_utf16(path) else chunks:
        for line, block in framer.feed(data):
            rows = [row for _, row in elements(block, line, Counter()) if not isinstance(row, Damaged)]
            if rows:
                return _refuse_unless_post(rows[0], path)
    rows = [r for n, b in framer.close() for _, r in elements(b, n, Counter()) if not isinstance(r, Damaged)]
    return _refuse_unless_post(rows[0] if rows else None, path)


def _refuse_unless_post(row: Row | None, path: Path) -> None:
    """A `UserError` unless the first sound row of a file is a post."""
    fix = "give Posts.xml of a Stack Exchange dump"
    if row is None:
        raise UserError("this is no Posts.xml: there is no whole <row … /> in it", path, fix)
    if row.get("PostTypeId") is None:
        raise UserError(
            f"this is no Posts.xml: its first row has {', '.join(row.keys()[:5])} and no PostTypeId", path, fix
        )


def _counted(chunks: Iterator[bytes], left: int, out: MapOutput, lines: bool) -> Iterator[bytes]:
    """The chunks, with the line ends of their first `left` bytes counted: the rest belongs to the next slice."""
    for data in chunks:
        if left > 0 and lines:
            out.lines += data.count(b"\n", 0, left)
        left -= len(data)
        yield data


def _map_archive(piece: Slice, options: DumpOptions, out: MapOutput) -> None:
    """All wanted tables of an archive as it streams by."""
    from prefkit import archives

    members = members_of(piece.path, options)
    readers = {m: _Member(TAKERS[table](piece.subset, options, out), out) for table, m in members.items()}
    archives.stream(piece.path, {m: reader.feed for m, reader in readers.items()})
    for table, member in members.items():
        reader = readers[member]
        _parse_into(reader.taker, reader.framer.close(), out)
        if table == "posts":
            _refuse_unless_post(reader.taker.first, piece.path)
        reader.taker.close()
        name = f"{piece.name}/{member.rpartition('/')[2]}"
        _warn_if_cut(reader.tail, name, out)
        if table == "postlinks":
            _warn_if_no_links(name, out)
    if "posts" in members:
        if address(piece.subset) is None:
            out.warn(UNKNOWN_SITE, piece.name)
        alone = piece.path.name.lower().endswith("-posts.7z")
        links = piece.path.with_name(piece.path.name[: -len("posts.7z")] + "PostLinks.7z") if alone else None
        if "postlinks" not in members and not (links is not None and _exists_in_any_case(links)):
            out.warn(NO_LINKS, piece.name)


def _exists_in_any_case(path: Path) -> bool:
    return any(p.name.lower() == path.name.lower() for p in path.parent.iterdir())


class _Member:
    """A table of an archive, parsed block by block as it is pushed."""

    def __init__(self, taker: Any, out: MapOutput):
        self.taker, self.out, self.framer, self.tail = taker, out, Framer(), b""

    def feed(self, data: bytes) -> None:
        self.tail = (self.tail + data[-256:])[-256:]
        _parse_into(self.taker, self.framer.feed(data), self.out)


def _warn_at_start(table: str, piece: Slice, options: DumpOptions, out: MapOutput) -> None:
    if table != "posts":
        return
    if address(piece.subset) is None:
        out.warn(UNKNOWN_SITE, piece.name)
    if piece.path.name.lower() != "posts.xml" or "postlinks" not in tables_in(piece.path.parent, options):
        out.warn(NO_LINKS, piece.name)


def _warn_if_cut(tail: bytes, name: str, out: MapOutput) -> None:
    if b"</" not in tail:
        out.warn("no closing tag at the end: it may be cut short", name)


def _warn_if_no_links(name: str, out: MapOutput) -> None:
    if not any(kind.startswith("links.") for kind in out.tally):
        out.warn("no row in it, so no duplicate questions are known", name)


class _Posts:
    """Questions and answers of one slice, as columns."""

    def __init__(self, site: str, options: DumpOptions, out: MapOutput):
        self.site, self.options, self.out = site, options, out
        self.columns: dict[str, list] = {name: [] for name in COLUMNS}
        self.size = 0
        self.first: Row | None = None  # the first sound row

    def take(self, rows: Rows) -> None:
        """The rows of a block, each with its line."""
        self.out.tally["records.read"] += len(rows)
        taken: list[tuple[int, Row]] = [(line, row) for line, row in rows if self._is_wanted(line, row)]
        try:
            numbers = _numbers(taken)
        except (TypeError, ValueError, OverflowError):
            taken = [(line, row) for line, row in taken if self._has_numbers(line, row)]
            numbers = _numbers(taken)
        for name, values in numbers.items():
            self.columns[name] += values
        for name, attribute in CARRIED.items():
            self.columns[name] += [row.get(attribute) for _, row in taken]
        bodies = [row.get("Body", "") for _, row in taken]
        self.columns["body"] += bodies
        self.size += sum(map(len, bodies)) + 200 * len(bodies)
        if self.size >= PART_BYTES:
            self.close()

    def _is_wanted(self, line: int, row: Row | Damaged) -> bool:
        if isinstance(row, Damaged):
            self.out.reject("malformed_row", line, row.raw)
            return False
        if self.first is None:
            self.first = row
        if reason := self._unused(row.get):
            self.out.tally[f"records.unused.{reason}"] += 1
        return not reason

    def _unused(self, get: Callable[[str], str | None]) -> str:
        if get("PostTypeId") not in ("1", "2"):
            return "other_type"
        if get("DeletionDate") is not None:
            return "deleted"
        owner = get("OwnerUserId")
        if owner == "-1" and get("Id") in FABRICATED:
            return "fabricated"
        if owner == "-2" and not self.options.keep_answer_bot:
            return "answer_bot"
        return ""

    def _has_numbers(self, line: int, row: Row) -> bool:
        try:
            _numbers([(line, row)])
        except (TypeError, ValueError, OverflowError):
            self.out.reject("missing_number", line, json.dumps(dict(row.items()), ensure_ascii=False))
            return False
        return True

    def close(self) -> None:
        """Write out what was taken."""
        if not self.columns["line"]:
            return
        site, n = token(self.site), len(self.columns["line"])
        keys = tables.hash64(f"{site}/{q}" for q in self.columns["question"])
        columns: dict[str, Any] = {"key": keys, "site": pa.array([self.site] * n, pa.string()), **self.columns}
        self.out.rows(pa.table([pa.array(columns[f.name], f.type) for f in POSTS], schema=POSTS))
        self.columns, self.size = {name: [] for name in COLUMNS}, 0


def _numbers(rows: list[tuple[int, Row]]) -> dict[str, list[int]]:
    """Columns of numbers; TypeError, ValueError or OverflowError where one is absent, none, or does not fit.

    An answer's question is its ParentId, a question's itself.
    """
    columns = {
        "line": [line for line, _ in rows],
        "kind": [int(row.get("PostTypeId")) for _, row in rows],
        "id": [int(row.get("Id")) for _, row in rows],
        "votes": [int(row.get("Score")) for _, row in rows],
        "accepted": [int(row.get("AcceptedAnswerId") or 0) for _, row in rows],
        "parent": [0 if row.get("PostTypeId") == "1" else int(row.get("ParentId")) for _, row in rows],
    }
    parents = columns.pop("parent")
    columns["question"] = [
        number if kind == QUESTION else parent
        for number, kind, parent in zip(columns["id"], columns["kind"], parents, strict=True)
    ]
    for values in columns.values():
        np.array(values, dtype=np.int64)
    return columns


TAKERS: dict[str, Callable[[str, DumpOptions, MapOutput], Any]] = {
    "posts": _Posts,
    "postlinks": Links,
    "users": Users,
    "votes": Votes,
}
