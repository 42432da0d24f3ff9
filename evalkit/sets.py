"""Items of more than one pair: best of n with split credit, the 3×3 of styles, and several right answers."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from evalkit.metrics import share
from evalkit.scored import Scored, codes
from prefkit.errors import UserError


class Items(NamedTuple):
    """Of each item [S] its credit 0..1, responses, best ones, first pair; what was left out; whether all had keys."""

    credit_S: np.ndarray
    size_S: np.ndarray
    best_S: np.ndarray
    row_S: np.ndarray
    single_pairs: int
    without_best: int
    keyed: bool = True


def best_of_n(s: Scored) -> Items:
    """Credit of each set of pairs that share a `set_id`: does the response with the largest reward belong to the best?

    Best is what is rejected in no pair of its set. Where k responses tie for the largest reward, credit is the share
    of best ones among them: with one best response that is RewardBench 2's 1/k. Responses are told apart by the digest
    of their tokens, whatever noise is on their rewards, of which the largest counts; scores without digests tell them
    apart by reward and length, and then equal ones count as one. A pair without a set, or alone in it, is no item; a
    set in which every response is rejected somewhere has no best one.
    """
    set_N, _ = codes(s.table["set_id"])
    counts = np.bincount(set_N)
    named_N = np.asarray(s.table["set_id"].is_valid()) & (counts[set_N] > 1)
    rows = np.flatnonzero(named_N)
    if not len(rows):
        none = np.zeros(0, int)
        return Items(none, none, none, none, len(set_N), 0)
    keyed = not s.table["chosen_key"].null_count + s.table["rejected_key"].null_count
    rewards = (s.rewards.chosen, s.rewards.rejected)
    reward_R, *tells = (np.concatenate([a[rows], b[rows]]) for a, b in (rewards, *_tells(s, keyed)))
    _, row_S, item_N = np.unique(set_N[rows], return_index=True, return_inverse=True)
    item_R = np.tile(item_N, 2)
    response_R = _numbered([item_R, *tells])
    n = response_R.max() + 1
    item_D, lost_D = np.empty(n, int), np.zeros(n, bool)  # of each distinct response
    item_D[response_R] = item_R
    lost_D[response_R[len(rows) :]] = True
    reward_D = _largest(reward_R, response_R)
    top_D = reward_D == _largest(reward_D, item_D)[item_D]
    size_S, best_S, top_S, right_S = (
        np.bincount(item_D, weights=kind_D) for kind_D in (np.ones(n), ~lost_D, top_D, top_D & ~lost_D)
    )
    whole_S = best_S > 0
    sizes = size_S.astype(int)[whole_S], best_S.astype(int)[whole_S]
    credit_S, left_out = (right_S / top_S)[whole_S], (int((~named_N).sum()), int((~whole_S).sum()))
    return Items(credit_S, *sizes, rows[row_S][whole_S], *left_out, keyed)


def _numbered(columns: list[np.ndarray]) -> np.ndarray:
    """One number for rows that are equal in all columns, from 0 in their order; the first column is of numbers."""
    number_R, *others = columns
    for column_R in others:
        _, value_R = np.unique(column_R, return_inverse=True)
        _, number_R = np.unique(number_R * (value_R.max() + 1) + value_R, return_inverse=True)
    return number_R


def _largest(value_N: np.ndarray, owner_N: np.ndarray) -> np.ndarray:
    """The largest value of each owner."""
    largest = np.full(owner_N.max() + 1, -np.inf)
    np.maximum.at(largest, owner_N, value_N)
    return largest


def _tells(s: Scored, keyed: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of both sides of each pair, what tells their responses from others of the set."""
    if keyed:
        keys = pa.chunked_array([*s.table["chosen_key"].chunks, *s.table["rejected_key"].chunks])
        key_R = keys.combine_chunks().dictionary_encode().indices.to_numpy()
        return [(key_R[: len(key_R) // 2], key_R[len(key_R) // 2 :])]
    lengths = ((s.column(f"{c}_chosen"), s.column(f"{c}_rejected")) for c in ("n", "chars"))
    return [(s.rewards.chosen, s.rewards.rejected), *lengths]


def items(s: Scored) -> dict | None:
    """Best-of-n accuracy over sets; None where no set has two pairs.

    `sizes` counts items by their number of responses. `smaller` are those with fewer than most items have: a response
    that was too long, or that a condition left out, makes a best-of-4 an easier best-of-3. `chance` is what rewards
    that know nothing would get.
    """
    found = best_of_n(s)
    if not len(found.credit_S):
        return None
    p = share(found.credit_S, s.group_N[found.row_S]).as_dict()
    sizes, counts = np.unique(found.size_S, return_counts=True)
    usual = sizes[len(counts) - 1 - np.argmax(counts[::-1])]  # of equally common ones the larger
    return p | {
        "sizes": [{"responses": int(size), "n": int(n)} for size, n in zip(sizes, counts, strict=True)],
        "usual_size": int(usual),
        "chance": float((found.best_S / found.size_S).mean()),
        "smaller": int((found.size_S < usual).sum()),
        "single_pairs": found.single_pairs,
        "sets_without_best": found.without_best,
        "told_apart_by": "tokens" if found.keyed else "reward and length",
    }


def style_hits(s: Scored) -> tuple[np.ndarray, np.ndarray]:
    """RM-Bench's 3×3: hits and rows [S, chosen style, rejected style] of each set.

    A set is nine pairs in the data's order, chosen style by chosen style, each against the three rejected styles,
    plainest first. UserError for a set of another make: its styles could not be told.
    """
    set_N, names = codes(s.table["set_id"])
    odd_N = np.bincount(set_N) != 9
    if s.table["set_id"].null_count or odd_N.any():
        odd = "a pair has none" if s.table["set_id"].null_count else repr(names[int(np.argmax(odd_N))])
        raise UserError(f"3×3 needs sets of nine pairs: {odd}", fix="score the whole set, or take other --sections")
    order = np.argsort(set_N, kind="stable").reshape(-1, 3, 3)
    for side, axis in (("chosen", 2), ("rejected", 1)):
        chars = s.column(f"chars_{side}")[order]
        same = (chars == chars.take([0], axis)).all(axis=(1, 2))
        if not same.all():
            bad = names[int(set_N[order[int(np.argmin(same)), 0, 0]])]
            raise UserError(
                f"set {bad!r} is no 3×3 of styles in order", fix="keep the order in which the pairs were made"
            )
    return s.hit_N[order], order


class Ties(NamedTuple):
    """RewardBench 2's Ties: of tied sets [T], reference sets [F], and questions [Q] that have both.

    A set is right where its worst right answer lies above its best wrong one. `preferred_Q` says whether that gap is
    more than right answers differ among themselves, `preferred_hard_Q` whether the reference set's is too; `tanh_Q` is
    tanh(smaller gap / difference - 1), 0 where both are 0.
    """

    tied_right_T: np.ndarray
    tied_row_T: np.ndarray
    reference_right_F: np.ndarray
    reference_row_F: np.ndarray
    preferred_Q: np.ndarray
    preferred_hard_Q: np.ndarray
    tanh_Q: np.ndarray
    row_Q: np.ndarray


def ties(s: Scored) -> Ties:
    """Sets of several right answers, `tied:N`, and of one, `ref:N`, as questions of RewardBench 2 are called.

    Definition: Malik et al., arXiv 2506.01937, and its published scoring code. Rows of a reference set are those of
    the tied one, so that both are one group. UserError for a set of another name.
    """
    set_N, names = codes(s.table["set_id"])
    told = [re.fullmatch(r"(?:.*/)?(ref|tied):(.+)", name) for name in names]
    if None in told:
        odd = names[told.index(None)]
        raise UserError(f"set {odd!r} is no set of Ties", fix="keep RewardBench 2's ids, such as tied:3 and ref:3")
    best_S, worst_S, wrong_S = np.full(len(names), -np.inf), np.full(len(names), np.inf), np.full(len(names), -np.inf)
    np.maximum.at(best_S, set_N, s.rewards.chosen)
    np.minimum.at(worst_S, set_N, s.rewards.chosen)
    np.maximum.at(wrong_S, set_N, s.rewards.rejected)
    gap_S, spread_S = worst_S - wrong_S, best_S - worst_S
    _, row_S = np.unique(set_N, return_index=True)
    at = {kind: {m[2]: i for i, m in enumerate(told) if m and m[1] == kind} for kind in ("tied", "ref")}
    tied, ref = list(at["tied"].values()), list(at["ref"].values())
    both = np.array([(i, at["ref"][q]) for q, i in at["tied"].items() if q in at["ref"]], int).reshape(-1, 2)
    gap_Q, spread_Q = gap_S[both[:, 0]], spread_S[both[:, 0]]
    smaller_Q = np.minimum(gap_Q, gap_S[both[:, 1]])
    with np.errstate(divide="ignore", invalid="ignore"):
        tanh_Q = np.nan_to_num(np.tanh(smaller_Q / spread_Q - 1), nan=0.0)
    return Ties(
        (gap_S[tied] > 0) * 1.0,
        row_S[tied],
        (gap_S[ref] > 0) * 1.0,
        row_S[[at["tied"].get(q, i) for q, i in at["ref"].items()]],
        (gap_Q > spread_Q) * 1.0,
        (smaller_Q > spread_Q) * 1.0,
        tanh_Q,
        row_S[both[:, 0]],
    )
