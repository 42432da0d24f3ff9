"""Files that are whole or not there: written under another name, then renamed; and the folders they lie in."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # why nothing can be written


@contextmanager
def renamed(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Where to write `path`, which gets its name when it is whole; `shared` where several processes may write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}{f'.{uuid4().hex}' if shared else ''}.tmp")
    yield new
    os.replace(new, path)


@contextmanager
def made(folder: Path) -> Iterator[None]:
    """A folder, made where it is missing; one that was made here and stays empty is removed again."""
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        if new:
            with suppress(OSError):  # there is something in it
                folder.rmdir()


def cache_folder() -> Path:
    """Where lies what need not be fetched or computed twice: PREFKIT_CACHE, else a folder of the user's cache."""
    home = os.environ.get("PREFKIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "prefkit"
    return Path(home).expanduser()


def write_text(path: Path, text: str) -> None:
    """A text, in UTF-8."""
    with renamed(path) as new:
        new.write_text(text, "utf-8")
