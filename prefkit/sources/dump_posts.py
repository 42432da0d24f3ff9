"""Posts.xml of a Stack Exchange dump: questions and answers as columns; all else is counted by what it is.

Posts about which nothing is remarkable, nearly all, become rows of a table without an object each (`_is_plain`); the
others are seen one by one, and both ways make the same of a post that both can take.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit import tables
from prefkit.sources import MapOutput
from prefkit.sources.dump_files import DumpOptions, address, token
from prefkit.sources.dump_marks import COMMUNITY, DIGITS_OF_NO_ID, is_same_site, without_quote, without_suffix
from prefkit.xmlcolumns import Columns, columns
from prefkit.xmlrows import Damaged, Row, elements

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
NUMBERS = ("line", "question", "kind", "id", "votes", "accepted")
TAKEN = pa.schema(
    [(name, pa.int64()) for name in NUMBERS] + [(name, pa.string()) for name in ("title", "body", *CARRIED)]
)
PLAIN_NUMBER = r"^-?[0-9]{1,9}$"


class Posts:
    """Questions and answers of one slice, as columns."""

    def __init__(self, site: str, options: DumpOptions, out: MapOutput):
        self.site, self.options, self.out = site, options, out
        self.taken: list[pa.Table] = []
        self.first: Row | None = None  # the first sound row

    def take(self, block: bytes, line: int) -> None:
        """The rows of a block whose first line is `line`."""
        found = columns(block, line)
        if found is None:
            rows = elements(block, line, self.out.tally)
            self.out.tally["records.read"] += len(rows)
            self.taken.append(self._one_by_one(rows)[1])
        else:
            self.first = found.row(0) if self.first is None else self.first
            self.out.tally["records.read"] += len(found)
            plain = _is_plain(found)
            rest, plain = np.flatnonzero(~plain).tolist(), np.flatnonzero(plain)
            kept, others = self._one_by_one([(int(found.lines[i]), found.row(i)) for i in rest])
            made = _table(found, plain)
            if kept:
                order = np.argsort(np.concatenate([plain, np.array(rest)[kept]]))
                made = pa.concat_tables([made, others]).take(pa.array(order))
            self.taken.append(made)
        if sum(table.nbytes for table in self.taken) >= PART_BYTES:
            self.close()

    def _one_by_one(self, rows: list[tuple[int, Row | Damaged]]) -> tuple[list[int], pa.Table]:
        """The numbers of the wanted rows, and what they come to."""
        kept = [i for i, (line, row) in enumerate(rows) if self._is_wanted(line, row)]
        try:
            numbers = _numbers([rows[i] for i in kept])
        except (TypeError, ValueError, OverflowError):
            kept = [i for i in kept if self._has_numbers(*rows[i])]
            numbers = _numbers([rows[i] for i in kept])
        taken: list[Row] = [rows[i][1] for i in kept]
        words = [self._own_words(row) for row in taken]
        made = numbers | {"title": [title for title, _ in words], "body": [body for _, body in words]}
        made |= {name: [row.get(attribute) for row in taken] for name, attribute in CARRIED.items()}
        return kept, pa.table([pa.array(made[f.name], f.type) for f in TAKEN], schema=TAKEN)

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
            self.out.tally["links.quoted_duplicates" if there == self.site else "links.quoted_other_site"] += 1
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
        table = pa.concat_tables(self.taken) if self.taken else TAKEN.empty_table()
        self.taken = []
        if table.num_rows:
            site = token(self.site)
            keys = tables.hash64(f"{site}/{question}" for question in table["question"].to_pylist())
            sites = pa.array([self.site] * len(keys), pa.string())
            self.out.rows(table.add_column(0, "site", sites).add_column(0, "key", pa.array(keys)))


def _is_plain(found: Columns) -> np.ndarray:
    """Which rows are questions and answers of people, whole, with nothing in them that the site wrote: bool[n]."""

    def true(condition: pa.BooleanArray) -> np.ndarray:
        return condition.fill_null(False).to_numpy(zero_copy_only=False)

    def number(attribute: str) -> np.ndarray:
        return true(pc.match_substring_regex(found.column(attribute), PLAIN_NUMBER))

    kind, title, accepted = (found.column(name) for name in ("PostTypeId", "Title", "AcceptedAnswerId"))
    plain = true(pc.equal(kind, "1")) | true(pc.equal(kind, "2")) & number("ParentId")
    plain &= number("Id") & number("Score") & (true(accepted.is_null()) | number("AcceptedAnswerId"))
    plain &= true(found.column("DeletionDate").is_null()) & ~true(pc.starts_with(found.column("OwnerUserId"), "-"))
    titled = np.flatnonzero(true(title.is_valid()))
    body = found.column("Body", titled)
    marked = pc.or_(pc.starts_with(body, "<blockquote"), pc.ends_with(title.drop_null(), "]"))
    plain[titled] &= true(pc.starts_with(body, "<")) & ~true(marked)
    return plain


def _table(found: Columns, rows: np.ndarray) -> pa.Table:
    """Plain rows as `TAKEN`."""

    def text(attribute: str) -> pa.StringArray:
        return found.column(attribute, rows)

    def number(attribute: str) -> pa.Int64Array:
        return text(attribute).cast(pa.int64())

    kind, own = number("PostTypeId"), number("Id")
    made = {name: text(attribute) for name, attribute in CARRIED.items()} | {
        "line": pa.array(found.lines[rows]),
        "question": pc.if_else(pc.equal(kind, QUESTION), own, number("ParentId")),
        "kind": kind,
        "id": own,
        "votes": number("Score"),
        "accepted": number("AcceptedAnswerId").fill_null(0),
        "title": text("Title"),
        "body": text("Body").fill_null(""),
    }
    return pa.table([made[name] for name in TAKEN.names], schema=TAKEN)


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
