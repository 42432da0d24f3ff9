"""What lies in the cache, for `prefkit cache`: listed, and removed where it was not used lately. No torch here."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from prefkit.errors import UserError
from prefkit.files import cache_folder


class Entry(NamedTuple):
    """One file of the cache."""

    path: Path
    kind: str
    megabytes: float
    days: float  # since it was last used
    about: str


def entries() -> list[Entry]:
    """All that is cached, latest used first."""
    found = [_entry(p) for pattern in ("tokens/*.arrow", "logps/*.sqlite") for p in cache_folder().glob(pattern)]
    return sorted(found, key=lambda e: e.days)


def _entry(path: Path) -> Entry:
    stat = path.stat()
    try:
        if path.suffix == ".sqlite":
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
                (count,), (text,) = (
                    db.execute(q).fetchone() for q in ("SELECT count(*) FROM logps", "SELECT text FROM about")
                )
            about = f"{count:,} responses under {text}"
        else:
            with pa.memory_map(str(path)) as source:
                about = pa.ipc.open_file(source).schema.metadata[b"about"].decode()
    except (sqlite3.DatabaseError, TypeError, KeyError, OSError, pa.ArrowException):
        about = "damaged"
    return Entry(path, path.parent.name, stat.st_size / 1e6, (time.time() - stat.st_mtime) / 86400, about)


def prune(days: float) -> list[Entry]:
    """Remove what was not used for so many days; returns what was removed. UserError for days that are to come."""
    if days < 0:
        raise UserError(f"--days {days:g} lies in the future", fix="give 0 (everything) or more")
    old = [e for e in entries() if e.days >= days]
    for entry in old:
        for path in [entry.path, *entry.path.parent.glob(f"{entry.path.name}-*")]:
            path.unlink(missing_ok=True)
    return old
