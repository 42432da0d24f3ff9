"""One file at an http(s) address, by the standard library: as much of a file system as `remote` asks for."""

from __future__ import annotations

import shutil
import string
import time
from functools import cached_property
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

SECONDS = 60  # without a byte
GONE = (404, 410)


class HttpFile:
    """Its methods are fsspec's, the one file whatever path they are given. What goes wrong is an `OSError`."""

    def __init__(self, url: str):
        self.url = url

    def exists(self, path: str) -> bool:
        """False where the server says that there is none; whatever else it says is raised."""
        try:
            return bool(self._headers)
        except HTTPError as e:
            if e.code in GONE:
                return False
            raise

    def isdir(self, path: str) -> bool:
        """Never: what a server lists is a page for people."""
        return False

    def size(self, path: str) -> int | None:
        """As the server tells it beforehand."""
        return int(self._headers["Content-Length"]) if self._headers["Content-Length"] else None

    def ukey(self, path: str) -> str:
        """What changes when the file does; each time another where the server does not tell, so that none is stale."""
        told = [self._headers[name] for name in ("ETag", "Last-Modified") if self._headers[name]]
        return " ".join(told) or str(time.time_ns())

    def get_file(self, path: str, place: str) -> None:
        """Fetch it; `OSError` where the line breaks, for the socket alone would not tell."""
        with self._open() as response, Path(place).open("wb") as out:
            try:
                shutil.copyfileobj(response, out, 1 << 20)
            except HTTPException as e:
                raise OSError(f"the transfer broke off: {e!r}") from e
            expected = response.headers["Content-Length"]
            if expected and out.tell() != int(expected):
                raise OSError(f"the transfer broke off after {out.tell():,} of {int(expected):,} bytes")

    @cached_property
    def _headers(self) -> HTTPMessage:
        with self._open() as response:  # GET: signed addresses often refuse HEAD
            return response.headers

    def _open(self) -> HTTPResponse:
        plain = quote(self.url, safe=string.punctuation)  # blanks and letters beyond ASCII
        request = Request(plain, headers={"User-Agent": "prefkit"})  # noqa: S310 - remote gives http and https alone
        try:
            return urlopen(request, timeout=SECONDS)  # noqa: S310
        except HTTPError:
            raise
        except URLError as e:
            raise OSError(str(e.reason)) from e
        except (HTTPException, ValueError) as e:
            raise OSError(f"no address or no answer of HTTP: {e}") from e
