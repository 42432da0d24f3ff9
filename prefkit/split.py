"""Which rows belong together, and where they go: groups by union-find in flat arrays, splits by hash of the group."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from prefkit.errors import UserError
from prefkit.keys import AT_A_TIME, Columns, changes, find, shared
from prefkit.shingles import SEED
from prefkit.tables import hash64
from prefkit.wording import counted

DEFAULT_SPLITS = "train=.9,test=.1"
KEYS = np.dtype(
    [
        ("id_high", "u8"),
        ("id_low", "u8"),
        ("group", "u8"),
        ("prompt", "u8"),
        ("answers", "u8"),  # of both responses, whichever was chosen
        ("first", "?"),  # which of the two was chosen
        ("bytes", "u4"),
    ]
)


DUPLICATE, REFUSED, CAPPED = -1, -2, -3  # in place of a split


class Names(NamedTuple):
    """The groups that are joined to others, sorted, and the smallest group of each one's component; all other groups
    stand alone and keep their own name."""

    groups: np.ndarray  # uint64[g]
    names: np.ndarray  # uint64[g]

    def of(self, groups: np.ndarray) -> np.ndarray:
        named = groups.copy()
        rows, places = find(groups, self.groups)
        named[rows] = self.names[places]
        return named


class Resolved(NamedTuple):
    """Per candidate row: the split it goes to (`DUPLICATE` of an earlier row: none), its group, and whether
    another row has the same prompt and responses with the other one chosen. Beside them the groups that were joined."""

    split: np.ndarray  # int32[n]
    group: np.ndarray  # uint64[n]
    conflict: np.ndarray  # bool[n]
    joined: Names


class Anchors(NamedTuple):
    """Where the groups and prompts of an older data set lie, so that they stay there: sorted keys and split numbers."""

    groups: np.ndarray  # uint64[a]
    group_split: np.ndarray  # int32[a]
    prompts: np.ndarray  # uint64[p]
    prompt_split: np.ndarray  # int32[p]


def parse_splits(splits: str | Mapping[str, float]) -> dict[str, float]:
    """`train=.9,test=.1` as a mapping; a `UserError` unless the shares are positive and add up to 1."""
    fix = f"such as {DEFAULT_SPLITS}"
    if isinstance(splits, str):
        parts = [p.partition("=") for p in splits.split(",") if p.strip()]
        try:
            given = [(name.strip(), float(share)) for name, _, share in parts]
        except ValueError:
            raise UserError(f"bad splits {splits!r}: a share is no number", fix=fix) from None
        if len({n for n, _ in given}) != len(given):
            raise UserError(f"bad splits {splits!r}: a name comes twice", fix=fix)
        shares = dict(given)
    else:
        shares = {str(k): float(v) for k, v in splits.items()}
    if not shares or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", n) for n in shares):
        raise UserError(f"bad splits {splits!r}: names are letters, digits, - _", fix=fix)
    if not all(s > 0 for s in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise UserError(f"bad splits {splits!r}: shares are positive and add up to 1", fix=fix)
    return shares


def resolve(
    rows: Columns | np.ndarray,
    links: np.ndarray,
    seed: int,
    splits: Mapping[str, float],
    anchors: Anchors | None = None,
) -> Resolved:
    """Groups, splits, duplicates and contradictions of all candidate rows.

    `rows` is `KEYS`[n] in published order, `links` uint64[m, 2] pairs of group keys that are duplicates of each
    other. Rows with one group key, one prompt or a chain of links between them share a group, named after its
    smallest member, so that new data moves no old group it does not touch. Errors: `UserError` where a group joins
    what `anchors` hold in different splits.
    """
    group, prompt = rows["group"], rows["prompt"]
    names = _joined(group, prompt, links)
    held = np.zeros((0, 2), np.uint64) if anchors is None else _held(group, prompt, names, anchors)
    del prompt
    group = names.of(group)
    runs = changes(group)
    of_run = assign(group[runs], seed, splits)
    here, place = find(group[runs], held[:, 0])
    of_run[here] = held[place, 1].astype(np.int32)
    split = np.repeat(of_run, np.diff(np.append(runs, len(group))))
    split[_repeated(rows)] = DUPLICATE
    return Resolved(split, group, _contradicted(rows), names)


def cap(found: Resolved, rows: Columns | np.ndarray, most: int, seed: int) -> Resolved:
    """At most so many pairs of one prompt: those with the smallest hashes of seed and pair id, whatever their order."""
    kept = np.flatnonzero(found.split >= 0)
    prompt = rows["prompt"][kept]
    some = shared(prompt)
    kept, prompt = kept[some], prompt[some]
    lot = (rows["id_high"][kept] ^ hash64([str(seed)])) * SEED
    order = np.lexsort((rows["id_low"][kept], lot, prompt))
    begins = changes(prompt[order])
    place = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    split = found.split.copy()
    split[kept[order[place >= most]]] = CAPPED
    return found._replace(split=split)


def _joined(group: np.ndarray, prompt: np.ndarray, links: np.ndarray) -> Names:
    """What links join, and prompts that lie in several groups."""
    runs = changes(prompt, group)  # rows of one question mostly stand together: what is left is a third or less
    runs = runs[shared(prompt[runs])]
    runs = runs[np.argsort(prompt[runs], kind="stable")]
    same = prompt[runs][1:] == prompt[runs][:-1]
    edges = np.concatenate([np.stack([group[runs][:-1][same], group[runs][1:][same]], 1), links])
    groups, nodes = np.unique(edges, return_inverse=True)
    nodes = nodes.reshape(-1, 2)
    return Names(groups, groups[components(len(groups), nodes[:, 0], nodes[:, 1])])


def _held(group: np.ndarray, prompt: np.ndarray, names: Names, anchors: Anchors) -> np.ndarray:
    """(group, split) of each group that holds something of the older data set: uint64[k, 2], sorted."""
    found = []
    for keys, groups, known, split in (
        (group, group, anchors.groups, anchors.group_split),
        (names.groups, names.groups, anchors.groups, anchors.group_split),  # those without pairs too
        (prompt, group, anchors.prompts, anchors.prompt_split),
    ):
        rows, places = find(keys, known)
        found.append(np.stack([names.of(groups[rows]), split[places].astype(np.uint64)], 1))
    held = np.unique(np.concatenate(found), axis=0)
    torn = np.unique(held[1:][held[1:, 0] == held[:-1, 0], 0])
    if len(torn):
        shown = ", ".join(f"{g:016x}" for g in torn[:3].tolist())
        what = f"what --splits-from holds in different splits is joined in {counted(len(torn), 'group')}: {shown}"
        raise UserError(
            what, fix="leave out --splits-from (then prefkit diff shows what moved), or the data that joins them"
        )
    return held


def _contradicted(rows: Columns | np.ndarray) -> np.ndarray:
    """Whether another row has the prompt and responses of a row with the other response chosen: bool[n]."""
    told = rows["prompt"] * SEED
    told += rows["answers"]
    some = shared(told)  # more than those that are sought, and still few
    del told
    prompt, answers, first = (rows[name][some] for name in ("prompt", "answers", "first"))
    order = np.lexsort((first, answers, prompt))
    begins = changes(prompt[order], answers[order])
    found = np.zeros(len(rows), dtype=bool)
    if len(begins):
        both = np.logical_or.reduceat(first[order], begins) & ~np.logical_and.reduceat(first[order], begins)
        found[some[order]] = np.repeat(both, np.diff(np.append(begins, len(some))))
    return found


def _repeated(rows: Columns | np.ndarray) -> np.ndarray:
    """The rows whose pair id an earlier row has: int64[m]."""
    high = rows["id_high"]
    some = shared(high)
    high, low = high[some], rows["id_low"][some]
    order = np.lexsort((some, low, high))
    return np.delete(some[order], changes(high[order], low[order]))


def components(n: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The smallest node that each of n nodes reaches over the edges (one[i], other[i]): int64[n]."""
    parent = np.arange(n)
    while True:
        a, b = parent[one], parent[other]
        apart = a != b
        if not apart.any():
            return parent
        np.minimum.at(parent, np.maximum(a, b)[apart], np.minimum(a, b)[apart])
        while not np.array_equal(parent, parent[parent]):
            parent = parent[parent]


def joined_by(links: np.ndarray) -> int:
    """How many groups links (uint64[m, 2]) join to another, whatever their order and number: 2 for three alike."""
    groups, nodes = np.unique(links, return_inverse=True)
    nodes = nodes.reshape(-1, 2)
    return len(groups) - len(np.unique(components(len(groups), nodes[:, 0], nodes[:, 1])))


def assign(groups: np.ndarray, seed: int, splits: Mapping[str, float]) -> np.ndarray:
    """The number of each group's split, from the group's name and the seed alone: int32[n]."""
    cuts, split = np.cumsum(list(splits.values()))[:-1], np.empty(len(groups), np.int32)
    for begin in range(0, len(groups), AT_A_TIME):
        part = slice(begin, begin + AT_A_TIME)
        digests = [hashlib.blake2b(f"{seed}/{g:016x}".encode(), digest_size=8).digest() for g in groups[part].tolist()]
        point = np.frombuffer(b"".join(digests), dtype=">u8").astype(np.float64) / 2.0**64
        split[part] = np.searchsorted(cuts, point, side="right")
    return split
