"""Which pairs a report shows, and their texts and tokens: worst, most surprising, flips, and some at random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalkit.scored import Scored
from evalkit.spelled import tokens_of
from prefkit.errors import UserError
from prefkit.shards import MANIFEST, open_pairs, read_manifest
from prefkit.unseen import visible
from train.core.rewards import hits

MOST_PAIRS = 2000
MOST_CHARS = 6000  # of a text, before it is cut and the page says so
KINDS = {
    "worst": "surest and wrong",
    "surest": "surest and right",
    "surprising": "margin far from what length and reference predict",
    "won": "log π ranks it right, the reference did not",
    "lost": "the reference ranked it right, log π does not",
    "close": "margin nearest to zero",
    "changed": "counts differently under another policy of this report",
    "random": "drawn by its id",
}


def choose(s: Scored, others: list[Scored], limit: int) -> dict[int, list[str]]:
    """Row → why it is shown; each kind gives its most telling rows in turn until `limit` pairs are chosen."""
    m_N = s.margin_N
    queues = {
        "worst": _first(m_N, m_N < 0),
        "changed": _changed(s, others),
        "surprising": _first(-np.abs(_residual(s)), np.ones(len(m_N), bool)),
        "lost": np.zeros(0, int),
        "won": np.zeros(0, int),
        "close": _first(np.abs(m_N), np.ones(len(m_N), bool)),
        "surest": _first(-m_N, m_N > 0),
        "random": _by_hash(s.table["id"], limit),
    }
    if s.reference is not None:
        before_N, after_N = hits(s.difference("ref")), hits(s.difference("policy"))
        moved_N = -np.abs(s.difference("policy") - s.difference("ref"))
        queues |= {"lost": _first(moved_N, after_N < before_N), "won": _first(moved_N, after_N > before_N)}
    chosen: dict[int, list[str]] = {}
    for place in range(max(1, limit // len(queues))):
        for kind, queue in queues.items():
            if place < len(queue) and (int(queue[place]) in chosen or len(chosen) < limit):
                chosen.setdefault(int(queue[place]), []).append(kind)
    for row in map(int, queues["random"]):  # kinds overlap: what is left over is filled at random
        if len(chosen) < limit:
            chosen.setdefault(row, ["random"])
    return chosen


def _first(key_N: np.ndarray, where_N: np.ndarray) -> np.ndarray:
    """The rows where `where_N`, smallest key first; more than can be shown are not sorted."""
    rows = np.flatnonzero(where_N)
    if len(rows) > MOST_PAIRS:
        rows = np.sort(rows[np.argpartition(key_N[rows], MOST_PAIRS)[:MOST_PAIRS]])
    return rows[np.argsort(key_N[rows], kind="stable")]


def _changed(s: Scored, others: list[Scored]) -> np.ndarray:
    most_N = np.zeros(len(s.margin_N))
    for other in others:
        at = pc.index_in(s.table["id"], value_set=other.table["id"].combine_chunks())
        rows, theirs = np.flatnonzero(np.asarray(at.is_valid())), at.drop_null().to_numpy()
        moved = np.abs(other.margin_N[theirs] - s.margin_N[rows]) * (other.hit_N[theirs] != s.hit_N[rows])
        most_N[rows] = np.maximum(most_N[rows], moved)
    return _first(-most_N, most_N > 0)


def _residual(s: Scored) -> np.ndarray:
    """What of the margin a straight line in length difference and reference margin does not explain."""
    columns = [np.ones(len(s.margin_N)), s.difference("n").astype(float)]
    if s.reference is not None:
        columns.append(s.difference("ref"))
    x_NP = np.stack([c / (np.abs(c).max() or 1.0) for c in columns], axis=1)
    return s.margin_N - x_NP @ np.linalg.lstsq(x_NP, s.margin_N, rcond=None)[0]


def _by_hash(ids: pa.ChunkedArray, limit: int) -> np.ndarray:
    """The rows with the smallest ids, which are hashes: the same pairs in any file that holds them."""
    return pc.array_sort_indices(ids.combine_chunks())[:limit].to_numpy()


def find_data(s: Scored, scores: Path | None, given: Path | None) -> Path | None:
    """The data set these scores are of: the one given, else a folder of its name near the scores with its digest.

    UserError where the given one is another.
    """
    record = s.record or {}
    wanted = record.get("manifest")
    if given is not None:
        if wanted and read_manifest(given).digest != wanted:
            raise UserError("this is not the data set that was scored", given, "give the one named in scores.json")
        return given
    if scores is None or not wanted:
        return None
    return next((f for f in data_folders(record, scores) if _has_digest(f, wanted)), None)


def data_folders(record: dict[str, Any], scores: Path) -> list[Path]:
    """Where the data set of scores may lie: where it lay when they were made, or by its name beside their folder."""
    name = Path(str(record.get("data", ""))).name
    named = [scores.parent / name, scores.parent.parent / name, Path(name)] if name else []
    return [Path(record["data_path"]), *named] if record.get("data_path") else named


def _has_digest(folder: Path, wanted: str) -> bool:
    try:
        return (folder / MANIFEST).is_file() and read_manifest(folder).digest == wanted
    except UserError:  # damaged, so not the one
        return False


def pairs_of(
    s: Scored, others: list[Scored], limit: int, scores: Path | None, data: Path | None
) -> list[dict[str, Any]]:
    """The chosen pairs as plain data for the page, in the order of the scores; all text made visible.

    `limit` is at most 2,000. Texts come from the data set if there is one, token log-ratios from the table of tokens
    beside the scores; without them a pair has its numbers alone.
    """
    rows = sorted(chosen := choose(s, others, min(limit, MOST_PAIRS)))
    table = s.table.take(pa.array(rows, pa.int64()))
    ids = table["id"].combine_chunks()
    texts = _texts(data, ids, (s.record or {}).get("split")) if data is not None else {}
    tokens = tokens_of(scores, table) if scores is not None else {}
    elsewhere = [(visible(o.name), dict(_margins(o, ids))) for o in others]
    shown = []
    for i, pair in zip(rows, table.to_pylist(), strict=True):
        shown.append(
            {
                "id": visible(pair["id"]),
                "kinds": chosen[i],
                "subset": visible(pair["subset"] or pair["source"] or ""),
                "group": visible(pair["group_id"]),
                "margin": round(float(s.margin_N[i]), 6),
                "hit": float(s.hit_N[i]),
                "undecided": s.open_N is not None and bool(s.open_N[i]),
                "rewards": [round(float(v[i]), 6) for v in (s.rewards.chosen, s.rewards.rejected)],
                "tokens": [pair["n_chosen"], pair["n_rejected"]],
                "others": {name: round(m[pair["id"]], 6) for name, m in elsewhere if pair["id"] in m},
                "texts": texts.get(pair["id"]),
                "spelled": tokens.get(pair["id"]),
            }
        )
    return shown


def _margins(s: Scored, ids: pa.Array):
    at = pc.index_in(ids, value_set=s.table["id"].combine_chunks())
    for pair_id, row in zip(ids.to_pylist(), at.to_pylist(), strict=True):
        if row is not None:
            yield pair_id, float(s.margin_N[row])


def _texts(data: Path, ids: pa.Array, split: str | None) -> dict[str, dict[str, str]]:
    table = open_pairs(data, split)
    found = table.filter(pc.is_in(table["id"], value_set=ids)).select(["id", "prompt", "chosen", "rejected"])
    return {
        p["id"]: {name: _shortened(_joined(p[name], name)) for name in ("prompt", "chosen", "rejected")}
        for p in found.to_pylist()
    }


def _joined(messages: list[dict[str, str]], name: str) -> str:
    """One message is its content, several are headed by their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in messages)


def _shortened(text: str) -> str:
    cut = f"\n… cut here: {len(text):,} characters in all" if len(text) > MOST_CHARS else ""
    return visible(text[:MOST_CHARS]) + cut
