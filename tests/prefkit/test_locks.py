"""Folders and locks: one holder whatever happens in between, and nothing that is somebody else's is touched."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from prefkit import locks
from prefkit.errors import UserError
from prefkit.files import cache_folder, made
from prefkit.locks import only_holder

BUSY = UserError("busy")


def failing(monkeypatch, number: int) -> None:
    """Let every lock fail with this errno, as some file systems do."""

    def flock(file, kind):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_one_holder_at_a_time(tmp_path):
    for _ in range(2):  # free again afterwards
        with (
            only_holder(tmp_path / "lock", BUSY),
            pytest.raises(UserError, match="busy"),
            only_holder(tmp_path / "lock", BUSY),
        ):
            pass


@pytest.mark.parametrize("again", [False, True])
def test_a_lock_that_its_holder_removed_meanwhile_is_not_held(tmp_path, monkeypatch, again):
    """Between opening and locking another process ends, removes its lock, and perhaps a third makes a new one."""
    lock, real = tmp_path / "lock", fcntl.flock

    def flock(file, kind):
        lock.unlink()
        if again:
            lock.touch()
        real(file, kind)

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    with pytest.raises(UserError, match="busy"), only_holder(lock, BUSY):
        pass


def test_only_a_file_system_without_locks_goes_unguarded_and_it_is_said(tmp_path, monkeypatch, capsys):
    failing(monkeypatch, errno.EACCES)  # what SMB says of a lock that is held
    with pytest.raises(UserError, match="busy"), only_holder(tmp_path / "lock", BUSY):
        pass
    failing(monkeypatch, errno.ENOSYS)
    with only_holder(tmp_path / "lock", BUSY):
        pass
    assert f"warning: no locks there: only this command may write to {tmp_path}" in capsys.readouterr().err


def fail(write: Path | None) -> None:
    if write:
        write.touch()
    raise UserError("the true reason")


def test_a_folder_is_removed_only_if_it_was_made_here_and_stays_empty(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    for name in ("own", "link", "new", "full"):
        with pytest.raises(UserError, match="the true reason"), made(tmp_path / name):
            fail(tmp_path / name / "file" if name == "full" else None)
    assert {p.name for p in tmp_path.iterdir()} == {"own", "link", "target", "full"}


@pytest.mark.parametrize(
    ("given", "folder"),
    [
        ({"PREFKIT_CACHE": "/a"}, "/a"),
        ({"PREFKIT_CACHE": "~/a"}, "/home/ann/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/prefkit"),
        ({}, "/home/ann/.cache/prefkit"),
    ],
)
def test_there_is_one_cache(monkeypatch, given, folder):
    for name in ("PREFKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (given | {"HOME": "/home/ann"}).items():
        monkeypatch.setenv(name, value)
    assert str(cache_folder()) == folder
