"""Which files of a Stack Exchange dump belong to one site, and how they are cut into slices.

A site comes as a folder of tables, as a lone Posts.xml, as one 7z, or (Stack Overflow) as one 7z a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from prefkit.errors import UserError
from prefkit.pairing import PAIRING, SCORES
from prefkit.sources import Slice
from prefkit.xmlrows import UTF16_MARKS

TABLES = ("posts", "postlinks", "users", "votes")  # what is read; in this order
NETWORK = re.compile(
    r"(?:[a-z0-9-]+\.)*(?:stackexchange|stackoverflow|serverfault|superuser|askubuntu|stackapps)\.com|(?:meta\.)?mathoverflow\.net"
    r"|[a-z0-9-]+\.example"  # reserved for what is made up (RFC 2606): `prefkit sample`
)
PACKED = re.compile(r"(?P<site>.+?)-(?P<table>posts|postlinks|users|votes|\w+)\.7z", re.I)


@dataclass(frozen=True)
class DumpOptions:
    """`site`: `beer` or `beer.stackexchange.com`, where the input does not tell. `keep_answer_bot`: users below −1.

    `score`: log2, votes or accepted. `pairing`: all, best-vs-rest, best-vs-worst or adjacent. `later_wins`: only pairs
    whose better answer was written later. `users`, `votes`: whether those tables are read where they are there.
    """

    site: str | None = None
    keep_answer_bot: bool = False
    score: str = "log2"
    pairing: str = "all"
    later_wins: bool = False
    users: bool = True
    votes: bool = True

    def __post_init__(self) -> None:
        if self.site is not None and address(site_of("", self)) is None:
            raise UserError(f"{self.site!r} is no site", "--options.site", "such as beer or beer.stackexchange.com")
        for name, known in (("score", SCORES), ("pairing", PAIRING)):
            if (given := getattr(self, name)) not in known:
                raise UserError(f"unknown {name} {given!r}", fix=f"one of {', '.join(known)}")

    def wanted(self) -> tuple[str, ...]:
        """The tables that are read where they are there."""
        return tuple(t for t in TABLES if getattr(self, t, True))


def slices(path: Path, options: DumpOptions, step: int) -> list[Slice]:
    """The stretches of an input: a folder of tables, a Posts.xml, or a site's 7z (all of its -TABLE.7z)."""
    if path.is_dir():
        return _folder_slices(path, options, step)
    if path.suffix.lower() == ".7z":
        return _archive_slices(path, options)
    name = path.name.lower()
    if name in {f"{t}.xml" for t in TABLES[1:]}:
        what = "duplicate links alone make no pairs" if name == "postlinks.xml" else f"{path.name} alone makes no pairs"
        raise UserError(what, path, "give Posts.xml, or the folder that holds both")
    whole = name == "posts.xml"
    parent = path.parent.name
    site = site_of(parent if whole or NETWORK.fullmatch(parent.lower()) else path.stem, options)
    beside = tables_in(path.parent, options) if whole else {}
    files = [path, *(f for table, f in beside.items() if table != "posts")]
    return [s for f in files for s in _file_slices(f, f.name, site, step)]


def _folder_slices(path: Path, options: DumpOptions, step: int) -> list[Slice]:
    found = tables_in(path, options)
    if "posts" in found:
        site = site_of(path.name, options)
        return [s for f in found.values() for s in _file_slices(f, f"{path.name}/{f.name}", site, step)]
    packed = sorted(p for p in path.iterdir() if p.suffix.lower() == ".7z")
    posts = [p for p in packed if p.name.lower().endswith("-posts.7z")]
    if len(posts) == 1:
        return [s for s in _archive_slices(posts[0], options)]
    names = [p.name for p in posts or packed]
    fix = f"give the archive itself: {', '.join(names[:3])}" if names else "give a site's folder, Posts.xml or .7z"
    raise UserError("no Posts.xml in the folder", path, fix)


def tables_in(folder: Path, options: DumpOptions) -> dict[str, Path]:
    """The wanted tables of a folder, whatever the case of their names."""
    files = sorted(folder.iterdir())
    here = {p.name.lower(): p for p in files}
    wanted = {f"{table}.xml" for table in options.wanted()}
    for twin in (p for p in files if p.name.lower() in wanted and here[p.name.lower()] != p):
        raise UserError(f"{twin.name} and {here[twin.name.lower()].name} in one folder", folder, "leave one of them")
    return {t: here[f"{t}.xml"] for t in options.wanted() if f"{t}.xml" in here}


def _archive_slices(path: Path, options: DumpOptions) -> list[Slice]:
    """A site's archive, with the archives of its other tables where each table has its own."""
    site, files = site_of(path.name, options), [path]
    packed = PACKED.fullmatch(path.name)
    if packed and packed["table"].lower() in TABLES[1:]:
        raise UserError(f"{path.name} alone makes no pairs", path, "give the -Posts.7z beside it")
    if packed and packed["table"].lower() == "posts":
        prefix = f"{packed['site']}-".lower()
        for table in options.wanted()[1:]:
            files += [p for p in sorted(path.parent.iterdir()) if p.name.lower() == f"{prefix}{table}.7z"][:1]
    if "posts" not in members_of(path, options):
        from prefkit import archives

        raise UserError(
            "no Posts.xml in the archive", path, f"it holds {', '.join(archives.members(path)) or 'nothing'}"
        )
    return [Slice(f, f.name, kind="archive", subset=site) for f in files]


def members_of(archive: Path, options: DumpOptions) -> dict[str, str]:
    """Names of the wanted tables in an archive; a `UserError` where one is there twice."""
    from prefkit import archives  # when there is one: py7zr takes a twentieth of a second

    names = archives.members(archive)
    found = {t: [m for m in names if m.lower().rpartition("/")[2] == f"{t}.xml"] for t in options.wanted()}
    for members in found.values():
        if len(members) > 1:
            raise UserError(f"the archive holds {', '.join(members)}", archive, "unpack it and give one site at a time")
    return {table: members[0] for table, members in found.items() if members}


def site_of(name: str, options: DumpOptions) -> str:
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


def table_of(path: Path) -> str:
    """Which table a file is by its name; anything else is taken for posts."""
    return path.stem.lower() if path.stem.lower() in TABLES else "posts"


def _file_slices(path: Path, name: str, site: str, step: int) -> list[Slice]:
    size, table = path.stat().st_size, table_of(path)
    if is_utf16(path):
        return [Slice(path, name, 0, size, f"{table}-utf16", site)]
    cuts: Iterator[tuple[int, int]] = pairwise([*range(0, max(size, 1), step), size])
    return [Slice(path, name, a, b, table, site) for a, b in cuts]


def is_utf16(path: Path) -> bool:
    """Whether a file begins with the byte order mark of UTF-16."""
    with path.open("rb") as f:
        return f.read(2) in UTF16_MARKS
