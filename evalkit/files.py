"""Files that are whole or not there, and folders that may be written to."""

from __future__ import annotations

import os
from collections.abc import Mapping
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


def check_folder(out: Path, result: str | None = None, made: Mapping[str, str] | None = None) -> None:
    """Before the work: UserError for no folder to write to, somebody's data set or run, or one that has a `result`.

    `made` are the files that will be written, each with what one of ours holds (a column, or how a text begins): what
    an interrupted run left is written over, anybody else's file is not.
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
    for name, mark in (made or {}).items():
        if (out / name).exists() and not _holds(out / name, mark):
            raise UserError(f"{name} is there already, and none of ours", out, "give another --out or remove it")


def _holds(file: Path, mark: str) -> bool:
    try:
        if file.suffix == ".parquet":
            return mark in pq.read_schema(file).names
        with file.open(encoding="utf-8", errors="replace") as f:
            return f.read(len(mark)) == mark
    except (OSError, pa.ArrowException):
        return False
