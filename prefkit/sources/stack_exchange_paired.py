"""Pairs made from Stack Exchange (https://huggingface.co/datasets/lvwerra/stack-exchange-paired), CC BY-SA.

The published folders (finetune, reward, rl, evaluation) were split by pair, not by question, so they are no splits
here: the group is the question. Scores, answer ids and authors of answers are not in the set.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit import columns, tables
from prefkit.columns import Columns
from prefkit.errors import UserError
from prefkit.file_formats import readable_files
from prefkit.readers import column_names
from prefkit.schema import STRINGS, Pair
from prefkit.sources import Record, Refused, Source

NAME = "stack-exchange-paired"
COLUMNS = ("question", "response_j", "response_k")


@dataclass(frozen=True)
class PairedOptions:
    """`folders`: which of the set's folders to read, such as `reward,rl`; all by default."""

    folders: str | None = None


def to_pairs(record: Record, options: PairedOptions) -> Iterator[Pair]:
    """`response_j` was voted over `response_k`."""
    question, better, worse = (record.get(c) for c in COLUMNS)
    if not (isinstance(question, str) and isinstance(better, str) and isinstance(worse, str)):
        raise Refused("missing_text")
    known = record.get("metadata")
    links = [v for v in known if isinstance(v, str)] if isinstance(known, list) else []
    url = next((v for v in links if "/questions/" in v), "")
    author = next((v for v in links if "/users/" in v), "")
    site = _site((url or next(iter(links), "")).partition("://")[2].partition("/")[0])
    number = record.get("qid")
    key = (
        f"{site}/{number}"
        if number is not None
        else hashlib.blake2b(question.encode(errors="replace"), digest_size=8).hexdigest()
    )
    yield Pair(
        prompt=[{"role": "user", "content": question}],
        chosen=[{"role": "assistant", "content": better}],
        rejected=[{"role": "assistant", "content": worse}],
        source=NAME,
        subset=site,
        group_key=key,
        set_id=key,
        source_id=key if number is not None else "",
        urls=[url, "", ""] if url else [],
        authors=[author, "", ""] if author else [],
        licenses=["CC BY-SA"] * 3,
        created=_date(record.get("date")),
    )


def to_columns(batch: pa.RecordBatch, options: PairedOptions) -> Columns | None:
    """Rows with a number and sound texts."""
    texts = [columns.strings(batch, c) for c in COLUMNS]
    numbers, dates = columns.names(batch, "qid"), columns.strings(batch, "date")
    links = batch.column("metadata") if "metadata" in batch.schema.names else pa.nulls(batch.num_rows, STRINGS)
    if (
        None in (*texts, numbers, dates)
        or not pa.types.is_list(links.type)
        or not pa.types.is_string(links.type.value_type)
        or len(links.flatten()) != len(pc.list_parent_indices(links))  # a null that hides values
    ):
        return None
    given = [*texts, numbers]
    taken = np.logical_and.reduce([m for c in given for m in (columns.there(c), columns.sound(c))])
    taken[pc.list_parent_indices(links).to_numpy()[~columns.sound(links.flatten())]] = False
    question, better, worse, number, links, date = (c.filter(pa.array(taken)) for c in (*given, links, dates))
    flat = links.flatten()
    url = columns.first_hits(links, pc.match_substring(flat, "/questions/"))
    author = columns.first_hits(links, pc.match_substring(flat, "/users/"))
    any_link = pc.if_else(pc.equal(url, ""), columns.first_hits(links, flat.is_valid()), url)
    hosts = pc.extract_regex(any_link, r"^(?s:.*?)://(?P<host>[^/]*)").field(0).fill_null("").dictionary_encode()
    site = pa.array(map(_site, hosts.dictionary.to_pylist()), pa.string()).take(hosts.indices)
    days = date.dictionary_encode()
    key, n = pc.binary_join_element_wise(site, number, "/"), len(site)
    values = {
        "prompt": question,
        "chosen": better,
        "rejected": worse,
        "source": pa.repeat(NAME, n),
        "subset": site,
        "group_key": key,
        "set_id": key,
        "source_id": key,
        "urls": columns.first_of_three(url),
        "authors": columns.first_of_three(author),
        "licenses": tables.triples(pa.array(["CC BY-SA"]), [np.zeros(n, np.int32)] * 3),
        "created": pa.array(map(_date, days.dictionary.to_pylist()), pa.timestamp("s", "UTC")).take(days.indices),
    }
    return Columns(taken, values)


@cache
def _site(host: str) -> str:
    return re.sub(r"\.(stackexchange\.com|com|net)$", "", host)


def _date(text: object) -> datetime | None:
    match = re.match(r"(\d{4})[/-](\d{1,2})[/-](\d{1,2})", str(text or ""))
    try:
        return datetime(int(match[1]), int(match[2]), int(match[3]), tzinfo=UTC) if match else None
    except ValueError:
        return None


def files(path: Path, options: PairedOptions) -> list[Path]:
    """The set's files under a folder: one of its four, their parent, or any with Parquet or JSON in it."""
    if not path.is_dir():
        return [path]
    wanted = {name.strip() for name in (options.folders or "").split(",")} - {""}
    found = {p: set(p.relative_to(path.parent).parts) for p in readable_files(path)}
    if unknown := sorted(wanted - set().union(*found.values())):
        raise UserError(f"no folder {unknown[0]!r} with files in it", path, "see --options.folders")
    return [p for p, parts in found.items() if not wanted or wanted & parts]


def recognises(path: Path) -> bool:
    """By the columns of its first file; by its name where it has none, or holds other files too."""
    found = next(map(column_names, readable_files(path)), [])
    named = "stack-exchange-paired" in path.name.replace("_", "-")
    return set(COLUMNS) <= set(found) or (named and (path.is_dir() or not found))


SOURCE = Source(
    name=NAME,
    summary="lvwerra/stack-exchange-paired: qid, question, date, metadata, response_j, response_k",
    licence="CC BY-SA; answers' authors are not in the set",
    to_pairs=to_pairs,
    to_columns=to_columns,
    options=PairedOptions,
    recognises=recognises,
    files=files,
)
