"""What pairs of a Stack Exchange dump say besides their texts: licence, links, authors, time, flags, `meta`.

Columns are made for the posts of a bucket once and taken for the pairs; `who` holds the posts' rows of each pair:
[prompt, chosen, rejected].
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit import tables
from prefkit.schema import STRINGS
from prefkit.sources import PairInput
from prefkit.sources.dump_files import address, token
from prefkit.sources.dump_posts import QUESTION


def attribution(posts: pa.Table, given: PairInput) -> tuple[list[str], list[str | None], list[str], pa.Array]:
    """Licence, link, author and time of writing (seconds) of each post."""
    columns = ("site", "kind", "id", "owner", "owner_name", "created", "license")
    names = _names(posts, given)
    licences, urls, authors = [], [], []
    homes = {site: address(site) for site in posts["site"].unique().to_pylist()}
    for site, kind, number, owner, old_name, created, licence, name in zip(
        *(posts[c].to_pylist() for c in columns), names, strict=True
    ):
        home = homes[site]
        licences.append(licence or _licence(created))
        urls.append(home and f"{home}/{'questions' if kind == QUESTION else 'a'}/{number}")
        profile = (f"{home}/users/{owner}" if home else f"user {owner}") if owner else ""
        shown = old_name or name
        authors.append(f"{shown} ({profile})" if shown and profile else shown or profile)
    seconds = pc.strptime(
        pc.utf8_slice_codeunits(posts["created"], 0, 19), "%Y-%m-%dT%H:%M:%S", "s", error_is_null=True
    )
    return licences, urls, authors, seconds.cast(pa.int64()).combine_chunks()


def _names(posts: pa.Table, given: PairInput) -> list[str | None]:
    """Display names out of Users.xml; None where it is absent or silent."""
    if "names" not in given.lookups:
        return [None] * posts.num_rows
    owners = zip(posts["site"].to_pylist(), posts["owner"].to_pylist(), strict=True)
    found = given.lookups["names"](tables.hash64(f"{token(s)}/{o}" for s, o in owners))
    return found["name"].to_pylist()


def _licence(created: str | None) -> str:
    """By date of contribution: https://stackoverflow.com/help/licensing."""
    if not created:
        return "CC BY-SA"
    return f"CC BY-SA {'2.5' if created < '2011-04-08' else '3.0' if created < '2018-05-02' else '4.0'}"


def aligned(values: list, who: list[np.ndarray]) -> pa.Array:
    """[prompt, chosen, rejected] of each pair; an empty list where nothing is known."""
    if None not in values:
        return tables.triples(pa.array(values, pa.string()), who)
    trios = ([values[i] for i in trio] for trio in zip(*(w.tolist() for w in who), strict=True))
    return pa.array([t if None not in t else [] for t in trios], pa.list_(pa.string()))


def flags(posts: pa.Table, who: list[np.ndarray]) -> pa.Array:
    """`self_answer`: a response is by the asker. `community_wiki`: a response's votes are many authors'."""
    owner = posts["owner"].combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
    wiki = posts["wiki"].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
    question, chosen, rejected = who
    known = owner[question] >= 0
    itself = known & ((owner[chosen] == owner[question]) | (owner[rejected] == owner[question]))
    shared = wiki[chosen] | wiki[rejected]
    combinations = pa.array([[], ["self_answer"], ["community_wiki"], ["community_wiki", "self_answer"]], STRINGS)
    return combinations.take(pa.array(itself + 2 * shared))


def meta(posts: pa.Table, who: list[np.ndarray], given: PairInput) -> pa.Array:
    """JSON of what only this source knows, put together column by column: JSON texts joined are JSON."""
    question, chosen, rejected = (pa.array(w) for w in who)

    def text(column: str, rows: pa.Array) -> pa.Array:
        return posts[column].take(rows).combine_chunks().cast(pa.string())

    place = _json_strings(posts["position"])
    accepted = text("accepted", question)
    pieces: list[Any] = ['{"accepted": ', pc.if_else(pc.equal(accepted, "0"), "null", accepted)]
    pieces += [', "positions": [', place.take(question), ", ", place.take(chosen), ", ", place.take(rejected)]
    pieces += ['], "tags": ', _tags(posts["tags"]).take(question)]
    pieces += [', "votes_chosen": ', text("votes", chosen), ', "votes_rejected": ', text("votes", rejected)]
    if posts["closed"].null_count < posts.num_rows:
        closed = _json_strings(posts["closed"]).take(question)
        pieces += [pc.if_else(pc.equal(closed, "null"), "", pc.binary_join_element_wise(', "closed": ', closed, ""))]
    if "votes" in given.lookups:
        for side, rows in (("chosen", chosen), ("rejected", rejected)):
            up, down = _votes(posts.select(["site", "id"]).take(rows), given)
            pieces += [f', "up_{side}": ', up, f', "down_{side}": ', down]
    return pc.binary_join_element_wise(*pieces, "}", "")


def _json_strings(column: pa.ChunkedArray) -> pa.Array:
    """Each text as a JSON string, null as `null`; each distinct one is encoded once."""
    codes = column.combine_chunks().dictionary_encode()
    encoded = pa.array(list(map(tables.json_string, codes.dictionary.to_pylist())), pa.string())
    return encoded.take(codes.indices).fill_null("null")


def _tags(column: pa.ChunkedArray) -> pa.Array:
    """`<a><b>` or `|a|b|` as a JSON list."""
    codes = column.combine_chunks().dictionary_encode()
    split = ([t for t in re.split(r"[<>|]+", tags) if t] for tags in codes.dictionary.to_pylist())
    encoded = pa.array([json.dumps(tags, ensure_ascii=False) for tags in split], pa.string())
    return encoded.take(codes.indices).fill_null("[]")


def _votes(posts: pa.Table, given: PairInput) -> tuple[pa.Array, pa.Array]:
    """Up and down votes of posts out of Votes.xml, as JSON numbers."""
    ids = zip(posts["site"].to_pylist(), posts["id"].to_pylist(), strict=True)
    found = given.lookups["votes"](tables.hash64(f"{token(s)}/{i}" for s, i in ids))
    up, down = (found[c].fill_null(0).combine_chunks().cast(pa.string()) for c in ("up", "down"))
    return up, down
