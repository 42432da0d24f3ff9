"""What a data set looks like: counts, strengths, lengths and what length gives away."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.shards import Manifest, open_pairs, read_shard
from prefkit.tables import offsets

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 10  # of margins, each a tenth wide
LENGTHS = (0, 50, 100, 200, 400, 800, 1600, 3200, 6400, 12800)  # characters: edges of the length distributions
FORMATS = {  # what a response is dressed in: RE2 patterns, looked for line by line
    "list": r"(?m)^\s*(?:[-*+]|\d+[.)])\s",
    "code block": r"(?m)^\s*```",
    "inline code": r"`[^`\n]+`",
    "heading": r"(?m)^#{1,6}\s",
    "bold": r"\*\*\S",
    "link": r"\]\(|https?://",
    "table": r"(?m)^\|.*\|\s*$",
}


@dataclass(frozen=True)
class Stats:
    """Numbers of a data set; lengths are characters, quantiles those of `QUANTILES`.

    `length_auc` is the probability that a random chosen response is longer than a random rejected one, of any pair:
    what a classifier achieves that sees nothing but the length. `formats` holds, of each kind of markup, the shares of
    chosen and of rejected responses with it; `histograms` counts by `LENGTHS`, the last bin open.
    """

    splits: dict[str, dict[str, int]]
    subsets: dict[str, dict[str, int]]
    scores: dict[str, int]
    margins: list[int]
    chars: dict[str, list[int]]
    longer_wins: float | None
    rejects: dict[str, int]
    flags: dict[str, int]
    years: dict[str, dict[str, int]]
    length_auc: float | None
    formats: dict[str, tuple[float, float]]
    histograms: dict[str, list[int]]


def describe(path: Path | str) -> Stats:
    """The numbers of a data set; `UserError` if it is none."""
    manifest = Manifest.read(path)
    tables = {name: open_pairs(path, name) for name in manifest.splits}
    whole = pa.concat_tables(tables.values())
    chars = {column: content_chars(whole[column]) for column in ("prompt", "chosen", "rejected")}
    longer = np.sign(chars["chosen"] - chars["rejected"])
    margins = whole["margin"].drop_null().to_numpy()
    gap = pc.subtract(whole["score_chosen"], whole["score_rejected"]).drop_null()
    rejects = read_shard(Path(path) / next(f for f in manifest.files if f.startswith("_rejects/")))
    return Stats(
        splits=manifest.splits,
        subsets={s: dict(_counts(t["subset"])) for s, t in tables.items()},
        scores={f"{k:g}": n for k, n in sorted(_counts(gap))},
        margins=np.histogram(margins, bins=BINS, range=(0, 1))[0].tolist() if len(margins) else [],
        chars={k: [int(q) for q in np.quantile(v, QUANTILES)] for k, v in chars.items()} if whole.num_rows else {},
        longer_wins=float((longer + 1).mean() / 2) if whole.num_rows else None,
        rejects=dict(_counts(rejects["reason"])),
        flags=manifest.flags,
        years=_years(whole),
        length_auc=auc(chars["chosen"], chars["rejected"]) if whole.num_rows else None,
        formats=_formats(whole) if whole.num_rows else {},
        histograms={k: np.histogram(v, [*LENGTHS, np.inf])[0].tolist() for k, v in chars.items()},
    )


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """P(a positive is larger than a negative), ties counted half: Mann and Whitney's U over its maximum."""
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, "left")
    not_above = np.searchsorted(ordered, positive, "right")
    return float((below + not_above).mean() / 2 / len(negative))


def _years(whole: pa.Table) -> dict[str, dict[str, int]]:
    """Pairs of each subset by the year of their later response; without a date under "?"."""
    years = pc.fill_null(pc.cast(pc.year(whole["created"]), pa.string()), "?")
    found: dict[str, dict[str, int]] = {}
    table = (
        pa.table({"subset": whole["subset"], "year": years}).group_by(["subset", "year"]).aggregate([([], "count_all")])
    )
    for row in table.sort_by([("subset", "ascending"), ("year", "ascending")]).to_pylist():
        found.setdefault(row["subset"] or "", {})[row["year"]] = row["count_all"]
    return found


def _formats(whole: pa.Table) -> dict[str, tuple[float, float]]:
    """Of each kind of markup, the shares of chosen and rejected responses that have it."""
    first = {
        side: pa.concat_arrays([c.flatten().field(1) for c in whole[side].chunks]) for side in ("chosen", "rejected")
    }
    shares = {
        name: [float(pc.mean(pc.match_substring_regex(texts, pattern)).as_py()) for texts in first.values()]
        for name, pattern in FORMATS.items()
    }
    return {name: (chosen, rejected) for name, (chosen, rejected) in shares.items()}


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
