"""Inputs by URL (`https://…`, `s3://…`, what fsspec knows), outputs too: fetched before, uploaded after, manifest last.

Conversion itself works on local files: byte ranges, memory maps and renames are what makes it fast and safe.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import unquote, urlsplit

from prefkit.errors import UserError
from prefkit.files import NO_ROOM, cache_folder, renamed
from prefkit.http_file import HttpFile
from prefkit.progress import progress
from prefkit.shards import MANIFEST, Manifest


def is_url(path: object) -> TypeGuard[str]:
    """Whether a path names another file system."""
    return isinstance(path, str) and "://" in path


def local_copies(inputs: Sequence[Path | str] | Path | str) -> list[Path | str]:
    """The inputs, those given by URL fetched; one that was fetched before and has not changed is not fetched again."""
    given = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    return [_local(path) if is_url(path) else path for path in given]


def _local(url: str) -> Path:
    """What a URL names as a path: a store of judgements is copied, files are fetched."""
    kind = url.partition("://")[0].partition("+")[0].lower()
    if kind not in ("postgresql", "postgres", "sqlite"):
        return _fetch(url)
    from prefkit.judgements.database import database_url
    from prefkit.judgements.snapshot import snapshot

    return Path(str(database_url(url).database)) if kind == "sqlite" else snapshot(url, cache_folder() / "judgements")


def _fetch(url: str) -> Path:
    fs, path = _open(url)
    with _reachable(url):
        files = [] if not fs.exists(path) else fs.find(path) if fs.isdir(path) else [path]
        if not files:
            raise UserError("no such file or folder, or an empty one", url, "check the address")
        state = [[f, fs.size(f), str(fs.ukey(f))] for f in files]
    name = path.rpartition("/")[2] or "index"
    folder = _room("inputs", f"{url}\n{state}")
    target = folder / name
    with progress(f"fetch {name}", len(files)) as advance:
        for file in files:
            place = target / file[len(path) :].lstrip("/") if file != path else target
            if not place.exists():
                with renamed(place) as new, _reachable(url):
                    fs.get_file(file, str(new))
            advance(1)
    return target


def published(
    url: str, settings: object, make: Callable[[Path], Manifest], is_current: Callable[[Manifest], bool]
) -> Manifest:
    """Make a data set locally and upload it to `url`: the files of its manifest, and the manifest last.

    What was stopped, here or while uploading, goes on when called again with the same settings; `is_current` says
    whether what was made then would be made again now. Errors: `UserError` where a data set or another file is there.
    """
    fs, path = _open(url)
    if isinstance(fs, HttpFile):
        raise UserError("nothing can be written to a web address", url, "give --out a folder, or a URL such as s3://…")
    with _reachable(url):
        there = {f[len(path) :].lstrip("/") for f in fs.find(path)} if fs.exists(path) else set()
    if MANIFEST in there:
        raise UserError("the output folder already holds a data set", url, "choose another --out or delete it")
    local = _room("outputs", f"{url}\n{settings!r}") / "data"
    _refuse_others(url, there if not local.exists() else set())
    if (local / MANIFEST).exists() and not is_current(Manifest.read(local)):
        shutil.rmtree(local)
    manifest = Manifest.read(local) if (local / MANIFEST).exists() else make(local)
    files = [*manifest.files, MANIFEST]
    _refuse_others(url, there - {*files})  # of an upload that was stopped only what goes on may be there
    with progress("upload", len(files)) as advance:
        for name in files:
            with _reachable(url):
                fs.makedirs(f"{path}/{name}".rpartition("/")[0], exist_ok=True)
                fs.put_file(str(local / name), f"{path}/{name}")
            advance(1)
    shutil.rmtree(local.parent)
    return manifest


def _refuse_others(url: str, files: set[str]) -> None:
    if files:
        what = f"the output folder is not empty, it holds {min(files)}{' …' * (len(files) > 1)}"
        raise UserError(what, url, "choose another --out or empty it")


def _room(kind: str, what: str) -> Path:
    """A folder of this URL's own in the cache."""
    return cache_folder() / kind / hashlib.blake2b(what.encode(), digest_size=8).hexdigest()


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL and the path in it; the web, S3 and Google Cloud need no library beyond ours."""
    import fsspec
    from pyarrow import fs as arrow

    kind = url.partition("://")[0].lower()
    try:
        if kind in ("http", "https"):
            return HttpFile(url), unquote(urlsplit(url).path).rstrip("/")
        with _reachable(url):
            if kind in ("s3", "gs"):
                from fsspec.implementations.arrow import ArrowFSWrapper

                found, path = arrow.FileSystem.from_uri(url)
                return ArrowFSWrapper(found), path.rstrip("/")
            fs, path = fsspec.core.url_to_fs(url)
    except ImportError as e:
        raise UserError(f"cannot open such an address: {e}", url, "install that, or copy the files here") from None
    except ValueError as e:
        raise UserError(f"no such address: {e}", url, "give a path, or https://…, s3://…, gs://…") from None
    return fs, path.rstrip("/")


@contextmanager
def _reachable(url: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno in NO_ROOM:
            raise UserError(f"cannot write: {e}", url, "make room and run the same command again") from None
        why = " ".join(str(e).split())
        raise UserError(f"cannot reach it: {why}", url, "check the address, the network and your credentials") from None
