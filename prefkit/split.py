"""Which rows belong together, and where they go: groups by union-find in flat arrays, splits by hash of the group."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from prefkit.errors import UserError

DEFAULT_SPLITS = "train=.9,test=.1"
KEYS = np.dtype([("id_high", "u8"), ("id_low", "u8"), ("group", "u8"), ("prompt", "u8"), ("bytes", "u4")])


class Resolved(NamedTuple):
    """Per candidate row: the split it goes to (−1 = the pair is a duplicate of an earlier row) and its group."""

    split: np.ndarray  # int32[n]
    group: np.ndarray  # uint64[n]


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


def resolve(rows: np.ndarray, links: np.ndarray, seed: int, splits: Mapping[str, float]) -> Resolved:
    """Groups, splits and duplicates of all candidate rows.

    `rows` is `KEYS`[n] in published order, `links` uint64[m, 2] pairs of group keys that are duplicates of each
    other. Rows with one group key, one prompt or a chain of links between them share a group, named after its
    smallest member, so that new data moves no old group it does not touch.
    """
    nodes, of_row = np.unique(np.concatenate([rows["group"], links.ravel()]), return_inverse=True)
    of_row, of_link = of_row[: len(rows)], of_row[len(rows) :].reshape(-1, 2)
    order = np.argsort(rows["prompt"], kind="stable")
    same = rows["prompt"][order][1:] == rows["prompt"][order][:-1]
    one = np.concatenate([of_row[order][:-1][same], of_link[:, 0]])
    other = np.concatenate([of_row[order][1:][same], of_link[:, 1]])
    group = nodes[components(len(nodes), one, other)[of_row]]
    names, inverse = np.unique(group, return_inverse=True)
    split = assign(names, seed, splits)[inverse]
    split[_repeated(rows)] = -1
    return Resolved(split, group)


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
