"""Which files can be read: their format by their name, those of a folder, and what is said where one cannot be."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa

from prefkit.errors import UserError
from prefkit.shards import MANIFEST, WORK

NO_RECORDS = {"dataset_info.json", "dataset_dict.json", "state.json"}  # what `datasets` writes beside its tables
FORMATS = ("jsonl", "json", "csv", "parquet", "arrow")


class Piece(NamedTuple):
    """Part of a file: bytes of its lines (`bytes`), row groups or record batches of its table (`groups`), or all of it
    (`""`)."""

    kind: str = ""
    start: int = 0
    stop: int = 0


def file_format(path: Path) -> str:
    """The format a file's name tells: json, jsonl, csv, parquet or arrow."""
    name = path.name.lower()
    for suffix in (".gz", ".zst"):
        name = name.removesuffix(suffix)
    suffix = {".ndjson": ".jsonl", ".tsv": ".csv", ".feather": ".arrow"}.get(Path(name).suffix, Path(name).suffix)
    if suffix[1:] not in FORMATS:
        known = ", ".join(f".{k}" for k in (*FORMATS, "ndjson", "tsv", "feather"))
        raise UserError(f"cannot tell the format of {path.name!r}", path, f"known: {known}, also with .gz or .zst")
    return suffix[1:]


def is_readable(path: Path) -> bool:
    """Whether the name tells a format that `read_records` knows."""
    try:
        return bool(file_format(path))
    except UserError:
        return False


def readable_files(path: Path) -> list[Path]:
    """The files of a folder, or the file itself, where the name tells a format."""
    return [p for p in _files(path) if is_readable(p)]


def other_files(folder: Path) -> list[Path]:
    """Those of a folder whose names tell no format."""
    return [p for p in _files(folder) if not is_readable(p)]


def _files(path: Path) -> list[Path]:
    """Left out: hidden files and folders (`.` or `_` before the name), data sets that lie in the folder, whole or in
    the making, and what `datasets` notes beside its tables."""
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    for folder, inner, names in os.walk(path):
        inner[:] = [n for n in inner if not n.startswith((".", "_")) and not _is_data_set(Path(folder, n))]
        found += [Path(folder, n) for n in names if not n.startswith((".", "_")) and n not in NO_RECORDS]
    return sorted(found)


def _is_data_set(folder: Path) -> bool:
    return (folder / MANIFEST).exists() or (folder / WORK).exists()


READ_ERRORS = (
    *(pa.ArrowException, ValueError, RecursionError, csv.Error, zlib.error, EOFError, OSError),
    *(OverflowError, KeyError),  # times outside Python's years, unknown time zones
)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """What goes wrong inside is the file's fault: a `UserError` that names it."""
    try:
        yield
    except READ_ERRORS as e:
        raise UserError(f"cannot read the file: {e}", path, "is it whole, and what its name says?") from e


def open_file(path: Path) -> BinaryIO:
    """The bytes of a file, unpacked where its name says that it is packed."""
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path))
    if path.name.lower().endswith(".zst"):  # pyarrow, not zstandard: it tells when a stream breaks off
        return io.BufferedReader(cast(io.RawIOBase, pa.input_stream(str(path), compression="zstd")))
    return path.open("rb")
