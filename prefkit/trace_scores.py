"""The second half of a pair's way: tokens, log-probabilities and rewards, read from what evalkit wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefkit.errors import UserError
from prefkit.trace import Step

SHOWN_TOKENS = 6


def score_steps(pair_id: str, scores: Path | str) -> list[Step]:
    """Tokens, their boundary and log-probabilities: the pair's rows of the tokens' table and the scores'."""
    scores = Path(scores)
    file = scores if scores.suffix == ".parquet" else scores / "scores.parquet"
    found = _row(file, pair_id, "run evalkit score")
    if found is None:
        return [Step("scores", f"not in {file}: another split, or longer than the model's limit")]
    number, row = found
    steps = []
    name = "tokens.parquet" if file.stem == "scores" else f"{file.stem}.tokens.parquet"
    if (tokens := file.with_name(name)).is_file():
        _, kept = _row(tokens, pair_id, "run evalkit score again") or (0, {})
        steps = [Step(f"tokens {side}", _boundary(kept, side)) for side in ("chosen", "rejected") if kept]
    for side in ("chosen", "rejected"):
        reference = "" if row["reference"] is None else f", {row['reference']} {row[f'ref_{side}']:.6f}"
        text = f"{row['policy']} {row[f'policy_{side}']:.6f}{reference} over {row[f'n_{side}']} tokens"
        steps.append(Step(f"log π {side}", text))
    return [*steps, Step("scores", f"{file.name} row {number}, β {row['beta']:g}")]


def report_steps(pair_id: str, report: Path | str) -> list[Step]:
    """Rewards, and how the pair counts: its rows of the report's pairs.parquet, one for each policy."""
    file = Path(report) / "pairs.parquet"
    found = _rows(file, pair_id, "run evalkit report")
    if not found:
        return [Step("report", f"not in {file}")]
    policies = pq.read_table(file, columns=["policy"])["policy"]
    steps = []
    for number, row in found:
        total = pc.sum(pc.equal(policies, row["policy"])).as_py()
        of = f" of {row['policy']}" if len(found) > 1 else ""
        sides = f"chosen {row['reward_chosen']:+.6f}, rejected {row['reward_rejected']:+.6f}"
        counts = (
            f"counts {row['hit']:g} towards the accuracy, rank {row['rank']} of {total:,} from most wrong to surest"
        )
        steps.append(Step("rewards", f"{sides}, margin {row['margin']:+.6f}{of}"))
        steps.append(Step("report", f"{file.name} row {number}: {counts}"))
    return steps


def _row(file: Path, pair_id: str, fix: str) -> tuple[int, dict[str, Any]] | None:
    """Number and content of a pair's row in a Parquet file, None where it has none."""
    return next(iter(_rows(file, pair_id, fix)), None)


def _rows(file: Path, pair_id: str, fix: str) -> list[tuple[int, dict[str, Any]]]:
    """Numbers and contents of a pair's rows in a Parquet file."""
    if not file.is_file():
        raise UserError("no such file", file, fix)
    try:
        numbers = np.flatnonzero(pc.equal(pq.read_table(file, columns=["id"])["id"], pair_id))
        rows = pq.read_table(file, filters=[("id", "==", pair_id)]).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as e:
        raise UserError(f"cannot read it: {' '.join(str(e).split())}", file, fix) from None
    return list(zip(map(int, numbers), rows, strict=True))


def _boundary(kept: dict[str, Any], side: str) -> str:
    prompt, response = kept["prompt_tokens"], kept[f"{side}_tokens"]
    near = " ".join(map(repr, prompt[-SHOWN_TOKENS:])) + " | " + " ".join(map(repr, response[:SHOWN_TOKENS]))
    first = ", ".join(f"{x:.3f}" for x in kept[f"policy_{side}"][:SHOWN_TOKENS])
    return f"{len(prompt)} | {len(response)}: … {near} …, first log π {first} …"
