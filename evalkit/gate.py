"""A report held to a threshold, for continuous integration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from evalkit.diff import compare
from evalkit.lines import interval, measured, noted, verdict_line
from evalkit.report_files import read_report
from evalkit.sides import policies_of, side
from prefkit.errors import UserError


class Check(NamedTuple):
    """One demand: whether it is met, and what was seen."""

    passed: bool
    text: str


def check(
    report: Path,
    min_accuracy: float | None,
    no_worse_than: Path | None,
    max_displacement: float | None,
    allow_missing: float = 0.0,
    allow_trained: float = 0.0,
    allow_outcome: bool = False,
) -> list[Check]:
    """What was demanded of each policy of a report, and whether it holds.

    The accuracy demanded must be reached by the lower end of its interval. A comparison is of each policy alone,
    whoever else is in the report, and holds only where no more than a share `allow_missing` of either side's pairs is
    missing from the other: few shared pairs show no difference. No demand holds of pairs chosen by their outcome, or
    where more than a share `allow_trained` of the prompts were trained on.
    UserError for no demand, one that is no share, or displacement where there is no reference.
    """
    shares = {
        "--min-accuracy": min_accuracy,
        "--max-displacement": max_displacement,
        "--allow-missing": allow_missing,
        "--allow-trained": allow_trained,
    }
    for name, value in shares.items():
        if value is not None and not 0 <= value <= 1:
            raise UserError(f"{name} {value} is no share", fix="give a number from 0 to 1")
    if min_accuracy is None and no_worse_than is None and max_displacement is None:
        raise UserError("nothing is demanded", report, "give --min-accuracy, --no-worse-than or --max-displacement")
    whole, checks = read_report(report), []
    for r in (whole, *whole["others"]):
        notes = noted([*r["caveats"], *_unchecked(r)])
        checks += [Check(False, f"{r['policy']}: {why}") for why in _unsound(r, allow_trained, allow_outcome)]
        if min_accuracy is not None:
            met = r["accuracy"]["low"] >= min_accuracy
            checks.append(Check(met, f"{r['policy']}: {measured(r)}, lower end ≥ {min_accuracy:g}{notes}"))
        if max_displacement is not None:
            if r["displacement"] is None:
                raise UserError(f"{r['policy']} was scored without a reference", report, "leave out --max-displacement")
            fell = r["displacement"]["chosen_fell"]
            met = fell["value"] <= max_displacement
            what = f"{r['policy']}: chosen became less likely in {interval(fell)}, ≤ {max_displacement:g}"
            checks.append(Check(met, what + notes))
    if no_worse_than is not None:
        other = side(no_worse_than)
        checks += [_no_worse(c, allow_missing) for c in (compare(other, p) for p in policies_of(report))]
    return checks


def _unsound(r: dict[str, Any], allow_trained: float, allow_outcome: bool) -> Iterator[str]:
    """Why no demand could hold of such a number."""
    o = (r["run"] or {}).get("overlap") or {}
    trained = o.get("exact", 0) + o.get("near", 0)
    if trained > allow_trained * o.get("prompts", 0):
        counts = f"{trained} of {o['prompts']} evaluated prompts were trained on, exactly or nearly"
        yield f"{counts}; more than --allow-trained {allow_trained:g}"
    if r["on_outcome"] and not allow_outcome:
        yield f"only pairs where {r['where']}, which looks at the outcome; --allow-outcome lets that pass"


def _unchecked(r: dict[str, Any]) -> Iterator[str]:
    """What no demand could be held against: a continuous integration without the training data, say."""
    if not ((r["run"] or {}).get("overlap") or {}).get("run_data"):
        yield "overlap with training data was not checked"


def _no_worse(found: dict[str, Any], allow_missing: float) -> Check:
    missing = max(found[f"only_{which}"] / (found["n"] + found[f"only_{which}"]) for which in ("first", "second"))
    data = {True: "the same data set", False: "different data sets", None: "data not known to be the same"}
    text = f"{verdict_line(found)}; missing on a side: {missing:.1%}; {data[found['same_data']]}"
    if missing > allow_missing:
        text += f"; more are missing than --allow-missing {allow_missing:g}"
    return Check(found["verdict"] != "worse" and missing <= allow_missing, text)
