"""Which keys are shared, and columns read from disk."""

import errno
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit import keys
from prefkit.keys import Columns, changes, find, shared, write_columns

FEW = st.lists(st.integers(0, 12) | st.integers(2**64 - 3, 2**64 - 1), max_size=40)


@pytest.fixture(autouse=True)
def in_small_pieces(monkeypatch):
    monkeypatch.setattr(keys, "AT_A_TIME", 7)


def u64(values):
    return np.array(values, dtype=np.uint64)


@given(FEW)
def test_shared_against_counting(values):
    assert shared(u64(values)).tolist() == [i for i, v in enumerate(values) if values.count(v) > 1]


@given(FEW, st.sets(st.integers(0, 12)))
def test_find_against_looking(values, among):
    rows, places = find(u64(values), u64(sorted(among)))
    assert rows.tolist() == [i for i, v in enumerate(values) if v in among]
    assert [sorted(among)[p] for p in places] == [v for v in values if v in among]


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), max_size=30))
def test_changes_against_looking(rows):
    one, other = (u64([r[k] for r in rows]) for k in (0, 1))
    assert changes(one, other).tolist() == [i for i in range(len(rows)) if i == 0 or rows[i] != rows[i - 1]]


LIMITED = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from prefkit.keys import write_columns
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    write_columns(Path(sys.argv[1]), np.zeros(200, [("a", "u8"), ("b", "?")]))
except OSError as e:
    print(e.errno)
"""


def test_a_file_that_cannot_be_written_whole_is_an_error(tmp_path):
    found = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path / "keys")], capture_output=True, text=True)
    assert found.stdout == f"{errno.EFBIG}\n"
    assert not (tmp_path / "keys").exists()


def test_columns_are_those_of_the_whole_array(tmp_path):
    whole = np.zeros(10, np.dtype([("a", "u8"), ("b", "?"), ("c", "u1", (3,))]))
    whole["a"], whole["b"] = np.arange(10) * 2**60, np.arange(10) % 3 == 0
    whole["c"] = np.arange(30).reshape(10, 3)
    stems = [tmp_path / f"pair-{k}" for k in range(4)]
    for stem, (begin, end) in zip(stems, [(0, 4), (4, 4), (4, 10)], strict=False):  # the last one has no file
        write_columns(stem.with_suffix(".keys"), whole[begin:end])
    found = Columns(stems, ".keys", whole.dtype)
    assert (len(found), found.counts) == (10, [4, 0, 6, 0])
    assert (found["a"] == whole["a"]).all()
    assert (found["b"] == whole["b"]).all()
    for rows in ([], [0], [3, 4, 9], list(range(10))):
        assert (found.take("a", np.array(rows, np.int64)) == whole["a"][rows]).all()
        assert (found.take("c", np.array(rows, np.int64)) == whole["c"][rows]).all()
