"""A store on a server as a SQLite file that convert reads like any other: what it held at one moment."""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import DBAPIError

from prefkit.errors import UserError
from prefkit.judgements import tables as t
from prefkit.judgements.database import without_password
from prefkit.judgements.store import CHUNK, Store


def snapshot(url: str, folder: Path) -> Path:
    """The store at a database URL as a file under `folder`, whose place tells its content: the same again is the same.

    Only its owner may read the folder, for the server asks for a login. Errors: `UserError` where there is no store
    that can be read.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = folder / f".{uuid4().hex}.tmp"
    try:
        with closing(Store(url, create=False)) as store, closing(Store(str(new))) as copy:
            name = re.sub(r"\W+", "-", store.engine.url.database or "judgements")
            one_moment = store.engine.execution_options(isolation_level="REPEATABLE READ")
            with one_moment.connect() as source, copy.engine.begin() as target:
                digest = _copy(source, target)
        with closing(Store(str(new), create=False)) as copy:  # opened anew: what made the tables still holds them
            copy.settle()
        place = folder / digest / f"{name}.db"
        if not place.exists():  # another convert may be reading it
            place.parent.mkdir(exist_ok=True)
            new.replace(place)
        return place
    except (DBAPIError, sqlite3.Error) as e:
        why = " ".join(str(getattr(e, "orig", e)).split())
        fix = "may you read all of its tables, and is there space?"
        raise UserError(f"cannot copy the database: {why}", without_password(url), fix) from None
    finally:
        for left in folder.glob(f"{new.name}*"):
            left.unlink()


def _copy(source: Connection, target: Connection) -> str:
    """All rows of all tables in the order of their keys; returns a digest of them."""
    digest = hashlib.blake2b(digest_size=8)
    for table in t.metadata.sorted_tables:
        if table is t.schema_version:  # the copy has its own
            continue
        found = source.execution_options(yield_per=CHUNK).execute(select(table).order_by(*table.primary_key))
        for rows in found.mappings().partitions():
            some = [dict(row) for row in rows]
            digest.update(json.dumps([table.name, some], sort_keys=True).encode())
            target.execute(insert(table), some)
    return digest.hexdigest()
