"""A held-out number you can defend.

`score_pairs` runs the models, `build_report` makes the number of their scores, `pair_frame` has a row for each pair,
`compare_scores` says whether one policy is better than another.
"""

from __future__ import annotations

from importlib import import_module

_HOMES = {
    "score_pairs": "evalkit.score",
    "build_report": "evalkit.report",
    "pair_frame": "evalkit.report",
    "compare_scores": "evalkit.diff",
}
__all__ = ["build_report", "compare_scores", "pair_frame", "score_pairs"]


def __getattr__(name: str):
    if name in _HOMES:
        if name == "score_pairs":
            import_module("train.models.libraries").quiet_libraries()
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
