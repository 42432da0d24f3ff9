"""Two policies on the same pairs: is one better, and on which pairs do they part?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalkit.calibration import brier_of, nll_of
from evalkit.files import write_file
from evalkit.metrics import FEW_GROUPS, deciding_groups
from evalkit.report_files import as_json
from evalkit.scored import Source, codes, told_apart
from evalkit.sides import Side, side
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


def compare_scores(first: Source, second: Source, mode: str | None = None, where: str | None = None) -> dict[str, Any]:
    """`compare` of scores (folder, file, table, frame) or of folders that `evalkit report` wrote."""
    return compare(side(first, mode, where), side(second, mode, where))


def compare(first: Side, second: Side, seed: int = 0) -> dict[str, Any]:
    """The second policy against the first on the pairs both have, joined by id.

    `accuracy.p` is McNemar's mid-p where each group has one pair and nothing ties, else the seeded sign-flip over
    groups; intervals are the paired bootstrap over groups, or where no group differs from another that of `_unseen`.
    `verdict` is better, worse or not distinguishable, by `accuracy.p_holm`, which is p itself until `jointly` adjusts
    it. `detectable` is null where nothing differs.
    UserError where they share no pair, or were scored in different modes.
    """
    if None not in (first.mode, second.mode) and first.mode != second.mode:
        raise UserError(f"one was scored as {first.mode}, the other as {second.mode}", fix="give both the same --mode")
    names = told_apart([first.name, second.name], [first.tells, second.tells])
    a, b = _shared(first, second)
    if not a.num_rows:
        raise UserError(
            f"no pair of {names[1]} is among those of {names[0]}",
            fix="score both on the same data set and split; --where is asked of each side by itself",
        )
    group_N = codes(a["group_id"])[0]
    sizes = numbered(group_N)[1]
    d_N = _differences(a, b)
    ends = _ends(d_N, group_N, seed)
    changed = {name: {"difference": float(d.mean()), **ends[name]._asdict()} for name, d in d_N.items()}
    hits = [t["hit"].to_numpy() for t in (a, b)]
    test, se = _test(hits, group_N, seed), clustered_se(d_N["accuracy"], group_N)
    shares = {"first": float(hits[0].mean()), "second": float(hits[1].mean())}
    return {
        "first": names[0],
        "second": names[1],
        "n": a.num_rows,
        "n_groups": len(sizes),
        "rough": deciding_groups(group_N) < FEW_GROUPS,
        "only_first": first.pairs.num_rows - a.num_rows,
        "only_second": second.pairs.num_rows - a.num_rows,
        "same_data": None if None in (first.manifest, second.manifest) else first.manifest == second.manifest,
        "same_beta": first.beta == second.beta,
        "same_reference": _same_reference(first, second),
        **changed,
        "accuracy": shares | changed["accuracy"] | test | {"se": se, "p_holm": test["p"]},
        "comparisons": 1,
        "detectable": minimum_detectable(se, df=degrees_of_freedom(sizes)) if se else None,
        "verdict": verdict(changed["accuracy"]["difference"], test["p"]),
        "caveats": _caveats(dict(zip(names, (first.caveats, second.caveats), strict=True))),
    }


def _differences(a: pa.Table, b: pa.Table) -> dict[str, np.ndarray]:
    """Of each shared pair, what the second policy has more than the first."""
    label_N = pc.fill_null(a["p_chosen"], 1.0).to_numpy().astype(float)

    def of(pairs: pa.Table) -> dict[str, np.ndarray]:
        margin_N = pairs["margin"].to_numpy()
        losses = {"nll": nll_of(margin_N, label_N), "brier": brier_of(margin_N, label_N)}
        return {"accuracy": pairs["hit"].to_numpy(), "margin": margin_N, **losses}

    first, second = of(a), of(b)
    return {name: second[name] - first[name] for name in first}


def _ends(d_N: dict[str, np.ndarray], group_N: np.ndarray, seed: int) -> dict[str, Interval]:
    """95 % intervals of mean differences, by the paired bootstrap over groups."""
    sums_CK = np.stack([np.bincount(group_N, weights=c) for c in (np.ones(len(group_N)), *d_N.values())], axis=1)
    ends = dict(zip(d_N, cluster_bootstrap(sums_CK, lambda t: t[:, 1:] / t[:, :1], seed=seed), strict=True))
    if ends["accuracy"].high - ends["accuracy"].low < 1e-9:
        ends["accuracy"] = _unseen(float(d_N["accuracy"].mean()), group_N)
    return ends


def _unseen(difference: float, group_N: np.ndarray) -> Interval:
    """95 % interval of a difference that is the same in each group, of which the bootstrap would leave no width.

    Groups of another kind may be as many as a share q of all: Wilson's upper bound of none seen in the effective number
    of groups, as the rule of three is another (Hanley and Lippman-Hand, JAMA 249 (1983), 1743-1745). Their own
    difference lies anywhere from -1 to 1, so the whole is (1 - q)·difference ± q.
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


def _test(hits: list[np.ndarray], group_N: np.ndarray, seed: int) -> dict[str, Any]:
    """How often each side alone is right, and the p of both being equally often right."""
    d_N = hits[1] - hits[0]
    counts = {"won": int((d_N > 0).sum()), "lost": int((d_N < 0).sum())}
    sums_C = np.bincount(group_N, weights=d_N)
    if len(sums_C) == len(d_N) and not any((h == 0.5).any() for h in hits):
        p = mcnemar(counts["lost"], counts["won"])
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
