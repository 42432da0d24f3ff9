"""Scores in, insight out: accuracy with its interval, beside what could explain it; no forward passes.

`build_report` is the whole of it: each entry of METRICS is a function of `Scored` in a module of its own subject.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit import metrics
from evalkit.calibration import brier_of, calibration, confidence_bins, nll_of, outcome_of, probability
from evalkit.diff import compare, side
from evalkit.lengths import lengths
from evalkit.markdown import headline, to_markdown
from evalkit.scored import Scored, Source, load
from evalkit.scores import sha256
from evalkit.sections import Sections, read_sections, weighted
from evalkit.sets import items
from prefkit.errors import UserError
from prefkit.statistics import cluster_bootstrap, fold

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["build_report", "headline", "pair_frame", "pair_table", "read_report", "to_markdown", "write_report"]
SCHEMA_VERSION = 2


def intervals(s: Scored) -> dict[str, dict]:
    """95 % intervals of means and of the calibration error (its bins held fixed), by the bootstrap over groups."""
    bin_N, n_bins = confidence_bins(s), 10
    cluster_N = fold(s.n_groups, 0)[s.group_N]
    n_clusters = int(cluster_N.max()) + 1

    def sums(value_N: np.ndarray) -> np.ndarray:
        return np.bincount(cluster_N, weights=value_N, minlength=n_clusters)

    gap_N = probability(np.abs(s.margin_N)) - outcome_of(s)
    means = [s.margin_N, nll_of(s.margin_N, s.label_N), brier_of(s.margin_N, s.label_N)]
    gaps = np.bincount(cluster_N * n_bins + bin_N, gap_N, n_clusters * n_bins).reshape(n_clusters, n_bins)
    sums_CK = np.concatenate([np.stack([sums(v) for v in (np.ones_like(gap_N), *means)], axis=1), gaps], axis=1)

    def statistics(t_BK: np.ndarray) -> np.ndarray:
        ece_B1 = np.abs(t_BK[:, 4:]).sum(axis=1, keepdims=True)
        return np.concatenate([t_BK[:, 1:4], ece_B1], axis=1) / t_BK[:, :1]

    ends = cluster_bootstrap(sums_CK, statistics)
    return {name: e._asdict() for name, e in zip(("margin", "nll", "brier", "ece"), ends, strict=True)}


METRICS: dict[str, Callable[[Scored], Any]] = {
    "accuracy": lambda s: metrics.share(s.hit_N, s.group_N).as_dict(),
    "baselines": metrics.baselines,
    "margin": lambda s: metrics.summary(s.margin_N),
    "rewards": lambda s: {x: metrics.summary(getattr(s.rewards, x)) for x in ("chosen", "rejected")},
    "intervals": intervals,
    "undecided": metrics.undecided,
    "detectable": metrics.detectable,
    "lengths": lengths,
    "flips": metrics.flips,
    "displacement": metrics.displacement,
    "idealised": metrics.idealised,
    "calibration": calibration,
    "risk_coverage": metrics.risk_coverage,
    "comparability": metrics.comparability,
    "items": items,
    "slices": metrics.slices,
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
    the first. Raises `UserError` where `load` and `read_sections` do.
    """
    declared = read_sections(sections) if isinstance(sections, (str, Path)) else sections
    loaded = load_all(scores, mode, where)
    first, *others = [_report(s, declared) for s in loaded]
    comparisons = [compare(side(loaded[0]), side(s)) for s in loaded[1:]]
    return plain(first | {"others": others, "comparisons": comparisons})


def load_all(scores: Sequence[Source], mode: str | None, where: str | None) -> list[Scored]:
    """Scores of several policies, those of one name told apart by a number."""
    if not scores:
        raise UserError("no scores given", fix="name what `evalkit score` wrote")
    loaded, seen = [], dict[str, int]()
    for s in (load(s, mode, where) for s in scores):
        seen[s.name] = seen.get(s.name, 0) + 1
        loaded.append(s if seen[s.name] == 1 else replace(s, title=f"{s.name} ({seen[s.name]})"))
    return loaded


def _report(s: Scored, sections: Sections | None) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "policy": s.name,
        "reference": s.reference,
        "beta": s.beta,
        "mode": s.mode,
        "where": s.where,
        "n": s.table.num_rows,
        "n_groups": s.n_groups,
        "truncated": int(np.sum(s.column("truncated"))),
        **{name: metric(s) for name, metric in METRICS.items()},
        "sections": None if sections is None else weighted(s, sections),
        "scores_sha256": s.sha256,
        "run": s.record,
    }


def plain(value: Any) -> Any:
    """Numbers and lists as JSON knows them; what is not finite becomes null."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def pair_table(*scored: Scored) -> pa.Table:
    """What the report says of each pair: rewards, margin, how it counts, rank from most wrong (1) to surest."""
    tables = []
    for s in scored:
        rank_N = np.empty(s.table.num_rows, np.int64)
        rank_N[np.argsort(s.margin_N, kind="stable")] = np.arange(1, s.table.num_rows + 1)
        kept = s.table.select(["id", "group_id", "set_id", "source", "subset", "p_chosen"])
        columns = {"policy": np.full(s.table.num_rows, s.name), "reward_chosen": s.rewards.chosen}
        columns |= {"reward_rejected": s.rewards.rejected, "margin": s.margin_N, "hit": s.hit_N, "rank": rank_N}
        for name, values in columns.items():
            kept = kept.append_column(name, pa.array(values))
        tables.append(kept)
    return pa.concat_tables(tables)


def pair_frame(*scores: Source, mode: str | None = None, where: str | None = None) -> pd.DataFrame:
    """`pair_table` of scores as a pandas frame, one row a pair and policy."""
    return pair_table(*load_all(scores, mode, where)).to_pandas()


def write_report(report: dict[str, Any], pairs: pa.Table, out: Path, html: str | None = None) -> None:
    """Write pairs.parquet, report.html, report.md and, last, report.json, each under a temporary name and renamed."""
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pairs, out / ".pairs.parquet.tmp", compression="zstd")
    (out / ".pairs.parquet.tmp").replace(out / "pairs.parquet")
    whole = report | {"pairs_sha256": sha256(out / "pairs.parquet")}
    contents = {"report.html": html} if html is not None else {}
    contents["report.md"] = to_markdown(report)
    contents["report.json"] = json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
    for name, text in contents.items():
        temporary = out / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out / name)


def read_report(path: Path | str) -> dict[str, Any]:
    """report.json of a folder, or the file itself; UserError for none, a damaged one, or one of another version."""
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    try:
        report = json.loads(file.read_text("utf-8"))
        version = report["schema_version"]
    except OSError as e:
        raise UserError(f"no report: {e.strerror}", file, "make one with `evalkit report`") from None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError("this is no report.json, or a damaged one", file, "report again") from e
    if version != SCHEMA_VERSION:
        raise UserError(f"a report of version {version}, this is for {SCHEMA_VERSION}", file, "report again")
    return report
