"""Small SVG plots for self-contained pages: crisp at any size, coloured by the page's style sheet, readable aloud."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

WIDTH, PLOT = 400, 230  # viewBox units of a plot; the page scales it


class Mark(NamedTuple):
    """A row of a plot of intervals: `low` and `high` may be None; `kind` is right, wrong or faint."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    kind: str = "faint"


def intervals(rows: Sequence[Mark], what: str, low: float = 0.0, high: float = 1.0) -> Markup:
    """A dot with its interval for each row, on one axis with ½ marked."""
    left, top, step = 152, 6, 23
    height = top + step * len(rows) + 26
    x = _scale(low, high, left, WIDTH - 50)
    parts = [_line(x(0.5), top, x(0.5), height - 24, "half")] if low <= 0.5 <= high else []
    parts += _axis(x, np.linspace(low, high, 6 if high - low > 0.5 else 5), height - 22, top)
    for i, row in enumerate(rows):
        y = top + step * i + step / 2
        parts.append(_text(left - 8, y + 4, shorten(row.label, 24), "end", said=row.label))
        if row.low is not None and row.high is not None:
            parts.append(_line(x(row.low), y, x(row.high), y, row.kind, 4))
        parts.append(Markup('<circle cx="{:.1f}" cy="{:.1f}" r="4" class="{}"/>').format(x(row.value), y, row.kind))
        parts.append(_text(WIDTH - 40, y + 4, f"{row.value:.3f}", "start"))
    said = "; ".join(
        f"{r.label} {r.value:.3f}" + ("" if r.low is None else f" from {r.low:.3f} to {r.high:.3f}") for r in rows
    )
    return _svg(height, f"{what}: {said}", parts)


def histogram(edges: Sequence[float], counts: Sequence[int], what: str, ties: int = 0) -> Markup:
    """Bars of counts; left of zero are the wrong ones, `ties` of the bar right of it are zero and drawn faint on it."""
    x, y = _scale(edges[0], edges[-1], 44, WIDTH - 12), _scale(0, max(*counts, 1), PLOT - 28, 10)
    parts = []
    for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True):
        zero = ties if low <= 0 < high else 0
        kind = "wrong" if (low + high) / 2 < 0 else "right"
        for start, end, drawn in ((0, n - zero, kind), (n - zero, n, "faint")):
            if end > start or drawn == kind:
                box = (x(low) + 0.5, y(end), max(0.5, x(high) - x(low) - 1), y(start) - y(end), drawn)
                form = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" class="{}"/>')
                parts.append(form.format(*box))
    parts += _axis(x, _ticks(edges[0], edges[-1]), PLOT - 26, 10, grid=False)
    parts += [_line(x(0), 6, x(0), PLOT - 26, "half"), _text(38, y(max(counts)) + 8, f"{max(counts):,}", "end", "soft")]
    below = sum(n for low, n in zip(edges[:-1], counts, strict=True) if low < 0)
    tied = f", {ties} at zero" if ties else ""
    return _svg(PLOT, f"{what}: {below} below zero, {sum(counts) - below - ties} above{tied}", parts)


def curve(
    points: Sequence[tuple[float, float]],
    what: str,
    axes: tuple[str, str],
    x_range: tuple[float, float] = (0, 1),
    y_range: tuple[float, float] = (0, 1),
    diagonal: bool = False,
    level: float | None = None,
) -> Markup:
    """A line through points; `diagonal` and `level` are where it would lie if all were as it should be."""
    x, y = _scale(*x_range, 44, WIDTH - 12), _scale(*y_range, PLOT - 42, 10)
    parts = _axis(x, np.linspace(*x_range, 6), PLOT - 40, 10, grid=False)
    for value in np.linspace(*y_range, 6):
        parts += [
            _line(44, y(value), WIDTH - 12, y(value), "axis"),
            _text(38, y(value) + 4, f"{value:g}", "end", "soft"),
        ]
    if diagonal:
        start, end = max(x_range[0], y_range[0]), min(x_range[1], y_range[1])
        parts.append(_line(x(start), y(start), x(end), y(end), "half"))
    if level is not None:
        parts.append(_line(x(x_range[0]), y(level), x(x_range[1]), y(level), "half"))
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    parts.append(Markup('<polyline points="{}" class="right"/>').format(path))
    parts += [Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" class="right"/>').format(x(a), y(b)) for a, b in points]
    parts += [_text((44 + WIDTH) / 2, PLOT - 6, axes[0], "middle", "soft")]
    said = "; ".join(f"{a:.2f}: {b:.3f}" for a, b in points)
    return _svg(PLOT, f"{what}, {axes[1]} by {axes[0]}: {said}", parts)


def _svg(height: float, said: str, parts: Sequence[Markup]) -> Markup:
    inner = Markup("").join(parts)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(WIDTH, height, said, inner)


def _scale(low: float, high: float, start: float, end: float):
    span = (high - low) or 1.0
    return lambda value: start + (min(max(float(value), low), high) - low) / span * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    step = 10.0 ** np.floor(np.log10((high - low) / 3))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (step * k) <= 6)
    return [float(v) for v in np.arange(np.ceil(low / step) * step, high + step / 1e6, step)]


def _axis(x, values, y: float, top: float, grid: bool = True) -> list[Markup]:
    parts = [_line(x(v), top, x(v), y, "axis") for v in values] if grid else []
    return [*parts, *(_text(x(v), y + 16, f"{v + 0.0:.4g}", "middle", "soft") for v in values)]


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, width: float = 1) -> Markup:
    form = Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}" stroke-width="{}"/>')
    return form.format(x1, y1, x2, y2, kind, width)


def _text(x: float, y: float, text: str, anchor: str, kind: str = "", said: str = "") -> Markup:
    """A label; `said` is its whole text where it had to be shortened."""
    whole = Markup("<title>{}</title>").format(said) if said not in ("", text) else Markup("")
    form = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}{}</text>')
    return form.format(x, y, anchor, kind, text, whole)


def shorten(text: str, n: int) -> str:
    """At most n characters of a text, its end cut with an ellipsis."""
    return text if len(text) <= n else text[: n - 1] + "…"
