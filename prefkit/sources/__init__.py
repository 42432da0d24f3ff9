"""What convert understands. A source is data: how to read its records, and one function from a record to pairs.

Add a source: a module here with a `SOURCE`, a line in `SOURCES`, a fixture in tests/prefkit, a row in docs/convert.md.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa

from prefkit.columns import Columns
from prefkit.errors import UserError, unknown_name
from prefkit.schema import Pair, Reject
from prefkit.tables import Candidates
from prefkit.wording import TYPES

SOURCES = {  # name -> module that holds its SOURCE, imported when asked for
    "judgements": "prefkit.sources.judgements",
    "pairs": "prefkit.sources.pairs",
    "rejects": "prefkit.sources.rejects",
    "stack-exchange-dump": "prefkit.sources.stack_exchange_dump",
    "stack-exchange-paired": "prefkit.sources.stack_exchange_paired",
}


class Refused(Exception):
    """Raised by `to_pairs`: the record is damaged. Convert counts the reason and keeps the record raw in `_rejects`."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(reason)


class Unused(Exception):
    """Raised by `to_pairs`: the record is sound but says nothing about a preference. Convert counts the reason."""

    def __init__(self, reason: str):
        self.reason = reason
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Tie:
    """Yielded by `to_pairs` for two responses that were compared and found equal: counted, never paired."""


@dataclass(frozen=True)
class NoOptions:
    """Options of a source that has none."""


Record = dict[str, Any]


@dataclass(frozen=True)
class Slice:
    """A stretch of one input that a task reads: bytes `start`..`stop` of `path`, or a member of it."""

    path: Path
    name: str  # how positions and the manifest name it: no absolute path
    start: int = 0
    stop: int = 0
    kind: str = ""
    subset: str = ""


class MapOutput(Protocol):
    """Where `Join.map` puts what it finds; `lines` is the number of line ends read, so that positions become global."""

    tally: Counter[str]
    lines: int

    def rows(self, table: pa.Table) -> None:
        """Records with a uint64 column `key`, the hash of their group, and an int64 `line` (from 0 in the slice)."""

    def note(self, kind: str, table: pa.Table) -> None:
        """Rows of a look-up that `PairInput.lookups[kind]` answers from: a uint64 column `key`, and values."""

    def link(self, one: str, other: str) -> None:
        """Two group keys that must share a split."""

    def reject(self, reason: str, line: int, raw: str) -> None:
        """A record refused; counted under `records.rejected`."""

    def warn(self, what: str, name: str) -> None:
        """Something the user should know about an input as a whole; inputs with the same trouble share one line."""


class PairInput(NamedTuple):
    """All records of some groups: the columns that `map` wrote, and `position`. `lookups[kind](keys)` gives a row for
    each key, of nulls where `map` noted none; a kind of which nothing was noted is absent. `max_pairs` is how many
    pairs the user lets a prompt keep, where they say so."""

    table: pa.Table
    options: Any
    seed: int
    tally: Counter[str]
    lookups: Mapping[str, Callable[[np.ndarray], pa.Table]]
    max_pairs: int | None = None


class PairOutput(NamedTuple):
    """What a bucket makes: candidates, what becomes of each record, and the records refused.

    `fates[i]` says why record i is in no candidate (`single_answer`); "" leaves it to the pairs that name it.
    """

    candidates: Candidates
    fates: list[str]
    rejects: list[Reject]


@dataclass(frozen=True)
class Join:
    """How a source whose pairs need several records works: slices of the input, records by group, pairs of a group.

    `lookups` names what `map` may note, and what is to be done where a key is noted again: `last` keeps the later
    value, `sum` adds them up.
    """

    slices: Callable[[Path, Any, int], list[Slice]]
    map: Callable[[Slice, Any, MapOutput], None]
    pair: Callable[[PairInput], PairOutput]
    lookups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where preferences come from and how a record becomes pairs.

    `to_pairs(record, options)` yields `Pair` and `Tie`, or raises `Refused` or `Unused`; what it yields before raising
    is dropped. A record that yields only ties is counted as `only_ties`, one that yields nothing as `no_candidates`.
    `to_columns(batch, options)` does the same by columns for those rows of a Parquet or Arrow file that it can, many
    times as fast; the other rows (all, where it returns None) go to `to_pairs`, and what comes out must not differ.
    `files(path, options)` lists the files an input stands for (by default itself, or the readable files of a folder).
    `records(slices, options)` yields (position, record) for what is not JSON, CSV, Parquet or Arrow, of all inputs
    together, so that it can put together what several say of one thing; the position names the file and the place in
    it (`labels.db:42`) and must not hold an absolute path. `join` replaces all three where a
    pair needs records from different places in the input. `recognises(path)` lets convert guess the source.
    `counts(record)` says what is counted of every sound record beside its pairs, such as `positions.first_won`, and
    shown with the ledgers.
    `warnings(files, options)` says what a user should know before any record is read, by the names of columns.
    `split_warning` is told where the new splits may part what the user keeps together or join what they keep apart.
    """

    name: str
    summary: str
    licence: str
    to_pairs: Callable[[Record, Any], Iterable[Pair | Tie]] | None = None
    to_columns: Callable[[pa.RecordBatch, Any], Columns | None] | None = None
    options: type = NoOptions
    records: Callable[[list[Slice], Any], Iterator[tuple[str, Record]]] | None = None
    recognises: Callable[[Path], bool] | None = None
    files: Callable[[Path, Any], list[Path]] | None = None
    join: Join | None = None
    counts: Callable[[Record], Mapping[str, int]] | None = None
    warnings: Callable[[list[Path], Any], list[str]] | None = None
    split_warning: str | None = None


def get_source(name: str) -> Source:
    """The source of that name; an unknown one is a `UserError` that lists the known."""
    if name not in SOURCES:
        raise unknown_name("source", name, SOURCES)
    return importlib.import_module(SOURCES[name]).SOURCE


def source_options(source: Source, given: Mapping[str, object] | None) -> Any:
    """The source's options dataclass filled from `given`, whose values may be strings as typed on a command line."""
    known = {f.name: f for f in fields(source.options)}
    values = {}
    for name, value in (given or {}).items():
        if name not in known:
            raise unknown_name(f"option of source {source.name}", name, known)
        values[name] = _coerce(name, str(known[name].type), value)
    return source.options(**values)


def _coerce(name: str, kind: str, value: object) -> object:
    """A string as the declared kind of a field (`str | None`, `int`, `float`, `bool`); anything else as it is."""
    if not isinstance(value, str):
        return value
    base = kind.partition("|")[0].strip()
    try:
        if base == "bool":
            return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[value.lower()]
        return {"int": int, "float": float}.get(base, str)(value)
    except (KeyError, ValueError):
        raise UserError(f"option {name}={value!r} is not {TYPES[base]}", fix=f"give {TYPES[base]}") from None
