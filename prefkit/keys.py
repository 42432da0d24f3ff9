"""Keys of millions of rows: looked at one column at a time, for together they would not fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

AT_A_TIME = 1 << 18  # keys


class Columns:
    """Structured arrays, one file (or none) a stem, as one that stays on disk: `columns[name]` reads one column."""

    def __init__(self, stems: Sequence[Path], suffix: str, dtype: np.dtype):
        self.dtype = dtype
        self.paths = [p if (p := stem.with_suffix(suffix)).exists() else None for stem in stems]
        self.counts = [0 if p is None else len(np.load(p, mmap_mode="r")) for p in self.paths]

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, name: str) -> np.ndarray:
        column, done = np.empty(len(self), self.dtype[name]), 0
        for path, count in zip(self.paths, self.counts, strict=True):
            if path is not None:
                column[done : done + count] = np.load(path, mmap_mode="r")[name]
                done += count
        return column


def find(keys: np.ndarray, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which of `keys` are in `among`, which is sorted, and where they are there: int64[m] and int64[m]."""
    rows, places = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for begin in range(0, len(keys) if len(among) else 0, AT_A_TIME):
        part = keys[begin : begin + AT_A_TIME]
        at = np.minimum(np.searchsorted(among, part), len(among) - 1)
        hit = np.flatnonzero(among[at] == part)
        rows.append(hit + begin)
        places.append(at[hit])
    return np.concatenate(rows), np.concatenate(places)


def shared(keys: np.ndarray) -> np.ndarray:
    """The rows whose key another row has too: int64[m], ascending."""
    ordered = np.sort(keys)
    ordered = ordered[1:][ordered[1:] == ordered[:-1]]
    return find(keys, ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]])[0]


def changes(*columns: np.ndarray) -> np.ndarray:
    """Where a run of rows that are equal in all columns begins: int64[r], ascending."""
    fresh = np.ones(len(columns[0]), dtype=bool)
    if len(fresh):
        fresh[1:] = False
        for column in columns:
            fresh[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(fresh)
