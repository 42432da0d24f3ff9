"""Scores in, insight out: accuracy with its interval, beside what could explain it; no forward passes.

`build_report` is the whole of it: each entry of METRICS is a function of `Scored` in a module of its own subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from evalkit import metrics
from evalkit.calibration import calibration, intervals
from evalkit.diff import compare, jointly
from evalkit.lengths import lengths
from evalkit.report_files import SCHEMA_VERSION, plain
from evalkit.scored import Scored, Source, by_policy, load, told_apart
from evalkit.sections import Sections, read_sections, weighted
from evalkit.sets import items
from evalkit.sides import side
from evalkit.slices import slices
from evalkit.style import style
from prefkit.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


METRICS: dict[str, Callable[[Scored], Any]] = {
    "accuracy": lambda s: metrics.share(s.hit_N, s.group_N).as_dict(),
    "baselines": metrics.baselines,
    "margin": lambda s: metrics.summary(s.margin_N),
    "rewards": lambda s: {x: metrics.summary(getattr(s.rewards, x)) for x in ("chosen", "rejected")},
    "intervals": intervals,
    "undecided": metrics.undecided,
    "detectable": metrics.detectable,
    "lengths": lengths,
    "style": style,
    "flips": metrics.flips,
    "displacement": metrics.displacement,
    "idealised": metrics.idealised,
    "calibration": calibration,
    "risk_coverage": metrics.risk_coverage,
    "comparability": metrics.comparability,
    "items": items,
    "slices": slices,
    "histogram": lambda s: metrics.histogram(s.margin_N),
}


def build_report(
    *scores: Source,
    mode: str | None = None,
    where: str | None = None,
    sections: Sections | Path | str | None = None,
) -> dict[str, Any]:
    """The report of one policy's scores (folder, file, table, frame) as plain data; docs/evaluation.md has its keys.

    Several scores give the first one's report, with those of the `others` and, in `comparisons`, each of them against
    the first, Holm over all of them. Raises `UserError` where `load` and `read_sections` do.
    """
    declared = read_sections(sections) if isinstance(sections, (str, Path)) else sections
    loaded = load_all(scores, mode, where)
    first, *others = [_report(s, declared) for s in loaded]
    comparisons = jointly([compare(side(loaded[0]), side(s)) for s in loaded[1:]])
    return plain(first | {"others": others, "comparisons": comparisons})


def load_all(scores: Sequence[Source], mode: str | None, where: str | None) -> list[Scored]:
    """Scores of several policies, those of one name told apart; a frame of several is taken apart."""
    if not scores:
        raise UserError("no scores given", fix="name what `evalkit score` wrote")
    loaded = [load(one, mode, where) for given in scores for one in by_policy(given)]
    titles = told_apart([s.name for s in loaded], [s.tells for s in loaded])
    return [replace(s, title=title) for s, title in zip(loaded, titles, strict=True)]


def _report(s: Scored, sections: Sections | None) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "policy": s.name,
        "reference": s.reference,
        "beta": s.beta,
        "mode": s.mode,
        "where": s.where,
        "on_outcome": s.on_outcome,
        "caveats": s.caveats,
        "n": s.table.num_rows,
        "n_groups": s.n_groups,
        "truncated": int(np.sum(s.column("truncated"))),
        "tied_labels": s.tied,
        "contrary_labels": int((s.label_N < 0.5).sum()),
        **{name: metric(s) for name, metric in METRICS.items()},
        "sections": None if sections is None else weighted(s, sections),
        "scores_sha256": s.sha256,
        "run": portable(s.record),
    }


def portable(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """scores.json without paths of the machine, or the digest of the file beside it, which a frame does not have."""
    if record is None:
        return None
    kept = {k: v for k, v in record.items() if not k.endswith("_path") and k != "scores_sha256"}
    return kept | ({"run": portable(kept["run"])} if kept.get("run") else {})


def pair_table(*scored: Scored) -> pa.Table:
    """What the report says of each pair: rewards, margin, how it counts, rank from most wrong (1) to surest.

    `undecided` says whether its margin is within the measured noise, null where that is not known.
    """
    tables = []
    for s in scored:
        rank_N = np.empty(s.table.num_rows, np.int64)
        rank_N[np.argsort(s.margin_N, kind="stable")] = np.arange(1, s.table.num_rows + 1)
        kept = s.table.select(["id", "group_id", "set_id", "source", "subset", "p_chosen"])
        columns = {"policy": np.full(s.table.num_rows, s.name), "reward_chosen": s.rewards.chosen}
        columns |= {"reward_rejected": s.rewards.rejected, "margin": s.margin_N, "hit": s.hit_N, "rank": rank_N}
        columns["undecided"] = pa.nulls(s.table.num_rows, pa.bool_()) if s.open_N is None else s.open_N
        for name, values in columns.items():
            kept = kept.append_column(name, pa.array(values))
        tables.append(kept)
    return pa.concat_tables(tables)


def pair_frame(*scores: Source, mode: str | None = None, where: str | None = None) -> pd.DataFrame:
    """`pair_table` of scores as a pandas frame, one row a pair and policy."""
    return pair_table(*load_all(scores, mode, where)).to_pandas()
