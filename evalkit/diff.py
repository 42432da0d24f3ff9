"""Two policies on the same pairs: is one better, and on which pairs do they part?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evalkit.calibration import brier_of, nll_of
from evalkit.files import write_file
from evalkit.report_files import as_json, read_report
from evalkit.scored import DIGITS, Source, codes, load, told_apart
from evalkit.scores import sha256
from prefkit.errors import UserError
from prefkit.shares import share
from prefkit.statistics import (
    Interval,
    cluster_bootstrap,
    clustered_se,
    degrees_of_freedom,
    holm,
    mcnemar,
    minimum_detectable,
    numbered,
    sign_flip,
)

ALPHA = 0.05
PAIR_COLUMNS = ("id", "group_id", "subset", "policy", "margin", "hit", "p_chosen")


@dataclass(frozen=True)
class Side:
    """What a comparison needs of one policy: its name, `PAIR_COLUMNS` of its pairs, and what is known of the rest."""

    name: str
    pairs: pa.Table
    beta: float | None = None
    reference: str | None = None
    reference_digest: str | None = None
    tells: tuple[str, ...] = ()  # as of `Scored`
    mode: str | None = None
    manifest: str | None = None
    caveats: tuple[str, ...] = ()  # as of `Scored`


def compare_scores(first: Source, second: Source, mode: str | None = None, where: str | None = None) -> dict[str, Any]:
    """`compare` of scores (folder, file, table, frame) or of folders that `evalkit report` wrote."""
    return compare(side(first, mode, where), side(second, mode, where))


def side(path: Source, mode: str | None = None, where: str | None = None) -> Side:
    """One side of a comparison: scores of any kind, or a folder that `evalkit report` wrote."""
    if isinstance(path, (str, Path)) and (file := _pairs_file(Path(path))) is not None:
        if mode or where:
            raise UserError("a report has its mode and pairs already", path, "give the scores instead of the report")
        first, *others = policies_of(file.parent)
        if others:
            raise UserError("this report is of several policies", path, "give the scores of the one you mean")
        return first
    s = load(path, mode, where)
    pairs = s.table.select(["id", "group_id", "subset", "policy", "p_chosen"])
    pairs = pairs.append_column("margin", pa.array(s.margin_N)).append_column("hit", pa.array(s.hit_N))
    known = s.record or {}
    return Side(
        name=s.name,
        pairs=pairs,
        beta=s.beta,
        reference=s.reference,
        reference_digest=known.get("reference_digest"),
        tells=s.tells,
        mode=s.mode,
        manifest=known.get("manifest"),
        caveats=tuple(s.caveats),
    )


def _pairs_file(path: Path) -> Path | None:
    folder = path.parent if path.name == "report.json" else path
    return folder / "pairs.parquet" if (folder / "pairs.parquet").is_file() else None


def policies_of(path: str | Path) -> list[Side]:
    """Each policy of a report's folder or report.json, from its pairs.parquet."""
    report = read_report(path)
    file = (Path(path) if Path(path).is_dir() else Path(path).parent) / "pairs.parquet"
    if not file.is_file() or report.get("files", {}).get(file.name) != sha256(file):
        raise UserError("these are not the pairs that report.json beside them is about", file, "report again")
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as e:
        raise UserError("not a readable Parquet file", file, "report again") from e
    if missing := [c for c in PAIR_COLUMNS if c not in table.column_names]:
        raise UserError(f"columns missing: {', '.join(missing)}", file, "report again with this version")
    return [
        Side(
            name=r["policy"],
            pairs=table.filter(pc.equal(table["policy"], r["policy"])),
            beta=r["beta"],
            reference=r["reference"],
            reference_digest=(r["run"] or {}).get("reference_digest"),
            tells=_tells(r),
            mode=r["mode"],
            manifest=(r["run"] or {}).get("manifest"),
            caveats=tuple(r["caveats"]),
        )
        for r in (report, *report["others"])
    ]


def _tells(r: dict[str, Any]) -> tuple[str, ...]:
    """`Scored.tells` of a report, which does not say where its policy lay."""
    digests = (r["run"] or {}).get("policy_digest"), r["scores_sha256"]
    return "", r["reference"] or "", *((d or "")[:DIGITS] for d in digests)


def compare(first: Side, second: Side, seed: int = 0) -> dict[str, Any]:
    """The second policy against the first on the pairs both have, joined by id.

    `accuracy.p` is McNemar's mid-p where each group has one pair and nothing ties, else the seeded sign-flip over
    groups; intervals are the paired bootstrap over groups, or where no group differs from another that of `_unseen`.
    `verdict` is better, worse or not distinguishable, by
    `accuracy.p_holm`, which is p itself until `jointly` adjusts it. `detectable` is null where nothing differs.
    UserError where they share no pair, or were scored in different modes.
    """
    if None not in (first.mode, second.mode) and first.mode != second.mode:
        raise UserError(f"one was scored as {first.mode}, the other as {second.mode}", fix="give both the same --mode")
    names = told_apart([first.name, second.name], [first.tells, second.tells])
    a, b = _shared(first, second)
    if not a.num_rows:
        raise UserError(
            f"no pair of {names[1]} is among those of {names[0]}",
            fix="score both on the same data set and split",
        )
    group_N = codes(a["group_id"])[0]
    hits = [t["hit"].to_numpy() for t in (a, b)]
    margins = [t["margin"].to_numpy() for t in (a, b)]
    label_N = pc.fill_null(a["p_chosen"], 1.0).to_numpy().astype(float)
    d_N = hits[1] - hits[0]
    nlls, briers = ([f(m, label_N) for m in margins] for f in (nll_of, brier_of))
    columns = [np.ones(len(d_N)), d_N, margins[1] - margins[0], nlls[1] - nlls[0], briers[1] - briers[0]]
    sums_CK = np.stack([np.bincount(group_N, weights=c) for c in columns], axis=1)
    ends = cluster_bootstrap(sums_CK, lambda t: t[:, 1:] / t[:, :1], seed=seed)
    if ends[0].high - ends[0].low < 1e-9:
        ends[0] = _unseen(float(d_N.mean()), group_N)
    named = {
        name: {"difference": float(c.mean()), "low": e.low, "high": e.high}
        for name, c, e in zip(("accuracy", "margin", "nll", "brier"), columns[1:], ends, strict=True)
    }
    test = _test(hits, d_N, sums_CK[:, 1], seed)
    se = clustered_se(d_N, group_N)
    return {
        "first": names[0],
        "second": names[1],
        "n": a.num_rows,
        "n_groups": len(sums_CK),
        "only_first": first.pairs.num_rows - a.num_rows,
        "only_second": second.pairs.num_rows - a.num_rows,
        "same_data": None if None in (first.manifest, second.manifest) else first.manifest == second.manifest,
        "same_beta": first.beta == second.beta,
        "same_reference": _same_reference(first, second),
        "accuracy": {
            "first": float(hits[0].mean()),
            "second": float(hits[1].mean()),
            **named.pop("accuracy"),
            "se": se,
            **test,
            "p_holm": test["p"],
        },
        **named,
        "comparisons": 1,
        "detectable": minimum_detectable(se, df=degrees_of_freedom(numbered(group_N)[1])) if se else None,
        "verdict": verdict(float(d_N.sum()), test["p"]),
        "caveats": _caveats(dict(zip(names, (first.caveats, second.caveats), strict=True))),
    }


def _unseen(difference: float, group_N: np.ndarray) -> Interval:
    """95 % interval of a difference that is the same in each group, of which the bootstrap would leave no width.

    Groups of another kind may be as many as a share q of all: Wilson's upper bound of none seen in the effective number
    of groups. Their own difference lies anywhere from -1 to 1, so the whole is (1 - q)·difference ± q.
    """
    q = share(np.zeros(len(group_N)), group_N).high
    return Interval((1 - q) * difference - q, (1 - q) * difference + q)


def _caveats(by_name: dict[str, tuple[str, ...]]) -> list[str]:
    """Of both sides, named where they are of one alone."""
    one, other = by_name.values()
    apart = [f"{name}: {c}" for name, said in by_name.items() for c in said if c not in one or c not in other]
    return [*(c for c in one if c in other), *apart]


def _same_reference(first: Side, second: Side) -> bool:
    """By the digests of their weights; by their names where one is not known."""
    if None in (first.reference_digest, second.reference_digest):
        return first.reference == second.reference
    return first.reference_digest == second.reference_digest


def _shared(first: Side, second: Side) -> tuple[pa.Table, pa.Table]:
    """The pairs that both have, row by row."""
    at = pc.index_in(second.pairs["id"], value_set=first.pairs["id"].combine_chunks())
    return first.pairs.take(at.drop_null()), second.pairs.filter(at.is_valid())


def verdict(difference: float, p: float) -> str:
    """What a difference of the second from the first and its p come to."""
    if p >= ALPHA:
        return "not distinguishable"
    return "better" if difference > 0 else "worse"


def jointly(comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Comparisons made together: p adjusted by Holm over all of them, and the verdicts by that.

    Without it one in twenty equal policies is called better or worse (seen: one of ten in 28 % of reports).
    """
    found = []
    for c, p in zip(comparisons, holm([c["accuracy"]["p"] for c in comparisons]), strict=True):
        accuracy = c["accuracy"] | {"p_holm": p}
        adjusted = {"comparisons": len(comparisons), "verdict": verdict(accuracy["difference"], p)}
        found.append(c | {"accuracy": accuracy} | adjusted)
    return found


def _test(hits: list[np.ndarray], d_N: np.ndarray, sums_C: np.ndarray, seed: int) -> dict[str, Any]:
    won, lost = int((d_N > 0).sum()), int((d_N < 0).sum())
    counts = {"won": won, "lost": lost}
    if len(sums_C) == len(d_N) and not any((h == 0.5).any() for h in hits):
        p = mcnemar(lost, won)
        return {**counts, "p": p.mid_p, "p_exact": p.exact, "test": "McNemar, mid-p"}
    return {**counts, "p": sign_flip(sums_C, seed=seed), "test": "sign-flip over groups"}


def changed_pairs(first: Side, second: Side) -> pa.Table:
    """The pairs that count differently: id, group_id, subset, both margins and hits; the largest changes first."""
    a, b = _shared(first, second)
    table = a.select(["id", "group_id", "subset"])
    for name, source in (("first", a), ("second", b)):
        table = table.append_column(f"margin_{name}", source["margin"]).append_column(f"hit_{name}", source["hit"])
    change_N = np.abs(table["margin_second"].to_numpy() - table["margin_first"].to_numpy())
    rows = np.flatnonzero(table["hit_first"].to_numpy() != table["hit_second"].to_numpy())
    return table.take(pa.array(rows[np.lexsort((rows, -change_N[rows]))]))


def write_diff(found: dict[str, Any], changed: pa.Table, out: Path) -> None:
    """Write changed.parquet and, last, diff.json."""
    write_file(changed, out / "changed.parquet")
    write_file(as_json(found), out / "diff.json")
