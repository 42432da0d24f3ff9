"""What is scored: a data set of `prefkit convert`, or any input of a prefkit source, converted on the way."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from prefkit.errors import UserError
from prefkit.file_formats import is_readable
from prefkit.files import cache_folder
from prefkit.ledgers import ledger_lines
from prefkit.readers import read_records
from prefkit.remote import is_url, local_copies
from prefkit.shards import MANIFEST

SPLIT = "test"  # where pairs that came without a split lie


class Data(NamedTuple):
    """A folder of shards, what its user calls it, and, where it was converted on the way, both ledgers."""

    folder: Path
    name: str
    ledgers: dict[str, Any] | None = None


def open_data(data: Path | str, source: str | None, options: dict[str, str] | None, say: Callable[[str], None]) -> Data:
    """The shards: `data` itself (a path or URL), else its pairs, all in split "test", kept in the cache by content.

    Raises UserError where `prefkit convert` does, and where not one pair comes out.
    """
    if is_url(data) and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("several processes cannot fetch one input", data, "convert it first, or copy it here")
    data = Path(local_copies(data)[0])
    if (data / MANIFEST).is_file():
        if source is not None or options:
            raise UserError("--source and --options speak of data that is to be converted", data, "leave them out")
        return Data(data, data.resolve().name)
    from prefkit.convert import convert_dataset

    home = cache_folder() / "data"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as fresh:
        made = Path(fresh) / "data"
        manifest = convert_dataset(data, made, source=source, options=options, splits=f"{SPLIT}=1")
        for line in ledger_lines(manifest.sources):
            say(f"data     {line}")
        if not any(split["rows"] for split in manifest.splits.values()):
            raise UserError(
                f"not one pair came out{_columns(data)}", data, "`prefkit sources` lists --source and --options"
            )
        folder = home / manifest.digest
        with suppress(OSError):  # it is there already: the same content
            made.rename(folder)
    return Data(folder, data.resolve().name, manifest.sources)


def _columns(data: Path) -> str:
    """The names a file's first record has: what --options may speak of."""
    if not is_readable(data):
        return ""
    with suppress(UserError, OSError, StopIteration):
        _, record = next(iter(read_records(data, Counter())))
        if isinstance(record, dict):
            return f"; its columns are {', '.join(map(str, record))}"
    return ""
