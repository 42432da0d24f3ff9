"""The tables beside the posts of a Stack Exchange dump: links of duplicates, names of users, votes of posts.

Each is fed the rows of a slice and tells a `MapOutput` what it found.
"""

from __future__ import annotations

from collections import Counter

import pyarrow as pa

from prefkit import tables
from prefkit.sources import MapOutput
from prefkit.sources.dump_files import DumpOptions, token
from prefkit.xmlrows import Damaged, elements

NOTED_ROWS = 200_000  # names or counts are written out each time there are so many


class Links:
    """PostLinks.xml: links of type 3 say that one question is a duplicate of the other."""

    def __init__(self, site: str, options: DumpOptions, out: MapOutput):
        self.site, self.out = token(site), out

    def take(self, block: bytes, line: int) -> None:
        """The rows of a block whose first line is `line`."""
        for _, row in elements(block, line, self.out.tally):
            if isinstance(row, Damaged):
                self.out.tally["links.damaged"] += 1
            elif row.get("LinkTypeId") != "3":
                self.out.tally["links.other_type"] += 1
            elif row.get("PostId") is None or row.get("RelatedPostId") is None:
                self.out.tally["links.damaged"] += 1
            else:
                self.out.link(f"{self.site}/{row.get('PostId')}", f"{self.site}/{row.get('RelatedPostId')}")
                self.out.tally["links.duplicates"] += 1

    def close(self) -> None:
        """Nothing is left over."""


class Users:
    """Users.xml: names by user number."""

    def __init__(self, site: str, options: DumpOptions, out: MapOutput):
        self.site, self.out = token(site), out
        self.names: dict[str, str] = {}

    def take(self, block: bytes, line: int) -> None:
        """The rows of a block whose first line is `line`."""
        for _, row in elements(block, line, self.out.tally):
            if isinstance(row, Damaged) or row.get("Id") is None or not row.get("DisplayName"):
                self.out.tally["users.damaged" if isinstance(row, Damaged) else "users.nameless"] += 1
            else:
                self.names[row.get("Id")] = row.get("DisplayName")
                self.out.tally["users.names"] += 1
        if len(self.names) >= NOTED_ROWS:
            self.close()

    def close(self) -> None:
        """Note what was taken."""
        keys = tables.hash64(f"{self.site}/{number}" for number in self.names)
        names = tables.clean_column(list(self.names.values()), self.out.tally)
        self.out.note("names", pa.table({"key": keys, "name": names}))
        self.names = {}


class Votes:
    """Votes.xml: how many votes up (type 2) and down (type 3) each post has."""

    def __init__(self, site: str, options: DumpOptions, out: MapOutput):
        self.site, self.out = token(site), out
        self.up: Counter[str] = Counter()
        self.down: Counter[str] = Counter()

    def take(self, block: bytes, line: int) -> None:
        """The rows of a block whose first line is `line`."""
        count = {"2": self.up, "3": self.down}
        for _, row in elements(block, line, self.out.tally):
            if isinstance(row, Damaged) or row.get("PostId") is None:
                self.out.tally["votes.damaged"] += 1
            elif (kind := row.get("VoteTypeId", "")) in count:
                count[kind][row.get("PostId")] += 1
                self.out.tally["votes.up" if kind == "2" else "votes.down"] += 1
            else:
                self.out.tally["votes.other_type"] += 1
        if len(self.up) + len(self.down) >= NOTED_ROWS:
            self.close()

    def close(self) -> None:
        """Note what was taken."""
        posts = [*dict.fromkeys([*self.up, *self.down])]
        columns = {name: [of[p] for p in posts] for name, of in (("up", self.up), ("down", self.down))}
        counts = {name: pa.array(values, pa.int64()) for name, values in columns.items()}
        self.out.note("votes", pa.table({"key": tables.hash64(f"{self.site}/{p}" for p in posts), **counts}))
        self.up, self.down = Counter(), Counter()
