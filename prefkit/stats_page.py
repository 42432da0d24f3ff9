"""`prefkit stats --html`: the numbers of a data set as pictures, one file that asks for nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from prefkit import plots
from prefkit.errors import UserError
from prefkit.files import write_text
from prefkit.html import HERE, render
from prefkit.plots import Mark
from prefkit.shards import MANIFEST, Manifest
from prefkit.stats import BINS, Share, Stats
from prefkit.unseen import visible

MOST_YEARS = 30  # subsets in the table of years: the largest


def write_page(found: Stats, data: Path, file: Path) -> None:
    """Write the page; `UserError` where there is a file already."""
    if file.exists():
        raise UserError("the file exists already", file, "give another --html or remove it")
    if (file.resolve().parent / MANIFEST).is_file():
        raise UserError("a page in a data set would not be of it", file, "give --html a place beside it")
    write_text(file, page(found, Manifest.read(data), Path(data).resolve().name))


def page(found: Stats, manifest: Manifest, name: str) -> str:
    """The page of a data set's numbers; texts of the data do not enter it, its names are escaped."""
    ledgers = [
        (source, ledger, entries) for source, both in manifest.sources.items() for ledger, entries in both.items()
    ]
    return render(
        HERE,
        "stats.html",
        title=name,
        found=found,
        ledgers=[(source, ledger, list(_entries(entries))) for source, ledger, entries in ledgers],
        years=_years(found),
        margins=_margins(found),
        lengths=[(side, _lengths(side, counts)) for side, counts in found.doublings.items() if counts],
        gives_away=_gives_away(found),
    )


def _entries(ledger: dict) -> list[tuple[str, str, int]]:
    """(kind, reason, count) of a ledger, reasons under their kind."""
    rows: list[tuple[str, str, int]] = []
    for kind, value in ledger.items():
        rows += [(kind, reason, n) for reason, n in value.items()] if isinstance(value, dict) else [(kind, "", value)]
    return rows


def _years(found: Stats) -> dict:
    """A table of the largest subsets by year, and how many are left out."""
    largest = sorted(found.years, key=lambda s: (-sum(found.years[s].values()), s))
    columns = sorted({year for years in found.years.values() for year in years})
    rows = [(visible(s) or "-", [found.years[s].get(year, 0) for year in columns]) for s in largest[:MOST_YEARS]]
    return {"columns": columns, "rows": rows, "left_out": max(0, len(largest) - MOST_YEARS)}


def _margins(found: Stats):
    edges = np.linspace(0, 1, BINS + 1).tolist()
    beyond = f" ({found.other_margins:,} more lie outside)" if found.other_margins else ""
    return plots.histogram(edges, found.margins, f"Pairs by margin{beyond}") if found.margins else None


def _lengths(side: str, counts: list[int]):
    """Each bar is a doubling of the number of characters; the axis counts doublings."""
    return plots.histogram(list(range(len(counts) + 1)), counts, f"Characters of {side}, by doublings")


def _gives_away(found: Stats):
    """How often the chosen response is the longer one, or the one with a list, code, …: ½ gives nothing away."""
    shares: list[tuple[str, Share | None]] = [("longer", found.longer_wins)]
    shares += [(f"with {name}", f.wins) for name, f in found.formats.items()]
    marks = [Mark(label, s.value, s.low, s.high, "right") for label, s in shares if s is not None]
    title = "How often the chosen response is the one that …"
    if found.length_margin is not None:
        title += f" (by how much it is longer goes with the margin by {found.length_margin:+.2f})"
    return plots.intervals(marks, title) if marks else None
