"""Human judgements in, validated preference shards out.

The tour: `cli` names the commands, `convert` is the main path (plan → map → look up → pair → near → resolve →
publish). `sources` turn foreign records into `schema.Pair`; `readers`, `xmlrows` and `archives` read files; `markup`
makes Markdown of HTML; `pairing` makes pairs of scored answers; `checks` say what a valid pair is; `split` decides
what belongs together and where it goes; `tasks` are what workers do and `engine` runs them; `shards` are the data set
on disk with its manifest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prefkit.convert import convert_dataset
    from prefkit.shards import open_pairs

__all__ = ["convert_dataset", "open_pairs"]

_HOME = {"convert_dataset": "prefkit.convert", "open_pairs": "prefkit.shards"}


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'prefkit' has no attribute {name!r}")
