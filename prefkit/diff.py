"""What differs between two data sets: settings, pairs that came or went, and pairs that are in another split now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefkit.shards import Manifest, open_pairs

SHOWN = 10


@dataclass(frozen=True)
class Difference:
    """`settings`: what was configured otherwise. `moved` counts pairs of both by (split before, split now).

    `examples` names the first pairs only in A, only in B, and moved.
    """

    settings: dict[str, tuple[Any, Any]]
    inputs: dict[str, tuple[str, str]]
    counts: dict[str, tuple[int, int]]
    only_a: int
    only_b: int
    both: int
    moved: dict[tuple[str, str], int]
    examples: tuple[list[str], list[str], list[str]]

    def is_empty(self) -> bool:
        """Whether both hold the same pairs in the same splits."""
        return not (self.only_a or self.only_b or self.moved)


def diff(a: Path | str, b: Path | str) -> Difference:
    """Compare two data sets by pair ids, which follow from the texts; `UserError` where either is none."""
    one, other = Manifest.read(a), Manifest.read(b)
    left, right = _places(a, one), _places(b, other)
    joined = left.join(right, "id", join_type="full outer", right_suffix="_b").combine_chunks()
    gone = joined.filter(pc.is_null(joined["split_b"]))
    new = joined.filter(pc.is_null(joined["split"]))
    both = joined.filter(pc.and_(pc.is_valid(joined["split"]), pc.is_valid(joined["split_b"])))
    moved = both.filter(pc.not_equal(both["split"], both["split_b"])).sort_by("id")
    pairs = zip(moved["split"].to_pylist(), moved["split_b"].to_pylist(), strict=True)
    return Difference(
        settings=_changes(_settings(one.config), _settings(other.config)),
        inputs=_changes({i["name"]: i["sha256"] for i in one.inputs}, {i["name"]: i["sha256"] for i in other.inputs}),
        counts=_changes(_flat(one.sources), _flat(other.sources), absent=0),
        only_a=gone.num_rows,
        only_b=new.num_rows,
        both=both.num_rows,
        moved=dict(sorted(Counter(pairs).items())),
        examples=(_names(gone, "source_id"), _names(new, "source_id_b"), _names(moved, "source_id")),
    )


def lines(found: Difference, a: Path | str, b: Path | str) -> Iterator[str]:
    """What `prefkit diff` prints."""
    for title, changes in (("setting", found.settings), ("input", found.inputs), ("count", found.counts)):
        for name, (before, now) in changes.items():
            yield f"{title:<8} {name}: {_said(before)} → {_said(now)}"
    yield f"pairs    {found.both:,} in both, {found.only_a:,} only in {a}, {found.only_b:,} only in {b}"
    for (before, now), count in found.moved.items():
        yield f"moved    {count:,} from {before} to {now}"
    for what, names in zip((f"only in {a}:", f"only in {b}:", "moved:"), found.examples, strict=True):
        if names:
            yield f"{what} {', '.join(names)}{' …' if len(names) == SHOWN else ''}"


def _said(value: Any) -> str:
    """A setting as people type it."""
    return "not given" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _places(path: Path | str, manifest: Manifest) -> pa.Table:
    """id, source_id and split of every pair."""
    tables = []
    for name in manifest.splits:
        table = open_pairs(path, name).select(["id", "source_id"])
        split = pa.array([name], pa.string()).take(pa.array([0] * table.num_rows, pa.int8()))
        tables.append(table.append_column("split", split))
    return pa.concat_tables(tables)


def _names(table: pa.Table, column: str) -> list[str]:
    rows = table.sort_by("id").slice(0, SHOWN)
    return [s or i for s, i in zip(rows[column].to_pylist(), rows["id"].to_pylist(), strict=True)]


def _changes(one: Mapping[str, Any], other: Mapping[str, Any], absent: Any = None) -> dict[str, tuple[Any, Any]]:
    both = {k: (one.get(k, absent), other.get(k, absent)) for k in [*one, *other]}
    return {k: (before, now) for k, (before, now) in both.items() if before != now}


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """`options.site: beer`, `splits.train: 0.9`, `against.FILE: SHA256`: one value each."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        parts = {f["name"]: f["sha256"] for f in value} if isinstance(value, list) else value
        found |= {f"{name}.{k}": v for k, v in parts.items()} if isinstance(parts, dict) else {name: value}
    return found


def _flat(sources: Mapping[str, Any]) -> dict[str, int]:
    """Both ledgers as `records.unused.only_ties: 3`, all sources together."""
    total: Counter[str] = Counter()
    for ledgers in sources.values():
        for name, ledger in ledgers.items():
            for fate, count in ledger.items():
                for reason, n in (count if isinstance(count, dict) else {"": count}).items():
                    total[f"{name}.{fate}.{reason}".rstrip(".")] += n
    return dict(total)
