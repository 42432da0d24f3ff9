"""What convert understands. A source is data: how to read its records, and one function from a record to pairs.

Add a source: a module here with a `SOURCE`, a line in `SOURCES`, a fixture in tests/prefkit, a row in docs/convert.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from prefkit.errors import UserError, unknown_name
from prefkit.schema import Pair

SOURCES = {  # name -> module that holds its SOURCE, imported when asked for
    "judgements": "prefkit.sources.judgements",
    "pairs": "prefkit.sources.pairs",
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
class Source:
    """Where preferences come from and how a record becomes pairs.

    `to_pairs(record, options)` yields `Pair` and `Tie`, or raises `Refused` or `Unused`; what it yields before raising is
    dropped. A record that yields only ties is counted as `only_ties`, one that yields nothing as `no_candidates`.
    `records(path, options)` yields (position, record) for what is not JSON, CSV, Parquet or Arrow; the position names the
    file and the place in it (`labels.db:42`) and must not hold an absolute path. `join` replaces both where a pair needs
    records from different places in the input. `recognises(path)` lets convert guess the source.
    """

    name: str
    summary: str
    licence: str
    to_pairs: Callable[[Record, Any], Iterable[Pair | Tie]] | None = None
    options: type = NoOptions
    records: Callable[[Path, Any], Iterator[tuple[str, Record]]] | None = None
    recognises: Callable[[Path], bool] | None = None
    join: Any = None  # prefkit.convert.Join: slices, map and pair


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
        raise UserError(f"option {name}={value!r} is not a {base}", fix=f"give a {base}") from None
