"""verify finds whatever differs from the manifest."""

import json

import pytest
from dumps import many, write_dump

from prefkit import convert_dataset, open_pairs
from prefkit.errors import UserError
from prefkit.shards import MANIFEST, Manifest, verify


@pytest.fixture
def data(tmp_path):
    convert_dataset(write_dump(tmp_path / "in", many(40)), tmp_path / "out")
    assert verify(tmp_path / "out") == []
    return tmp_path / "out"


@pytest.mark.parametrize(
    "name", ["train/data-00000-of-00001.arrow", "train/state.json", "_rejects/data-00000-of-00001.arrow"]
)
def test_a_flipped_byte(data, name):
    content = bytearray((data / name).read_bytes())
    content[len(content) // 2] ^= 1
    (data / name).write_bytes(content)
    assert verify(data) == [f"{name}: its bytes are not those of the manifest"]


def test_a_missing_shard(data):
    (data / "test/data-00000-of-00001.arrow").unlink()
    assert verify(data) == ["test/data-00000-of-00001.arrow: missing"]
    with pytest.raises(UserError, match="cannot read a shard"):
        open_pairs(data, "test")


def test_a_file_too_many(data):
    (data / "train/data-00001-of-00002.arrow").write_bytes(b"")
    assert verify(data) == ["train/data-00001-of-00002.arrow: not in the manifest"]


def test_no_manifest(data):
    (data / MANIFEST).unlink()
    (problem,) = verify(data)
    assert "is no data set" in problem
    with pytest.raises(UserError, match="is no data set"):
        open_pairs(data)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"nonsense": 1}', "{\x00"])
def test_a_damaged_manifest(data, text):
    (data / MANIFEST).write_text(text)
    (problem,) = verify(data)
    assert "damaged" in problem


@pytest.mark.parametrize("place", ["files", "splits", "sources"])
@pytest.mark.parametrize("content", [{"x": {}}, ["x"], {"x": 1}])
def test_a_damaged_entry_of_the_manifest(data, place, content):
    manifest = json.loads((data / MANIFEST).read_text()) | {place: content}
    (data / "x").write_bytes(b"")
    (data / MANIFEST).write_text(json.dumps(manifest))
    assert any("damaged" in problem for problem in verify(data))


def test_ledgers_and_counts_that_do_not_add_up(data):
    content = json.loads((data / MANIFEST).read_text())
    content["sources"]["stack-exchange-dump"]["records"]["used"] += 1
    content["splits"]["test"]["rows"] += 1
    (data / MANIFEST).write_text(json.dumps(content))
    problems = "\n".join(verify(data))
    assert "the ledger of records does not balance" in problems
    assert "split test" in problems


def test_a_group_in_two_splits(data):
    content = json.loads((data / MANIFEST).read_text())
    shards = {split: next(f for f in content["files"] if f.startswith(f"{split}/data-")) for split in ("train", "test")}
    (data / shards["test"]).write_bytes((data / shards["train"]).read_bytes())
    content["files"][shards["test"]] = content["files"][shards["train"]]
    more = content["splits"]["train"]["rows"] - content["splits"]["test"]["rows"]
    content["splits"]["test"]["rows"] += more
    for name in ("pairs", "made"):
        content["sources"]["stack-exchange-dump"]["candidates"][name] += more
    (data / MANIFEST).write_text(json.dumps(content))
    problems = verify(data)
    assert len(problems) == content["splits"]["train"]["groups"]
    assert problems[0].endswith(": in split test and in split train")


def test_open_pairs(data):
    train, test = open_pairs(data, "train"), open_pairs(data, "test")
    assert open_pairs(data).num_rows == train.num_rows + test.num_rows
    with pytest.raises(UserError, match="did you mean 'train'"):
        open_pairs(data, "trian")
    with pytest.raises(UserError, match="no such data set"):
        open_pairs(data / "nowhere")


def test_digest_names_the_content(data, tmp_path):
    convert_dataset(tmp_path / "in", tmp_path / "again")
    convert_dataset(tmp_path / "in", tmp_path / "other", seed=1)
    assert Manifest.read(data).digest == Manifest.read(tmp_path / "again").digest
    assert Manifest.read(data).digest != Manifest.read(tmp_path / "other").digest


def test_splits_keep_the_order_they_were_given_in(tmp_path):
    convert_dataset(write_dump(tmp_path / "in", many(40)), tmp_path / "out", splits="zoo=.5,ark=.5")
    assert list(Manifest.read(tmp_path / "out").splits) == ["zoo", "ark"]
    assert open_pairs(tmp_path / "out").num_rows == sum(
        open_pairs(tmp_path / "out", s).num_rows for s in ("zoo", "ark")
    )
    assert open_pairs(tmp_path / "out")["id"][0] == open_pairs(tmp_path / "out", "zoo")["id"][0]
