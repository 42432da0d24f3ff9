"""What a report says, computed again from the scores it names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from evalkit.report import build_report, pair_table
from evalkit.scored import Scored
from evalkit.sections import from_dict

NUMBER = "number ← scores"
UNCOMPARED = {"others", "files", "scores_sha256"}  # compared one by one, or links of their own


class Link(NamedTuple):
    """One link of the chain; `state` is ok, broken or unknown (could not be checked, `text` says why)."""

    state: str
    name: str
    text: str


def number_again(report: dict[str, Any], loaded: list[Scored]) -> Link:
    """All that report.json says, computed again from scores and scores.json with its own mode, condition and sections.

    Of scores.json all is compared but the paths of the machine that scored, which a report leaves out.
    """
    name = NUMBER
    if len(loaded) != 1 + len(report["others"]):
        return Link("unknown", name, "the scores are not all at hand; say where with --scores")
    declared = from_dict(report["sections"]["declared"]) if report["sections"] else None
    again = json.loads(json.dumps(build_report(*loaded, sections=declared)))
    different = [
        key
        for old, new in zip((report, *report["others"]), (again, *again["others"]), strict=True)
        for key in sorted((old.keys() | new.keys()) - UNCOMPARED)
        if not same(old.get(key), new.get(key))
    ]
    if different:
        return Link("broken", name, f"computed again, {', '.join(dict.fromkeys(different))} differ")
    return Link("ok", name, f"computed again: accuracy {again['accuracy']['value']:.3f}")


def pairs_again(file: Path, loaded: list[Scored]) -> Link:
    """Rows of the pairs, of which a comparison with this report is made, against those of the scores."""
    name, made = "pairs.parquet ← scores", pair_table(*loaded)
    try:
        kept = pq.read_table(file)
    except (pa.ArrowException, OSError) as e:
        return Link("broken", name, f"cannot read it: {e}")
    if kept.schema.names != made.schema.names or kept.num_rows != made.num_rows:
        return Link("broken", name, f"{kept.num_rows} rows of {', '.join(kept.schema.names)}; {made.num_rows} scored")
    different = [c for c in made.column_names if not same(made[c].to_pylist(), kept[c].to_pylist())]
    if different:
        return Link("broken", name, f"computed again, {', '.join(different)} differ")
    return Link("ok", name, f"{made.num_rows} rows computed again")


def same(a: Any, b: Any) -> bool:
    """Equal, numbers to a relative 1e-9: another machine may round a sum in another order."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12)
    return a == b
