"""Files of records in parts: the same records, at the same positions, whatever the parts."""

import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dumps import tree_digest
from hypothesis import given
from hypothesis import strategies as st

from prefkit import convert_dataset, open_pairs, plan
from prefkit.errors import UserError
from prefkit.readers import count_lines, pieces, read_piece, read_records
from prefkit.shards import Manifest


@given(
    st.lists(st.sampled_from(['{"a": 1}', "", '{"b": "é漢"}', "broken", '{"long": "' + "x" * 70 + '"}']), max_size=20),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 90),
)
def test_any_cut_of_lines(tmp_path_factory, lines, newline, ends, step):
    path = tmp_path_factory.mktemp("cut") / "in.jsonl"
    path.write_bytes((newline.join(lines) + (newline if ends and lines else "")).encode())
    found, before = [], 0
    for piece in pieces(path, step):
        found += read_piece(path, piece, before, Counter())
        before += count_lines(path, piece) if piece.kind else 0
    assert found == list(read_records(path))


@pytest.mark.parametrize("step", [1, 3_000, 10**9])
def test_any_cut_of_row_groups(tmp_path, step):
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"n": range(1000), "t": [f"text {i}" for i in range(1000)]}), path, row_group_size=130)
    found = [r for piece in pieces(path, step) for r in read_piece(path, piece, 0, Counter())]
    assert found == list(read_records(path))


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_same_pairs_for_any_parts_and_bytes_for_any_workers(tmp_path, monkeypatch, suffix):
    rng = random.Random(0)
    rows = [
        {
            "prompt": f"question {i % 90} {rng.random()}",
            "chosen": f"good {i}",
            "rejected": "" if i % 50 == 7 else f"bad {i}",
        }
        for i in range(400)
    ]
    path = tmp_path / f"in.{suffix}"
    if suffix == "jsonl":
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=37)
    convert_dataset(path, tmp_path / "whole")
    monkeypatch.setattr(plan, "SLICE_BYTES", 2_000)
    assert len(plan.make_plan(path, tmp_path / "w", plan.Settings()).job.slices) > 3
    for workers in (1, 2):
        convert_dataset(path, tmp_path / str(workers), workers=workers)
    assert tree_digest(tmp_path / "1") == tree_digest(tmp_path / "2")
    assert open_pairs(tmp_path / "1").equals(open_pairs(tmp_path / "whole"))  # but for where batches end
    assert Manifest.read(tmp_path / "1").sources == Manifest.read(tmp_path / "whole").sources
    positions = {json.loads(m)["positions"][0] for m in open_pairs(tmp_path / "whole")["meta"].to_pylist()}
    assert positions == {f"in.{suffix}:{i + 1}" for i in range(400) if i % 50 != 7}


def test_a_limit_reads_no_further(tmp_path):
    """Row groups behind the limit are not touched, not even damaged ones."""
    path = tmp_path / "in.parquet"
    columns = {k: [f"{k} {i}" for i in range(1000)] for k in ("prompt", "chosen", "rejected")}
    pq.write_table(pa.table(columns), path, row_group_size=100, compression="NONE")
    raw = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(5).column(0).data_page_offset
    raw[start : start + 40] = bytes(40)
    path.write_bytes(raw)
    manifest = convert_dataset(path, tmp_path / "out", source="pairs", limit=10)
    assert manifest.sources["pairs"]["records"]["read"] == 10
    with pytest.raises(UserError, match="cannot read the file"):
        convert_dataset(path, tmp_path / "all", source="pairs")


def test_columns_that_no_pair_keeps_are_not_read(tmp_path):
    """A time that Python does not know, as databases write for "never"."""
    path = tmp_path / "in.parquet"
    never = pa.array([253402300800000000] * 2, pa.timestamp("us"))
    table = {k: [f"{k} {i}" for i in range(2)] for k in ("prompt", "chosen", "rejected")} | {"until": never}
    pq.write_table(pa.table(table), path)
    manifest = convert_dataset(path, tmp_path / "out", source="pairs", splits="train=1")
    assert len(open_pairs(tmp_path / "out", "train")) == 2
    assert manifest.sources["pairs"]["records"]["read"] == 2
