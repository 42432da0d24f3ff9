"""What is scored: a data set of `prefkit convert`, or any input of a prefkit source, converted on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prefkit.shards import MANIFEST, Manifest
from train.core.cache import cache_folder

SPLIT = "test"  # where pairs that came without a split lie


def open_data(data: Path, source: str | None, options: dict[str, str] | None, say: Callable[[str], None]) -> Path:
    """The folder of shards: `data` itself, else its pairs, all in split "test", kept in the cache by their content.

    Raises UserError where `prefkit convert` does, and where not one pair comes out.
    """
    if (data / MANIFEST).is_file() and source is None:
        return data
    from prefkit.convert import convert_dataset

    home = cache_folder() / "data"
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as fresh:
        made = Path(fresh) / "data"
        manifest = convert_dataset(data, made, source=source, options=options, splits=f"{SPLIT}=1")
        folder = home / manifest.digest
        with suppress(OSError):  # it is there already: the same content
            made.rename(folder)
    say(f"data     {data.name}: {_ledger(manifest)}")
    return folder


def _ledger(manifest: Manifest) -> str:
    """Nothing is lost in silence: how many records became pairs, and what became of the rest."""
    parts = []
    for source, ledgers in manifest.sources.items():
        records, made = ledgers["records"], ledgers["candidates"]
        kept = [f"{made['pairs']} pairs"]
        kept += [f"{n} {reason}" for ledger in (records, made) for k in ledger for reason, n in _reasons(ledger[k])]
        parts.append(f"{records['read']} records of {source}, " + ", ".join(kept))
    return "; ".join(parts)


def _reasons(value: object) -> list[tuple[str, int]]:
    return list(value.items()) if isinstance(value, dict) else []
