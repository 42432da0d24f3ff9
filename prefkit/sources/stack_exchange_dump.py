"""The Stack Exchange data dump (https://archive.org/details/stackexchange), CC BY-SA 2.5, 3.0 or 4.0 by date.

Score = round(log2(1 + votes)), +1 if accepted, −1 for negative votes without the bonus; votes are the net Score. All
pairs of answers of a question are candidates, equal scores are ties, at most ten pairs a question are kept.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit import tables
from prefkit.errors import UserError
from prefkit.markup import to_markdown
from prefkit.pairing import better_pairs, vote_margin, vote_score
from prefkit.schema import Reject
from prefkit.sources import Join, PairInput, PairOutput, Source
from prefkit.sources.dump_posts import QUESTION, DumpOptions, address, map_slice, slices, token

NAME = "stack-exchange-dump"


class _Pairs(NamedTuple):
    """Row numbers of the posts of each pair, aligned, and the scores of the answers."""

    question: list[int]
    chosen: list[int]
    rejected: list[int]
    score_chosen: list[int]
    score_rejected: list[int]


def pair(given: PairInput) -> PairOutput:
    """Pairs of every question in a bucket."""
    posts = given.table.take(
        pc.sort_indices(given.table, [(c, "ascending") for c in ("site", "question", "kind", "id", "order")])
    )
    rows = {c: posts[c].to_pylist() for c in ("site", "question", "kind", "id", "votes", "accepted", "created")}
    fates = [""] * posts.num_rows
    pairs, orphans = _Pairs([], [], [], [], []), []
    for (site, number), group in groupby(range(posts.num_rows), lambda i: (rows["site"][i], rows["question"][i])):
        members = _last_of_each(list(group), rows, fates)
        if rows["kind"][members[0]] != QUESTION:
            orphans += members
            continue
        _pair_question(members, rows, f"{given.seed}/{token(site)}/{number}", fates, pairs, given.tally)
    rejects = [_orphan(posts, i) for i in orphans]
    for i in orphans:
        fates[i] = "rejected"
    given.tally["records.rejected.orphan_answer"] += len(orphans)
    return PairOutput(_table(posts, rows, pairs, given.tally), fates, [r for r in rejects if r])


def _last_of_each(members: list[int], rows: dict[str, list], fates: list[str]) -> list[int]:
    """Members without the posts that come again later in the input (two snapshots of a site): the last one stands.

    UserError for one number of two different posts: those are two sites.
    """
    kept, ids, kinds, created = [], rows["id"], rows["kind"], rows["created"]
    for i, follower in zip(members, [*members[1:], None], strict=True):
        if follower is not None and ids[i] == ids[follower] and kinds[i] == kinds[follower]:
            if created[i] != created[follower]:
                what = f"two different posts {ids[i]} of {rows['site'][i]!r}: the inputs are different sites"
                raise UserError(what, fix="convert each by itself, named by its folder or --options.site")
            fates[i] = "repeated_post"
        else:
            kept.append(i)
    return kept


def _pair_question(
    members: list[int], rows: dict[str, list], salt: str, fates: list[str], out: _Pairs, tally: Counter[str]
) -> None:
    question, *answers = members
    if len(answers) < 2:
        for i in members:
            fates[i] = "single_answer" if answers else "no_answers"
        return
    accepted = rows["accepted"][question]
    scores = [vote_score(rows["votes"][i], rows["id"][i] == accepted) for i in answers]
    found = better_pairs(scores, [rows["id"][i] for i in answers], salt)
    tally["candidates.made"] += len(found.pairs) + found.ties + found.capped
    tally["candidates.ties"] += found.ties
    tally["candidates.capped"] += found.capped
    paired = {a for p in found.pairs for a in p}
    for a, i in enumerate(answers):
        if a not in paired:
            fates[i] = "only_ties" if all(s == scores[a] for s in scores) else "capped"
    if not found.pairs:
        fates[question] = "only_ties"
    for better, worse in found.pairs:
        out.question.append(question)
        out.chosen.append(answers[better])
        out.rejected.append(answers[worse])
        out.score_chosen.append(scores[better])
        out.score_rejected.append(scores[worse])


def _orphan(posts: pa.Table, i: int) -> Reject:
    row = {k: v for k, v in posts.slice(i, 1).to_pylist()[0].items() if v is not None and k not in ("key", "order")}
    position = row.pop("position")
    return Reject("orphan_answer", position, json.dumps(row, ensure_ascii=False))


def _table(posts: pa.Table, rows: dict[str, list], pairs: _Pairs, tally: Counter[str]) -> pa.Table:
    """The pairs as candidates. Every post is converted once, however many pairs it is in."""
    used = np.unique(np.array([*pairs.question, *pairs.chosen, *pairs.rejected], dtype=np.int64))
    place = np.full(posts.num_rows, -1)
    place[used] = np.arange(len(used))
    texts = pa.array(list(_texts(posts.take(pa.array(used)), tally)), pa.string())
    who = [place[np.array(p, dtype=np.int64)] for p in (pairs.question, pairs.chosen, pairs.rejected)]
    licences, urls, authors, created = _attribution(posts.take(pa.array(used)))
    sites, keys = _keys(rows, pairs)
    columns: dict[str, Any] = {
        "id": [""] * len(pairs.question),
        "prompt": tables.single_turns("user", texts.take(pa.array(who[0]))),
        "chosen": tables.single_turns("assistant", texts.take(pa.array(who[1]))),
        "rejected": tables.single_turns("assistant", texts.take(pa.array(who[2]))),
        "set_id": keys,
        "score_chosen": pa.array(pairs.score_chosen, pa.float32()),
        "score_rejected": pa.array(pairs.score_rejected, pa.float32()),
        "margin": [vote_margin(a, b) for a, b in zip(pairs.score_chosen, pairs.score_rejected, strict=True)],
        "p_chosen": pa.nulls(len(keys), pa.float32()),
        "source": [NAME] * len(keys),
        "subset": sites,
        "source_id": [
            f"{key}/{rows['id'][c]}-{rows['id'][r]}"
            for key, c, r in zip(keys, pairs.chosen, pairs.rejected, strict=True)
        ],
        "licenses": _aligned(licences, who),
        "urls": _aligned(urls, who),
        "authors": _aligned(authors, who),
        "created": pc.max_element_wise(created.take(pa.array(who[1])), created.take(pa.array(who[2]))),
        "flags": pa.array([[]] * len(keys), pa.list_(pa.string())),
        "meta": _meta(posts, rows, pairs),
        "group_key": keys,
        "_records": tables.triples(pa.array(used.astype(np.int32)), who),
    }
    arrays = [
        pa.array(columns[f.name], f.type) if isinstance(columns[f.name], list) else columns[f.name].cast(f.type)
        for f in tables.CANDIDATES
    ]
    return tables.with_ids(pa.table(arrays, schema=tables.CANDIDATES))


def _keys(rows: dict[str, list], pairs: _Pairs) -> tuple[list[str], list[str]]:
    """Short site name and group key (`beer/123`) of each pair."""
    sites = {s: token(s) for s in set(rows["site"])}
    names = [sites[rows["site"][q]] for q in pairs.question]
    return names, [f"{n}/{rows['id'][q]}" for n, q in zip(names, pairs.question, strict=True)]


def _texts(posts: pa.Table, tally: Counter[str]) -> Iterator[str]:
    for site, title, body in zip(*(posts[c].to_pylist() for c in ("site", "title", "body")), strict=True):
        text = tables.clean(to_markdown(body, address(site), tally), tally)
        if title is None:
            yield text
        else:
            yield f"{tables.clean(html.unescape(title).strip(), tally)}\n\n{text}".rstrip()


def _attribution(posts: pa.Table) -> tuple[list[str], list[str | None], list[str], pa.Array]:
    """Licence, link, author and time of writing (seconds) of each post."""
    columns = ("site", "question", "kind", "id", "owner", "owner_name", "created", "license")
    licences, urls, authors = [], [], []
    for site, _, kind, number, owner, name, created, licence in zip(
        *(posts[c].to_pylist() for c in columns), strict=True
    ):
        home = address(site)
        licences.append(licence or _licence(created))
        urls.append(home and f"{home}/{'questions' if kind == QUESTION else 'a'}/{number}")
        authors.append(name or (f"{home}/users/{owner}" if home else f"user {owner}") if name or owner else "")
    seconds = pc.strptime(
        pc.utf8_slice_codeunits(posts["created"], 0, 19), "%Y-%m-%dT%H:%M:%S", "s", error_is_null=True
    )
    return licences, urls, authors, seconds.cast(pa.int64()).combine_chunks()


def _licence(created: str | None) -> str:
    """By date of contribution: https://stackoverflow.com/help/licensing."""
    if not created:
        return "CC BY-SA"
    return f"CC BY-SA {'2.5' if created < '2011-04-08' else '3.0' if created < '2018-05-02' else '4.0'}"


def _aligned(values: list, who: list[np.ndarray]) -> pa.Array:
    """[prompt, chosen, rejected] of each pair; an empty list where nothing is known."""
    if None not in values:
        return tables.triples(pa.array(values, pa.string()), who)
    trios = ([values[i] for i in trio] for trio in zip(*(w.tolist() for w in who), strict=True))
    return pa.array([t if None not in t else [] for t in trios], pa.list_(pa.string()))


def _meta(posts: pa.Table, rows: dict[str, list], pairs: _Pairs) -> list[str]:
    encode = json.JSONEncoder(ensure_ascii=False).encode
    tags, positions = posts["tags"].to_pylist(), posts["position"].to_pylist()
    return [
        encode(
            {
                "accepted": rows["accepted"][q] or None,
                "positions": [positions[q], positions[c], positions[r]],
                "tags": [t for t in (tags[q] or "").replace("<", "|").replace(">", "|").split("|") if t],
                "votes_chosen": rows["votes"][c],
                "votes_rejected": rows["votes"][r],
            }
        )
        for q, c, r in zip(pairs.question, pairs.chosen, pairs.rejected, strict=True)
    ]


def recognises(path: Path) -> bool:
    """A .7z, an .xml, or a folder that holds Posts.xml."""
    if path.is_dir():
        return any(p.name.lower() == "posts.xml" for p in path.iterdir())
    return path.suffix.lower() in (".7z", ".xml")


SOURCE = Source(
    name=NAME,
    summary="a site of the Stack Exchange data dump: folder, Posts.xml or .7z",
    licence="CC BY-SA 2.5/3.0/4.0 by date",
    options=DumpOptions,
    recognises=recognises,
    join=Join(slices, map_slice, pair),
)
