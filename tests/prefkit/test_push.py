"""What is uploaded is the data set and nothing else, and only if it is whole."""

import pytest
from dumps import many, write_dump

from prefkit import convert_dataset
from prefkit.cli import app, run
from prefkit.errors import UserError
from prefkit.push import push
from prefkit.shards import Manifest

hub = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed: pip install 'prefkit[hub]'")


class Hub:
    """Remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def create_repo(self, repo, **more):
        self.asked.append(("create", repo, more["private"]))

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, **more):
        from huggingface_hub.utils import filter_repo_objects

        files = [p.relative_to(folder_path).as_posix() for p in folder_path.rglob("*") if p.is_file()]
        self.asked.append(("upload", repo_id, sorted(filter_repo_objects(files, allow_patterns=allow_patterns))))
        return "https://hub.example/commit/1"


@pytest.fixture
def asked(monkeypatch):
    made = Hub()
    monkeypatch.setattr(hub, "HfApi", lambda: made)
    return made.asked


@pytest.fixture
def data(tmp_path):
    convert_dataset(write_dump(tmp_path / "in", many(10)), tmp_path / "out")
    return tmp_path / "out"


def test_only_files_of_the_manifest_go(data, asked, capsys):
    assert (data / "_run.log").exists()  # with paths of this machine
    assert run(app, ["push", str(data), "ann/beer"]) == 0
    assert "https://hub.example/commit/1" in capsys.readouterr().out
    assert asked == [
        ("create", "ann/beer", True),
        ("upload", "ann/beer", sorted([*Manifest.read(data).files, "manifest.json"])),
    ]


def test_a_damaged_data_set_stays_here(data, asked):
    (data / "dataset_dict.json").unlink()
    with pytest.raises(UserError, match=r"not whole: dataset_dict\.json: missing"):
        push(data, "ann/beer")
    assert asked == []


def test_what_the_hub_refuses_is_one_line(data, monkeypatch):
    class Refusing(Hub):
        def create_repo(self, repo, **more):
            raise hub.errors.HFValidationError("Repo id must be in the form …\nmore")

    monkeypatch.setattr(hub, "HfApi", Refusing)
    with pytest.raises(UserError, match="the Hub refused: Repo id must be in the form …"):
        push(data, "not a name")


def test_a_hub_out_of_reach_is_no_refusal(data, monkeypatch):
    class Away(Hub):
        def create_repo(self, repo, **more):
            raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(hub, "HfApi", Away)
    with pytest.raises(UserError, match=r"the Hub cannot be reached: .*Connection refused"):
        push(data, "ann/beer")
