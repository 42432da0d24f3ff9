"""Candidate rows → shards: which row goes where is in flat arrays, the rows themselves are copied as they stream by."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit import engine
from prefkit.checks import with_flags
from prefkit.finish import REJECTS, reject_of, rejects_table
from prefkit.keys import changes
from prefkit.schema import PAIRS
from prefkit.shards import BATCH_ROWS, NO_PAIR, SHARD_BYTES, describe, shard_name, write_datasets_files, write_shard
from prefkit.split import REFUSED, Names, Resolved
from prefkit.tables import Candidates
from prefkit.tasks import Job, read_cells

JOINED = f"_groups/{shard_name(0, 1)}"  # which groups of the sources were joined, and under what name
GROUPS = pa.schema([pa.field("group_key", pa.string()), pa.field("group_id", pa.string())])
LARGE_GROUP = 0.2  # of all pairs: worth a warning
TAKE_ROWS = 4 * BATCH_ROWS  # at once: an array holds no more than 2 GB of text


class _Shard(NamedTuple):
    """One shard: its file, and of each candidate file the rows to take, their groups, and which are contradicted."""

    path: Path
    takes: list[tuple[Path, np.ndarray, np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Publication:
    """Where every candidate row goes. `stems[k]` has rows `starts[k]`..`starts[k+1]` of the flat arrays."""

    stems: list[Path]
    starts: np.ndarray
    split: np.ndarray
    shard: np.ndarray
    group: np.ndarray
    flagged: np.ndarray  # conflicting_labels
    names: list[str]
    joined: Names

    @classmethod
    def of(
        cls, stems: list[Path], counts: list[int], sizes: np.ndarray, found: Resolved, names: list[str]
    ) -> Publication:
        """Rows keep their order; a shard ends with the row that fills its `SHARD_BYTES`."""
        shard = np.zeros(len(sizes), dtype=np.int32)
        for number in range(len(names)):
            here = found.split == number
            shard[here] = np.cumsum(sizes[here], dtype=np.int64) // SHARD_BYTES
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        return cls(stems, starts, found.split, shard, found.group, found.conflict, names, found.joined)

    @cached_property
    def group_sizes(self) -> list[np.ndarray]:
        """How many pairs each group has, split by split: int64[groups]."""
        by_split = [np.sort(self.group[self.split == n]) for n in range(len(self.names))]
        return [np.diff(np.append(changes(groups), len(groups))) for groups in by_split]

    def split_counts(self) -> dict[str, dict[str, int]]:
        """Rows and groups of each split."""
        sizes = zip(self.names, self.group_sizes, strict=True)
        return {name: {"rows": int(s.sum()), "groups": len(s)} for name, s in sizes}

    def warnings(self) -> list[str]:
        """What a user would stumble over later."""
        sizes = np.concatenate(self.group_sizes)
        if not len(sizes):
            return [NO_PAIR]
        counts, pairs, largest = self.split_counts(), int(sizes.sum()), int(sizes.max())
        found = [f"split {name} is empty" for name in self.names if not counts[name]["rows"]]
        if pairs > 100 and largest > LARGE_GROUP * pairs:
            share = f"{largest / pairs:.0%} of the pairs are one group, which no split can part"
            found.append(f"{share}: a higher --near joins fewer")
        return found

    def shards(self, number: int, folder: Path, suffix: str) -> list[_Shard]:
        """The shards of a split: at least one, which may be empty."""
        here = np.flatnonzero(self.split == number)
        of_shards = np.split(here, changes(self.shard[here])[1:])
        shards = [_Shard(folder / shard_name(k, len(of_shards), suffix), []) for k in range(len(of_shards))]
        for shard, rows in zip(shards, of_shards, strict=True):
            cuts = np.searchsorted(rows, self.starts)
            for stem, start, a, b in zip(self.stems, self.starts, cuts[:-1], cuts[1:], strict=False):
                if a < b:
                    of_file, inside = rows[a:b], (rows[a:b] - start).astype(np.int32)
                    take = (stem.with_suffix(".arrow"), inside, self.group[of_file], self.flagged[of_file])
                    shard.takes.append(take)
        return shards

    def head(self, job: Job, n: int) -> pa.Table:
        """The first pairs of the first split."""
        pieces = [rows for _, rows in zip(range(n), _rows(self.shards(0, job.work, "arrow")[0]), strict=False)]
        return pa.concat_tables(pieces).slice(0, n) if pieces else PAIRS.empty_table()


class Published(NamedTuple):
    """The manifest's entries by file, and how many pairs have each flag."""

    files: dict[str, dict[str, Any]]
    flags: dict[str, int]


def publish(out: Path, publication: Publication, job: Job, workers: int, suffix: str) -> Published:
    """Write shards, rejects, which groups were joined, and the files that `datasets` wants."""
    planned = {n: publication.shards(i, out / n, suffix) for i, n in enumerate(publication.names)}
    shards = [s for found in planned.values() for s in found]
    written = engine.run_tasks(_write, shards, workers, "publish")
    files = {s.path.relative_to(out).as_posix(): entry for s, (entry, _) in zip(shards, written, strict=True)}
    flags = sum((found for _, found in written), Counter[str]())
    rejects = f"_rejects/{shard_name(0, 1)}"
    sources = [job.work / "map.rejects.arrow", *(s.with_suffix(".rejects.arrow") for s in publication.stems)]
    refused = chain((_stream(p) for p in sources if p.exists()), _refused(publication, job.source))
    files[rejects] = write_shard(out / rejects, REJECTS, refused)
    files[JOINED] = write_shard(out / JOINED, GROUPS, [_joined(publication.joined)])
    if suffix == "arrow":
        names = {n: [s.path.name for s in found] for n, found in planned.items()}
        prints = {n: _fingerprint([files[f"{n}/{s}"]["sha256"] for s in found]) for n, found in names.items()}
        files |= {name: describe(out / name) for name in write_datasets_files(out, names, prints)}
    return Published(dict(sorted(files.items())), dict(sorted(flags.items())))


def _joined(found: Names) -> pa.Table:
    """The groups that go by another's name."""
    other = found.groups != found.names
    return pa.table([group_names(found.groups[other]), group_names(found.names[other])], schema=GROUPS)


def group_names(groups: np.ndarray) -> pa.StringArray:
    """Groups as `group_id` spells them, 16 hexadecimal digits each."""
    digits, cuts = groups.astype(">u8").tobytes().hex().encode(), np.arange(0, 16 * len(groups) + 1, 16, dtype=np.int32)
    return pa.StringArray.from_buffers(len(groups), pa.py_buffer(cuts), pa.py_buffer(digits))


def group_numbers(names: pa.StringArray | pa.ChunkedArray) -> np.ndarray:
    """What `group_names` spelled: uint64[n]."""
    return np.frombuffer(bytes.fromhex("".join(names.to_pylist())), ">u8").astype(np.uint64)


def _refused(publication: Publication, source: str) -> Iterator[pa.Table]:
    """The rows that `resolve` refused: their labels contradict others."""
    for stem, a, b in zip(publication.stems, publication.starts[:-1], publication.starts[1:], strict=True):
        rows = np.flatnonzero(publication.split[a:b] == REFUSED)
        if len(rows):
            path = stem.with_suffix(".arrow")
            spelled = Candidates(read_cells(path), _stream(path)).spelled(rows).to_pylist()
            found = [reject_of("conflicting_labels", row, None) for row in spelled]
            yield rejects_table(source, ["candidate"] * len(found), found)


def _write(shard: _Shard) -> tuple[dict[str, Any], Counter[str]]:
    """The shard's entry, and how many of its pairs have each flag."""
    flags = Counter[str]()

    def counted() -> Iterator[pa.Table]:
        for table in _rows(shard):
            flags.update({v["values"]: v["counts"] for v in pc.list_flatten(table["flags"]).value_counts().to_pylist()})
            yield table

    return write_shard(shard.path, PAIRS, counted()), flags


def _rows(shard: _Shard) -> Iterator[pa.Table]:
    """The rows of a shard, table by table: here texts take the place of the numbers of their cells."""
    for path, rows, groups, flagged in shard.takes:
        made = Candidates(read_cells(path), _stream(path))
        names = group_names(groups)
        for a in range(0, len(rows), TAKE_ROWS):
            table = made.spelled(rows[a : a + TAKE_ROWS]).add_column(
                1, PAIRS.field("group_id"), names[a : a + TAKE_ROWS]
            )
            marked = {"conflicting_labels": flagged[a : a + TAKE_ROWS]}
            yield with_flags(table, marked).select(PAIRS.names).cast(PAIRS)


def _stream(path: Path) -> pa.Table:
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


def _fingerprint(digests: list[str]) -> str:
    return hashlib.blake2b("".join(digests).encode(), digest_size=8).hexdigest()
