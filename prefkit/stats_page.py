"""The numbers of `prefkit stats` as one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from prefkit import plots
from prefkit.html import HERE, render
from prefkit.shards import Manifest, write_text
from prefkit.stats import LENGTHS, Stats


def write_page(found: Stats, data: Path, file: Path) -> None:
    """Write the page of a data set whose numbers are known, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, page(found, data.resolve().name, Manifest.read(data)))


def page(found: Stats, name: str, manifest: Manifest) -> str:
    """The page as HTML; all names in it are anybody's and are escaped."""
    return render(
        HERE,
        "stats.html",
        title=name,
        stats=found,
        rows=sum(c["rows"] for c in found.splits.values()),
        sources=manifest.sources,
        warnings=manifest.warnings,
        years=sorted({year for years in found.years.values() for year in years}),
        plots=_plots(found),
    )


def _plots(found: Stats) -> list[dict[str, Any]]:
    drawn = []
    if found.longer_wins is not None and found.length_auc is not None:
        marks = [plots.Mark("longer is chosen", found.longer_wins), plots.Mark("AUC of length", found.length_auc)]
        note = "½ means that length gives nothing away. AUC compares chosen and rejected responses of any pair."
        drawn.append(_plot("What length alone tells", note, plots.intervals(marks, "what length alone tells")))
    if found.margins:
        edges = [i / len(found.margins) for i in range(len(found.margins) + 1)]
        drawn.append(
            _plot("Margins", "strength of the preference, 0 to 1", plots.histogram(edges, found.margins, "margins"))
        )
    for side, counts in found.histograms.items():
        if sum(counts):
            steps = list(range(len(LENGTHS) + 1))
            note = "characters; a bar a doubling: " + ", ".join(f"{n:,}" for n in LENGTHS)
            drawn.append(_plot(f"Length of {side}", note, plots.histogram(steps, counts, f"length of {side}")))
    rows = [
        mark
        for name, (chosen, rejected) in found.formats.items()
        if chosen or rejected
        for mark in (
            plots.Mark(f"{name}, chosen", chosen, kind="right"),
            plots.Mark(f"{name}, rejected", rejected, kind="wrong"),
        )
    ]
    if rows:
        note = "share of responses with such markup"
        drawn.append(_plot("Markup in chosen and rejected", note, plots.intervals(rows, "share with markup")))
    return drawn


def _plot(title: str, note: str, drawing: Markup) -> dict[str, Any]:
    return {"title": title, "note": note, "drawing": drawing}
