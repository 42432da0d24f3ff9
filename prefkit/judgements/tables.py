"""The tables of labels and votes, the rules the database itself enforces, and the view of what stands.

Who made a response is in `producer`, a table of its own, so that a page can be fed without ever selecting it.
"""

from __future__ import annotations

from sqlalchemy import (
    DDL,
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    column,
    event,
    table,
)

STORE_VERSION = 2
OUTCOMES = ("better", "tie", "both_bad", "skip", "undo")
SERIAL = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows only in a column declared INTEGER

metadata = MetaData()

schema_version = Table("schema_version", metadata, Column("version", Integer, primary_key=True))

item = Table(
    "item",
    metadata,
    Column("id", String(32), primary_key=True),  # blake2b-128 of prompt and responses
    Column("group_id", Text, nullable=False),  # what must stay in one split, as the first batch knew it
    Column("prompt", JSON, nullable=False),  # messages
    Column("responses", JSON, nullable=False),  # a list of message lists, in an order that says nothing
    Column("origin", JSON, nullable=False),  # licence, url and author of the prompt
)

batch = Table(
    "batch",
    metadata,
    Column("id", String(32), primary_key=True),  # blake2b-128 of its kind, items and producers
    Column("kind", Text, nullable=False),  # labels | side-by-side
    Column("title", Text, nullable=False),
    Column("settings", JSON, nullable=False),
    Column("created", Text, nullable=False),
)

batch_item = Table(
    "batch_item",
    metadata,
    Column("batch_id", ForeignKey("batch.id"), primary_key=True),
    Column("item_id", ForeignKey("item.id"), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("group_id", Text),  # as this batch knew them; null in batches of version 1
    Column("origin", JSON),
)
TO_VERSION_2 = ("ALTER TABLE batch_item ADD COLUMN group_id TEXT", "ALTER TABLE batch_item ADD COLUMN origin JSON")

producer = Table(
    "producer",
    metadata,
    Column("batch_id", ForeignKey("batch.id"), primary_key=True),
    Column("item_id", ForeignKey("item.id"), primary_key=True),
    Column("response", Integer, primary_key=True),  # index into item.responses
    Column("name", Text),  # a model, or the column of a data set; null where nobody knows
    Column("origin", JSON, nullable=False),  # licence, url and author of the response
)

judge = Table(
    "judge",
    metadata,
    Column("id", SERIAL, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    UniqueConstraint("kind", "name"),
    CheckConstraint("kind IN ('person', 'model', 'rule')"),
)

judgement = Table(
    "judgement",
    metadata,
    Column("seq", SERIAL, primary_key=True),
    Column("id", String(36), nullable=False, unique=True),  # made by the client: sent twice is stored once
    Column("judge_id", ForeignKey("judge.id"), nullable=False),
    Column("batch_id", ForeignKey("batch.id"), nullable=False),
    Column("item_id", ForeignKey("item.id"), nullable=False),
    Column("shown", JSON, nullable=False),  # indexes of item.responses as they stood on the page: A, B, …
    Column("outcome", Text, nullable=False),
    Column("winner", Integer),  # index into item.responses
    Column("strength", Integer),
    Column("flags", JSON, nullable=False),
    Column("comment", Text, nullable=False),
    Column("milliseconds", Integer),  # from shown to judged, as the client measured it
    Column("time", Text, nullable=False),  # ISO 8601, UTC
    Column("app_version", Text, nullable=False),
    Column("supersedes", ForeignKey("judgement.id")),
    CheckConstraint(f"outcome IN {OUTCOMES}"),
    CheckConstraint("(outcome = 'better') = (winner IS NOT NULL)"),
    CheckConstraint("outcome <> 'undo' OR supersedes IS NOT NULL"),
    Index("judgement_by_judge", "judge_id", "item_id", "seq"),
    Index("judgement_superseded", "supersedes"),
)

reveal = Table(  # from here on this judge knew the score: later judgements carry the flag after_reveal
    "reveal",
    metadata,
    Column("batch_id", ForeignKey("batch.id"), primary_key=True),
    Column("judge_id", ForeignKey("judge.id"), primary_key=True),
    Column("time", Text, nullable=False),
)

# The latest judgement of each (judge, item) that no later event took back.
standing = table("standing", *(column(c.name, c.type) for c in judgement.columns))

STANDING = """
CREATE VIEW standing AS SELECT {columns} FROM (
  SELECT j.*, ROW_NUMBER() OVER (PARTITION BY j.judge_id, j.item_id ORDER BY j.seq DESC) AS newest
  FROM judgement j
  WHERE j.outcome <> 'undo' AND NOT EXISTS (SELECT 1 FROM judgement s WHERE s.supersedes = j.id)
) latest WHERE newest = 1
""".format(columns=", ".join(c.name for c in judgement.columns))  # noqa: S608  (our own column names)

APPEND_ONLY_SQLITE = """
CREATE TRIGGER judgement_no_{verb} BEFORE {verb} ON judgement
BEGIN SELECT RAISE(ABORT, 'judgements are append-only'); END
"""

APPEND_ONLY_POSTGRESQL = """
CREATE FUNCTION judgement_append_only() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'judgements are append-only'; END $$;
CREATE TRIGGER judgement_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON judgement
FOR EACH STATEMENT EXECUTE FUNCTION judgement_append_only()
"""

event.listen(metadata, "after_create", DDL(STANDING))
for verb in ("update", "delete"):
    event.listen(metadata, "after_create", DDL(APPEND_ONLY_SQLITE.format(verb=verb)).execute_if(dialect="sqlite"))
event.listen(metadata, "after_create", DDL(APPEND_ONLY_POSTGRESQL).execute_if(dialect="postgresql"))
