"""What need not be computed twice: token ids of a data set, and log-probabilities of sequences under a model.

Both lie under `PREFKIT_CACHE` (default ~/.cache/prefkit), named by digests of all they depend on and of nothing else:
learning rate, β, seed and folders change nothing. Safe for several processes at once; whole or absent. No torch here.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefkit.errors import UserError
from prefkit.files import cache_folder, renamed
from train.core.rows import Row, Rows, SequenceLogp

ENCODING_VERSION = 5  # of what encode.py and rows.py make of a text: raised when that changes
LOGPS_VERSION = 1  # of what logprobs.py makes of a sequence
BUSY_SECONDS = 60
CHUNK = 500  # keys in one IN (…)


def digest(*parts: object) -> str:
    """blake2b-128 of JSON values."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


# ------------------------------------------------------------------------------------------------------- token ids


def tokenizer_digest(tokenizer: Any) -> str:
    """Names what a tokenizer makes of a text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    known = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    chats = bool(tokenizer.chat_template)  # without one, sequences may begin with BOS whatever the template says
    return digest(type(tokenizer).__name__, known, tokenizer.special_tokens_map, chats)


_ROWS = pa.schema(
    [
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.list_(pa.int32()))),
        ("pairs", pa.list_(pa.list_(pa.int32()))),
        ("pair_ids", pa.list_(pa.string())),
        ("truncated", pa.list_(pa.bool_())),
        ("prompt_truncated", pa.bool_()),
    ]
)


def cached_rows(key: str, about: str, build: Callable[[], Rows]) -> Rows:
    """The rows of that key, memory-mapped; built and kept where they are not at hand or not whole.

    `about` is shown by `prefkit cache`.
    """
    path = cache_folder() / "tokens" / f"{key}.arrow"
    rows = _read_rows(path)
    if rows is None:
        rows = build()
        _write_rows(path, about, rows)
    else:
        os.utime(path)
    return rows


def _write_rows(path: Path, about: str, rows: Rows) -> None:
    batches = []
    for i in range(0, len(rows.rows), 1024):
        part = rows.rows[i : i + 1024]
        columns = [pa.array([getattr(r, f.name) for r in part], f.type) for f in _ROWS]
        batches.append(pa.RecordBatch.from_arrays(columns, schema=_ROWS))
    noted = {"about": about, "dropped": json.dumps(rows.dropped), "read": str(rows.read), "digest": _content(batches)}
    with renamed(path, shared=True) as new, pa.ipc.new_file(str(new), _ROWS.with_metadata(noted)) as out:
        for batch in batches:
            out.write_batch(batch)


def _content(batches: list[pa.RecordBatch]) -> str:
    """A digest of what the batches hold: Arrow itself does not notice a flipped byte."""
    known = hashlib.blake2b(digest_size=16)
    for batch in batches:
        known.update(batch.replace_schema_metadata(None).serialize())
    return known.hexdigest()


def _read_rows(path: Path) -> Rows | None:
    """None where the file is absent or damaged: a cache is made again, never trusted half."""
    try:
        with pa.memory_map(str(path)) as source:
            table = pa.ipc.open_file(source).read_all()
        noted = table.schema.metadata
        if _content(table.to_batches()) != noted[b"digest"].decode():
            return None
        return Rows(list(_rows(table)), json.loads(noted[b"dropped"]), int(noted[b"read"]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def _rows(table: pa.Table) -> Iterator[Row]:
    for batch in table.to_batches():
        prompts, responses = batch["prompt_ids"], batch["response_ids"]
        tokens = responses.values.values.to_numpy()
        cuts, first = responses.values.offsets.to_numpy(), responses.offsets.to_numpy()
        prompt_tokens, prompt_cuts = prompts.values.to_numpy(), prompts.offsets.to_numpy()
        rest = batch.select(["pairs", "pair_ids", "truncated", "prompt_truncated"]).to_pylist()
        for i, kept in enumerate(rest):
            ids = tuple(tokens[cuts[r] : cuts[r + 1]] for r in range(first[i], first[i + 1]))
            prompt = prompt_tokens[prompt_cuts[i] : prompt_cuts[i + 1]]
            pairs = tuple((w, x) for w, x in kept["pairs"])
            names, cut = tuple(kept["pair_ids"]), tuple(kept["truncated"])
            yield Row(prompt, ids, pairs, names, cut, kept["prompt_truncated"])


# ----------------------------------------------------------------------------------------------- log-probabilities


class LogpCache:
    """Log-probabilities by `rows.sequence_key` under one model: a SQLite file that several processes may fill."""

    def __init__(self, weights: str, dtype: str, four_bit: bool, name: str):
        """`weights` is a `locate.weights_digest`; `name` is shown by `prefkit cache`.

        A file that is no such cache is a `UserError`.
        """
        self.path = cache_folder() / "logps" / f"{digest(LOGPS_VERSION, weights, dtype, four_bit)}.sqlite"
        about = f"{Path(name).name} in {'NF4, ' * four_bit}{dtype}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.hits = self.misses = 0
        with self._database() as db, db:
            db.execute("CREATE TABLE IF NOT EXISTS about (text TEXT)")
            db.execute("CREATE TABLE IF NOT EXISTS logps (key BLOB PRIMARY KEY, total REAL, tokens BLOB) WITHOUT ROWID")
            if db.execute("SELECT 1 FROM about").fetchone() is None:
                db.execute("INSERT INTO about VALUES (?)", [about])
        os.utime(self.path)

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """The open file; what is wrong with it is a `UserError`."""
        try:
            with closing(self._open()) as db:
                yield db
        except sqlite3.DatabaseError as e:
            raise UserError(f"the cache of log-probabilities is damaged: {e}", self.path, "delete this file") from e

    def _open(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, timeout=BUSY_SECONDS)
        until = time.monotonic() + BUSY_SECONDS
        while True:  # this alone does not wait by itself while another process makes the file
            try:
                db.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as e:
                if e.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.05)
        db.execute("PRAGMA synchronous=NORMAL")
        return db

    def get(self, keys: Iterable[bytes]) -> dict[bytes, SequenceLogp]:
        """Those of the keys that are known."""
        wanted = list(dict.fromkeys(keys))
        found: dict[bytes, SequenceLogp] = {}
        with self._database() as db:
            for i in range(0, len(wanted), CHUNK):
                part = wanted[i : i + CHUNK]
                marks = ",".join("?" * len(part))
                for key, total, tokens in db.execute(f"SELECT * FROM logps WHERE key IN ({marks})", part):  # noqa: S608
                    known = SequenceLogp(total, np.frombuffer(tokens[: len(tokens) // 4 * 4], np.float32))
                    if abs(known.total - known.tokens.sum(dtype=np.float64)) <= 1e-4 * max(1.0, abs(known.total)):
                        found[key] = known  # else damaged: computed again
        self.hits += len(found)
        self.misses += len(wanted) - len(found)
        return found

    def add(self, scored: dict[bytes, SequenceLogp]) -> None:
        """Keep these, all or none; one that is not finite is left out, so that it is never taken for a result."""
        rows = [(k, float(s.total), s.tokens.tobytes()) for k, s in scored.items() if np.isfinite(s.total)]
        with self._database() as db, db:
            db.executemany("INSERT OR REPLACE INTO logps VALUES (?, ?, ?)", rows)
