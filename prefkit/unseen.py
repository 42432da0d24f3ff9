"""Characters that cannot be read: controls, what turns the direction of text around, halves of surrogate pairs."""

from __future__ import annotations

import re

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Text whose unseen characters are written out as `‹U+202E›`, so that no line reads in another order than it is."""
    return UNSEEN.sub(lambda m: f"‹U+{ord(m[0]):04X}›", text)


def encodable(text: str) -> str:
    """Text with `?` for halves of a surrogate pair: JSON may hold them, but no file, digest, page or tokenizer can."""
    return text.encode(errors="replace").decode()
