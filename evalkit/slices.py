"""The accuracy within each subset, source, length ratio and strength of the label."""

from __future__ import annotations

import numpy as np

from evalkit.lengths import near
from evalkit.metrics import share
from evalkit.scored import Scored, codes
from prefkit.statistics import holm

LENGTHS = ["chosen < half", "chosen shorter", "within 10 %", "chosen longer", "chosen > twice"]  # in tokens
STRENGTHS = {"0 to ¼": 0.25, "¼ to ½": 0.5, "½ to ¾": 0.75, "¾ to 1": np.inf}  # of the label's margin


def slices(s: Scored) -> dict[str, list[dict]]:
    """Accuracy within each subset, source, length bucket and strength of the label; Holm over each one's tests of ½."""
    n_chosen, n_rejected = s.column("n_chosen"), s.column("n_rejected")
    rules = [near(s), 2 * n_chosen < n_rejected, n_chosen < n_rejected, n_chosen > 2 * n_rejected]
    length_N = np.select(rules, [2, 0, 1, 4], default=3)
    by = {"subset": codes(s.table["subset"]), "source": codes(s.table["source"]), "length": (length_N, LENGTHS)}
    strength_N = s.column("label_margin")
    if not np.isnan(strength_N).all():
        by["label margin"] = np.searchsorted(list(STRENGTHS.values()), strength_N), [*STRENGTHS, "unknown"]  # NaN last
    return {kind: _slice(s, *coded) for kind, coded in by.items()}


def _slice(s: Scored, code_N: np.ndarray, names: list[str]) -> list[dict]:
    rows = []
    order_N = np.argsort(code_N, kind="stable")
    for where in np.split(order_N, np.flatnonzero(np.diff(code_N[order_N])) + 1):
        p = share(s.hit_N[where], s.group_N[where]).as_dict()
        rows.append({"name": names[code_N[where[0]]], **p, "margin": float(s.margin_N[where].mean())})
    for row, p_holm in zip(rows, holm([r["p_half"] for r in rows]), strict=True):
        row["p_holm"] = p_holm
    return rows
