"""Weighted sections, declared in YAML (recipes/sections): RewardBench's total and its like, with an interval.

name: RewardBench
metric: pairs              # or best_of_n, styles, ties: what is averaged over a subset; a section may name its own
sections:
  Chat: {weight: 2, subsets: {alpacaeval-easy: 100, alpacaeval-hard: 95}}

A subset's weight is how many pairs, or sets, it has in all; a section's `counts: {math-prm: 447}` where it is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evalkit.metrics import FEW_GROUPS, deciding_groups
from evalkit.scored import Scored, codes
from evalkit.sets import best_of_n, style_hits, ties
from prefkit.errors import UserError, unknown_name
from prefkit.shares import weighted_shares
from prefkit.yaml_file import read_yaml

FIX = "see recipes/sections/rewardbench.yaml"


class Measured(NamedTuple):
    """A subset's number: `constant` and Σ weight·share, each share as credits and the rows they stand for."""

    parts: list[tuple[float, np.ndarray, np.ndarray]]
    constant: float
    more: dict[str, float]  # other averages of the same pairs
    lost: dict[str, int]  # what could not enter
    n: int  # pairs, or sets where it is of sets


def _pairs(s: Scored) -> Measured:
    return Measured([(1.0, s.hit_N, np.arange(len(s.hit_N)))], 0.0, {}, {}, len(s.hit_N))


def _best_of_n(s: Scored) -> Measured:
    found = best_of_n(s)
    lost = {"single_pairs": found.single_pairs, "sets_without_best": found.without_best}
    return Measured([(1.0, found.credit_S, found.row_S)], 0.0, {}, lost, len(found.credit_S))


def _styles(s: Scored) -> Measured:
    hit_S33, row_S33 = style_hits(s)
    richer, poorer = np.tril_indices(3, -1)
    more = {
        "easy": float(hit_S33[:, richer, poorer].mean()),
        "normal": float(np.diagonal(hit_S33, axis1=1, axis2=2).mean()),
        "hard": float(hit_S33[:, poorer, richer].mean()),
    }
    return Measured([(1.0, hit_S33.ravel(), row_S33.ravel())], 0.0, more, {}, len(hit_S33))


def _ties(s: Scored) -> Measured:
    """RewardBench 2's weights: .6 for accuracy, .4 for margins, and .01 for tanh, here a share (1 + tanh) / 2."""
    q = ties(s)
    closeness_Q = (1 + q.tanh_Q) / 2
    parts = [
        (0.3, q.tied_right_T, q.tied_row_T),
        (0.3, q.reference_right_F, q.reference_row_F),
        (0.2, q.preferred_Q, q.row_Q),
        (0.2, q.preferred_hard_Q, q.row_Q),
        (0.02, closeness_Q, q.row_Q),
    ]
    sets = len(q.tied_row_T) + len(q.reference_row_F)
    return Measured(parts, -0.01, {}, {"sets_without_counterpart": sets - 2 * len(q.row_Q)}, sets)


METRICS: dict[str, Callable[[Scored], Measured]] = {
    "pairs": _pairs,
    "best_of_n": _best_of_n,
    "styles": _styles,
    "ties": _ties,
}


@dataclass(frozen=True)
class Sections:
    """A total of weighted sections, each a weighted mean of subsets; `metrics` of those with another than `metric`."""

    name: str
    metric: str
    weights: dict[str, float]
    subsets: dict[str, dict[str, float]]
    metrics: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, float]] = field(default_factory=dict)  # of subsets whose weight is none

    def mix(self, section: str) -> dict[tuple[str, str], float]:
        """Part of each (metric, subset) in a section."""
        metric, subsets = self.metrics.get(section, self.metric), self.subsets[section]
        return {(metric, name): weight / sum(subsets.values()) for name, weight in subsets.items()}

    def as_dict(self) -> dict[str, Any]:
        """What `from_dict` reads."""
        sections = {n: {"weight": w, "subsets": self.subsets[n]} for n, w in self.weights.items()}
        for name, metric in self.metrics.items():
            sections[name]["metric"] = metric
        for name, counts in self.counts.items():
            sections[name]["counts"] = counts
        return {"name": self.name, "metric": self.metric, "sections": sections}


def read_sections(path: Path | str) -> Sections:
    """Sections from YAML; UserError for what is none, an unknown metric, or a weight that is no number from 0."""
    return from_dict(read_yaml(Path(path), FIX), path)


def from_dict(given: Any, where: object = "") -> Sections:
    """Sections from plain data; UserError as in `read_sections`."""
    try:
        weights = {str(k): float(v["weight"]) for k, v in given["sections"].items()}
        subsets = {str(k): {str(n): float(w) for n, w in v["subsets"].items()} for k, v in given["sections"].items()}
        name, metric = str(given["name"]), str(given.get("metric", "pairs"))
        metrics = {str(k): str(v["metric"]) for k, v in given["sections"].items() if "metric" in v}
        counted = {str(k): v["counts"] for k, v in given["sections"].items() if "counts" in v}
        counts = {k: {str(n): float(w) for n, w in v.items()} for k, v in counted.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise UserError(f"these are no sections: {type(e).__name__} {e}", where, FIX) from None
    for unknown in (m for m in (metric, *metrics.values()) if m not in METRICS):
        raise unknown_name("metric", unknown, METRICS)
    for section, counted_here in counts.items():
        for unknown in counted_here.keys() - subsets[section].keys():
            raise unknown_name("subset", unknown, subsets[section])
    numbers = [*weights.values(), *(w for d in (subsets, counts) for s in d.values() for w in s.values())]
    sound = all(np.isfinite(n) and n >= 0 for n in numbers) and sum(weights.values()) > 0
    if not sound or not all(sum(s.values()) > 0 for s in subsets.values()):
        raise UserError("a weight is negative, not finite, or all are zero", where, FIX)
    return Sections(name, metric, weights, subsets, metrics, counts)


def weighted(s: Scored, sections: Sections) -> dict:
    """Σ weight·section / Σ weight, sections and total with the 95 % intervals of `weighted_shares`.

    A section with a subset that is not among the scores has no value, and then the total has none either: `missing`
    names the subsets, `present` is the total over whole sections. `unused` counts pairs of subsets that no section
    names, `lost` what of the others could not enter, `few` are subsets with fewer pairs or sets than declared, and
    `subsets` all that the scores have. UserError where they have none of those declared.
    """
    subset_N, names = codes(s.table["subset"])
    mixes = {name: sections.mix(name) for name in sections.weights}
    keys = list(dict.fromkeys(key for mix in mixes.values() for key in mix))
    rows = {name: np.flatnonzero(subset_N == i) for i, name in enumerate(names)}
    tried = {key: _measured(s, key[0], rows[key[1]]) for key in keys if key[1] in rows}
    if not tried:
        what = f"no subset of {sections.name} is among the scores, which have {listed(names)}"
        raise UserError(what, fix="give sections of these, or score their data")
    found = {key: m for key, m in tried.items() if all(len(row_U) for *_, row_U in m.parts)}
    lost = Counter[str]()
    for measured in tried.values():
        lost.update(measured.lost)
    whole = [name for name, mix in mixes.items() if mix.keys() <= found.keys()]
    columns = dict(zip(whole, _columns(s, found, [mixes[n] for n in whole]), strict=True))
    weight = sum(sections.weights[n] for n in whole)
    overall = {k: sum(sections.weights[n] * mixes[n].get(k, 0) for n in whole) / weight for k in found if weight}
    present = _columns(s, found, [overall])[0] if overall else None
    nothing = dict.fromkeys(present or ("value", "low", "high", "n_groups", "rough"))
    return {
        "name": sections.name,
        "metric": sections.metric,
        "total": present if len(whole) == len(mixes) else None,
        "present": present,
        "sections": [{"name": n, "weight": w, **columns.get(n, nothing)} for n, w in sections.weights.items()],
        "missing": list(dict.fromkeys(name for metric, name in keys if (metric, name) not in found)),
        "declared": sections.as_dict(),
        "unused": sum(len(rows[n]) for n in names if n not in {name for _, name in keys}),
        "lost": dict(+lost),
        "few": list(_few(sections, found)),
        "subsets": names,
    }


def _few(sections: Sections, found: dict[tuple[str, str], Measured]) -> Iterator[dict[str, Any]]:
    """Subsets of which less was scored than the sections declare."""
    for section in sections.weights:
        declared = sections.subsets[section] | sections.counts.get(section, {})
        for metric, name in sections.mix(section):
            if (metric, name) in found and (n := found[metric, name].n) < declared[name]:
                yield {"section": section, "subset": name, "n": n, "declared": declared[name]}


def listed(names: list[str], most: int = 20) -> str:
    """Names of subsets for a sentence, the first ones of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name or "(none)" for name in names[:most]) + more


def _measured(s: Scored, metric: str, rows_N: np.ndarray) -> Measured:
    """A subset by its metric, parts with the rows of all scores."""
    measured = METRICS[metric](s.at(rows_N))
    return measured._replace(parts=[(w, credit_U, rows_N[row_U]) for w, credit_U, row_U in measured.parts])


def _columns(
    s: Scored, found: dict[tuple[str, str], Measured], mixes: list[dict[tuple[str, str], float]]
) -> list[dict]:
    """Of each weighted mean of subsets its value, interval, other averages, of how many groups, and if few decide."""
    parts = [(key, *part) for key, measured in found.items() for part in measured.parts]
    if not mixes or not parts:
        return []
    weight_XK = np.array([[mix.get(key, 0.0) * weight for key, weight, *_ in parts] for mix in mixes])
    groups = [s.group_N[row_U] for *_, row_U in parts]
    means = weighted_shares(
        [(credit_U, group_U) for (*_, credit_U, _), group_U in zip(parts, groups, strict=True)], weight_XK
    )
    columns = []
    for mix, weight_K, (value, ends) in zip(mixes, weight_XK, means, strict=True):
        shift = sum(weight * found[key].constant for key, weight in mix.items())
        used = [group_U for group_U, weight in zip(groups, weight_K, strict=True) if weight]
        column = {"value": value + shift, "low": ends.low + shift, "high": ends.high + shift}
        more = [(weight, found[key].more) for key, weight in mix.items() if weight]
        for name in more[0][1]:
            if all(name in averages for _, averages in more):  # not of a mean over other metrics too
                column[name] = sum(weight * averages[name] for weight, averages in more)
        of = np.concatenate(used)
        columns.append(column | {"n_groups": len(np.unique(of)), "rough": deciding_groups(of) < FEW_GROUPS})
    return columns
