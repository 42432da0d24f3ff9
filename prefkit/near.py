"""Near-duplicate prompts: MinHash of word 3-grams proposes them, the exact Jaccard index of the 3-grams decides.

Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3. With 96 permutations in 16 bands of 6, prompts that
overlap by 0.9 are proposed with probability 1 − (1 − 0.9⁶)¹⁶ = 0.999995, by 0.8 with 0.992, by 0.3 with 0.012. All
pairs of texts that share a band are compared, also where many do (a preamble that thousands of prompts begin with):
what is found depends on the texts alone, not on their order.
"""

from __future__ import annotations

from array import array
from itertools import combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from rensa import RMinHash

from prefkit import engine
from prefkit.keys import Columns, changes, find, shared
from prefkit.shingles import SEED, jaccard, jaccard_of, mix, shingles, texts_of
from prefkit.split import components

BANDS, ROWS = 16, 6
SIGNATURE = np.dtype(
    [
        ("prompt", "u8"),
        ("group", "u8"),
        ("row", "u4"),
        *((f"band{k}", "u8") for k in range(BANDS)),
        ("sketch", "u1", (BANDS * ROWS,)),
    ]
)
THRESHOLD = 0.8
LOOKED_AT = 1 << 12  # proposed pairs whose sketches are compared at once
AT_ONCE = 500  # proposed pairs that are confirmed by one task
CROWD = 32  # texts with one key in a band: pairs of more are not listed, their texts are compared all with all
RARE = 32  # texts of a crowd that hold a 3-gram, at most, for it to tell which may be alike
TILE, COLUMNS = 2048, 4096  # texts on a side, and 3-grams, of a matrix by which the others are compared


def signatures(texts: pa.Array, prompts: np.ndarray, groups: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`SIGNATURE` of each text: its hash, its group, its row in the file it is in, the hash of each band, and a byte of
    each MinHash."""
    found = np.zeros(len(texts), dtype=SIGNATURE)
    if not len(texts):
        return found
    grams = shingles(texts)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(grams.hashes, grams.cuts.astype(np.uint64), BANDS * ROWS, 0)
    flat = b"".join([array("L", row) for row in matrix.to_rows()])  # faster than NumPy goes through lists of lists
    digests = np.frombuffer(flat, np.dtype("L")).astype(np.uint64, copy=False).reshape(len(texts), BANDS, ROWS)
    bands = np.broadcast_to(np.arange(1, BANDS + 1, dtype=np.uint64), (len(texts), BANDS))
    for k in range(ROWS):
        bands = mix(bands * SEED ^ digests[:, :, k])
    found["prompt"], found["group"], found["row"] = prompts, groups, rows
    found["sketch"] = digests.reshape(len(texts), -1).astype(np.uint8)
    for band in range(BANDS):
        found[f"band{band}"] = bands[:, band]
    return found[np.diff(grams.cuts) > 0]  # a text without one word is like no other


class Proposed(NamedTuple):
    """Texts that share a key, by their numbers: pairs int64[m, 2], the smaller first, and crowds, each ascending."""

    pairs: np.ndarray
    crowds: list[np.ndarray]


def proposals(keys: np.ndarray, prompts: np.ndarray) -> Proposed:
    """All pairs of texts that share a band's key (uint64[n]); of texts of one prompt (uint64[n]) only the first."""
    some = shared(keys)
    order = some[np.lexsort((some, prompts[some], keys[some]))]
    order = order[changes(keys[order], prompts[order])]
    begins = changes(keys[order])
    sizes = np.diff(np.append(begins, len(order)))
    crowds = [np.sort(order[a : a + n]) for a, n in zip(begins, sizes, strict=True) if n > CROWD]
    order, of_run = (x[np.repeat(sizes <= CROWD, sizes)] for x in (order, np.repeat(begins, sizes)))
    pairs = [np.zeros((0, 2), np.int64)]
    for lag in range(1, min(CROWD, len(order))):
        same = of_run[lag:] == of_run[:-lag]
        pairs.append(np.stack([order[:-lag][same], order[lag:][same]], 1))
    return Proposed(np.sort(np.concatenate(pairs), axis=1), crowds)


def may_overlap(sketches: np.ndarray, pairs: np.ndarray, threshold: float) -> np.ndarray:
    """Pairs (int64[m, 2]) of texts that may overlap by the threshold, as their sketches (uint8[n, 96]) tell: bool[m].

    The share of equal bytes estimates the Jaccard index; six standard errors are allowed for, so that of those that do
    overlap one in a thousand million is missed. The rest need not be read, which are nearly all where many texts share
    a few phrases.
    """
    least = threshold - 6 * (threshold * (1 - threshold) / sketches.shape[1]) ** 0.5
    parts = [pairs[a : a + LOOKED_AT] for a in range(0, len(pairs), LOOKED_AT)]
    agree = [(sketches[one] == sketches[other]).mean(1) for one, other in (p.T for p in parts)]
    return np.concatenate(agree) >= least if agree else np.zeros(0, dtype=bool)


def joined(texts: pa.Array, threshold: float) -> np.ndarray:
    """Of each of many texts the first that it reaches over pairs whose word 3-grams overlap by the threshold: int64[n].

    Pairs with a rare 3-gram in common are few, and looked at one by one. All others have only 3-grams of many in common
    (a preamble), so they are alike only where these make up most of both texts: of such texts the overlaps are counted
    tile by tile, as products of matrices of texts by 3-grams.
    """
    grams, n = shingles(texts), len(texts)
    text = np.repeat(np.arange(n), np.diff(grams.cuts))
    order = np.lexsort((text, grams.hashes))
    hashes, text = grams.hashes[order], text[order]
    once = changes(hashes, text)
    hashes, text = hashes[once], text[once]
    sizes, runs = np.bincount(text, minlength=n), changes(hashes)
    holders = np.diff(np.append(runs, len(hashes)))  # texts of each 3-gram
    rare = np.repeat(holders <= RARE, holders)
    pairs = _holding_the_same(hashes[rare], text[rare], n)
    alike = [part[jaccard(grams, *part.T) >= threshold] for part in _batches(pairs)]
    first = components(n, *np.concatenate([np.zeros((0, 2), np.int64), *alike]).T)
    hashes, text = hashes[~rare], text[~rare]
    most = np.flatnonzero(np.bincount(text, minlength=n) >= threshold * sizes)
    for a, b in combinations_with_replacement(range(0, len(most), TILE), 2):
        rows, columns = most[a : a + TILE], most[b : b + TILE]
        if len(np.unique(first[np.concatenate([rows, columns])])) > 1:
            common = _in_common(hashes, text, rows, columns)
            one, other = np.nonzero(common / (sizes[rows, None] + sizes[None, columns] - common) >= threshold)
            one, other = np.append(np.arange(n), rows[one]), np.append(first, columns[other])
            first = components(n, one, other)
    return first


def _holding_the_same(hashes: np.ndarray, text: np.ndarray, n: int) -> np.ndarray:
    """The pairs of n texts that hold one hash, from all (hash, text), sorted: int64[m, 2], the smaller first."""
    found = np.zeros(0, np.int64)
    for lag in range(1, min(RARE, len(hashes))):
        same = hashes[lag:] == hashes[:-lag]
        found = np.union1d(found, text[:-lag][same] * n + text[lag:][same])
    return np.stack(np.divmod(found, n), 1)


def _in_common(hashes: np.ndarray, text: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """How many hashes each text of `rows` has in common with each of `columns`, both ascending: float64[n, m]."""
    sides = []
    for side in (rows, columns):
        here, place = find(text, side)
        sides.append((hashes[here], place))
    both = np.intersect1d(sides[0][0], sides[1][0])
    total = np.zeros((len(rows), len(columns)))
    for begin in range(0, len(both), COLUMNS):
        part, matrices = both[begin : begin + COLUMNS], []
        for (hashed, place), side in zip(sides, (rows, columns), strict=True):
            here, column = find(hashed, part)
            matrix = np.zeros((len(side), len(part)), np.float32)
            matrix[place[here], column] = 1
            matrices.append(matrix)
        total += matrices[0] @ matrices[1].T
    return total


class Alike(NamedTuple):
    """A task: proposed pairs of prompts as (file, row) twice, int64[n, 4], and the least Jaccard index."""

    stems: list[Path]
    pairs: np.ndarray
    threshold: float


class Crowd(NamedTuple):
    """A task: prompts to compare all with all, as (file, row), int64[n, 2], and the least Jaccard index."""

    stems: list[Path]
    places: np.ndarray
    threshold: float


def confirm(task: Alike) -> np.ndarray:
    """Which of the proposed pairs overlap enough: bool[n]."""
    where = np.concatenate([task.pairs[:, :2], task.pairs[:, 2:]])
    places, index = np.unique(where, axis=0, return_inverse=True)
    n = len(task.pairs)
    return jaccard_of(_prompts(task.stems, places), index[:n], index[n:]) >= task.threshold


def compare(task: Crowd) -> np.ndarray:
    """`joined` of the prompts of a crowd."""
    return joined(texts_of(_prompts(task.stems, task.places)), task.threshold)


def _prompts(stems: list[Path], places: np.ndarray) -> pa.ListArray:
    """The prompts at (file, row), int64[n, 2], which are ascending."""
    from prefkit.tasks import read_cells, read_table

    cells = []
    for number in np.unique(places[:, 0]).tolist():
        path = stems[number].with_suffix(".arrow")
        prompts = read_table(path)["prompt"].take(pa.array(places[places[:, 0] == number, 1]))
        cells.append(read_cells(path).take(prompts.combine_chunks()))
    return pa.concat_arrays(cells)


def near_duplicates(stems: list[Path], threshold: float, workers: int) -> np.ndarray:
    """Pairs of group keys that prompts which are near duplicates join: uint64[m, 2]."""
    signed = Columns(stems, ".near", SIGNATURE)
    prompts = signed["prompt"]
    found = [proposals(signed[f"band{band}"], prompts) for band in range(BANDS)]
    del prompts
    pairs = np.unique(np.concatenate([p.pairs for p in found]), axis=0)
    crowds = list({crowd.tobytes(): crowd for p in found for crowd in p.crowds}.values())
    texts = np.unique(np.concatenate([pairs.ravel(), *crowds]))
    group, row = signed.take("group", texts), signed.take("row", texts)
    places = np.stack([np.searchsorted(np.cumsum(signed.counts), texts, side="right"), row], 1)
    pairs, crowds = np.searchsorted(texts, pairs), [np.searchsorted(texts, crowd) for crowd in crowds]
    pairs = pairs[group[pairs[:, 0]] != group[pairs[:, 1]]]
    pairs = pairs[may_overlap(signed.take("sketch", texts), pairs, threshold)]
    tasks = [Alike(stems, places[p].reshape(-1, 4), threshold) for p in _batches(pairs)]
    alike = engine.run_tasks(confirm, tasks, workers, "near duplicates")
    many = [Crowd(stems, places[crowd], threshold) for crowd in crowds]
    firsts = engine.run_tasks(compare, many, workers, "near duplicates")
    linked = [pairs[np.concatenate(alike)] if alike else pairs]
    linked += [np.stack([crowd[first], crowd], 1) for crowd, first in zip(crowds, firsts, strict=True)]
    links = group[np.concatenate(linked)]
    return links[links[:, 0] != links[:, 1]]


def _batches(pairs: np.ndarray) -> list[np.ndarray]:
    return [pairs[i : i + AT_ONCE] for i in range(0, len(pairs), AT_ONCE)]
