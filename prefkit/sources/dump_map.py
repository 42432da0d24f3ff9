"""A slice of a Stack Exchange dump, file or archive, fed to the tables it holds; what is missing is warned about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prefkit.errors import UserError
from prefkit.sources import MapOutput, Slice
from prefkit.sources.dump_files import DumpOptions, address, is_utf16, members_of, tables_in
from prefkit.sources.dump_posts import Posts
from prefkit.sources.dump_tables import Links, Users, Votes
from prefkit.xmlrows import Damaged, Framer, Row, byte_range, decoder, elements, line_ends, utf16

UNKNOWN_SITE = "the site is unknown: no urls, and other dumps of it count as another; add --options.site, site by site"
NO_LINKS = "no PostLinks.xml, so no duplicate questions are known"
TAKERS: dict[str, Callable[[str, DumpOptions, MapOutput], Any]] = {
    "posts": Posts,
    "postlinks": Links,
    "users": Users,
    "votes": Votes,
}


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
        for line, block in framer.feed(data):
            taker.take(block, line)
    for line, block in framer.close():
        taker.take(block, line)
    taker.close()
    if table == "postlinks" and piece.start == 0:
        _warn_if_no_links(piece.name, out)
    if piece.stop == piece.path.stat().st_size:
        with piece.path.open("rb") as f:
            f.seek(max(0, piece.stop - 256))
            _warn_if_cut(f.read().replace(b"\0", b""), piece.name, out)
    return None


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
            f"this is no Posts.xml: its first row has {', '.join(list(row.keys())[:5])} and no PostTypeId", path, fix
        )


def _counted(chunks: Iterator[bytes], left: int, out: MapOutput, lines: bool) -> Iterator[bytes]:
    """The chunks, with the line ends of their first `left` bytes counted: the rest belongs to the next slice."""
    for data in chunks:
        if left > 0 and lines:
            out.lines += line_ends(data[:left])
        left -= len(data)
        yield data


def _map_archive(piece: Slice, options: DumpOptions, out: MapOutput) -> None:
    """All wanted tables of an archive as it streams by."""
    from prefkit import archives

    members = members_of(piece.path, options)
    readers = {m: _Member(TAKERS[table](piece.subset, options, out)) for table, m in members.items()}
    archives.stream(piece.path, {m: reader.feed for m, reader in readers.items()})
    for table, member in members.items():
        reader = readers[member]
        reader.close()
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

    def __init__(self, taker: Any):
        self.taker, self.framer, self.head, self.tail = taker, Framer(), b"", b""
        self.decode: Callable[[bytes], bytes] | None = None

    def feed(self, data: bytes, last: bool = False) -> None:
        """The next bytes; UTF-16 is told by its mark."""
        if self.decode is None:
            self.head += data
            if len(self.head) < 2 and not last:
                return
            self.decode, data = decoder(self.head), self.head
        data = self.decode(data)
        self.tail = (self.tail + data[-256:])[-256:]
        for line, block in self.framer.feed(data):
            self.taker.take(block, line)

    def close(self) -> None:
        """The end of the table."""
        self.feed(b"", last=True)
        for line, block in self.framer.close():
            self.taker.take(block, line)


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
    if not {"links.duplicates", "links.other_type", "links.damaged"} & set(out.tally):
        out.warn("no row in it, so no duplicate questions are known", name)
