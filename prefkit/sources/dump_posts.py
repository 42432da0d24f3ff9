"""Posts and duplicate links of a Stack Exchange dump: where they lie in the input, and as columns by question."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from prefkit import archives, tables
from prefkit.errors import UserError
from prefkit.sources import MapOutput, Slice
from prefkit.xmlrows import Attributes, Damaged, Framer, byte_range, parse, utf16

QUESTION, ANSWER = 1, 2
UNKNOWN_SITE = "the site is unknown: no urls, and other dumps of it count as another; add --options.site"
NO_LINKS = "no PostLinks.xml, so no duplicate questions are known"
PART_BYTES = 32 << 20  # a stream is written out each time it has grown by so much
NETWORK = re.compile(
    r"(?:[a-z0-9-]+\.)*(?:stackexchange|stackoverflow|serverfault|superuser|askubuntu|stackapps)\.com|(?:meta\.)?mathoverflow\.net"
    r"|[a-z0-9-]+\.example"  # reserved for what is made up (RFC 2606): `prefkit sample`
)
FABRICATED = {
    "1000000001",
    "1000000010",
}  # canaries in every dump since 2025-06 (https://meta.stackexchange.com/q/412018)
CARRIED = ("Tags", "OwnerUserId", "OwnerDisplayName", "CreationDate", "ContentLicense")
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
    ]
)


@dataclass(frozen=True)
class DumpOptions:
    """`site`: `beer` or `beer.stackexchange.com`, where the input's name does not tell. `keep_answer_bot`: user −2."""

    site: str | None = None
    keep_answer_bot: bool = False


def slices(path: Path, options: DumpOptions, step: int) -> list[Slice]:
    """The stretches of an input: a folder with Posts.xml (and PostLinks.xml), a Posts.xml, or a site's 7z."""
    if path.is_dir():
        tables_here = {p.name.lower(): p for p in sorted(path.iterdir())}
        if "posts.xml" not in tables_here:
            raise UserError("no Posts.xml in the folder", path, _instead(path))
        site, files = _site(path.name, options), [tables_here["posts.xml"]]
        files += [tables_here["postlinks.xml"]] if "postlinks.xml" in tables_here else []
        return [s for f in files for s in _file_slices(f, f"{path.name}/{f.name}", site, step)]
    if path.suffix.lower() == ".7z":
        _tables_in(path)
        return [Slice(path, path.name, kind="archive", subset=_site(path.name, options))]
    if path.name.lower() == "postlinks.xml":
        raise UserError("duplicate links alone make no pairs", path, "give Posts.xml, or the folder that holds both")
    parent, whole = path.parent.name, path.name.lower() == "posts.xml"
    site = _site(parent if whole or NETWORK.fullmatch(parent.lower()) else path.stem, options)
    links = _beside(path) if whole else []
    return [s for f in (path, *links) for s in _file_slices(f, f.name, site, step)]


def _beside(posts: Path) -> list[Path]:
    """The PostLinks.xml in the folder of a Posts.xml."""
    return [p for p in sorted(posts.parent.iterdir()) if p.name.lower() == "postlinks.xml"][:1]


def _tables_in(archive: Path) -> dict[str, str]:
    """Member names of the posts and links of an archive; a `UserError` where posts are missing or either is twice."""
    names = archives.members(archive)
    found = {t: [m for m in names if m.lower().rpartition("/")[2] == t] for t in ("posts.xml", "postlinks.xml")}
    if not found["posts.xml"]:
        raise UserError("no Posts.xml in the archive", archive, f"it holds {', '.join(names) or 'nothing'}")
    for members in found.values():
        if len(members) > 1:
            raise UserError(f"the archive holds {', '.join(members)}", archive, "unpack it and give one site at a time")
    return {table: members[0] for table, members in found.items() if members}


def _instead(folder: Path) -> str:
    packed = [p.name for p in sorted(folder.iterdir()) if p.suffix.lower() == ".7z"]
    packed = [n for n in packed if n.lower().endswith("-posts.7z")] or packed
    return f"give the archive itself: {', '.join(packed[:3])}" if packed else "give a site's folder, Posts.xml or .7z"


def _site(name: str, options: DumpOptions) -> str:
    """The site's host name (`beer.stackexchange.com`); where nothing tells it, the input's own name."""
    name = options.site or re.sub(r"(-posts)?\.7z$", "", name, flags=re.I)
    known = (name.lower(), f"{name.lower()}.com", f"{name.lower()}.net")
    host = next((h for h in known if NETWORK.fullmatch(h)), None)
    return host or (f"{name.lower()}.stackexchange.com" if options.site else name)


def token(site: str) -> str:
    """The short name in keys and subsets: `beer` for beer.stackexchange.com, `stackoverflow` for stackoverflow.com."""
    return re.sub(r"\.(stackexchange\.com|com|net)$", "", site) if NETWORK.fullmatch(site) else site


def address(site: str) -> str | None:
    """`https://beer.stackexchange.com`, or None for a name that is no host."""
    return f"https://{site}" if NETWORK.fullmatch(site) else None


def _file_slices(path: Path, name: str, site: str, step: int) -> list[Slice]:
    size = path.stat().st_size
    links = path.name.lower() == "postlinks.xml"
    with path.open("rb") as f:
        head = f.read(2)
    if not links:
        _refuse_other_xml(path)
    if head in (b"\xff\xfe", b"\xfe\xff"):
        return [Slice(path, name, 0, size, "links-utf16" if links else "posts-utf16", site)]
    cuts = [*range(0, max(size, 1), step), size]
    return [Slice(path, name, a, b, "links" if links else "posts", site) for a, b in pairwise(cuts)]


def _refuse_other_xml(path: Path) -> None:
    with path.open("rb") as f:
        head = f.read(2)
    chunks = byte_range(path, 0, path.stat().st_size)
    rows = _parsed(utf16(chunks) if head in (b"\xff\xfe", b"\xfe\xff") else chunks, Counter())
    _refuse_unless_post(next((row for _, row in rows if not isinstance(row, Damaged)), None), path)


def _refuse_unless_post(row: Attributes | None, path: Path) -> None:
    """A `UserError` unless the first sound row of a file is a post."""
    fix = "give Posts.xml of a Stack Exchange dump"
    if row is None:
        raise UserError("this is no Posts.xml: there is no whole <row … /> in it", path, fix)
    if "PostTypeId" not in row:
        raise UserError(
            f"this is no Posts.xml: its first row has {', '.join(list(row)[:5])} and no PostTypeId", path, fix
        )


def _parsed(chunks: Iterator[bytes], tally: Counter[str]) -> Iterator[tuple[int, Any]]:
    framer = Framer()
    for data in chunks:
        for line, block in framer.feed(data):
            yield from parse(block, line, tally)
    for line, block in framer.close():
        yield from parse(block, line, tally)


def map_slice(piece: Slice, options: DumpOptions, out: MapOutput) -> None:
    """Posts of a stretch by question, duplicate links aside."""
    if piece.kind == "archive":
        return _map_archive(piece, options, out)
    chunks = _counted(byte_range(piece.path, piece.start, piece.stop), piece.stop - piece.start, out)
    rows = _parsed(utf16(chunks) if piece.kind.endswith("utf16") else chunks, out.tally)
    if piece.kind.startswith("links"):
        for _, row in rows:
            _take_link(row, piece.subset, out)
        if piece.start == 0:
            _warn_if_no_links(piece.name, out)
        return _warn_at_end(piece, out)
    if piece.start == 0 and address(piece.subset) is None:
        out.warn(UNKNOWN_SITE, piece.name)
    if piece.start == 0 and not _beside(piece.path):
        out.warn(NO_LINKS, piece.name)
    posts = _Posts(piece.subset, options, out)
    for line, row in rows:
        posts.take(line, row)
    posts.flush()
    return _warn_at_end(piece, out)


def _warn_at_end(piece: Slice, out: MapOutput) -> None:
    """Warn about a file whose last slice this is and whose end is missing."""
    if piece.stop == piece.path.stat().st_size:
        with piece.path.open("rb") as f:
            f.seek(max(0, piece.stop - 256))
            _warn_if_cut(f.read().replace(b"\0", b""), piece.name, out)


def _counted(chunks: Iterator[bytes], left: int, out: MapOutput) -> Iterator[bytes]:
    """The chunks, with the line ends of their first `left` bytes counted: the rest belongs to the next slice."""
    for data in chunks:
        if left > 0:
            out.lines += data.count(b"\n", 0, left)
        left -= len(data)
        yield data


def _map_archive(piece: Slice, options: DumpOptions, out: MapOutput) -> None:
    wanted = _tables_in(piece.path)
    posts, framer, tail, links_tail = _Posts(piece.subset, options, out), Framer(), [b""], [b""]
    links = Framer()
    if address(piece.subset) is None:
        out.warn(UNKNOWN_SITE, piece.name)

    def take_posts(data: bytes) -> None:
        tail[0] = (tail[0] + data[-256:])[-256:]
        for line, block in framer.feed(data):
            for place, row in parse(block, line, out.tally):
                posts.take(place, row)

    def take_links(data: bytes) -> None:
        links_tail[0] = (links_tail[0] + data[-256:])[-256:]
        for line, block in links.feed(data):
            for _, row in parse(block, line, out.tally):
                _take_link(row, piece.subset, out)

    sinks = {wanted["posts.xml"]: take_posts}
    if "postlinks.xml" in wanted:
        sinks[wanted["postlinks.xml"]] = take_links
    archives.stream(piece.path, sinks)
    for line, block in framer.close():
        for place, row in parse(block, line, out.tally):
            posts.take(place, row)
    for line, block in links.close():
        for _, row in parse(block, line, out.tally):
            _take_link(row, piece.subset, out)
    _refuse_unless_post(posts.first, piece.path)
    posts.flush()
    _warn_if_cut(tail[0], f"{piece.name}/Posts.xml", out)
    if "postlinks.xml" not in wanted:
        out.warn(NO_LINKS, piece.name)
    else:
        _warn_if_no_links(f"{piece.name}/PostLinks.xml", out)
        _warn_if_cut(links_tail[0], f"{piece.name}/PostLinks.xml", out)


def _warn_if_cut(tail: bytes, name: str, out: MapOutput) -> None:
    if b"</" not in tail:
        out.warn("no closing tag at the end: it may be cut short", name)


def _warn_if_no_links(name: str, out: MapOutput) -> None:
    if not any(kind.startswith("links.") for kind in out.tally):
        out.warn("no row in it, so no duplicate questions are known", name)


def _take_link(row: Attributes | Damaged, site: str, out: MapOutput) -> None:
    if isinstance(row, Damaged):
        out.tally["links.damaged"] += 1
    elif row.get("LinkTypeId") != "3":
        out.tally["links.other_type"] += 1
    elif "PostId" not in row or "RelatedPostId" not in row:
        out.tally["links.damaged"] += 1
    else:
        out.link(f"{token(site)}/{row['PostId']}", f"{token(site)}/{row['RelatedPostId']}")
        out.tally["links.duplicates"] += 1


class _Posts:
    """Questions and answers of one slice, as columns."""

    def __init__(self, site: str, options: DumpOptions, out: MapOutput):
        self.site, self.options, self.out = site, options, out
        self.columns: list[tuple] = []
        self.size = 0
        self.first: Attributes | None = None  # the first sound row

    def take(self, line: int, row: Attributes | Damaged) -> None:
        self.out.tally["records.read"] += 1
        if isinstance(row, Damaged):
            return self.out.reject("malformed_row", line, row.raw)
        self.first = self.first or row
        if reason := self._unused(row):
            self.out.tally[f"records.unused.{reason}"] += 1
            return None
        get = row.get
        kind = int(row["PostTypeId"])
        try:
            number, votes = int(row["Id"]), int(row["Score"])
            question = number if kind == QUESTION else int(row["ParentId"])
            accepted = int(get("AcceptedAnswerId") or 0)
            if max(map(abs, (number, votes, question, accepted))) >= 2**63:
                raise ValueError("a number that no column holds")
        except (KeyError, ValueError):  # no Id, no Score, an answer without its question, or a number that is none
            return self.out.reject("missing_number", line, json.dumps(row, ensure_ascii=False))
        body = get("Body") or ""
        self.size += len(body) + 200
        self.columns.append((line, question, kind, number, votes, accepted, get("Title"), body, *map(get, CARRIED)))
        if self.size >= PART_BYTES:
            self.flush()
        return None

    def _unused(self, row: Attributes) -> str:
        if row.get("PostTypeId") not in ("1", "2"):
            return "other_type"
        if "DeletionDate" in row:
            return "deleted"
        if row.get("OwnerUserId") == "-1" and row.get("Id") in FABRICATED:
            return "fabricated"
        if row.get("OwnerUserId") == "-2" and not self.options.keep_answer_bot:
            return "answer_bot"
        return ""

    def flush(self) -> None:
        if not self.columns:
            return
        line, question, *rest = zip(*self.columns, strict=True)
        site = token(self.site)
        keys = tables.hash64(f"{site}/{q}" for q in question)
        columns = [keys, line, [self.site] * len(line), question, *rest]
        self.out.rows(pa.table([pa.array(c, f.type) for c, f in zip(columns, POSTS, strict=True)], schema=POSTS))
        self.columns, self.size = [], 0
