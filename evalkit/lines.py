"""The lines that the terminal, report.md and report.html share: the number, a verdict with its limits, intervals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from evalkit.metrics import FEW_GROUPS
from prefkit.unseen import visible
from prefkit.wording import counted

FEW = f"fewer than {FEW_GROUPS} groups, or so few large ones that decide: read the interval as a rough guide"
ROUGH = f"(rough): {FEW}."


SHORT = {
    "longer_wins": "longer answer wins",
    "reference_only": "reference alone",
    "reference_free": "policy alone",
    "mean_likelihood": "policy, per token",
}
ALONE = ("reference_only", "reference_free")  # what a headline has beside the longer answer


MODES = {
    "implicit": "implicit-reward accuracy",
    "normalised": "length-normalised implicit-reward accuracy",
    "sum": "reference-free log-likelihood accuracy",
    "mean": "reference-free mean log-likelihood accuracy",
    "norm": "reference-free −‖log π‖₂ accuracy",
}


def measured(report: dict[str, Any]) -> str:
    """`accuracy 0.750 [0.700, 0.800]`, called by its name where it is not that of the implicit reward."""
    name = "accuracy" if report["mode"] == "implicit" else MODES[report["mode"]]
    return f"{name} {interval(report['accuracy'])}"


def noted(notes: Iterable[str]) -> str:
    """What a line ends with."""
    return "".join(f"; note: {note}" for note in notes)


def headline(report: dict[str, Any]) -> str:
    """The one printed line: the number, what it is beside, and its caveats."""
    a, longer = report["accuracy"], report["baselines"]["longer_wins"]
    alone = "".join(f" · {SHORT[n]} {report['baselines'][n]['value']:.3f}" for n in ALONE if n in report["baselines"])
    line = (
        f"{measured(report)} on {counted(report['n'], 'pair')} of {counted(report['n_groups'], 'group')}"
        f" · longer wins {interval(longer)}{alone}"
        f" · mean margin {report['margin']['mean']:+.4f} at β {report['beta']:g}"
    )
    return line + (f" · ties {a['tie_rate']:.1%}" if a["tie_rate"] else "") + noted(report["caveats"])


def against_half(accuracy: dict[str, Any]) -> str:
    """Whether it is told apart from guessing, by the test that agrees with its interval."""
    p = _p(accuracy["p_half"])
    if accuracy["p_half"] >= 0.05:
        return f"not distinguishable from guessing ({p})"
    return f"{'better' if accuracy['value'] > 0.5 else 'worse'} than guessing ({p})"


def verdict_line(d: dict[str, Any]) -> str:
    """The one line of a comparison, the same wherever it is shown: what was seen, the verdict, and what limits it."""
    a = d["accuracy"]
    interval = "" if a["low"] is None or a["low"] != a["low"] else f" [{a['low']:+.3f}, {a['high']:+.3f}]"
    p = f"{_p(a['p'])} ({a['test']})"
    if d["comparisons"] > 1:
        p += f", {_p(a['p_holm'])} by Holm over {d['comparisons']} comparisons"
    what = d["verdict"]
    if what == "not distinguishable" and interval and not a["low"] <= 0 <= a["high"]:
        what += ", though the interval stops short of 0: the test decides"
    if d["verdict"] == "not distinguishable" and d["detectable"] and d["detectable"] == d["detectable"]:
        what += f"; so many would show a difference of {d['detectable']:.3f}"
    line = f"{a['first']:.3f} → {a['second']:.3f}, difference {a['difference']:+.3f}{interval}, {p}: {what}"
    size = f"{counted(d['n'], 'pair')} of {counted(d['n_groups'], 'group')}"
    return f"{d['second']} against {d['first']} on {size}: {line}{noted(limits(d))}"


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p {p:.4f}"


def small(p: float | None) -> str:
    """A p for a table."""
    return "< 0.001" if p is not None and p < 5e-4 else number(p)


def limits(d: dict[str, Any]) -> Iterator[str]:
    """What makes a comparison less than it seems."""
    if d["only_first"] or d["only_second"]:
        yield f"{d['only_second']} more pairs are its own alone, {d['only_first']} the other's"
    if d["rough"]:
        yield FEW
    if d["same_data"] is False:
        yield "they were scored on different data sets, and only pairs of one id are compared"
    if not d["same_reference"] or not d["same_beta"]:
        yield "their references or β differ: accuracies compare, margins and NLL are on different scales"
    yield from d["caveats"]


def interval(p: dict[str, Any]) -> str:
    """`0.750 [0.700, 0.800]`."""
    return f"{p['value']:.3f} {ends(p)}"


def ends(p: dict[str, Any]) -> str:
    """`[0.700, 0.800]`, marked where few groups made it; nothing where there is no interval."""
    if p.get("low") is None:
        return ""
    return f"[{p['low']:.3f}, {p['high']:.3f}]" + " (rough)" * p.get("rough", False)


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "–" if value is None else f"{value:.3f}"


# What Markdown would act on: code, emphasis, table cells, HTML, entities, and what makes a link of brackets.
MARKDOWN = re.compile(r"[\\`*|]|<(?=[A-Za-z/!?])|&(?=[#A-Za-z])|(?<=\])[\[(:]")


def cell(text: str) -> str:
    """Text from outside as Markdown shows it: in its line, and none of it Markdown."""
    return MARKDOWN.sub(r"\\\g<0>", visible(" ".join(text.split())))


def code(text: str) -> str:
    """The same as a span of code, which more backticks enclose than it holds in a row."""
    text = visible(" ".join(text.split()))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " * (text[:1] == "`" or text[-1:] == "`")
    return f"{fence}{pad}{text}{pad}{fence}"
