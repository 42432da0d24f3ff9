"""Open a labels database: its path or URL, its settings, its schema version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, insert, inspect, make_url, select, text, update
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from prefkit.errors import UserError, masked
from prefkit.judgements import tables as t

BUSY_SECONDS = 30  # how long a writer waits for another: an import of many items is one transaction


def database_url(db: str) -> URL:
    """`labels.db`, `sqlite:///labels.db` or `postgresql://…` as a URL with the driver we install."""
    wanted = "give a path such as labels.db, or postgresql://user@host/name"
    try:
        url = make_url(db) if "://" in db else URL.create("sqlite", database=db)
    except (ArgumentError, ValueError):
        raise UserError("not a database URL", db, wanted) from None
    if url.get_backend_name() == "sqlite" and not url.database:
        raise UserError("no file to keep judgements in", f"--db {db!r}", wanted)
    return url.set(drivername="postgresql+psycopg") if url.drivername in ("postgresql", "postgres") else url


def without_password(db: str) -> str:
    """A path or a sound URL as it may be printed."""
    return masked(make_url(db).render_as_string(hide_password=True)) if "://" in db else db


def open_engine(db: str, *, create: bool) -> Engine:
    """An engine on a database of our schema, made if absent and `create`; raises `UserError` naming what is wrong."""
    url, name = database_url(db), without_password(db)
    if url.get_backend_name() == "sqlite" and url.database != ":memory:":
        _check_path(Path(str(url.database)), create=create)
    unknown = UserError("unknown kind of database", name, "use SQLite (a path) or postgresql://…")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise unknown
    try:
        engine = create_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite", hide_parameters=True)
    except NoSuchModuleError:
        raise unknown from None
    except ImportError as e:
        if (e.name or "").partition(".")[0] == "psycopg":  # ours: what to install is told elsewhere
            raise
        raise UserError(f"the driver {e.name} is not installed", name, "use a path, or postgresql://…") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        with engine.execution_options(writing=create).begin() as c:
            _require_schema(c, name, create=create)
        if engine.dialect.name == "sqlite":  # kept in the file, so only once it is known to be ours
            with engine.connect() as c:
                c.connection.cursor().execute("PRAGMA journal_mode=WAL")  # readers never wait
    except (DBAPIError, ValueError) as e:
        engine.dispose()
        why = " ".join(str(getattr(e, "orig", e)).split())
        raise UserError(
            f"cannot open the database: {why}", name, "is it a labels database, and may you write there?"
        ) from e
    return engine


def _check_path(path: Path, *, create: bool) -> None:
    if path.is_dir():
        raise UserError("a folder, not a labels database", path, "name a file, such as labels.db")
    if not create and not path.exists():
        raise UserError("no such labels database", path, "make one with `prefkit label DATA --db " + path.name + "`")
    if not path.parent.is_dir():
        raise UserError("no folder to keep the labels database in", path.parent, "make the folder first")


def _configure_sqlite(connection: Any, _record: object) -> None:
    """FULL: a vote that was acknowledged survives a power cut, for one fsync each."""
    connection.isolation_level = None  # we say BEGIN ourselves
    for pragma in (f"busy_timeout={BUSY_SECONDS * 1000}", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    """A writer takes its lock at the start, so that it waits in line instead of failing half-way."""
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writing") else "BEGIN")


def _require_schema(c: Connection, shown: str, *, create: bool) -> None:
    if c.dialect.name == "postgresql":
        c.execute(text("SELECT pg_advisory_xact_lock(7265666)"))  # two programs that start at once make one schema
    names = inspect(c).get_table_names()
    if t.schema_version.name in names:
        found = c.execute(select(t.schema_version.c.version)).scalar()
        if found == 1:
            for change in t.TO_VERSION_2:
                c.execute(text(change))
            c.execute(update(t.schema_version).values(version=t.STORE_VERSION))
        if found in (1, t.STORE_VERSION):
            return
        raise UserError(
            f"labels database of schema version {found}, this prefkit reads version {t.STORE_VERSION}",
            shown,
            "pip install -U prefkit",
        )
    # a SQLite file belongs to one program; a PostgreSQL database may hold other programs' tables beside ours
    foreign = names if c.dialect.name == "sqlite" else set(names) & set(t.metadata.tables)
    if foreign or not create:
        raise UserError("not a labels database", shown, "name a new file, such as labels.db")
    t.metadata.create_all(c)
    c.execute(insert(t.schema_version).values(version=t.STORE_VERSION))
