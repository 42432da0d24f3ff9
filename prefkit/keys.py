"""Keys of millions of rows: looked at one column at a time, for together they would not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from prefkit.files import renamed

AT_A_TIME = 1 << 18  # keys


def write_columns(path: Path, rows: np.ndarray) -> None:
    """A structured array as its columns, one after the other, in the machine's own bytes: a file of a work folder."""
    with renamed(path, shared=True) as new, new.open("wb") as out:
        for name in rows.dtype.names or ():
            out.write(rows[name].tobytes())  # tofile would not notice a full disk


class Columns:
    """What `write_columns` wrote, one file (or none) a stem, as one array that stays on disk: `columns[name]` reads one
    column of all files."""

    def __init__(self, stems: Sequence[Path], suffix: str, dtype: np.dtype):
        self.dtype = dtype
        self.paths = [stem.with_suffix(suffix) for stem in stems]
        sizes = [p.stat().st_size if p.exists() else 0 for p in self.paths]
        assert not any(size % dtype.itemsize for size in sizes), "a file of a work folder is damaged"
        self.counts = [size // dtype.itemsize for size in sizes]

    def __len__(self) -> int:
        return sum(self.counts)

    def __getitem__(self, name: str) -> np.ndarray:
        column, done = np.empty(len(self), self.dtype[name]), 0
        for part in self._parts(name):
            column[done : done + len(part)] = part
            done += len(part)
        return column

    def take(self, name: str, rows: np.ndarray) -> np.ndarray:
        """The values of a column at some rows, which are ascending."""
        starts, cells = np.cumsum([0, *self.counts]), []
        for part, start, (a, b) in zip(
            self._parts(name), starts, pairwise(np.searchsorted(rows, starts)), strict=False
        ):
            cells.append(part[rows[a:b] - start])
        return np.concatenate(cells) if cells else np.empty(0, self.dtype[name])

    def _parts(self, name: str) -> Iterator[np.ndarray]:
        """A column, file by file."""
        kind, names = self.dtype[name], list(self.dtype.names or ())
        before = sum(self.dtype[n].itemsize for n in names[: names.index(name)])
        for path, count in zip(self.paths, self.counts, strict=True):
            yield np.fromfile(path, kind, count, offset=before * count) if count else np.empty(0, kind)


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
