"""Members of a 7z archive as a stream: nothing is extracted to disk, and memory holds one block."""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import py7zr
from py7zr import exceptions as bad
from py7zr.io import NullIO, Py7zIO, WriterFactory

from prefkit.errors import UserError

# What py7zr lets through for damaged archives: its own errors, its codecs', and slips in its parser.
BROKEN = (
    bad.ArchiveError,
    bad.Bad7zFile,
    bad.CrcError,
    bad.DecompressionError,
    bad.InternalError,
    bad.UnsupportedCompressionMethodError,
    lzma.LZMAError,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    MemoryError,
    OverflowError,
)
FIX = "the archive is damaged or cut short; download it again, or give its Posts.xml"


def members(path: Path) -> list[str]:
    """Names in the archive; a `UserError` if it is not one."""
    try:
        with py7zr.SevenZipFile(path) as archive:
            return archive.getnames()
    except bad.PasswordRequired:
        raise _locked(path) from None
    except BROKEN as e:
        raise UserError(f"cannot read the 7z archive: {_reason(e)}", path, FIX) from e


def stream(path: Path, sinks: Mapping[str, Callable[[bytes], None]]) -> None:
    """Push the named members, block by block, into their sinks; a damaged archive is a `UserError`."""
    factory = _Sinks(sinks)
    try:
        with py7zr.SevenZipFile(path) as archive:
            archive.extract(targets=list(sinks), factory=factory)
    except bad.PasswordRequired:
        raise _locked(path) from None
    except BROKEN as e:
        if factory.failure is not None:  # what a sink raised is not the archive's fault
            raise factory.failure from None
        raise UserError(f"cannot read the 7z archive: {_reason(e)}", path, FIX) from e
    if factory.failure is not None:
        raise factory.failure


def _locked(path: Path) -> UserError:
    return UserError("the archive wants a password", path, "unpack it and give its Posts.xml")


def _reason(e: BaseException) -> str:
    return str(e) or type(e).__name__


class _Sinks(WriterFactory):
    def __init__(self, sinks: Mapping[str, Callable[[bytes], None]]):
        self.sinks = sinks
        self.failure: BaseException | None = None

    def create(self, filename: str) -> Py7zIO:
        for name, sink in self.sinks.items():
            if filename == name or filename.endswith("/" + name):
                return _Sink(sink, self)
        return NullIO()


class _Sink(Py7zIO):
    def __init__(self, push: Callable[[bytes], None], owner: _Sinks):
        self.push, self.owner, self.count = push, owner, 0

    def write(self, s: bytes | bytearray) -> int:
        if self.owner.failure is None:
            try:
                self.push(bytes(s))
            except BaseException as e:
                self.owner.failure = e
                raise
        self.count += len(s)
        return len(s)

    def read(self, size: int | None = None) -> bytes:
        return b""

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0

    def flush(self) -> None:
        return None

    def size(self) -> int:
        return self.count
