"""The two ledgers of a source, from flat counts: what became of every record, and of every candidate pair."""

from __future__ import annotations

from collections import Counter
from typing import Any

from prefkit.errors import UserError
from prefkit.shards import ledgers_out_of_balance


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
