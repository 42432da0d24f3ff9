"""Posts.xml of a Stack Exchange dump: questions and answers as columns; all else is counted by what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from prefkit import tables
from prefkit.sources import MapOutput
from prefkit.sources.dump_files import DumpOptions, address, token
from prefkit.sources.dump_marks import COMMUNITY, DIGITS_OF_NO_ID, is_same_site, without_quote, without_suffix
from prefkit.sources.dump_tables import Rows
from prefkit.xmlrows import Damaged, Row

QUESTION = 1
PART_BYTES = 32 << 20  # a stream is written out each time it has grown by so much
CARRIED = {
    "tags": "Tags",
    "owner": "OwnerUserId",
    "owner_name": "OwnerDisplayName",
    "created": "CreationDate",
    "license": "ContentLicense",
    "wiki": "CommunityOwnedDate",
    "closed": "ClosedDate",
}
COLUMNS = ("line", "question", "kind", "id", "votes", "accepted", "title", "body", *CARRIED)
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


class Posts:
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
        words = [self._own_words(row) for _, row in taken]
        bodies = [body for _, body in words]
        self.columns["title"] += [title for title, _ in words]
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
        elif len(row.get("Id", "")) >= DIGITS_OF_NO_ID:
            reason = "implausible_id"
            self.out.reject(reason, line, _raw(row))
        return not reason

    def _unused(self, get: Callable[[str], str | None]) -> str:
        if get("PostTypeId") not in ("1", "2"):
            return "other_type"
        if get("DeletionDate") is not None:
            return "deleted"
        owner = get("OwnerUserId") or ""
        if owner == COMMUNITY:
            return "fabricated" if len(get("Id") or "") >= DIGITS_OF_NO_ID else ""
        return "answer_bot" if owner[:1] == "-" and not self.options.keep_answer_bot else ""

    def _own_words(self, row: Row) -> tuple[str | None, str]:
        """Title and body without what the site wrote into a question's; the duplicates it names there are linked."""
        title, body = row.get("Title"), row.get("Body", "")
        if title is None:
            return None, body
        body, duplicates = without_quote(body, self.out.tally)
        for host, number in duplicates:
            there = self.site if address(self.site) is None or is_same_site(host, self.site) else host
            self.out.link(f"{token(self.site)}/{row.get('Id')}", f"{token(there)}/{number}")
            self.out.tally["links.quoted_duplicates"] += 1
        return without_suffix(title, self.out.tally), body

    def _has_numbers(self, line: int, row: Row) -> bool:
        try:
            _numbers([(line, row)])
        except (TypeError, ValueError, OverflowError):
            self.out.reject("missing_number", line, _raw(row))
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


def _raw(row: Row) -> str:
    return json.dumps(dict(row.items()), ensure_ascii=False)


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
