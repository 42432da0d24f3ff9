"""Word n-grams of texts as hashes, with their places in the text, and how far two texts' n-grams overlap."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.tables import offsets, string_bytes, string_offsets

N_WORDS = 3
AT_A_TIME = 1 << 18  # bytes of text

# Words are runs of ASCII letters and digits, their case ignored, and of other characters but punctuation; each CJK
# character is one.
# UTF-8 of U+00A0–00BF, U+2000–207F and U+3000–303F: first byte, second byte from and to, length.
_PUNCTUATION = ((0xC2, 0xA0, 0xBF, 2), (0xE2, 0x80, 0x81, 3), (0xE3, 0x80, 0x80, 3))
SEED, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFF51AFD7ED558CCD)


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
        mixed[:end] = mix(mixed[:end] ^ hashes[k:]) + np.uint64(k + 1)
        ended = counts == k + 1
        whole[ended] = mixed[first[:-1][ended]]
    found, short = mixed[head], (counts > 0) & (counts < n_words)
    found[out[:-1][short]] = whole[short]
    length = np.minimum(np.repeat(counts, grams), n_words)
    last = head + length - 1
    return Grams(
        found, out, (begins[head] if len(head) else head) + cuts[0], (ends[last] if len(head) else head) + cuts[0]
    )


def mix(h: np.ndarray) -> np.ndarray:
    """Spreads the bits of hashes, as the first round of MurmurHash3's finaliser does: uint64[n]."""
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
    return begins, ends, mix((sums[ends] - sums[begins]) * down[begins])


def _within(data: np.ndarray, low: int, high: int) -> np.ndarray:
    """Which bytes lie between two, both included: one comparison, as what is below wraps round."""
    return data - np.uint8(low) <= np.uint8(high - low)


@lru_cache(maxsize=2)
def _all_powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    base = int(SEED) | 1
    up, down = (np.cumprod(np.full(n, b, dtype=np.uint64)) for b in (base, pow(base, -1, 2**64)))
    return up, down


def _powers(n: int) -> tuple[np.ndarray, np.ndarray]:
    """pⁱ⁺¹ and p⁻ⁱ⁻¹ for i < n, modulo 2⁶⁴; lengths are rounded up so that few are ever made."""
    return _all_powers(max(2 * AT_A_TIME, 1 << n.bit_length()))


def jaccard(grams: Grams, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The Jaccard index of n-grams of texts by their numbers, pair by pair: float64[n]."""
    a, b = (_of_pairs(grams, side) for side in (one, other))
    common = np.isin(a.keys, b.keys, assume_unique=True)
    shared = np.bincount(a.pairs[common], minlength=len(one))
    either = np.bincount(a.pairs, minlength=len(one)) + np.bincount(b.pairs, minlength=len(one)) - shared
    return shared / np.maximum(either, 1)


def jaccard_of(cells: pa.ListArray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The same of the word 3-grams of cells by their numbers."""
    used, place = np.unique(np.concatenate([one, other]), return_inverse=True)
    return jaccard(shingles(texts_of(cells.take(pa.array(used)))), place[: len(one)], place[len(one) :])


class _Keyed(NamedTuple):
    keys: np.ndarray
    pairs: np.ndarray


def _of_pairs(grams: Grams, texts: np.ndarray) -> _Keyed:
    """The distinct n-grams of text `texts[i]` for each i, as hashes that i is mixed into, with their i."""
    counts = np.diff(grams.cuts)[texts]
    begin = np.concatenate([[0], np.cumsum(counts)])
    pairs = np.repeat(np.arange(len(texts)), counts)
    hashes = grams.hashes[np.repeat(grams.cuts[:-1][texts] - begin[:-1], counts) + np.arange(begin[-1])]
    keys, first = np.unique(mix(hashes + pairs.astype(np.uint64) * SEED), return_index=True)
    return _Keyed(keys, pairs[first])


def texts_of(cells: pa.ListArray) -> pa.Array:
    """What all turns of a cell say, as one text."""
    contents = cells.flatten().field(1)
    if len(contents) == len(cells):
        return contents
    return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets(cells).astype(np.int32)), contents), "\n")
