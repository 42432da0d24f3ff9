"""One side of a comparison: the pairs of a policy, from its scores or from a folder that `evalkit report` wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evalkit.report_files import read_report
from evalkit.scored import DIGITS, Source, load
from evalkit.scores import sha256
from prefkit.errors import UserError

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
