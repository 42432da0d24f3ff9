"""Wilson's interval against the values Newcombe published."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.statistics import Interval, wilson

NEWCOMBE_1998_TABLE_I = [
    (81, 263, 0.2553, 0.3662),
    (15, 148, 0.0624, 0.1605),
    (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718),
]


@pytest.mark.parametrize(("k", "n", "low", "high"), NEWCOMBE_1998_TABLE_I)
def test_published_values(k, n, low, high):
    assert wilson(k, n) == pytest.approx(Interval(low, high), abs=5e-5)


def test_nothing_seen_says_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("k", "n", "confidence"), [(-1, 2, 0.95), (3, 2, 0.95), (1, 2, 0), (1, 2, 1)])
def test_impossible_counts_are_refused(k, n, confidence):
    with pytest.raises(ValueError, match="wilson needs"):
        wilson(k, n, confidence)


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0.5, 0.999))
def test_contains_the_share_stays_in_range_and_mirrors(n, share, confidence):
    k = share * n
    low, high = wilson(k, n, confidence)
    assert 0 <= low <= k / n <= high <= 1
    mirrored = wilson(n - k, n, confidence)
    assert (1 - mirrored.high, 1 - mirrored.low) == pytest.approx((low, high), abs=1e-9)
