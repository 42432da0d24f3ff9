"""Counts as people read them."""

from __future__ import annotations

from collections.abc import Mapping


def counted(n: int, noun: str) -> str:
    """`1 pair`, `2,345 pairs`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def counts_text(counts: Mapping[str, int]) -> str:
    """`12 ties, 3 capped`: the largest first."""
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])))
