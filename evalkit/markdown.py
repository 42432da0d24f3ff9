"""report.md and the printed line: the number, what could explain it, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from evalkit.metrics import FEW_GROUPS

LABELS = {
    "accuracy": "implicit-reward accuracy",
    "longer_wins": "longer answer wins",
    "reference_only": "reference alone (log π_ref)",
    "reference_free": "policy alone (log π)",
    "mean_likelihood": "policy alone, per token",
}
MODES = {
    "implicit": "implicit-reward accuracy",
    "normalised": "length-normalised implicit reward",
    "sum": "log π accuracy, no reference",
    "mean": "mean log π accuracy, no reference",
    "norm": "−‖log π‖₂ accuracy, no reference",
}

ROUGH = f"rough: fewer than {FEW_GROUPS} groups, read the interval as a rough guide."


def headline(report: dict[str, Any]) -> str:
    """The one printed line."""
    a, longer = report["accuracy"], report["baselines"]["longer_wins"]
    line = (
        f"accuracy {interval(a)} on {report['n']} pairs of {report['n_groups']} groups"
        f" · longer wins {interval(longer)}"
        f" · mean margin {report['margin']['mean']:+.4f} at β {report['beta']:g}"
    )
    return line + (f" · ties {a['tie_rate']:.1%}" if a["tie_rate"] else "")


def verdict_line(d: dict[str, Any]) -> str:
    """The one line of a comparison, the same wherever it is shown: what was seen, the verdict, and what limits it."""
    a = d["accuracy"]
    interval = "" if a["low"] is None or a["low"] != a["low"] else f" [{a['low']:+.3f}, {a['high']:+.3f}]"
    p = f"{_p(a['p'])} ({a['test']})"
    if d["comparisons"] > 1:
        p += f", {_p(a['p_holm'])} by Holm over {d['comparisons']} comparisons"
    what = d["verdict"]
    if what == "not distinguishable" and d["detectable"] and d["detectable"] == d["detectable"]:
        what += f"; so many would show a difference of {d['detectable']:.3f}"
    line = f"{a['first']:.3f} → {a['second']:.3f}, difference {a['difference']:+.3f}{interval}, {p}: {what}"
    notes = "".join(f"; note: {note}" for note in limits(d))
    return f"{d['second']} against {d['first']} on {d['n']} pairs of {d['n_groups']} groups: {line}{notes}"


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p {p:.4f}"


def limits(d: dict[str, Any]) -> Iterator[str]:
    """What makes a comparison less than it seems."""
    if d["only_first"] or d["only_second"]:
        yield f"{d['only_first']} more pairs are of {d['first']} alone and {d['only_second']} of {d['second']} alone"
    if d["same_data"] is False:
        yield "they were scored on different data sets, and only pairs of one id are compared"
    if not d["same_reference"] or not d["same_beta"]:
        yield "their references or β differ: accuracies compare, margins and NLL are on different scales"


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
    yield from (f"# {cell(r['policy'])} against {cell(r['reference'] or 'no reference')}", "", headline(r), "")
    rows = [(MODES[r["mode"]], a), *((LABELS[name], p) for name, p in r["baselines"].items())]
    yield from table(
        ("", "value", "95 % interval", "strict", "ties"),
        ((name, f"{p['value']:.3f}", ends(p), f"{p['strict']:.3f}", f"{p['tie_rate']:.1%}") for name, p in rows),
    )
    yield (
        "A tie counts one half; `strict` counts it as wrong, as most tools do. The interval is "
        f"{a['method']}: {r['n']} pairs of {r['n_groups']} groups weigh as much as {a['n_effective']:.0f} independent "
        f"pairs. {_detectable(r['detectable']['from_half'])}"
    )
    if r["where"]:
        yield from ("", f"Only pairs where `{cell(r['where'])}`.")
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
            if any(x["n_groups"] < FEW_GROUPS for x in found):
                yield from (ROUGH, "")
    if run := r["run"]:
        dropped = ", ".join(f"{reason} {n}" for reason, n in sorted(run.get("dropped", {}).items())) or "none"
        yield f"Pairs read {run.get('read')}, scored {run.get('scored')}, dropped: {cell(dropped)}."
        where = f"Data `{cell(str(run.get('data')))}` split `{cell(str(run.get('split')))}`"
        yield from ("", f"{where}, boundary of the first pair: `{cell(str(run.get('boundary')))}`.", "")


def _detectable(effect: float | None) -> str:
    if effect is None:
        return "So few groups that hardly any accuracy would be told from ½."
    return f"An accuracy {effect:.3f} off ½ would show in four of five such sets."


def findings(r: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the numbers beyond the accuracy say, each a title and a sentence; shared by report.md and report.html."""
    if u := r["undecided"]:
        yield (
            "Undecided",
            f"{u['n']} pairs ({u['share']:.1%}) have a log-ratio margin within the measured noise of "
            f"{u['within_nats']:.2g} nats; accuracy is between {u['low']:.3f} and {u['high']:.3f} however they fall.",
        )
    if o := (r["run"] or {}).get("overlap"):
        yield (
            "Overlap with training",
            f"of {o['prompts']} prompts, {o['exact']} were trained on exactly and {o['near']} nearly "
            f"(data {o['run_data']}).",
        )
    yield "Length", _length(r["lengths"])
    if f := r["flips"]:
        yield (
            "Flips",
            f"ranking by log π, {f['kept_right']:g} pairs were right and stayed so, {f['won']:g} won, {f['lost']:g} "
            f"lost, {f['kept_wrong']:g} stayed wrong.{_difficult(f)}",
        )
    if d := r["displacement"]:
        chosen, rejected = (d["per_token"][side]["mean"] for side in ("chosen", "rejected"))
        yield (
            "Displacement",
            f"the chosen response became less likely in {interval(d['chosen_fell'])} of pairs, both did in "
            f"{d['both_fell']:.3f}; {d['right_though_chosen_fell']:.3f} count as right all the same. Mean change a "
            f"token: chosen {chosen:+.4f}, rejected {rejected:+.4f} nats; drift {d['drift']:+.4f}.",
        )
    if i := r["idealised"]:
        yield (
            "Divided votes",
            f"where they were not unanimous ({i['seen']['n']} pairs), a perfect optimiser at this β would rank "
            f"{interval(i['ideal'])} right by log π, this policy {interval(i['seen'])}.",
        )
    yield "Calibration", _calibration(r["calibration"])
    risk, pooled = r["risk_coverage"], r["comparability"]
    half = next(p["accuracy"] for p in risk["curve"] if p["coverage"] == 0.5)
    yield (
        "Confidence",
        f"the surer half is right in {half:.3f}; AURC {risk['aurc']:.4f}, {risk['aurc_random']:.4f} if margins knew "
        f"nothing. A chosen response beats a rejected one of any prompt in {pooled['auc']:.3f}; reward and mean "
        f"likelihood rank {pooled['agreement']:.3f} of pairs alike.",
    )
    if i := r["items"]:
        yield "Best of n", _best_of_n(i)


def _best_of_n(i: dict[str, Any]) -> str:
    sizes = [x["responses"] for x in i["sizes"]]
    text = f"{interval(i)} of {i['n']} sets have a best response on top, ties sharing the credit; guessing gives "
    text += f"{i['chance']:.3f}. Sets are of {sizes[0]}"
    text += f" to {sizes[-1]} responses, most often {i['usual_size']}; " if len(sizes) > 1 else " responses each."
    if len(sizes) > 1:
        text += f"{i['smaller']} hold fewer than that, made so or because one was too long or left out by a condition."
    if i["told_apart_by"] != "tokens":
        text += " Responses are told apart by reward and length alone, so equal ones count as one: score again."
    return text


def _difficult(f: dict[str, Any]) -> str:
    """How reward and ranking differ where the reference has the pair wrong."""
    if not (hard := f["reference_wrong"]):
        return ""
    seen = f"{hard['reward']:.3f} are right by reward, {hard['ranking']:.3f} by log π"
    return f" Of the {hard['n']} the reference ranks wrong, {seen}."


def _calibration(c: dict[str, Any]) -> str:
    t = "no temperature would mend it" if c["temperature"] is None else f"best temperature {c['temperature']:.3g}"
    after = "" if None in (c["temperature"], c["nll_after"]) else f" (NLL {c['nll_after']:.4f} with it, cross-fitted)"
    note = "" if c["reliable"] else " Fewer than 300 pairs: read it as a sketch."
    return f"NLL {c['nll']:.4f}, Brier {c['brier']:.4f}, ECE {c['ece']:.4f}; {t}{after}.{note}"


def _slice(x: dict[str, Any]) -> tuple:
    return cell(x["name"] or "(none)"), x["n"], x["n_groups"], number(x["value"]), rough(x), number(x["p_holm"])


def _length(n: dict[str, Any]) -> str:
    parts = [f"Spearman of margin and length difference {n['spearman']:+.3f}"] if n["spearman"] is not None else []
    longer, shorter = n["chosen_longer"], n["chosen_shorter"]
    parts += [f"accuracy where chosen is longer {interval(longer)}"] if longer else []
    parts += [f"where it is shorter {interval(shorter)}"] if shorter else []
    parts += [f"length-balanced {interval(n['balanced'])}"] if n["balanced"] else []
    parts += [f"length-controlled {interval(n['controlled'])}"] if n["controlled"] else []
    if b := n["beyond"]:
        p = "" if b["p"] is None else f" (p {b['p']:.2g})"
        parts.append(f"beyond length the margin tells {b['bits_per_pair']:.4f} bits a pair{p}")
    return ", ".join(parts) + "." if parts else "all pairs are of equal lengths."


def _sections(w: dict[str, Any] | None) -> Iterator[str]:
    if w is None:
        return
    yield from (f"## {cell(w['name'])}", "")
    styles = styles_of(w)
    rows = [*w["sections"], *([{"name": "total", "weight": None, **w["total"]}] if w["total"] else [])]
    yield from table(
        ("section", "weight", "value", "95 % interval", *styles),
        (
            (cell(x["name"]), x["weight"] or "", number(x["value"]), ends(x), *(number(x[k]) for k in styles))
            for x in rows
        ),
    )
    if w["missing"]:
        present = f"; whole sections alone give {interval(w['present'])}" if w["present"] else ""
        missing = cell(", ".join(w["missing"]))
        yield from (f"No total, these subsets are missing: {missing}{present}.", "")
    if w["unused"]:
        yield from (f"{w['unused']} units belong to no section.", "")


def styles_of(sections: dict[str, Any]) -> list[str]:
    """The columns that 3×3 sets have beside their mean."""
    return [k for k in ("easy", "normal", "hard") if k in sections["sections"][0]]


def table(head: Sequence[object], rows: Any) -> Iterator[str]:
    """A Markdown table and a blank line."""
    for row in (head, ["---"] * len(head), *rows):
        yield "| " + " | ".join(map(str, row)) + " |"
    yield ""


def _mean_ends(r: dict[str, Any]) -> str:
    e = r["intervals"]["margin"]
    return "" if e["low"] is None else f" [{e['low']:+.4f}, {e['high']:+.4f}]"


def interval(p: dict[str, Any]) -> str:
    """`0.750 [0.700, 0.800]`."""
    return f"{p['value']:.3f} {ends(p)}"


def ends(p: dict[str, Any]) -> str:
    """`[0.700, 0.800]`, or nothing where there is no interval."""
    return "" if p.get("low") is None else f"[{p['low']:.3f}, {p['high']:.3f}]"


def rough(p: dict[str, Any]) -> str:
    """`ends`, marked where so few groups made it that it is a rough guide."""
    return ends(p) + (" rough" if p["n_groups"] < FEW_GROUPS else "")


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


def cell(text: str) -> str:
    """Names come from outside: they stay in their line and outside the table's syntax."""
    return " ".join(text.split()).replace("|", "\\|")
