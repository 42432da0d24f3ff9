"""The two ledgers of a source: what became of every record that was read, and of every candidate pair."""

from __future__ import annotations

from collections import Counter
from typing import Any

from prefkit.errors import UserError
from prefkit.wording import counts_text

FIRST = {"records": "read", "candidates": "made"}  # of each ledger what all its other entries add up to


def ledgers_of(tally: Counter[str]) -> dict[str, Any]:
    """Both ledgers of the source; `UserError` unless each balances, for then something was lost."""
    nested = nested_counts(tally)
    ledgers = {
        "records": {"read": 0, "used": 0, "unused": {}, "rejected": {}} | nested.get("records", {}),
        "candidates": dict.fromkeys(("made", "pairs", "ties", "capped", "filtered", "duplicate"), 0)
        | {"rejected": {}}
        | nested.get("candidates", {}),
    }
    if wrong := ledgers_out_of_balance(ledgers):
        fix = "run the command again, which begins anew; if it says the same, please report it: prefkit is at fault"
        raise UserError(f"what was read and what became of it differ: {' and '.join(wrong)}", fix=fix)
    return ledgers


def nested_counts(tally: Counter[str]) -> dict[str, Any]:
    """`records.unused.only_ties: 3` as nested dicts, without zeros."""
    nested: dict[str, Any] = {}
    for name, count in sorted(tally.items()):
        *parents, leaf = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        if count:
            place[leaf] = count
    return nested


def ledgers_out_of_balance(ledgers: dict[str, Any]) -> list[str]:
    """Which of the two ledgers of a source does not add up: its first entry is the sum of all the others."""
    wrong = []
    for name, first in FIRST.items():
        totals = _totals(ledgers[name])
        if totals.pop(first) != sum(totals.values()):
            wrong.append(name)
    return wrong


def ledger_lines(sources: dict[str, dict[str, Any]]) -> list[str]:
    """Both ledgers of every source as people read them: what became of all that was read, and of all candidates."""
    lines = []
    for source, ledgers in sources.items():
        lines.append(source)
        for name, first in FIRST.items():
            totals = _totals(ledgers[name])
            rest = " + ".join(f"{n:,} {k}" for k, n in totals.items() if k != first)
            lines.append(f"  {name:<11} {totals[first]:,} {first} = {rest}")
            for kind, reasons in ledgers[name].items():
                if isinstance(reasons, dict) and reasons:
                    lines.append(f"    {kind:<9} {counts_text(reasons)}")
    return lines


def _totals(ledger: dict[str, Any]) -> dict[str, int]:
    """Of each entry how many, whatever the reason."""
    return {k: sum(v.values()) if isinstance(v, dict) else v for k, v in ledger.items()}
