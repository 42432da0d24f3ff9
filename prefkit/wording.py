"""Counts, sizes and types as people read them."""

from __future__ import annotations

from collections.abc import Mapping

TYPES = {"bool": "true or false", "int": "a whole number", "float": "a number"}  # what a value must be


def counted(n: int, noun: str) -> str:
    """`1 pair`, `2,345 pairs`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def size_text(n: float) -> str:
    """`2.6 MB`, `0.4 kB`: bytes in thousands, or millions."""
    return f"{n / 1e6:,.1f} MB" if n >= 1e5 else f"{n / 1e3:,.1f} kB"


def counts_text(counts: Mapping[str, int]) -> str:
    """`12 ties, 3 capped`: the largest first."""
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])))
