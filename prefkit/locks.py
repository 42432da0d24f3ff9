"""One process at a time: a lock on a file that its holder keeps open, gone with the process however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from prefkit.errors import UserError

# The file system has none, or its server has none to give.
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def only_holder(lock: Path, refusal: UserError) -> Iterator[None]:
    """Hold a lock file, which is made where it is missing, or raise `refusal`: another process holds it."""
    with lock.open("a") as file:  # for writing: NFS locks nothing else
        hold(file, lock, refusal)
        yield


def hold(file: IO, path: Path, refusal: UserError) -> None:
    """Lock the open file at `path` until it is closed, or raise `refusal`; says so where a file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        if e.errno not in NO_LOCKS:
            raise refusal from None
        print(f"warning: no locks there: only this command may write to {path.parent}", file=sys.stderr)
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
        raise refusal  # its holder removed it after it was opened here
