"""Files that are whole or not there, and folders that may be written to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prefkit.errors import UserError
from prefkit.files import renamed
from prefkit.shards import MANIFEST


def write_file(content: str | pa.Table, path: Path) -> None:
    """Write a text, or a table as Parquet."""
    with renamed(path) as new:
        if isinstance(content, str):
            new.write_text(content, encoding="utf-8")
        else:
            pq.write_table(content, new, compression="zstd")


def check_folder(out: Path, result: str | None = None, files: Sequence[str] = (), column: str = "") -> None:
    """Before the work: UserError for no folder to write to, somebody's data set or run, or one that has a `result`.

    `files` are those that will be written. They are written over only where an interrupted run left them, which the
    first of them tells, a table with this `column`; anybody else's are not.
    """
    home = next(p for p in (out, *out.absolute().parents) if p.exists())
    if not home.is_dir():
        raise UserError("the output is a file", home, "choose another --out")
    if not os.access(home, os.W_OK | os.X_OK) or home.is_relative_to("/proc"):
        raise UserError("nothing can be written there", home, "choose another --out")
    if any((out / name).exists() for name in (MANIFEST, "run.yaml")):
        raise UserError("the output folder holds a data set or a run", out, "choose another --out")
    if result is not None and (out / result).exists():
        raise UserError(f"{result} exists already", out, "give another --out or remove it")
    taken = [name for name in files if (out / name).exists()]
    if taken and not _has_column(out / files[0], column):
        raise UserError(f"{taken[0]} is there already, and none of ours", out, "give another --out or remove it")


def _has_column(file: Path, column: str) -> bool:
    try:
        return column in pq.read_schema(file).names
    except (OSError, pa.ArrowException):
        return False
