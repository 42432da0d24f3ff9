"""Scores and pairs, against worked numbers and properties."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.pairing import PAIRING, better_pairs, vote_margin, vote_score


@pytest.mark.parametrize(
    ("votes", "accepted", "score"),
    [(0, False, 0), (1, False, 1), (2, False, 2), (4, False, 2), (5, False, 3), (10, False, 3), (11, False, 4), (722, False, 9), (723, False, 9), (0, True, 1), (4, True, 3), (-1, False, -1), (-9, True, -1)],
)  # fmt: skip
def test_score_buckets(votes, accepted, score):
    assert vote_score(votes, accepted) == score


def test_margins():
    assert [vote_margin(3, 3 - gap) for gap in (1, 2, 4)] == [0.5, 0.75, 0.9375]


@given(st.lists(st.integers(-1, 4), max_size=12), st.integers(1, 12))
def test_every_candidate_is_a_pair_a_tie_or_capped(scores, limit):
    found = better_pairs(scores, range(len(scores)), "salt", limit=limit)
    assert len(found.pairs) + found.ties + found.capped == len(scores) * (len(scores) - 1) // 2
    assert found.ties == sum(a == b for a, b in combinations(scores, 2))
    assert all(scores[i] > scores[j] for i, j in found.pairs)
    assert len(set(found.pairs)) == len(found.pairs) <= limit
    assert not (found.capped and len(found.pairs) < limit)


@given(st.permutations(range(7)))
def test_which_pairs_are_kept_does_not_depend_on_order(order):
    scores = {i: i % 4 for i in range(7)}
    found = better_pairs([scores[i] for i in order], order, "salt", limit=5)
    plain = better_pairs([scores[i] for i in range(7)], range(7), "salt", limit=5)
    assert {(order[a], order[b]) for a, b in found.pairs} == set(plain.pairs)
    assert set(better_pairs([scores[i] for i in range(7)], range(7), "other", limit=5).pairs) != set(plain.pairs)


SCORES = [3, 1, 3, 0, 1]  # best 3 (twice), worst 0


@pytest.mark.parametrize(
    ("pairing", "expected"),
    [
        ("all", {(0, 1), (0, 3), (0, 4), (1, 3), (2, 1), (2, 3), (2, 4), (4, 3)}),
        ("best-vs-rest", {(0, 1), (0, 3), (0, 4), (2, 1), (2, 3), (2, 4)}),
        ("best-vs-worst", {(0, 3), (2, 3)}),
        ("adjacent", {(0, 1), (0, 4), (2, 1), (2, 4), (1, 3), (4, 3)}),
    ],
)
def test_pairings(pairing, expected):
    found = better_pairs(SCORES, range(5), "salt", PAIRING[pairing])
    assert set(found.pairs) == expected
    assert found.ties == 2
    assert len(found.pairs) + found.ties + found.filtered == 10


def test_later_wins_keeps_only_pairs_whose_better_answer_came_later():
    written = ["2019-01-05", "2019-01-01", "2019-01-02", None, "2019-01-09"]
    found = better_pairs(SCORES, range(5), "salt", written=written)
    assert set(found.pairs) == {(0, 1), (0, 3), (1, 3), (2, 1), (2, 3), (4, 3)}
    assert found.filtered == 2
