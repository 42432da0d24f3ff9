"""The Stack Exchange data dump (https://archive.org/details/stackexchange), CC BY-SA 2.5, 3.0 or 4.0 by date.

Score = round(log2(1 + votes)), +1 if accepted, −1 for negative votes without the bonus; votes are the net Score. All
pairs of answers of a question are candidates, equal scores are ties, at most ten pairs a question are kept.
"""

from __future__ import annotations

import json
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit import tables
from prefkit.errors import UserError
from prefkit.markup import is_plain, to_markdown
from prefkit.pairing import MAX_PAIRS, PAIRING, SCORES, better_pairs, vote_margin
from prefkit.schema import Reject
from prefkit.sources import Join, PairInput, PairOutput, Source
from prefkit.sources.dump_columns import aligned, attribution, flags, meta
from prefkit.sources.dump_files import DumpOptions, address, slices, token
from prefkit.sources.dump_map import map_slice
from prefkit.sources.dump_posts import QUESTION
from prefkit.tables import Candidates

NAME = "stack-exchange-dump"


class _Pairs(NamedTuple):
    """Row numbers of the posts of each pair, aligned, and the scores of the answers."""

    question: list[int]
    chosen: list[int]
    rejected: list[int]
    score_chosen: list[float]
    score_rejected: list[float]


SMALL = ("site", "question", "kind", "id", "votes", "accepted", "created")  # what pairing looks at


def pair(given: PairInput) -> PairOutput:
    """Pairs of every question in a bucket."""
    keys = [(c, "ascending") for c in ("site", "question", "kind", "id", "order")]
    order = pc.sort_indices(given.table, keys)
    rows = {c: given.table[c].take(order).to_pylist() for c in SMALL}
    fates = [""] * given.table.num_rows
    pairs, orphans = _Pairs([], [], [], [], []), []
    for (site, number), group in groupby(range(len(fates)), lambda i: (rows["site"][i], rows["question"][i])):
        members = _last_of_each(list(group), rows, fates)
        if rows["kind"][members[0]] != QUESTION:
            orphans += members
            continue
        _pair_question(members, rows, f"{given.seed}/{token(site)}/{number}", given, fates, pairs)
    posts = _Posts(given.table, order.to_numpy(), rows)
    rejects = [_orphan(posts, i) for i in orphans]
    for i in orphans:
        fates[i] = "rejected"
    given.tally["records.rejected.orphan_answer"] += len(orphans)
    return PairOutput(_candidates(posts, pairs, given), fates, rejects)


class _Posts(NamedTuple):
    """The posts of a bucket: small columns as lists in sorted order, the table as it came and where each row lies."""

    table: pa.Table
    order: np.ndarray
    rows: dict[str, list]

    def take(self, numbers: np.ndarray) -> pa.Table:
        """Whole rows by their sorted numbers."""
        return self.table.take(pa.array(self.order[numbers]))


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
    members: list[int],
    rows: dict[str, list],
    salt: str,
    given: PairInput,
    fates: list[str],
    out: _Pairs,
) -> None:
    question, *answers = members
    options, tally = given.options, given.tally
    accepted, score = rows["accepted"][question], SCORES[options.score]
    tally["links.accepted_missing"] += bool(accepted) and accepted not in [rows["id"][i] for i in answers]
    if len(answers) < 2:
        for i in members:
            fates[i] = "single_answer" if answers else "no_answers"
        return
    scores = [score(rows["votes"][i], rows["id"][i] == accepted) for i in answers]
    written = [rows["created"][i] for i in answers] if options.later_wins else None
    ids, most = [rows["id"][i] for i in answers], given.max_pairs or MAX_PAIRS
    found = better_pairs(scores, ids, salt, PAIRING[options.pairing], written, most)
    tally["candidates.made"] += len(found.pairs) + found.ties + found.capped + found.filtered
    tally["candidates.ties"] += found.ties
    tally["candidates.capped"] += found.capped
    tally["candidates.filtered"] += found.filtered
    paired = {a for p in found.pairs for a in p}
    for a, i in enumerate(answers):
        if a not in paired:
            fates[i] = "only_ties" if all(s == scores[a] for s in scores) else found.fate
    if not found.pairs:
        fates[question] = "only_ties" if found.ties == len(answers) * (len(answers) - 1) // 2 else found.fate
    for better, worse in found.pairs:
        out.question.append(question)
        out.chosen.append(answers[better])
        out.rejected.append(answers[worse])
        out.score_chosen.append(scores[better])
        out.score_rejected.append(scores[worse])


def _orphan(posts: _Posts, i: int) -> Reject:
    (row,) = posts.take(np.array([i])).to_pylist()
    kept = {k: v for k, v in row.items() if v is not None and k not in ("key", "order", "position")}
    return Reject("orphan_answer", row["position"], json.dumps(kept, ensure_ascii=False))


def _candidates(posts: _Posts, pairs: _Pairs, given: PairInput) -> Candidates:
    """The pairs as candidates. Every post is converted once, however many pairs it is in."""
    used = np.unique(np.array([*pairs.question, *pairs.chosen, *pairs.rejected], dtype=np.int64))
    place = np.full(len(posts.order), -1)
    place[used] = np.arange(len(used))
    whole = posts.take(used)
    texts = tables.clean_column(_texts(whole, given.tally), given.tally)
    questions = pc.equal(whole["kind"].combine_chunks(), QUESTION)
    roles = pc.if_else(questions, pa.scalar("user"), pa.scalar("assistant"))
    who = [place[np.array(p, dtype=np.int64)] for p in (pairs.question, pairs.chosen, pairs.rejected)]
    licences, urls, authors, created = attribution(whole, given)
    sites, keys = _keys(posts.rows, pairs)
    n, ids = len(keys), posts.rows["id"]
    columns: dict[str, Any] = {
        "prompt": who[0].astype(np.int32),
        "chosen": who[1].astype(np.int32),
        "rejected": who[2].astype(np.int32),
        "set_id": keys,
        "score_chosen": pa.array(pairs.score_chosen, pa.float32()),
        "score_rejected": pa.array(pairs.score_rejected, pa.float32()),
        "margin": [vote_margin(a, b) for a, b in zip(pairs.score_chosen, pairs.score_rejected, strict=True)],
        "p_chosen": pa.nulls(n, pa.float32()),
        "source": pa.array([NAME] * n, pa.string()),
        "subset": sites,
        "source_id": [f"{key}/{ids[c]}-{ids[r]}" for key, c, r in zip(keys, pairs.chosen, pairs.rejected, strict=True)],
        "licenses": aligned(licences, who),
        "urls": aligned(urls, who),
        "authors": aligned(authors, who),
        "created": pc.max_element_wise(created.take(pa.array(who[1])), created.take(pa.array(who[2]))).cast(
            pa.timestamp("s", "UTC")
        ),
        "flags": flags(whole, who),
        "meta": meta(whole, who, given),
        "group_key": keys,
        "_records": tables.triples(pa.array(used.astype(np.int32)), who),
    }
    return tables.with_ids(tables.single_turns(roles, texts), columns)


def _keys(rows: dict[str, list], pairs: _Pairs) -> tuple[list[str], list[str]]:
    """Short site name and group key (`beer/123`) of each pair."""
    sites = {s: token(s) for s in set(rows["site"])}
    names = [sites[rows["site"][q]] for q in pairs.question]
    return names, [f"{n}/{rows['id'][q]}" for n, q in zip(names, pairs.question, strict=True)]


def _texts(posts: pa.Table, tally: Counter[str]) -> list[str]:
    texts = []
    homes = {site: address(site) for site in posts["site"].unique().to_pylist()}
    plain = is_plain(posts["body"].combine_chunks())
    columns = (posts[c].to_pylist() for c in ("site", "title", "body"))
    for site, title, body, simple in zip(*columns, plain, strict=True):
        text = to_markdown(body, homes[site], tally, plain=simple)
        texts.append(text if title is None else f"{title.strip()}\n\n{text}".rstrip())
    return texts


def recognises(path: Path) -> bool:
    """A .7z, an .xml, or a folder that holds Posts.xml."""
    if path.is_dir():
        return any(p.name.lower() == "posts.xml" or p.name.lower().endswith("-posts.7z") for p in path.iterdir())
    return path.suffix.lower() in (".7z", ".xml")


SOURCE = Source(
    name=NAME,
    summary="a site of the Stack Exchange data dump: folder, Posts.xml or .7z",
    licence="CC BY-SA 2.5/3.0/4.0 by date",
    options=DumpOptions,
    recognises=recognises,
    join=Join(slices, map_slice, pair, {"names": "last", "votes": "sum"}),
)
