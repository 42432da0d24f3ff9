"""Characters that act instead of being read: controls, and those that turn the direction of text around."""

from __future__ import annotations

import re

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Text whose unseen characters are written out as `‹U+202E›`, so that no line reads in another order than it is."""
    return UNSEEN.sub(lambda m: f"‹U+{ord(m[0]):04X}›", text)
