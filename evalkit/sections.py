"""Weighted sections, declared in YAML (recipes/sections): RewardBench's total and its like, with an interval.

name: RewardBench
metric: pairs              # or best_of_n, styles: what a unit of a subset is
sections:
  Chat: {weight: 2, subsets: {alpacaeval-easy: 100, alpacaeval-hard: 95}}
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from evalkit.scored import Scored, codes
from evalkit.sets import best_of_n, style_hits
from prefkit.errors import UserError, unknown_name
from prefkit.statistics import cluster_bootstrap, fold

FIX = "see recipes/sections/rewardbench.yaml"


class Units(NamedTuple):
    """What is averaged within a subset: credits [U], the row each stands for, and other averages of the same units."""

    credit_U: np.ndarray
    row_U: np.ndarray
    more: dict[str, np.ndarray]


def _pairs(s: Scored) -> Units:
    return Units(s.hit_N, np.arange(len(s.hit_N)), {})


def _best_of_n(s: Scored) -> Units:
    found = best_of_n(s)
    return Units(found.credit_S, found.row_S, {})


def _styles(s: Scored) -> Units:
    hit_S33, row_S = style_hits(s)
    richer, poorer = np.tril_indices(3, -1)
    parts = {
        "easy": hit_S33[:, richer, poorer].mean(axis=1),
        "normal": np.diagonal(hit_S33, axis1=1, axis2=2).mean(axis=1),
        "hard": hit_S33[:, poorer, richer].mean(axis=1),
    }
    return Units(np.mean(list(parts.values()), axis=0), row_S, parts)


METRICS: dict[str, Callable[[Scored], Units]] = {"pairs": _pairs, "best_of_n": _best_of_n, "styles": _styles}


@dataclass(frozen=True)
class Sections:
    """A total of weighted sections, each a weighted mean of subsets' accuracies."""

    name: str
    metric: str
    weights: dict[str, float]
    subsets: dict[str, dict[str, float]]

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` reads."""
        sections = {n: {"weight": w, "subsets": self.subsets[n]} for n, w in self.weights.items()}
        return {"name": self.name, "metric": self.metric, "sections": sections}


def read_sections(path: Path | str) -> Sections:
    """Sections from YAML; UserError for what is none, an unknown metric, or a weight that is no number from 0."""
    try:
        given = yaml.safe_load(Path(path).read_text("utf-8"))
    except OSError as e:
        raise UserError(f"cannot read it: {e.strerror}", path, "give --sections FILE") from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"not YAML: {' '.join(str(e).split())}", path, FIX) from None
    return from_dict(given, path)


def from_dict(given: Any, where: object = "") -> Sections:
    """Sections from plain data; UserError as in `read_sections`."""
    try:
        weights = {str(k): float(v["weight"]) for k, v in given["sections"].items()}
        subsets = {str(k): {str(n): float(w) for n, w in v["subsets"].items()} for k, v in given["sections"].items()}
        name, metric = str(given["name"]), str(given.get("metric", "pairs"))
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f"these are no sections: {type(e).__name__} {e}", where, FIX) from None
    if metric not in METRICS:
        raise unknown_name("metric", metric, METRICS)
    numbers = [*weights.values(), *(w for s in subsets.values() for w in s.values())]
    sound = all(np.isfinite(n) and n >= 0 for n in numbers) and sum(weights.values()) > 0
    if not sound or not all(sum(s.values()) > 0 for s in subsets.values()):
        raise UserError("a weight is negative, not finite, or all are zero", where, FIX)
    return Sections(name, metric, weights, subsets)


def weighted(s: Scored, sections: Sections, seed: int = 0) -> dict:
    """Σ weight·section / Σ weight, sections and total with 95 % intervals by the bootstrap over groups.

    A section with a subset that is not among the scores has no value, and then the total has none either: `missing`
    names the subsets, `present` is the total over whole sections. `unused` counts pairs or items of subsets that no
    section names.
    """
    units = METRICS[sections.metric](s)
    listed = list(dict.fromkeys(n for subsets in sections.subsets.values() for n in subsets))
    subset_N, names = codes(s.table["subset"])
    code_U = np.array([listed.index(n) if n in listed else -1 for n in names])[subset_N[units.row_U]]
    used_U = code_U >= 0
    cluster_U = fold(s.n_groups, seed)[s.group_N[units.row_U]]
    counts_CS = _sums(cluster_U[used_U], code_U[used_U], np.ones(used_U.sum()), len(listed))
    seen_S = counts_CS.sum(axis=0) > 0
    whole_X = np.array([all(seen_S[listed.index(n)] for n in subsets) for subsets in sections.subsets.values()])
    mix_XS = np.array([[sub.get(n, 0.0) / sum(sub.values()) for n in listed] for sub in sections.subsets.values()])
    weight_X = np.array(list(sections.weights.values())) * whole_X

    def values(totals_BK: np.ndarray) -> np.ndarray:
        """Each section, then the total over whole ones: [B, X + 1]."""
        hits_BS, counts_BS = np.split(totals_BK, 2, axis=1)
        mean_BS = np.where(seen_S, hits_BS / np.where(seen_S, counts_BS, 1), 0)
        section_BX = np.stack([_mixed(mean_BS, mix_S) for mix_S in mix_XS], axis=1)
        return np.append(section_BX, _mixed(section_BX, weight_X)[:, None] / weight_X.sum(), axis=1)

    columns: list[dict] = [{} for _ in range(len(weight_X) + 1)]
    for name, credit_U in {"value": units.credit_U, **units.more}.items():
        hits_CS = _sums(cluster_U[used_U], code_U[used_U], credit_U[used_U], len(listed))
        sums_CK = np.concatenate([hits_CS, counts_CS], axis=1)[counts_CS.sum(axis=1) > 0]
        with np.errstate(divide="ignore", invalid="ignore"):
            for column, value in zip(columns, values(sums_CK.sum(axis=0, keepdims=True))[0], strict=True):
                column[name] = float(value)
        if name == "value":
            for column, ends in zip(columns, cluster_bootstrap(sums_CK, values, seed=seed), strict=True):
                column |= ends._asdict()
    groups_U = s.group_N[units.row_U]
    for column, mix_S in zip(columns, [*mix_XS, weight_X @ mix_XS], strict=True):
        column["n_groups"] = len(np.unique(groups_U[np.isin(code_U, np.flatnonzero(mix_S > 0))]))
    *parts, total = columns
    rows = [
        {"name": name, "weight": weight, **(part if whole else dict.fromkeys(part))}
        for (name, weight), part, whole in zip(sections.weights.items(), parts, whole_X, strict=True)
    ]
    return {
        "name": sections.name,
        "metric": sections.metric,
        "total": total if whole_X.all() else None,
        "present": total if weight_X.any() else None,
        "sections": rows,
        "missing": [n for n, seen in zip(listed, seen_S, strict=True) if not seen],
        "declared": sections.as_dict(),
        "units": int(used_U.sum()),
        "unused": int((~used_U).sum()),
    }


def _mixed(value_BK: np.ndarray, weight_K: np.ndarray) -> np.ndarray:
    """Σ weight·value over what has a weight: a replicate without a subset is NaN there, and 0·NaN would spread it."""
    return value_BK[:, weight_K > 0] @ weight_K[weight_K > 0]


def _sums(cluster_U: np.ndarray, code_U: np.ndarray, weight_U: np.ndarray, n_subsets: int) -> np.ndarray:
    """Sums of the units of each cluster and subset: [C, S]; at least one row."""
    n_clusters = int(cluster_U.max()) + 1 if len(cluster_U) else 1
    flat = np.bincount(cluster_U * n_subsets + code_U, weight_U, minlength=n_clusters * n_subsets)
    return flat.reshape(n_clusters, n_subsets)
