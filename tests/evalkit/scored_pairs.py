"""Scores made up for tests: tables of the real schema, from a few columns."""

import json

import numpy as np
import pyarrow as pa

from evalkit.scored import Scored, load
from evalkit.scores import SCORES, sha256, write_scores


def scores(**columns) -> pa.Table:
    """A scores table; columns that are not given are the same in each row. Each pair is a group of its own."""
    n = len(columns["policy_chosen"])
    row = {
        "id": [f"p{i}" for i in range(n)],
        "group_id": [f"g{i}" for i in range(n)],
        "policy": ["dpo"] * n,
        "reference": ["sft"] * n,
        "beta": [0.5] * n,
        "n_chosen": [3] * n,
        "n_rejected": [4] * n,
        "policy_rejected": [-5.0] * n,
        "ref_chosen": [-4.0] * n,
        "ref_rejected": [-5.0] * n,
        "chars_chosen": [10] * n,
        "chars_rejected": [20] * n,
        "truncated": [False] * n,
    } | columns
    return pa.table({f.name: pa.array(row.get(f.name, [None] * n), f.type) for f in SCORES}, schema=SCORES)


def with_margins(margins, beta=1.0, **columns) -> Scored:
    """Loaded scores whose implicit-reward margins are these."""
    m = np.asarray(margins, float)
    zeros = np.zeros(len(m))
    numbers = {"policy_chosen": m / beta - 5, "policy_rejected": zeros - 5, "ref_chosen": zeros - 5}
    return load(scores(**numbers | {"ref_rejected": zeros - 5, "beta": [beta] * len(m)} | columns))


def random_scores(n, groups, seed=0, **columns) -> pa.Table:
    """Scores of n pairs in so many groups that look like a model's: correlated within a group, of any length."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, n)
    skill = rng.normal(0.4, 0.7, groups)[group]
    lengths = rng.integers(5, 200, (2, n))
    ref = -2.0 * lengths + rng.normal(0, 3, (2, n))
    drift = rng.normal(0, 1, (2, n)) + 0.01 * lengths
    return scores(
        id=[f"{seed}-{i:07d}" for i in range(n)],
        group_id=[f"g{g:06d}" for g in group],
        policy_chosen=ref[0] + drift[0] + skill,
        policy_rejected=ref[1] + drift[1],
        ref_chosen=ref[0],
        ref_rejected=ref[1],
        n_chosen=lengths[0],
        n_rejected=lengths[1],
        chars_chosen=4 * lengths[0],
        chars_rejected=4 * lengths[1],
        subset=[("ale", "bock", "stout")[g % 3] for g in group],
        source=["made-up"] * n,
        **columns,
    )


def write(table: pa.Table, folder, **record):
    """A folder of scores with its scores.json."""
    write_scores(table, folder / "scores.parquet")
    known = {"policy": table["policy"][0].as_py(), "reference": table["reference"][0].as_py(), "dropped": {}}
    known |= {"read": table.num_rows, "scored": table.num_rows, "split": "test", "boundary": '"a" | "b"'}
    known |= {"scores_sha256": sha256(folder / "scores.parquet")} | record
    (folder / "scores.json").write_text(json.dumps(known))
    return folder
