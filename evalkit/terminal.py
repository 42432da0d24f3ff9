"""What commands print: a line stays one, whatever the names in it."""

from __future__ import annotations

from prefkit.unseen import visible

BREAKS = {ord(c): f"‹U+{ord(c):04X}›" for c in "\n\u2028\u2029"}


def say(text: str) -> None:
    """Print a line; names come from outside, and a terminal obeys characters that a page would show."""
    print(visible(text.translate(BREAKS)))
