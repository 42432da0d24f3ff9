"""scores.parquet: one row a pair, the border between models and numbers. Needs no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prefkit.errors import UserError

SCORES = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("group_id", pa.string()),
        pa.field("set_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("subset", pa.string()),
        pa.field("policy", pa.string()),
        pa.field("reference", pa.string()),  # null: scored without a reference
        pa.field("beta", pa.float64()),
        pa.field("n_chosen", pa.int32()),  # tokens of the response, its end token included
        pa.field("n_rejected", pa.int32()),
        pa.field("policy_chosen", pa.float64()),  # sums of token log-probabilities, nats
        pa.field("policy_rejected", pa.float64()),
        pa.field("ref_chosen", pa.float64()),
        pa.field("ref_rejected", pa.float64()),
        pa.field("chars_chosen", pa.int32()),
        pa.field("chars_rejected", pa.int32()),
        pa.field("p_chosen", pa.float32()),
        pa.field("truncated", pa.bool_()),
    ]
)
NUMBERS = ["policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected"]


def scores_path(path: str | Path) -> Path:
    """The Parquet file meant by a folder of scores or a file."""
    path = Path(path)
    return path if path.suffix == ".parquet" else path / "scores.parquet"


def write_scores(table: pa.Table, path: Path) -> None:
    """Write scores under a temporary name and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table.cast(SCORES), temporary, compression="zstd")
    temporary.replace(path)


def read_scores(path: str | Path) -> pa.Table:
    """Read scores of one policy.

    Raises `UserError` for a file that is missing, foreign, empty, of several policies, or with a number that is not
    finite: a report over such a file would be a wrong number.
    """
    file = scores_path(path)
    if not file.is_file():
        raise UserError("no scores", file, "make them with `evalkit score`")
    try:
        table = pq.read_table(file)
    except (pa.ArrowInvalid, OSError) as e:
        raise UserError("not a readable Parquet file", file, "score again") from e
    if missing := [n for n in SCORES.names if n not in table.column_names]:
        raise UserError(
            f"not a scores file, columns missing: {', '.join(missing)}", file, "make it with `evalkit score`"
        )
    table = table.select(SCORES.names).cast(SCORES)
    if not table.num_rows:
        raise UserError("no pair was scored", file, "see scores.json beside it for what was dropped and why")
    policies = table["policy"].unique().to_pylist()
    if len(policies) > 1:
        raise UserError(f"scores of {len(policies)} policies in one file", file, "report each policy's own file")
    for name in NUMBERS:
        values = table[name].drop_null().to_numpy()
        if not np.isfinite(values).all():
            bad = table["id"][int(np.flatnonzero(~np.isfinite(values))[0])]
            raise UserError(f"{name} is not finite, first in pair {bad}", file, "score again; check the model's dtype")
    return table
