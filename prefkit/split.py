"""Which rows belong together, and where they go: groups by union-find in flat arrays, splits by hash of the group."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from prefkit.errors import UserError

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


DUPLICATE, REFUSED = -1, -2  # in place of a split


class Resolved(NamedTuple):
    """Per candidate row: the split it goes to (`DUPLICATE` of an earlier row: none), its group, and whether
    another row has the same prompt and responses with the other one chosen."""

    split: np.ndarray  # int32[n]
    group: np.ndarray  # uint64[n]
    conflict: np.ndarray  # bool[n]


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
    rows: np.ndarray, links: np.ndarray, seed: int, splits: Mapping[str, float], anchors: Anchors | None = None
) -> Resolved:
    """Groups, splits, duplicates and contradictions of all candidate rows.

    `rows` is `KEYS`[n] in published order, `links` uint64[m, 2] pairs of group keys that are duplicates of each
    other. Rows with one group key, one prompt or a chain of links between them share a group, named after its
    smallest member, so that new data moves no old group it does not touch. Errors: `UserError` where a group joins
    what `anchors` hold in different splits.
    """
    nodes, of_row = np.unique(np.concatenate([rows["group"], links.ravel()]), return_inverse=True)
    of_row, of_link = of_row[: len(rows)], of_row[len(rows) :].reshape(-1, 2)
    order = np.argsort(rows["prompt"], kind="stable")
    same = rows["prompt"][order][1:] == rows["prompt"][order][:-1]
    one = np.concatenate([of_row[order][:-1][same], of_link[:, 0]])
    other = np.concatenate([of_row[order][1:][same], of_link[:, 1]])
    of_node = nodes[components(len(nodes), one, other)]
    group = of_node[of_row]
    names, inverse = np.unique(group, return_inverse=True)
    of_name = assign(names, seed, splits)
    if anchors is not None:
        held = _held(rows["prompt"], group, nodes, of_node, anchors)
        where = np.searchsorted(names, held[:, 0])
        here = where < len(names)
        here[here] = names[where[here]] == held[here, 0]
        of_name[where[here]] = held[here, 1].astype(np.int32)
    split = of_name[inverse]
    split[_repeated(rows)] = DUPLICATE
    return Resolved(split, group, _contradicted(rows))


def _held(
    prompts: np.ndarray, group: np.ndarray, nodes: np.ndarray, of_node: np.ndarray, anchors: Anchors
) -> np.ndarray:
    """(group, split) of each group that holds something of the older data set: uint64[k, 2]."""
    found = []
    for keys, labels, known, split in (
        (nodes, of_node, anchors.groups, anchors.group_split),
        (prompts, group, anchors.prompts, anchors.prompt_split),
    ):
        at = np.searchsorted(known, keys)
        hit = at < len(known)
        hit[hit] = known[at[hit]] == keys[hit]
        found.append(np.stack([labels[hit], split[at[hit]].astype(np.uint64)], 1))
    held = np.unique(np.concatenate(found), axis=0)
    torn = np.unique(held[1:][held[1:, 0] == held[:-1, 0], 0])
    if len(torn):
        shown = ", ".join(f"{g:016x}" for g in torn[:3].tolist())
        what = f"{len(torn)} groups join what --splits-from holds in different splits: {shown}"
        raise UserError(
            what, fix="leave out --splits-from (then prefkit diff shows what moved), or the data that joins them"
        )
    return held


def _contradicted(rows: np.ndarray) -> np.ndarray:
    """Rows whose prompt and responses another row has with the other response chosen."""
    order = np.lexsort((rows["first"], rows["answers"], rows["prompt"]))
    told = rows[["prompt", "answers"]][order]
    begins = np.flatnonzero(np.concatenate([[True], told[1:] != told[:-1]]))[: len(rows)]
    found = np.zeros(len(rows), dtype=bool)
    if len(rows):
        first = rows["first"][order]
        both = np.logical_or.reduceat(first, begins) & ~np.logical_and.reduceat(first, begins)
        found[order] = np.repeat(both, np.diff([*begins.tolist(), len(rows)]))
    return found


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


def assign(groups: np.ndarray, seed: int, splits: Mapping[str, float]) -> np.ndarray:
    """The number of each group's split, from the group's name and the seed alone: int32[n]."""
    digests = (hashlib.blake2b(f"{seed}/{int(g):016x}".encode(), digest_size=8).digest() for g in groups)
    point = np.frombuffer(b"".join(digests), dtype=">u8").astype(np.float64) / 2.0**64
    cuts = np.cumsum(list(splits.values()))[:-1]
    return np.searchsorted(cuts, point, side="right").astype(np.int32)


def _repeated(rows: np.ndarray) -> np.ndarray:
    """Rows whose pair id an earlier row has."""
    order = np.lexsort((np.arange(len(rows)), rows["id_low"], rows["id_high"]))
    ids = rows[["id_high", "id_low"]][order]
    repeated = np.zeros(len(rows), dtype=bool)
    repeated[order[1:]] = ids[1:] == ids[:-1]
    return repeated
