"""Whatever stops a conversion, the same command ends with the same bytes: real processes, really killed."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dumps import many, tree_digest, write_dump

from prefkit import convert, convert_dataset
from prefkit.errors import UserError
from prefkit.shards import verify

CHILD = """
import os, signal, sys
from prefkit import convert_dataset, plan
plan.SLICE_BYTES = 20_000
renames, replace = int(sys.argv[3]), os.replace
def replace_or_die(*names):
    global renames
    renames -= 1
    if not renames:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*names)
os.replace = replace_or_die
print("ready", flush=True)
convert_dataset(sys.argv[1], sys.argv[2], workers=1, splits="train=.5,test=.5")
"""


def start(folder, out, renames=0):
    command = [sys.executable, "-c", CHILD, str(folder), str(out), str(renames)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    """A dump of some thirty slices, the digest of its data set, and the seconds that takes."""
    folder = tmp_path_factory.mktemp("crashes")
    write_dump(folder / "in", many(400), [(1, 6), (11, 21)])
    process, began = start(folder / "in", folder / "whole"), time.monotonic()
    assert process.wait() == 0
    return folder / "in", tree_digest(folder / "whole"), time.monotonic() - began


@pytest.mark.parametrize("seed", range(4))
def test_killed_again_and_again(dump, tmp_path, seed):
    """Four conversions, each killed four times at a random instant and twice between a write and its rename."""
    folder, expected, seconds = dump
    rng = random.Random(seed)
    kills = [("instant", rng.uniform(0, seconds)) for _ in range(4)] + [
        ("rename", rng.randint(1, 12)) for _ in range(2)
    ]
    rng.shuffle(kills)
    for kind, when in kills:
        process = start(folder, tmp_path / "out", when if kind == "rename" else 0)
        if kind == "instant":
            time.sleep(when)
            process.kill()
        assert process.wait(120) in (-signal.SIGKILL, 0)
        if (tmp_path / "out/manifest.json").exists():  # done before it was killed: begin anew
            with pytest.raises(UserError, match="already holds a data set"):
                convert_dataset(folder, tmp_path / "out")
            assert tree_digest(tmp_path / "out") == expected
            subprocess.run(["rm", "-r", str(tmp_path / "out")], check=True)
        assert not (tmp_path / "out/manifest.json").exists()
    assert start(folder, tmp_path / "out").wait(120) == 0
    assert tree_digest(tmp_path / "out") == expected
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("last", ["manifest.json", "state.json", ".arrow"])
def test_killed_before_the_last_renames(dump, tmp_path, last):
    folder, expected, _ = dump
    names = CHILD.replace(
        "    renames -= 1\n", f"    renames -= str(names[1]).endswith({last!r}) and '.work' not in str(names[1])\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", names, str(folder), str(tmp_path / "out"), "1"], stdout=subprocess.DEVNULL
    )
    assert process.returncode == -signal.SIGKILL
    assert start(folder, tmp_path / "out").wait(120) == 0
    assert tree_digest(tmp_path / "out") == expected


@pytest.mark.parametrize("where", ["prefkit.tasks._mark", "prefkit.publish.write_shard", "prefkit.shards.write_text"])
def test_a_full_disk_is_one_line_and_loses_nothing(dump, tmp_path, monkeypatch, where):
    folder, _, _ = dump
    convert_dataset(folder, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(where, lambda *_, **__: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        with pytest.raises(UserError, match="No space left on device"):
            convert_dataset(folder, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()
    convert_dataset(folder, tmp_path / "out")
    assert tree_digest(tmp_path / "out") == tree_digest(tmp_path / "whole")


def test_what_was_left_of_discarding_a_conversion_is_no_part_of_another(dump, tmp_path):
    """A refused conversion is discarded, here killed at once; the next one asks for something else."""
    folder, _, _ = dump
    early = CHILD.replace(
        "convert_dataset(sys", "from prefkit import convert, folder\nconvert.resolve = refuse\nconvert_dataset(sys"
    )
    early = early.replace("import os, signal, sys", "import os, shutil, signal, sys").replace(
        'print("ready"',
        """from prefkit.errors import UserError
def refuse(*_):
    shutil.rmtree = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    raise UserError("torn")
print("ready\"""",
    )
    process = subprocess.run(
        [sys.executable, "-c", early, str(folder), str(tmp_path / "out"), "0"], stdout=subprocess.DEVNULL
    )
    assert process.returncode == -signal.SIGKILL
    assert list((tmp_path / "out/.work").glob("pair-*.json")), "its tasks are there"
    convert_dataset(folder, tmp_path / "out", where="score_chosen > 2")
    convert_dataset(folder, tmp_path / "fresh", where="score_chosen > 2")
    assert tree_digest(tmp_path / "out") == tree_digest(tmp_path / "fresh")
    assert convert.Manifest.read(tmp_path / "out").sources["stack-exchange-dump"]["candidates"]["filtered"]


def test_a_lost_file_of_notes_is_no_smaller_data_set(tmp_path, monkeypatch):
    """Votes that were counted and cannot be found again stop the conversion."""
    folder = write_dump(tmp_path / "in", many(40))
    votes = [
        f'<row Id="{i}" PostId="{i}" VoteTypeId="2" CreationDate="2020-01-01T00:00:00.000" />' for i in range(1, 60)
    ]
    (folder / "Votes.xml").write_text("<votes>" + "\n".join(votes) + "</votes>")
    real = convert.engines.run_tasks

    def without_notes(fn, tasks, workers, label):
        if label == "look up":
            next((tmp_path / "out/.work").glob("map-*.votes.*")).unlink()
        return real(fn, tasks, workers, label)

    monkeypatch.setattr(convert.engines, "run_tasks", without_notes)
    with pytest.raises(FileNotFoundError):
        convert_dataset(folder, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_nothing_is_published_of_what_does_not_add_up(dump, tmp_path, monkeypatch):
    folder, _, _ = dump
    real = convert.resolve

    def with_a_lost_row(*args):
        found = real(*args)
        found.split[0] = convert.REFUSED
        return found

    monkeypatch.setattr(convert, "resolve", with_a_lost_row)
    with pytest.raises(UserError, match="what was read and what became of it differ: candidates"):
        convert_dataset(folder, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.arrow"))


def test_a_second_writer_is_refused(dump, tmp_path):
    folder, expected, _ = dump
    first = start(folder, tmp_path / "out")
    while not list((tmp_path / "out/.work").glob("map-*.json")):
        assert first.poll() is None
        time.sleep(0.005)
    with pytest.raises(UserError, match="another convert is writing there"):
        convert_dataset(folder, tmp_path / "out")
    assert first.wait(120) == 0
    assert tree_digest(tmp_path / "out") == expected


def test_an_input_that_cannot_be_read(dump, tmp_path, monkeypatch):
    folder, _, _ = dump
    real = os.open

    def refuse(path, *rest, **more):
        if str(path).endswith("Posts.xml"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *rest, **more)

    monkeypatch.setattr(Path, "open", lambda self, *a, **k: refuse(self))
    with pytest.raises((UserError, PermissionError)):
        convert_dataset(folder, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_killed_after_the_manifest_it_is_a_data_set(dump, tmp_path):
    folder, expected, _ = dump
    late = CHILD.replace(
        "convert_dataset(sys",
        "import shutil\nshutil.rmtree = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\nconvert_dataset(sys",
    )
    process = subprocess.run(
        [sys.executable, "-c", late, str(folder), str(tmp_path / "out"), "0"], stdout=subprocess.DEVNULL
    )
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "out/.work").is_dir()
    assert verify(tmp_path / "out") == []
    with pytest.raises(UserError, match="already holds a data set"):
        convert_dataset(folder, tmp_path / "out")
    assert tree_digest(tmp_path / "out") == expected
