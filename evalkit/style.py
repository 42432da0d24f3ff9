"""What style has to do with it, as `lengths` says of length: headings, lists, bold type and code beside it."""

from __future__ import annotations

import numpy as np

from evalkit.control import beyond, slopes
from evalkit.lengths import controlled
from evalkit.scored import Scored
from evalkit.scores import STYLES


def style(s: Scored) -> dict | None:
    """What is left without length and style together, and what one more of each does to the margin.

    Features are differences of chosen and rejected in tokens, headings, list items, bold spans and code blocks: those
    of Chatbot Arena's style control (FastChat), and code. `controlled` and `beyond` are those of `lengths`, `slopes`
    the change of the margin with one more, the others held. None where scores hold no counts, or no response any style.
    """
    sides = [s.table[f"style_{side}"].combine_chunks() for side in ("chosen", "rejected")]
    if any(side.null_count or any(side.field(n).null_count for n in STYLES) for side in sides):
        return None
    counts = [np.stack([side.field(n).to_numpy() for n in STYLES], axis=1).astype(float) for side in sides]
    if not (counts[0].any() or counts[1].any()):
        return None
    d_NP = np.column_stack([s.difference("n"), counts[0] - counts[1]])
    return {
        "controlled": controlled(s, d_NP),
        "beyond": beyond(s.margin_N, d_NP, s.group_N),
        "slopes": dict(zip(("tokens", *STYLES), slopes(s.margin_N, d_NP, s.group_N), strict=True)),
    }
