"""Near-duplicate prompts: MinHash of word 3-grams proposes them, the exact Jaccard index of the 3-grams decides.

Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, ch. 3. With 96 permutations in 16 bands of 6, prompts that
overlap by 0.9 are proposed with probability 1 − (1 − 0.9⁶)¹⁶ = 0.999995, by 0.8 with 0.992, by 0.3 with 0.012. All
pairs of texts that share a band are compared, also where many do (a preamble that thousands of prompts begin with):
what is found depends on the texts alone, not on their order.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from itertools import combinations_with_replacement
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rensa import RMinHash

from prefkit import engine
from prefkit.keys import Columns, changes, find, shared
from prefkit.split import components
from prefkit.tables import offsets, string_bytes, string_offsets

N_WORDS = 3
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
AT_A_TIME = 1 << 18  # bytes of text
AT_ONCE = 500  # proposed pairs that are confirmed by one task
CROWD = 32  # texts with one key in a band: pairs of more are not listed, their texts are compared all with all
RARE = 32  # texts of a crowd that hold a 3-gram, at most, for it to tell which may be alike
TILE, COLUMNS = 2048, 4096  # texts on a side, and 3-grams, of a matrix by which the others are compared

# Words are runs of ASCII letters and digits, their case ignored, and of other characters but punctuation; each CJK
# character is one.
# UTF-8 of U+00A0–00BF, U+2000–207F and U+3000–303F: first byte, second byte from and to, length.
_PUNCTUATION = ((0xC2, 0xA0, 0xBF, 2), (0xE2, 0x80, 0x81, 3), (0xE3, 0x80, 0x80, 3))
_SEED, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFF51AFD7ED558CCD)


class Grams(NamedTuple):
    """Hashes of the word n-grams of some texts: those of text i are `hashes[cuts[i] : cuts[i + 1]]`, and the n-gram
    `hashes[k]` lies in the texts' bytes from `starts[k]` to `stops[k]`."""

    hashes: np.ndarray  # uint64[k]
    cuts: np.ndarray  # int64[n + 1]
    starts: np.ndarray  # int64[k]
    stops: np.ndarray  # int64[k]


def shingles(texts: pa.Array, n_words: int = N_WORDS) -> Grams:
    """The word n-grams of each text, in order and with repeats; a text of fewer words is one gram of all its words."""
    cuts = string_offsets(texts).astype(np.int64) if len(texts) else np.zeros(1, np.int64)
    cuts -= cuts[0]
    data, parts, begin = string_bytes(texts), [], 0
    while begin < len(texts):  # about `AT_A_TIME` bytes, at least one text
        end = max(begin + 1, int(np.searchsorted(cuts, cuts[begin] + AT_A_TIME, side="right")) - 1)
        parts.append(_shingles(data[cuts[begin] : cuts[end]], cuts[begin : end + 1], n_words))
        begin = end
    if not parts:
        return Grams(np.zeros(0, np.uint64), np.zeros(1, np.int64), *(np.zeros(0, np.int64),) * 2)
    hashes, starts, stops = (
        np.concatenate(a) for a in zip(*((p.hashes, p.starts, p.stops) for p in parts), strict=True)
    )
    counts = np.concatenate([np.diff(p.cuts) for p in parts])
    return Grams(hashes, np.concatenate([[0], np.cumsum(counts)]), starts, stops)


def _shingles(data: np.ndarray, cuts: np.ndarray, n_words: int) -> Grams:
    begins, ends, hashes = _words(data, cuts - cuts[0])
    first = np.searchsorted(begins, cuts - cuts[0])  # the first word of each text
    counts = np.diff(first)
    grams = np.where(counts >= n_words, counts - n_words + 1, np.minimum(counts, 1))
    out = np.concatenate([[0], np.cumsum(grams)])
    head = np.repeat(first[:-1] - out[:-1], grams) + np.arange(out[-1])  # the first word of each gram
    mixed, whole = np.zeros(len(hashes), dtype=np.uint64), np.zeros(len(counts), dtype=np.uint64)
    for k in range(min(n_words, len(hashes))):  # from each word on, the hash of k + 1 words
        end = len(hashes) - k
        mixed[:end] = _mix(mixed[:end] ^ hashes[k:]) + np.uint64(k + 1)
        ended = counts == k + 1
        whole[ended] = mixed[first[:-1][ended]]
    found, short = mixed[head], (counts > 0) & (counts < n_words)
    found[out[:-1][short]] = whole[short]
    length = np.minimum(np.repeat(counts, grams), n_words)
    last = head + length - 1
    return Grams(
        found, out, (begins[head] if len(head) else head) + cuts[0], (ends[last] if len(head) else head) + cuts[0]
    )


def _mix(h: np.ndarray) -> np.ndarray:
    h = (h ^ (h >> np.uint64(33))) * _MIX
    return h ^ (h >> np.uint64(29))


def _words(data: np.ndarray, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Begin, end and hash of every word; no word goes from one text into the next.

    The hash is Σ byte·pⁱ over the places i of a word: the difference of two running sums, moved to begin at i = 0.
    """
    fresh = np.zeros(len(data) + 1, dtype=bool)  # where a word cannot go on from the byte before
    fresh[cuts] = True
    alone = _within(data, 0xE3, 0xED)  # first bytes of U+3000 to U+D7FF: kana, ideographs, Hangul syllables
    if alone.any():
        at = np.flatnonzero(alone)
        fresh[at] = True
        fresh[np.minimum(at + 3, len(data))] = True
    lower = data | (_within(data, 65, 90) * np.uint8(32))
    inside = np.append(_within(lower, 97, 122) | _within(data, 48, 57) | (data >= 128), False)
    for lead, low, high, size in _PUNCTUATION:
        at = np.flatnonzero(data[:-1] == lead)
        at = at[(data[at + 1] >= low) & (data[at + 1] <= high)]
        for k in range(size):
            inside[at + k] = False
    goes_on = inside[1:] & inside[:-1] & ~fresh[1:]
    begins = np.flatnonzero(inside & ~np.append(False, goes_on))
    ends = np.flatnonzero(inside[:-1] & ~goes_on) + 1
    up, down = _powers(len(data) + 1)
    sums = np.zeros(len(data) + 1, dtype=np.uint64)
    np.cumsum(lower.astype(np.uint64) * up[: len(data)], out=sums[1:])
    return begins, ends, _mix((sums[ends] - sums[begins]) * down[begins])


def _within(data: np.ndarray, low: int, high: int) -> np.ndarray:
    """Which bytes lie between two, both included: one comparison, as what is below wraps round."""
    return data - np.uint8(low) <= np.uint8(high - low)


@lru_cache(maxsize=2)
def _all_powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    base = int(_SEED) | 1
    up, down = (np.cumprod(np.full(n, b, dtype=np.uint64)) for b in (base, pow(base, -1, 2**64)))
    return up, down


def _powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    """pⁱ⁺¹ and p⁻ⁱ⁻¹ for i < n, modulo 2⁶⁴; lengths are rounded up so that few are ever made."""
    return _all_powers(max(2 * AT_A_TIME, 1 << n.bit_length()))


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
        bands = _mix(bands * _SEED ^ digests[:, :, k])
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
    parts = [pairs[a : a + AT_A_TIME // 64] for a in range(0, len(pairs), AT_A_TIME // 64)]
    agree = [(sketches[one] == sketches[other]).mean(1) for one, other in (p.T for p in parts)]
    return np.concatenate(agree) >= least if agree else np.zeros(0, dtype=bool)


def jaccard_of(cells: pa.ListArray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The Jaccard index of the word 3-grams of cells, pair by pair: float64[n]."""
    used, place = np.unique(np.concatenate([one, other]), return_inverse=True)
    return _jaccard(shingles(texts_of(cells.take(pa.array(used)))), place[: len(one)], place[len(one) :])


def _jaccard(grams: Grams, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The same of texts by their numbers."""
    a, b = (_of_pairs(grams, side) for side in (one, other))
    common = np.isin(a.keys, b.keys, assume_unique=True)
    shared = np.bincount(a.pairs[common], minlength=len(one))
    either = np.bincount(a.pairs, minlength=len(one)) + np.bincount(b.pairs, minlength=len(one)) - shared
    return shared / np.maximum(either, 1)


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
    alike = [part[_jaccard(grams, *part.T) >= threshold] for part in _batches(pairs)]
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


class _Keyed(NamedTuple):
    keys: np.ndarray
    pairs: np.ndarray


def _of_pairs(grams: Grams, texts: np.ndarray) -> _Keyed:
    """The distinct 3-grams of text `texts[i]` for each i, as hashes that i is mixed into, with their i."""
    counts = np.diff(grams.cuts)[texts]
    begin = np.concatenate([[0], np.cumsum(counts)])
    pairs = np.repeat(np.arange(len(texts)), counts)
    hashes = grams.hashes[np.repeat(grams.cuts[:-1][texts] - begin[:-1], counts) + np.arange(begin[-1])]
    keys, first = np.unique(_mix(hashes + pairs.astype(np.uint64) * _SEED), return_index=True)
    return _Keyed(keys, pairs[first])


def texts_of(cells: pa.ListArray) -> pa.Array:
    """What all turns of a cell say, as one text."""
    contents = cells.flatten().field(1)
    if len(contents) == len(cells):
        return contents
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets(cells).astype(np.int32)), contents), "\n")


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
