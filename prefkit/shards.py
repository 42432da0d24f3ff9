"""A data set on disk: Arrow streams that `datasets.load_from_disk` opens, and the manifest that vouches for them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefkit.errors import UserError, unknown_name
from prefkit.files import renamed, write_text
from prefkit.ledgers import ledgers_out_of_balance
from prefkit.schema import SCHEMA_VERSION

MANIFEST = "manifest.json"
BATCH_ROWS = 1000
SHARD_BYTES = 256 << 20
WORK = ".work"  # what an unfinished conversion goes on from
NO_PAIR = "there is not one pair"  # the warning of a manifest
UNLISTED = {MANIFEST, "_run.log"}


@dataclass(frozen=True)
class Manifest:
    """What a data set is made of. It is written last, so a folder that has one is whole.

    `files` lists every published file with its sha256, size and, for tables, rows; `sources` holds the two ledgers
    of each source; `splits` rows and groups of each split; `links` what became of duplicate links; `tables` what was
    found in tables beside the records.
    """

    config: dict[str, Any]
    inputs: list[dict[str, Any]]
    splits: dict[str, dict[str, int]]
    sources: dict[str, dict[str, Any]]
    files: dict[str, dict[str, Any]]
    repairs: dict[str, int] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)
    links: dict[str, int] = field(default_factory=dict)
    tables: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    tools: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def read(cls, path: Path | str) -> Manifest:
        """The manifest of a data set; `UserError` where there is none or it is not ours."""
        path = Path(path)
        file = path / MANIFEST
        if not path.is_dir():
            raise UserError("no such data set", path, "name a folder that prefkit convert wrote")
        if not file.is_file() and (path / WORK).is_dir():
            raise UserError("the conversion into it is not finished", path, "run its convert command again")
        if not file.is_file():
            raise UserError(
                "this is no data set: it has no manifest.json", path, "name a folder that prefkit convert finished"
            )
        try:
            return cls(**json.loads(file.read_text("utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as e:
            raise UserError(f"the manifest is damaged: {e}", file, "convert the data again") from None

    @property
    def digest(self) -> str:
        """blake2b-128 of the manifest's content: one name for exactly this data set.

        Empty entries are left out, so that an entry that a later version adds renames no older data set.
        """
        text = json.dumps({k: v for k, v in asdict(self).items() if v}, ensure_ascii=False)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def write(self, path: Path) -> None:
        """Write it atomically, with the same bytes for the same content."""
        write_text(path / MANIFEST, json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")


def read_manifest(path: Path | str) -> Manifest:
    """`Manifest.read`."""
    return Manifest.read(path)


def shard_name(number: int, count: int, suffix: str = "arrow") -> str:
    """`data-00000-of-00002.arrow`, the name that datasets gives."""
    return f"data-{number:05d}-of-{count:05d}.{suffix}"


def write_shard(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> dict[str, Any]:
    """Write tables as one shard, Arrow stream or Parquet by its suffix; returns its manifest entry."""
    rows = 0
    with renamed(path) as new:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq  # heavy beside the rest: see `tabular`

            with pq.ParquetWriter(new, schema, compression="zstd", store_schema=False) as parquet:
                for table in tables:
                    rows += table.num_rows
                    parquet.write_table(table, row_group_size=10 * BATCH_ROWS)
        else:
            with pa.OSFile(str(new), "wb") as sink, pa.ipc.new_stream(sink, schema) as stream:
                for table in tables:
                    rows += table.num_rows
                    stream.write_table(table, max_chunksize=BATCH_ROWS)
        return {**describe(new), "rows": rows}


def describe(path: Path) -> dict[str, Any]:
    """sha256 and size of a file."""
    with path.open("rb") as f:
        return {"sha256": hashlib.file_digest(f, "sha256").hexdigest(), "bytes": path.stat().st_size}


def write_datasets_files(out: Path, splits: dict[str, list[str]], fingerprints: dict[str, str]) -> list[str]:
    """The JSON files by which `datasets` finds shards; without `features`, so that versions 3 to 5 open them."""
    files: dict[str, Any] = {"dataset_dict.json": {"splits": list(splits)}}
    for name, shards in splits.items():
        files[f"{name}/dataset_info.json"] = dict.fromkeys(("citation", "description", "homepage", "license"), "")
        files[f"{name}/state.json"] = {
            "_data_files": [{"filename": s} for s in shards],
            "_fingerprint": fingerprints[name],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": name,
        }
    for name, content in files.items():
        write_text(out / name, json.dumps(content, indent=1) + "\n")
    return list(files)


def open_pairs(path: Path | str, split: str | None = None) -> pa.Table:
    """The pairs of a split, or of all splits in their order, memory-mapped: columns of `schema.PAIRS`.

    Errors: `UserError` where there is no manifest or no such split.
    """
    path = Path(path)
    manifest = Manifest.read(path)
    if split is not None and split not in manifest.splits:
        raise unknown_name(f"split of {path}", split, manifest.splits)
    names = [split] if split is not None else list(manifest.config["splits"])
    return pa.concat_tables([read_shard(path / f) for n in names for f in shards_of(manifest, n)])


def shards_of(manifest: Manifest, split: str) -> list[str]:
    """The tables of a split, in order."""
    return sorted(f for f, entry in manifest.files.items() if f.startswith(f"{split}/") and "rows" in entry)


def read_shard(path: Path, columns: list[str] | None = None) -> pa.Table:
    """One shard (of Parquet only some columns), memory-mapped if it is Arrow; `UserError` if missing or damaged."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            return pq.read_table(path, columns=columns)
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, OSError) as e:
        raise UserError(f"cannot read a shard: {e}", path, "prefkit verify tells what else is wrong") from None


def verify(path: Path | str) -> list[str]:
    """Everything about a data set that contradicts its manifest; empty if nothing does."""
    path = Path(path)
    try:
        manifest = Manifest.read(path)
    except UserError as e:
        return [str(e)]
    try:
        return [*_file_problems(path, manifest), *_count_problems(manifest)] or list(_leaks(path, manifest))
    except (KeyError, TypeError, AttributeError) as e:
        return [f"the manifest is damaged: {type(e).__name__} {e} ({path / MANIFEST})"]


def _file_problems(path: Path, manifest: Manifest) -> Iterator[str]:
    for name, entry in manifest.files.items():
        file = path / name
        if not file.is_file():
            yield f"{name}: missing"
        elif describe(file) != {k: entry[k] for k in ("sha256", "bytes")}:
            yield f"{name}: its bytes are not those of the manifest"
        elif "rows" in entry and (rows := read_shard(file).num_rows) != entry["rows"]:
            yield f"{name}: {rows} rows where the manifest says {entry['rows']}"
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_file() and name not in manifest.files and name not in UNLISTED and not name.startswith(f"{WORK}/"):
            yield f"{name}: not in the manifest"


def _leaks(path: Path, manifest: Manifest) -> Iterator[str]:
    """Groups with pairs in more than one split."""
    earlier: dict[str, pa.Array] = {}
    for split in manifest.splits:
        shards = [read_shard(path / f, ["group_id"])["group_id"].unique() for f in shards_of(manifest, split)]
        groups = pa.chunked_array(shards, pa.string()).unique()
        for other, known in earlier.items():
            for group in groups.filter(pc.is_in(groups, value_set=known)).to_pylist():
                yield f"group {group}: in split {split} and in split {other}"
        earlier[split] = groups


def _count_problems(manifest: Manifest) -> Iterator[str]:
    for split, counts in manifest.splits.items():
        rows = sum(manifest.files[f]["rows"] for f in shards_of(manifest, split))
        if rows != counts["rows"]:
            yield f"split {split}: {rows} rows in its shards, {counts['rows']} in the manifest"
    pairs = sum(s["candidates"]["pairs"] for s in manifest.sources.values())
    rows = sum(s["rows"] for s in manifest.splits.values())
    if pairs != rows:
        yield f"{pairs} pairs in the ledgers, {rows} rows in the splits"
    for source, ledgers in manifest.sources.items():
        for ledger in ledgers_out_of_balance(ledgers):
            yield f"{source}: the ledger of {ledger} does not balance"
