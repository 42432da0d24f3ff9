"""report.md: the number, what could explain it, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from evalkit.findings import findings, section_notes
from evalkit.lines import MODES, ROUGH, against_half, cell, code, ends, headline, number, small, verdict_line
from prefkit.ledgers import ledger_lines

LABELS = {
    "accuracy": "implicit-reward accuracy",
    "longer_wins": "longer answer wins",
    "reference_only": "reference alone (log π_ref)",
    "reference_free": "policy alone (log π)",
    "mean_likelihood": "policy alone, per token",
}


def to_markdown(report: dict[str, Any]) -> str:
    """report.md of one policy or several."""
    lines: list[str] = []
    for r in (report, *report["others"]):
        lines += _policy(r)
    if report["comparisons"]:
        lines += ["## Side by side", ""]
        lines += [f"- {cell(verdict_line(c))}" for c in report["comparisons"]] + [""]
    return "\n".join(lines)


def _policy(r: dict[str, Any]) -> Iterator[str]:
    a, m = r["accuracy"], r["margin"]
    yield from (f"# {cell(r['policy'])} against {cell(r['reference'] or 'no reference')}", "", cell(headline(r)), "")
    rows = [(MODES[r["mode"]], a), *((LABELS[name], p) for name, p in r["baselines"].items())]
    yield from table(
        ("", "value", "95 % interval", "strict", "ties"),
        ((name, f"{p['value']:.3f}", ends(p), f"{p['strict']:.3f}", f"{p['tie_rate']:.1%}") for name, p in rows),
    )
    yield (
        "A tie counts one half; `strict` counts it as wrong, as most tools do. The interval is "
        f"{a['method']}: {r['n']} pairs of {r['n_groups']} groups weigh as much as {a['n_effective']:.0f} independent "
        f"pairs: {against_half(a)}. {_detectable(r['detectable']['from_half'])}"
    )
    yield from (
        "",
        f"Margin β·Δ at β {r['beta']:g}: mean {m['mean']:+.4f}{_mean_ends(r)}, sd {m['sd']:.4f}, "
        f"quartiles {m['q25']:+.4f} / {m['median']:+.4f} / {m['q75']:+.4f}. Truncated pairs: {r['truncated']}.",
        "",
    )
    for title, body in findings(r):
        yield from (f"**{title}.** {cell(body)}", "")
    yield from _sections(r["sections"])
    for kind, found in r["slices"].items():
        if len(found) > 1:
            yield from (f"## By {kind}", "")
            yield from table(
                (kind, "pairs", "groups", "accuracy", "95 % interval", "Holm's p of ½"), map(_slice, found)
            )
            if any(x["rough"] for x in found):
                yield from (ROUGH, "")
    if run := r["run"]:
        dropped = ", ".join(f"{reason} {n}" for reason, n in sorted(run.get("dropped", {}).items())) or "none"
        yield f"Pairs read {run.get('read')}, scored {run.get('scored')}, dropped: {cell(dropped)}."
        for line in ledger_lines(run.get("ledgers") or {}):
            yield from ("", f"Converted on the way: {cell(line.strip())}.")
        data, split, boundary = (code(str(run.get(name))) for name in ("data", "split", "boundary"))
        yield from ("", f"Data {data} split {split}, boundary of the first pair: {boundary}.", "")


def _detectable(effect: float | None) -> str:
    if effect is None:
        return "So few groups that hardly any accuracy would be told from ½."
    return f"An accuracy {effect:.3f} off ½ would show in four of five such sets."


def _slice(x: dict[str, Any]) -> tuple:
    return cell(x["name"] or "(none)"), x["n"], x["n_groups"], number(x["value"]), ends(x), small(x["p_holm"])


def _sections(w: dict[str, Any] | None) -> Iterator[str]:
    if w is None:
        return
    yield from (f"## {cell(w['name'])}", "")
    styles = styles_of(w)
    rows = [*w["sections"], *([{"name": "total", "weight": None, **w["total"]}] if w["total"] else [])]
    yield from table(
        ("section", "weight", "value", "95 % interval", *styles),
        (
            (cell(x["name"]), x["weight"] or "", number(x["value"]), ends(x), *(number(x.get(k)) for k in styles))
            for x in rows
        ),
    )
    for note in section_notes(w):
        yield from (cell(note), "")


def styles_of(sections: dict[str, Any]) -> list[str]:
    """The columns that 3×3 sets have beside their mean."""
    return [k for k in ("easy", "normal", "hard") if any(k in x for x in sections["sections"])]


def table(head: Sequence[object], rows: Any) -> Iterator[str]:
    """A Markdown table and a blank line."""
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(map(str, row)) + " |"
    yield ""


def _mean_ends(r: dict[str, Any]) -> str:
    e = r["intervals"]["margin"]
    mark = " (rough)" * r["accuracy"]["rough"]
    return "" if e["low"] is None else f" [{e['low']:+.4f}, {e['high']:+.4f}]{mark}"
