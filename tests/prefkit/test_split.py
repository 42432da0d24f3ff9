"""Groups, splits and duplicates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.errors import UserError
from prefkit.split import CAPPED, KEYS, assign, cap, components, parse_splits, resolve

HALVES = {"train": 0.5, "test": 0.5}


def rows(*tuples):
    """(id, group, prompt) of each row."""
    return np.array([(i, i, g, p, i, True, 1) for i, g, p in tuples], dtype=KEYS)


@given(st.integers(1, 30), st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=60))
def test_components_against_plain_search(n, edges):
    edges = [(a % n, b % n) for a, b in edges]
    near = {i: {i} for i in range(n)}
    for _ in range(n):
        for a, b in edges:
            near[a] = near[b] = near[a] | near[b]
        for i in range(n):
            near[i] = set().union(*(near[j] for j in near[i]))
    one, other = (np.array([e[k] for e in edges], dtype=np.int64) for k in (0, 1))
    assert components(n, one, other).tolist() == [min(near[i]) for i in range(n)]


def test_prompts_and_links_join_groups_even_through_a_question_without_pairs():
    data = rows((1, 10, 100), (2, 20, 200), (3, 30, 100), (4, 40, 400), (5, 50, 500))
    links = np.array([[20, 99], [99, 40]], dtype=np.uint64)  # 99 has no pairs
    found = resolve(data, links, 0, HALVES)
    assert found.group.tolist() == [10, 20, 10, 20, 50]
    assert found.split[0] == found.split[2]
    assert found.split[1] == found.split[3]


def test_of_equal_pairs_the_first_stays():
    found = resolve(rows((7, 10, 100), (8, 10, 100), (7, 20, 100)), np.zeros((0, 2), np.uint64), 0, {"train": 1.0})
    assert found.split.tolist() == [0, 0, -1]


SMALL = st.integers(0, 6)


@given(st.lists(st.tuples(SMALL, SMALL, SMALL, st.booleans(), SMALL), max_size=25), st.lists(st.tuples(SMALL, SMALL)))
def test_resolve_against_plain_search(rows, links):
    """Each row is (group, prompt, answers, which was chosen, id); here everything is looked for in loops."""
    data = np.array([(i % 2, i, g, p, a, f, 1) for g, p, a, f, i in rows], dtype=KEYS)
    found = resolve(data, np.array(links, np.uint64).reshape(-1, 2), 3, {"a": 0.4, "b": 0.6})
    edges = links + [(g, h) for g, p, *_ in rows for h, q, *_ in rows if p == q]
    name = list(range(7))
    for _ in range(7):
        for a, b in edges:
            name[a] = name[b] = min(name[a], name[b])
    assert found.group.tolist() == [name[g] for g, *_ in rows]
    of_group = assign(np.arange(7, dtype=np.uint64), 3, {"a": 0.4, "b": 0.6})
    ids = [i for *_, i in rows]
    first = [ids.index(i) == k for k, i in enumerate(ids)]
    assert found.split.tolist() == [
        int(of_group[name[g]]) if new else -1 for (g, *_), new in zip(rows, first, strict=True)
    ]
    told = {(p, a, f) for _, p, a, f, _ in rows}
    assert found.conflict.tolist() == [(p, a, not f) in told for _, p, a, f, _ in rows]


@given(st.lists(st.tuples(SMALL, SMALL), max_size=40), st.integers(1, 5), st.randoms())
def test_a_prompt_keeps_so_many_pairs_whatever_their_order(made, most, random):
    """Each row is (prompt, id); rows of one id are duplicates, which are not counted among those kept."""
    data = rows(*((i + 10 * p, p, p) for p, i in made))
    whole = resolve(data, np.zeros((0, 2), np.uint64), 0, HALVES)
    found = cap(whole, data, most, seed=4)
    for prompt in range(7):
        here = data["prompt"] == prompt
        before, after = ((split[here] >= 0).sum() for split in (whole.split, found.split))
        assert after == min(before, most)
        assert (found.split[here] == CAPPED).sum() == before - after
    assert (found.split[whole.split < 0] == whole.split[whole.split < 0]).all()
    order = np.array(random.sample(range(len(data)), len(data)), np.int64)
    other = cap(resolve(data[order], np.zeros((0, 2), np.uint64), 0, HALVES), data[order], most, seed=4)
    assert set(data["id_low"][found.split >= 0]) == set(data["id_low"][order][other.split >= 0])


def test_the_seed_decides_which_pairs_a_prompt_keeps():
    data = rows(*((i * 0x9E3779B97F4A7C15 % 2**64, 1, 1) for i in range(60)))
    whole = resolve(data, np.zeros((0, 2), np.uint64), 0, {"train": 1.0})
    kept = [frozenset(np.flatnonzero(cap(whole, data, 20, seed).split >= 0)) for seed in range(9)]
    assert len(set(kept)) == 9


def test_shares_and_seed():
    groups = np.arange(20_000, dtype=np.uint64)
    split = assign(groups, 0, {"a": 0.7, "b": 0.2, "c": 0.1})
    assert np.bincount(split) / len(groups) == pytest.approx([0.7, 0.2, 0.1], abs=0.01)
    assert (assign(groups[:100], 0, {"a": 0.7, "b": 0.2, "c": 0.1}) == split[:100]).all()
    assert (assign(groups, 1, {"a": 0.7, "b": 0.2, "c": 0.1}) != split).mean() > 0.2


def test_hundreds_of_splits():
    split = assign(np.arange(20_000, dtype=np.uint64), 0, {f"s{i}": 1 / 300 for i in range(300)})
    assert sorted(set(split.tolist())) == list(range(300))


@pytest.mark.parametrize(
    "bad",
    [
        "manifest.json=.5,b=.5",
        "data.=1",
        "train",
        "train=.9",
        "train=1.2,test=-.2",
        "a=.5,a=.5",
        "../x=1",
        "train=x",
        "",
        "_a=1",
    ],
)
def test_bad_splits(bad):
    with pytest.raises(UserError, match="bad splits"):
        parse_splits(bad)


def test_good_splits():
    assert parse_splits("train=.8,dev=.1,test=.1") == {"train": 0.8, "dev": 0.1, "test": 0.1}
