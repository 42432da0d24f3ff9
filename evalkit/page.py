"""report.html: the numbers as pictures, and the pairs behind them to browse. One file, no request, any text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup

from evalkit.findings import findings, section_notes
from evalkit.lines import MODES, ROUGH, SHORT, against_half, ends, interval, number, small, verdict_line
from evalkit.markdown import LABELS, styles_of
from evalkit.shown import KINDS
from prefkit import plots
from prefkit.html import render
from prefkit.ledgers import ledger_lines
from prefkit.plots import Mark, shorten
from prefkit.unseen import visible

TEMPLATES = Path(__file__).parent / "templates"
MOST_SLICES = 30  # rows of a plot; the table beside it has them all


def page(report: dict[str, Any], pairs: list[dict[str, Any]]) -> str:
    """The whole page of a report; `pairs` are those of `shown.pairs_of`."""
    reports = [report, *report["others"]]
    several = len(reports) > 1
    data = {
        "pairs": pairs,
        "kinds": KINDS,
        "referenced": report["reference"] is not None,
        "policy": visible(report["policy"]),
    }
    return render(
        TEMPLATES,
        "report.html",
        script=(TEMPLATES / "report.js").read_text("utf-8"),
        data=data,
        title=" · ".join(f"{r['policy']} against {r['reference'] or 'no reference'}" for r in reports),
        reports=[_view(r, several) for r in reports],
        shared=[note for note in report["caveats"] if all(note in r["caveats"] for r in reports)],
        verdicts=[verdict_line(c) for c in report["comparisons"]],
        accuracy_plot=plots.intervals(_accuracies(reports), "Accuracy and what else ranks these pairs"),
        shown={"n": len(pairs), "of": report["n"], "texts": any(p["texts"] for p in pairs)},
        interval=interval,
        number=number,
        small=small,
        ends=ends,
        rough_note=ROUGH,
    )


def _accuracies(reports: list[dict[str, Any]]) -> list[Mark]:
    """Each policy's accuracy, then its baselines, named after it where there are several."""
    several, marks = len(reports) > 1, []
    for r in reports:
        a = r["accuracy"]
        name = r["policy"] if several else "accuracy"
        marks.append(Mark(visible(name), a["value"], a["low"], a["high"], "right"))
    for r in reports:
        for name, b in r["baselines"].items():
            if name == "longer_wins" and r is not reports[0]:
                continue
            label = SHORT[name] + (f", {r['policy']}" if several and name != "longer_wins" else "")
            marks.append(Mark(visible(label), b["value"], b["low"], b["high"]))
    return marks


def _view(r: dict[str, Any], several: bool) -> dict[str, Any]:
    """What the template draws of one policy."""
    curve, risk = r["calibration"]["curve"], r["risk_coverage"]
    confidence = [
        _plot(
            "Margins",
            "right of zero the model agrees with the judgement",
            plots.histogram(**r["histogram"], what="Pairs by margin"),
        ),
        _plot(
            "Accuracy of the surest",
            f"surest pairs first; AURC {risk['aurc']:.3f}, {risk['aurc_random']:.3f} if margins knew nothing",
            plots.curve(
                [(p["coverage"], p["accuracy"]) for p in risk["curve"]],
                "Accuracy of the surest pairs",
                ("share of pairs kept", "accuracy"),
                level=r["accuracy"]["value"],
            ),
        ),
        _plot(
            "Calibration",
            f"σ(margin) against how often it holds; ECE {r['calibration']['ece']:.3f}"
            + ("" if r["calibration"]["reliable"] else ", from fewer than 300 pairs"),
            plots.curve(
                [(p["confidence"], p["accuracy"]) for p in curve],
                "Reliability",
                ("confidence", "accuracy"),
                x_range=(0.5, 1),
                diagonal=True,
            ),
        ),
    ]
    by = []
    for kind, found in r["slices"].items():
        if len(found) > 1:
            largest = sorted(sorted(found, key=lambda x: -x["n"])[:MOST_SLICES], key=found.index)
            note = f"the {MOST_SLICES} largest of {len(found)}" if len(found) > MOST_SLICES else "pairs in brackets"
            by.append(_plot(f"By {kind}", note, plots.intervals([_mark(x) for x in largest], f"Accuracy by {kind}")))
    return {
        **r,
        "heading": f"{r['policy']} against {r['reference'] or 'no reference'}" if several else None,
        "label": MODES[r["mode"]],
        "rows": [(MODES[r["mode"]], r["accuracy"]), *((LABELS[n], b) for n, b in r["baselines"].items())],
        "against_half": against_half(r["accuracy"]),
        "plots": [
            ("Margins and confidence", "what a larger margin is worth", confidence),
            *([("Slices", ", ".join(p["title"].lower() for p in by), by)] if by else []),
        ],
        "findings": list(findings(r)),
        "tables": {k: v for k, v in r["slices"].items() if len(v) > 1},
        "facts": list(_facts(r)),
        "section_notes": list(section_notes(r["sections"])) if r["sections"] else [],
        "styles": styles_of(r["sections"]) if r["sections"] else [],
    }


def _mark(x: dict[str, Any]) -> Mark:
    kind = "faint" if x["p_holm"] >= 0.05 else "right" if x["value"] > 0.5 else "wrong"
    label = f"{shorten(visible(x['name'] or '(none)'), 16)} ({x['n']:,})"
    return Mark(label, x["value"], x["low"], x["high"], kind)


def _plot(title: str, note: str, drawing: Markup) -> dict[str, Any]:
    return {"title": title, "note": note, "drawing": drawing}


def _facts(r: dict[str, Any]):
    """Where the number comes from, as terms and values."""
    run = r["run"] or {}
    yield "pairs", f"{r['n']} of {r['n_groups']} groups" + (f", where {r['where']}" if r["where"] else "")
    if run:
        dropped = ", ".join(f"{reason} {n}" for reason, n in sorted(run.get("dropped", {}).items())) or "none"
        yield "read", f"{run.get('read')}, scored {run.get('scored')}, dropped: {dropped}"
        for line in ledger_lines(run.get("ledgers") or {}):
            yield "converted", line.strip()
        yield "data", f"{run.get('data')} split {run.get('split')}"
        yield "boundary", str(run.get("boundary"))
        yield "template", str(run.get("template")).replace("\n", "\\n")
        yield "computed in", str(run.get("dtype"))
    yield "truncated", f"{r['truncated']} pairs"
    yield "mode, β", f"{r['mode']}, {r['beta']:g}"
    yield "scores", r["scores_sha256"] or "a table in memory"
