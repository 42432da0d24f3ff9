"""What is converted: the files of the inputs, the source that reads them, and the names they have in a data set."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefkit import engine
from prefkit.errors import UserError
from prefkit.file_formats import Piece, other_files, readable_files
from prefkit.readers import pieces
from prefkit.shards import MANIFEST, Manifest
from prefkit.sources import SOURCES, Slice, Source, get_source
from prefkit.wording import counted

SHOWN = 3  # inputs that an advice names


def checked_paths(inputs: Sequence[Path | str] | Path | str) -> list[Path]:
    """The inputs as absolute paths; `UserError` for one that is missing, given twice, or a split of a data set."""
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    paths = [Path(os.path.abspath(p)) for p in given]  # "." has a name too; links keep theirs
    if not paths:
        raise UserError("no input", fix="name a dump, a file of pairs or a folder")
    for i, (path, shown) in enumerate(zip(paths, given, strict=True)):
        if not str(shown) or not path.exists():
            raise UserError("no such file or folder", str(shown) or "''", "check the path")
        if (path.parent / MANIFEST).is_file() and path.name in Manifest.read(path.parent).splits:
            raise UserError("this is a split of a data set already", shown, "give what that was made from")
        if any(path.samefile(other) for other in paths[:i]):
            raise UserError("the same input is given twice", shown, "give it once")
    return paths


def guess_source(paths: list[Path]) -> Source:
    """The one source that recognises all inputs; `UserError` where none does, or several."""
    fits = [s for s in map(get_source, _importable()) if s.recognises is not None and all(map(s.recognises, paths))]
    named = [s for s in fits if s.name != "pairs"] or fits  # any JSON may be pairs; a name that says more wins
    if len(named) != 1 and (paths[0] / MANIFEST).exists():
        fix = "give what it was made from; --source rejects reads what was refused there"
        raise UserError("this is a data set already", paths[0], fix)
    if paths[0].is_dir() and not any(paths[0].iterdir()):
        raise UserError("the folder is empty", paths[0], "give a folder with files, or a file")
    if len(named) != 1:
        raise UserError("cannot tell the source from the input", paths[0], _name_it(paths[0]))
    return named[0]


def _name_it(path: Path) -> str:
    """What to do where the source is not known: of a folder of dumps, each by itself."""
    known = [s.recognises for s in map(get_source, _importable()) if s.recognises is not None]
    inside = sorted(path.iterdir()) if path.is_dir() else []
    found = [p for p in inside if any(recognises(p) for recognises in known)]
    inputs = [min(os.path.relpath(p), str(p), key=len) for p in found]
    if inputs:
        return f"give what is in the folder: {' '.join(inputs[:SHOWN])}{' …' * (len(inputs) > SHOWN)}"
    return f"add --source: {', '.join(sorted(SOURCES))}"


def _importable() -> Iterator[str]:
    for name in SOURCES:
        try:
            get_source(name)
        except ModuleNotFoundError:
            continue
        yield name


def slices_of(source: Source, paths: list[Path], options: Any, step: int) -> list[Slice]:
    """The slices of all inputs; a `UserError` where two inputs hold the same file."""
    slices: list[Slice] = []
    for path in paths:
        found = source.join.slices(path, options, step) if source.join else _files(source, path, options, step)
        if again := {s.path.resolve() for s in slices} & {s.path.resolve() for s in found}:
            raise UserError("the same file is in two inputs", min(again), "give it once")
        slices += found
    for piece in slices:
        if any("\ud800" <= c <= "\udfff" for c in str(piece.path)):  # bytes that are no UTF-8, as Python holds them
            raise UserError("the name of this file is not UTF-8", ascii(str(piece.path)), "rename it")
    names = named_apart({s.path: s.name for s in slices})
    return [replace(s, name=names[s.path]) for s in slices]


def _files(source: Source, path: Path, options: Any, step: int) -> list[Slice]:
    if source.files is not None:
        files = source.files(path, options)
    else:
        files = readable_files(path) if path.is_dir() else [path]
    if not files:
        raise UserError("no file in the folder that the source can read", path, "name the files")
    slices = []
    for f in files:
        name = f"{path.name}/{f.relative_to(path).as_posix()}" if path.is_dir() else f.name
        parts = [Piece()] if source.records is not None else pieces(f, step)
        slices += [Slice(f, name, p.start, p.stop, p.kind) for p in parts]
    return slices


def not_read(source: Source, paths: list[Path]) -> list[str]:
    """A warning for each folder of which files are left out because their names tell no format."""
    if source.join is not None or source.files is not None:
        return []
    found = {path: [p.relative_to(path).as_posix() for p in other_files(path)] for path in paths if path.is_dir()}
    return [
        f"not read, as the names tell no format: {counted(len(names), 'file')} of {path.name}, "
        f"{', '.join(names[:SHOWN])}{' …' * (len(names) > SHOWN)}"
        for path, names in found.items()
        if names
    ]


def named_apart(names: dict[Path, str]) -> dict[Path, str]:
    """Files of one name get as much of their folders' names before it as tells them apart."""
    while len(set(names.values())) < len(names):
        uses = Counter(names.values())
        names = {p: _with_folder(p, n) if uses[n] > 1 else n for p, n in names.items()}
    return names


def _with_folder(path: Path, name: str) -> str:
    parts = (path.parent.resolve() / path.name).parts[1:]
    return "/".join(parts[-(name.count("/") + 2) :])


def describe_inputs(slices: list[Slice], workers: int) -> list[dict[str, Any]]:
    """Name, size and sha256 of every file that will be read, in order."""
    files = list({s.path: s.name for s in slices}.items())
    digests = engine.run_tasks(sha256, [p for p, _ in files], workers, "read")
    return [{"name": n, "bytes": p.stat().st_size, "sha256": d} for (p, n), d in zip(files, digests, strict=True)]


def sha256(path: Path) -> str:
    """Of a file, in hex; `UserError` where it cannot be read."""
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise UserError(f"cannot read the input: {e.strerror}", path, "check its permissions") from None


def stamp_of(path: Path) -> tuple[int, int]:
    """Size and time of change, in nanoseconds."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns
