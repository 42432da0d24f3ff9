"""Tables sorted into buckets."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from prefkit.bucketed import read_bucket, write_buckets

ROWS = st.lists(st.tuples(st.integers(0, 2**64 - 1), st.text(max_size=5) | st.none()), max_size=40)


@settings(max_examples=60)
@given(st.lists(ROWS, min_size=1, max_size=4), st.integers(1, 12))
def test_every_row_comes_back_once_in_its_bucket_and_in_its_order(tmp_path_factory, files, buckets):
    folder, paths = tmp_path_factory.mktemp("buckets"), []
    for number, rows in enumerate(files):
        keys, texts = [k for k, _ in rows], [t for _, t in rows]
        paths.append(folder / f"{number}.arrow")
        table = pa.table({"key": pa.array(keys, pa.uint64()), "text": pa.array(texts, pa.string())})
        write_buckets(paths[-1], table, buckets)
    for bucket in range(buckets):
        found = list(read_bucket(paths, bucket, buckets))
        assert len(found) == len(files)
        for rows, batch in zip(files, found, strict=True):
            batch.validate(full=True)
            kept = [(k, t) for k, t in rows if k % buckets == bucket]
            assert list(zip(batch["key"].to_pylist(), batch["text"].to_pylist(), strict=True)) == kept


def test_a_bucket_is_read_without_the_others(tmp_path):
    """All other batches may be torn."""
    keys = np.arange(4000, dtype=np.uint64)
    write_buckets(tmp_path / "a", pa.table({"key": keys, "text": [f"{k}" * 10 for k in keys]}), 4)
    data = bytearray((tmp_path / "a").read_bytes())
    places = np.frombuffer(bytes(data[-40:]), "<u8").tolist()
    for bucket in (0, 1, 3):
        data[places[bucket] : places[bucket + 1]] = b"\xff" * (places[bucket + 1] - places[bucket])
    (tmp_path / "a").write_bytes(data)
    (batch,) = read_bucket([tmp_path / "a"], 2, 4)
    assert batch["text"].to_pylist() == [f"{k}" * 10 for k in range(2, 4000, 4)]
