"""One store for labels and votes: items, hidden producers, judges, and an append-only record of judgements.

SQLite (WAL) by default, any SQLAlchemy URL otherwise. Nothing is ever updated or deleted; taking back is a new event.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Row, Select, Table, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

from prefkit.errors import UserError
from prefkit.judgements import tables as t
from prefkit.judgements.database import open_engine
from prefkit.judgements.items import Draft, Item, Judgement, digest, item_id, item_order

LONGEST = 2**31 - 1  # milliseconds that a column holds: a page left open for weeks
CHUNK = 500  # ids in one IN (…), well below SQLite's limit of variables


@dataclass(frozen=True, slots=True)
class Imported:
    """What `add_batch` did: the batch, how many items it holds and how many of them the store had not seen."""

    batch_id: str
    items: int
    new: int


class Store:
    """The one door to the tables. Safe to share between threads; other processes may write at the same time."""

    def __init__(self, db: str, *, create: bool = True):
        """Open `db`, a path or a SQLAlchemy URL; raises `UserError` if it is absent, foreign or newer than we are."""
        self.engine = open_engine(db, create=create)
        self._writing = self.engine.execution_options(writing=True)

    def close(self) -> None:
        """Give back every connection."""
        self.engine.dispose()

    def settle(self) -> None:
        """Bring what SQLite keeps beside its file (`-wal`) into it, so that the file alone is whole.

        `UserError` while another program holds the database.
        """
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as c:
                busy = c.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            if busy:
                raise UserError("the database is in use", self.engine.url.database, "end the labelling page first")

    def has_unsettled(self) -> bool:
        """Whether SQLite keeps something beside its file that `settle` would bring into it."""
        beside = Path(f"{self.engine.url.database}-wal")
        return self.engine.dialect.name == "sqlite" and beside.exists() and beside.stat().st_size > 0

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        """A transaction; what the database makes of it is a `UserError`, which says nothing of what was written."""
        try:
            with self._writing.begin() as c:
                yield c
        except DBAPIError as e:
            why = " ".join(str(e.orig).split())
            fix = "is there space, and may you write there?"
            raise UserError(f"cannot write to the database: {why}", self.engine.url.database, fix) from None

    def judge(self, name: str, kind: str = "person") -> int:
        """The number of a judge (person, model or rule), who is added on first sight."""
        with self._write() as c:
            _insert_new(c, t.judge, [{"kind": kind, "name": name}])
            return c.execute(select(t.judge.c.id).where(t.judge.c.kind == kind, t.judge.c.name == name)).scalar_one()

    def add_batch(self, kind: str, title: str, drafts: Iterable[Draft], settings: dict | None = None) -> Imported:
        """Store items and who made their responses, all or nothing; the same content again changes nothing.

        Drafts with the same prompt and responses are one item, and so is one that the store has; what each batch knows
        of its group and origin is kept.
        """
        items: list[dict] = []
        producers: list[dict] = []
        for key, d in {item_id(d): d for d in drafts}.items():
            kept = [d.responses[i] for i in item_order(d)]
            items.append(
                {
                    "id": key,
                    "group_id": d.group_id,
                    "prompt": d.prompt,
                    "responses": [r.messages for r in kept],
                    "origin": d.origin,
                }
            )
            producers += [
                {"item_id": key, "response": i, "name": r.producer, "origin": r.origin} for i, r in enumerate(kept)
            ]
        made_by = [f"{p['item_id']} {p['response']} {p['name']!r} {_json(p['origin'])}" for p in producers]
        belongs = [f"{x['id']} {x['group_id']} {_json(x['origin'])}" for x in items]
        batch_id = digest([kind, *sorted(made_by), *sorted(belongs)])
        of_batch = {"batch_id": batch_id}
        members = [
            of_batch | {"item_id": x["id"], "position": n, "group_id": x["group_id"], "origin": x["origin"]}
            for n, x in enumerate(items)
        ]
        with self._write() as c:
            before = c.execute(select(func.count()).select_from(t.item)).scalar_one()
            _insert_new(c, t.item, items)
            after = c.execute(select(func.count()).select_from(t.item)).scalar_one()
            row = {"id": batch_id, "kind": kind, "title": title, "settings": settings or {}, "created": _now()}
            _insert_new(c, t.batch, [row])
            _insert_new(c, t.batch_item, members)
            _insert_new(c, t.producer, [of_batch | p for p in producers])
        return Imported(batch_id, len(items), after - before)

    def item_ids(self, batch_id: str) -> list[str]:
        """Ids of a batch's items, in the order they were given."""
        query = select(t.batch_item.c.item_id).where(t.batch_item.c.batch_id == batch_id)
        with self.engine.connect() as c:
            return list(c.execute(query.order_by(t.batch_item.c.position)).scalars())

    def item(self, key: str) -> Item:
        """One item, without a word about who made it."""
        with self.engine.connect() as c:
            row = c.execute(select(t.item.c.id, t.item.c.prompt, t.item.c.responses).where(t.item.c.id == key)).one()
        return Item(row.id, row.prompt, row.responses)

    def record(self, judge_id: int, judgement: Judgement) -> None:
        """Append a judgement; when this returns it is on disk. The same id again changes nothing.

        It takes the place of what this judge said of the item before. Raises ValueError if the id is used for another
        item or judge, or the outcome, winner or order make no sense.
        """
        _check(judgement)
        with self._write() as c:
            if _known(c, judge_id, judgement):
                return
            j = t.standing.c
            before = select(j.id).where(j.judge_id == judge_id, j.item_id == judgement.item_id)
            flags = [*judgement.flags, *(["after_reveal"] if _has_seen(c, judge_id, judgement.batch_id) else [])]
            _append(c, judge_id, judgement, flags, supersedes=c.execute(before).scalar())

    def undo(self, event_id: str, judge_id: int, batch_id: str) -> str | None:
        """Take back this judge's latest standing judgement of an item of a batch; return the item, or None."""
        with self._write() as c:
            done = c.execute(select(t.judgement.c.item_id).where(t.judgement.c.id == event_id)).scalar()
            if done is not None:
                return done
            j, here = t.standing.c, select(t.batch_item.c.item_id).where(t.batch_item.c.batch_id == batch_id)
            latest = c.execute(
                select(j.id, j.item_id, j.shown)
                .where(j.judge_id == judge_id, j.item_id.in_(here))  # judged in this batch or in an earlier one
                .order_by(j.seq.desc())
                .limit(1)
            ).first()
            if latest is None:
                return None
            event = Judgement(event_id, batch_id, latest.item_id, tuple(latest.shown), "undo")
            _append(c, judge_id, event, [], supersedes=latest.id)
            return latest.item_id

    def judged(self, judge_id: int) -> dict[str, str]:
        """Item id → outcome of everything this judge stands by, in any batch."""
        j = t.standing.c
        with self.engine.connect() as c:
            return {i: o for i, o in c.execute(select(j.item_id, j.outcome).where(j.judge_id == judge_id))}

    def groups(self, item_ids: Iterable[str]) -> dict[str, str]:
        """Item id → the group it is of."""
        return {i: g for i, g in self.rows(select(t.item.c.id, t.item.c.group_id), t.item.c.id, item_ids)}

    def votes(self, item_ids: Iterable[str], kinds: Sequence[str] = ("person",)) -> list[Row]:
        """Standing judgements of the given items, oldest first, with the judge's kind and name. Names no producer."""
        rows = self.rows(self.with_judge(t.standing, kinds), t.standing.c.item_id, item_ids)
        return sorted(rows, key=lambda row: row.seq)

    @staticmethod
    def with_judge(judgements: FromClause, kinds: Sequence[str]) -> Select:
        """The query for judgements of such judges, with their kind and name."""
        return (
            select(judgements, t.judge.c.kind.label("judge_kind"), t.judge.c.name.label("judge_name"))
            .join_from(judgements, t.judge, t.judge.c.id == judgements.c.judge_id)
            .where(t.judge.c.kind.in_(kinds))
        )

    def rows(self, query: Select, column: ColumnElement, ids: Iterable[str]) -> list[Row]:
        """What a query finds where a column is one of these ids, however many they are."""
        unique = list(dict.fromkeys(ids))
        chunks = (unique[i : i + CHUNK] for i in range(0, len(unique), CHUNK))
        with self.engine.connect() as c:
            return [row for chunk in chunks for row in c.execute(query.where(column.in_(chunk)))]

    def reveal(self, batch_id: str, judge_id: int) -> None:
        """Remember that this judge has now seen who made what in a batch."""
        with self._write() as c:
            _insert_new(c, t.reveal, [{"batch_id": batch_id, "judge_id": judge_id, "time": _now()}])

    def revealed(self, batch_id: str, judge_id: int) -> bool:
        """Whether this judge has seen who made what in a batch."""
        query = select(t.reveal.c.time).where(t.reveal.c.batch_id == batch_id, t.reveal.c.judge_id == judge_id)
        with self.engine.connect() as c:
            return c.execute(query).first() is not None

    def producers(self, item_ids: Iterable[str], batch_id: str | None = None) -> list[Row]:
        """Who made each response, with its origin: for results and export, never for a page before the reveal."""
        p = t.producer.c
        query = select(t.producer).order_by(p.item_id, p.response, p.name, p.batch_id)
        if batch_id is not None:
            query = query.where(p.batch_id == batch_id)
        return self.rows(query, p.item_id, item_ids)


def _check(j: Judgement) -> None:
    if j.outcome not in t.OUTCOMES or j.outcome == "undo":
        raise ValueError(f"outcome {j.outcome!r} is none of {', '.join(o for o in t.OUTCOMES if o != 'undo')}")
    if sorted(j.shown) != list(range(len(j.shown))):
        raise ValueError(f"shown order {j.shown} is no permutation")
    if (j.outcome == "better") != (j.winner is not None) or (j.winner is not None and j.winner not in j.shown):
        raise ValueError(f"outcome {j.outcome!r} with winner {j.winner} of responses {j.shown}")


def _has_seen(c: Connection, judge_id: int, batch_id: str) -> bool:
    """Whether a judge has seen who made what in a batch, or in another one of the same producers."""
    seen = [b for (b,) in c.execute(select(t.reveal.c.batch_id).where(t.reveal.c.judge_id == judge_id))]
    if not seen or batch_id in seen:
        return bool(seen)
    p = t.producer.c
    names = [
        {name for (name,) in c.execute(select(p.name).where(p.batch_id == b).distinct())} for b in (batch_id, *seen)
    ]
    return names[0] in names[1:]


def _known(c: Connection, judge_id: int, j: Judgement) -> bool:
    k = t.judgement.c
    row = c.execute(select(k.judge_id, k.item_id, k.outcome, k.winner).where(k.id == j.id)).first()
    if row is not None and tuple(row) != (judge_id, j.item_id, j.outcome, j.winner):
        raise ValueError(f"event {j.id} is already used for another judgement")
    return row is not None


def _append(c: Connection, judge_id: int, j: Judgement, flags: list[str], supersedes: str | None) -> None:
    row = {
        "id": j.id,
        "judge_id": judge_id,
        "batch_id": j.batch_id,
        "item_id": j.item_id,
        "shown": list(j.shown),
        "outcome": j.outcome,
        "winner": j.winner,
        "strength": j.strength,
        "flags": flags,
        "comment": j.comment,
        "milliseconds": None if j.milliseconds is None else min(j.milliseconds, LONGEST),
        "time": _now(),
        "app_version": _app_version(),
        "supersedes": supersedes,
    }
    # Where writers are not serialised (PostgreSQL) one event may arrive twice at the same time: the second is dropped.
    _insert_new(c, t.judgement, [row])


def _insert_new(c: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    """Insert the rows whose key is new; both dialects spell this alike, in modules of their own."""
    if rows:
        dialect = postgresql if c.dialect.name == "postgresql" else sqlite
        c.execute(dialect.insert(table).on_conflict_do_nothing(), rows)


def _json(value: dict) -> str:
    return json.dumps(value, sort_keys=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _app_version() -> str:
    try:
        return version("prefkit")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
