"""scores.parquet: one row a pair, the border between models and numbers. Needs no torch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit.files import write_file
from prefkit.errors import UserError

STYLES = {"heading": "heading", "list": "list", "bold": "bold", "code": "code block"}  # of `prefkit.formats`
STYLE = pa.struct([pa.field(name, pa.int32()) for name in STYLES])
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
        # since the first version; null in files without them
        pa.field("norm_chosen", pa.float64()),  # L2 norm of the policy's token log-probabilities
        pa.field("norm_rejected", pa.float64()),
        pa.field("label_margin", pa.float32()),  # strength of the preference in the data, 0 to 1
        pa.field("chosen_key", pa.string()),  # digest of the response's token ids: which responses of a set are one
        pa.field("rejected_key", pa.string()),
        pa.field("style_chosen", STYLE),  # how many headings, list items, bold spans and code blocks
        pa.field("style_rejected", STYLE),
    ]
)
SINCE = SCORES.names.index("norm_chosen")  # the columns from here on may be absent
ABSURD = 1e12  # nats; no sum over tokens of a response comes near
COUNTS = ("n_chosen", "n_rejected", "chars_chosen", "chars_rejected")
NUMBERS = ["policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected"]


def scores_path(path: str | Path) -> Path:
    """The Parquet file meant by a folder of scores or a file."""
    path = Path(path)
    return path if path.suffix == ".parquet" else path / "scores.parquet"


def tokens_path(path: str | Path) -> Path:
    """The table of tokens beside scores: tokens.parquet, or NAME.tokens.parquet beside NAME.parquet."""
    file = scores_path(path)
    return file.with_name("tokens.parquet" if file.stem == "scores" else f"{file.stem}.tokens.parquet")


def write_scores(table: pa.Table, path: Path) -> None:
    """Write scores with the columns of SCORES."""
    write_file(table.cast(SCORES), path)


def read_scores(path: str | Path) -> pa.Table:
    """Read scores of one policy under one reference and β.

    Raises `UserError` for a file that is missing, foreign, empty, changed since it was scored, of several policies, or
    with a number that is missing or not finite: a report over such a file would be a wrong number.
    """
    file = scores_path(path)
    if not file.is_file():
        within = sorted(str(f.parent) for f in file.parent.glob("*/scores.parquet"))
        fix = f"name those of each policy: {' '.join(within)}" if within else "make them with `evalkit score`"
        raise UserError("no scores", file, fix)
    record = read_record(file)
    if record is not None and record.get("scores_sha256") != sha256(file):
        raise UserError("these are not the scores that scores.json beside them is about", file, "score again")
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise UserError("not a readable Parquet file", file, "score again") from e
    return checked(table, file)


def checked(table: pa.Table, where: object = "") -> pa.Table:
    """Scores with the columns of SCORES; UserError as in `read_scores` for what would give a wrong number."""
    table = _with_columns(table, where)
    if not table.num_rows:
        raise UserError("no pair was scored", where, "see scores.json beside it for what was dropped and why")
    _check_rows(table, where)
    _check_numbers(table, where)
    return table


def _with_columns(table: pa.Table, where: object) -> pa.Table:
    """All columns of SCORES in their order and types, those since the first version null where they are absent."""
    if missing := [n for n in SCORES.names[:SINCE] if n not in table.column_names]:
        what = f"not a scores file, columns missing: {', '.join(missing)}"
        raise UserError(what, where, "make it with `evalkit score`")
    for name in set(SCORES.names) - set(table.column_names):  # those since then
        table = table.append_column(name, pa.nulls(table.num_rows))
    try:
        return table.select(SCORES.names).cast(SCORES)
    except (pa.ArrowException, ValueError) as e:
        raise UserError(f"a column is of another type: {' '.join(str(e).split())}", where, "score again") from e


def _check_rows(table: pa.Table, where: object) -> None:
    """UserError unless each pair stands there once, whole, under one policy, reference and β."""
    for name in ("policy", "reference", "beta"):
        if (n := len(table[name].unique())) > 1:
            raise UserError(f"{n} values of {name} in one file of scores", where, "report each policy's own file")
    beta = table["beta"][0].as_py()
    if beta is None or not 0 < beta < np.inf:
        raise UserError(f"β is {beta}", where, "score again with a --beta above 0")
    if len(table["id"].unique()) < table.num_rows:
        fix = "score again; two policies in one frame need distinct names in its column policy"
        raise UserError("a pair is scored twice", where, fix)
    for name in ("id", "group_id", "policy", "truncated", *COUNTS):
        if table[name].null_count:
            raise UserError(f"{name} is missing in {table[name].null_count} rows", where, "score again")


def _check_numbers(table: pa.Table, where: object) -> None:
    """UserError for a number that no model and no data could have given."""
    shares = table["p_chosen"].drop_null().to_numpy()
    if not ((shares >= 0) & (shares <= 1)).all():
        raise UserError("p_chosen is no share of votes", where, "give shares from 0 to 1 in the data")
    referenced = table["reference"][0].as_py() is not None
    for name in NUMBERS:
        if not referenced and name.startswith("ref_"):
            continue
        values = table[name].to_numpy()  # a null is NaN here
        good = np.abs(values) < ABSURD
        if not good.all():
            bad = int(np.flatnonzero(~good)[0])
            what = "no log-probability" if np.isfinite(values[bad]) else "not finite"
            raise UserError(
                f"{name} is {what}, first in pair {table['id'][bad]}", where, "score again; check the model's dtype"
            )
    for name in ("norm_chosen", "norm_rejected"):
        if not np.isfinite(table[name].drop_null().to_numpy()).all():
            raise UserError(f"{name} is not finite", where, "score again; check the model's dtype")
    for name in COUNTS:
        if (table[name].to_numpy() < 0).any():
            raise UserError(f"{name} is below 0", where, "score again")


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def read_record(scores: Path) -> dict | None:
    """scores.json beside a file of scores: what was read, dropped and why; None where there is none."""
    file = scores.with_suffix(".json")
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text("utf-8"))
    except ValueError as e:
        raise UserError("the record of the scores is damaged", file, "score again") from e
    parts = [record.get(k) or {} for k in ("noise", "overlap", "asked")] if isinstance(record, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise UserError("the record of the scores is damaged", file, "score again")
    return record
