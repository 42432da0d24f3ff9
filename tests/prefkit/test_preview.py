"""A dry run tells what the real one will be."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dumps import many, write_dump

from prefkit import convert_dataset, plan
from prefkit.preview import preview_dataset
from prefkit.shards import Manifest


def test_without_a_limit_it_is_the_conversion(tmp_path):
    folder = write_dump(tmp_path / "in", many(50), [(1, 6)])
    seen = preview_dataset([folder], splits="train=.5,test=.5")
    manifest = convert_dataset(folder, tmp_path / "out", splits="train=.5,test=.5")
    assert (seen.manifest.sources, seen.manifest.splits) == (manifest.sources, manifest.splits)
    assert seen.share == 1
    written = sum(e["bytes"] for f, e in manifest.files.items() if f != "README.md" and not f.endswith(".json"))
    assert seen.data_bytes == pytest.approx(written, rel=0.05)


def test_a_limit_gives_a_fair_estimate_of_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SLICE_BYTES", 30_000)
    folder = write_dump(tmp_path / "in", many(400))
    seen = preview_dataset([folder], limit=80)
    assert seen.share == pytest.approx(0.2)
    assert seen.manifest.sources["stack-exchange-dump"]["records"]["unused"]["over_limit"] == 1600
    convert_dataset(folder, tmp_path / "out")
    whole = sum(e["bytes"] for f, e in Manifest.read(tmp_path / "out").files.items() if "data-" in f)
    assert seen.data_bytes == pytest.approx(whole, rel=0.3)
    assert 0 < seen.seconds < 300
    assert seen.work_bytes > folder.joinpath("Posts.xml").stat().st_size / 2


def test_of_lines_a_limit_tells_the_share_too(tmp_path):
    rows = [
        {"prompt": f"{i} why?", "chosen": f"yes {i}, it is so", "rejected": f"no {i}, not at all"} for i in range(300)
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    for name in ("in.jsonl", "in.parquet"):
        assert preview_dataset([tmp_path / name], limit=30).share == pytest.approx(0.1)
        assert preview_dataset([tmp_path / name], limit=300).share == 1
