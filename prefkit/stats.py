"""What a data set looks like: counts, years, strengths, lengths, and what length and format give away."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.formats import FORMATS, format_counts
from prefkit.shards import Manifest, open_pairs, read_shard
from prefkit.shares import Share, share
from prefkit.statistics import numbered, placement, rank_correlation
from prefkit.tables import offsets

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 10  # of margins, each a tenth wide


class Format(NamedTuple):
    """How often each side holds something; of the `n` pairs where one side alone does, how often the chosen one."""

    chosen: float
    rejected: float
    n: int
    wins: Share | None


@dataclass(frozen=True)
class Stats:
    """Numbers of a data set; lengths are characters, quantiles those of `QUANTILES`.

    `longer_wins` counts equal lengths half. `length_auc` is the probability that a chosen response of any prompt is
    longer than a rejected one of any prompt: what length alone tells without knowing the prompt. `length_margin` is
    the rank correlation of a pair's margin with how many more characters chosen has.
    """

    splits: dict[str, dict[str, int]]
    subsets: dict[str, dict[str, int]]
    scores: dict[str, int]
    years: dict[str, dict[str, int]]
    margins: list[int]  # by tenths of 0 to 1
    other_margins: int  # outside it: a source's own unit
    chars: dict[str, list[int]]
    doublings: dict[str, list[int]]  # responses and prompts of 0, 1, 2 to 3, 4 to 7, … characters
    longer_wins: Share | None
    length_auc: float | None
    length_margin: float | None
    formats: dict[str, Format]
    first_wins: Share | None  # of the judgements it was made from: how often the response shown first won
    rejects: dict[str, int]
    flags: dict[str, int]


def describe(path: Path | str) -> Stats:
    """The numbers of a data set; `UserError` if it is none."""
    manifest = Manifest.read(path)
    tables = {name: open_pairs(path, name) for name in manifest.splits}
    whole = pa.concat_tables(tables.values())
    chars = {column: content_chars(whole[column]) for column in ("prompt", "chosen", "rejected")}
    longer = np.sign(chars["chosen"] - chars["rejected"])
    groups, _ = numbered(whole["group_id"].to_numpy())
    known = pc.is_valid(whole["margin"]).to_numpy()
    margins = whole["margin"].drop_null().to_numpy()
    gap = pc.subtract(whole["score_chosen"], whole["score_rejected"]).drop_null()
    rejects = read_shard(Path(path) / next(f for f in manifest.files if f.startswith("_rejects/")))
    return Stats(
        splits=manifest.splits,
        subsets={s: dict(_counts(t["subset"])) for s, t in tables.items()},
        scores=_gaps(gap),
        years=_years(whole),
        margins=np.histogram(margins, bins=BINS, range=(0, 1))[0].tolist() if len(margins) else [],
        other_margins=int(((margins < 0) | (margins > 1)).sum()),
        chars={k: [int(q) for q in np.quantile(v, QUANTILES)] for k, v in chars.items()} if whole.num_rows else {},
        doublings={k: np.bincount(np.ceil(np.log2(v + 1)).astype(int)).tolist() for k, v in chars.items()},
        longer_wins=_share((longer + 1) / 2, groups),
        length_auc=float(placement(chars["chosen"], chars["rejected"]).mean()) if whole.num_rows else None,
        length_margin=rank_correlation(margins, (chars["chosen"] - chars["rejected"])[known]),
        formats=_formats(whole, groups),
        first_wins=_first_wins(**manifest.tables.get("positions", {})),
        rejects=dict(_counts(rejects["reason"])),
        flags=manifest.flags,
    )


def _gaps(gap: pa.ChunkedArray) -> dict[str, int]:
    """Pairs by score gap; gaps that read the same, as float32 has several of, are one."""
    found = Counter[str]()
    for k, n in sorted(_counts(gap)):
        found[f"{k:.4g}"] += n
    return dict(found)


def _share(won: np.ndarray, groups: np.ndarray) -> Share | None:
    return share(won, groups) if len(won) else None


def _first_wins(first_won: int = 0, second_won: int = 0) -> Share | None:
    """Each judge's order is drawn by itself, so judgements of one item are independent in this."""
    credits = np.repeat([1.0, 0.0], [first_won, second_won])
    return _share(credits, np.arange(len(credits)))


def _years(pairs: pa.Table) -> dict[str, dict[str, int]]:
    """Pairs of each subset by the year in which they were made, "?" where that is not known; none where it never is."""
    years = pc.fill_null(pc.cast(pc.year(pairs["created"]), pa.string()), "?")
    table = pa.table({"subset": pairs["subset"], "year": years})
    found: dict[str, dict[str, int]] = {}
    for row in table.group_by(["subset", "year"]).aggregate([([], "count_all")]).sort_by("year").to_pylist():
        found.setdefault(row["subset"], {})[row["year"]] = row["count_all"]
    return {subset: counts for subset, counts in found.items() if counts.keys() != {"?"}}


def _formats(pairs: pa.Table, groups: np.ndarray) -> dict[str, Format]:
    if not pairs.num_rows:
        return {}
    counts = [format_counts(pairs[side]) for side in ("chosen", "rejected")]
    found = {}
    for name in FORMATS:
        chosen, rejected = (side[name] > 0 for side in counts)
        one = chosen != rejected
        wins = _share(chosen[one].astype(float), groups[one])
        found[name] = Format(float(chosen.mean()), float(rejected.mean()), int(one.sum()), wins)
    return found


def content_chars(column: pa.ChunkedArray) -> np.ndarray:
    """Characters of all messages in each cell: int64[n]."""
    totals = []
    for chunk in column.chunks:
        lengths = pc.utf8_length(chunk.flatten().field(1)).to_numpy(zero_copy_only=False)
        sums = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        cuts = offsets(chunk)
        totals.append(sums[cuts[1:]] - sums[cuts[:-1]])
    return np.concatenate(totals) if totals else np.zeros(0, np.int64)


def _counts(column: pa.ChunkedArray) -> list[tuple]:
    counted = column.value_counts().to_pylist()
    return sorted(((c["values"], c["counts"]) for c in counted), key=lambda c: (-c[1], str(c[0])))
