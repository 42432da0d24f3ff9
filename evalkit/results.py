"""The tables that scoring makes: one row a pair of sums, one of tokens; and their files, the record last."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evalkit.files import write_file
from evalkit.inputs import Data
from evalkit.models import Role
from evalkit.scores import SCORES, STYLES, read_record, scores_path, sha256, tokens_path, write_scores
from prefkit.errors import UserError
from prefkit.formats import format_counts
from prefkit.shards import read_manifest
from train.core.logprobs import Scored
from train.core.rows import Row, sequence_key

TOKEN_ROWS = 256  # pairs whose tokens are Python objects at once
ByRole = Mapping[Role, list[Scored]]  # the reference is absent where there is none
TOKENS = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("prompt_tokens", pa.list_(pa.string())),
        *(pa.field(f"{side}_tokens", pa.list_(pa.string())) for side in ("chosen", "rejected")),
        *(pa.field(f"{w}_{s}", pa.list_(pa.float32())) for w in ("policy", "ref") for s in ("chosen", "rejected")),
    ]
)


@dataclass(frozen=True)
class Result:
    """The table of `SCORES`, the table of `TOKENS`, and the record that becomes scores.json."""

    table: pa.Table
    tokens: pa.Table
    record: dict[str, Any]


def already_scored(out: Path, made_of: Mapping[str, Any], data: Data, options: Any) -> bool:
    """Whether these scores are there: same weights (`score.made_of`), data and settings; UserError for others."""
    path = scores_path(out)
    if not path.with_suffix(".json").exists():
        return False
    record = read_record(path) or {}
    wanted = {**made_of, "manifest": read_manifest(data.folder).digest, "asked": asdict(options)}
    if other := [k for k, v in wanted.items() if record.get(k) != v]:
        what = f"other scores exist already ({', '.join(other)} differ)"
        raise UserError(what, path, "give another --out or remove them")
    return True


def write_result(result: Result, out: Path) -> Path:
    """Write tokens, scores and, last, scores.json; return the path of the scores."""
    path = scores_path(out)
    write_scores(result.table, path)
    write_file(result.tokens, tokens_path(path))
    noted = result.record | {"scores_sha256": sha256(path)}
    write_file(json.dumps(noted, indent=1, sort_keys=True, ensure_ascii=False) + "\n", path.with_suffix(".json"))
    return path


def score_table(pairs: pa.Table, rows: list[Row], scored: ByRole, names: dict[str, Any]) -> pa.Table:
    """`SCORES` in the order of the data; `names` are the columns that are the same for all."""
    numbers = dict(_numbers(rows, scored))
    records = []
    for batch in pairs.to_batches(max_chunksize=1024):
        for pair, styles in zip(batch.to_pylist(), _styles(batch), strict=True):
            if pair["id"] in numbers:
                chars = {f"chars_{s}": sum(len(m["content"]) for m in pair[s]) for s in ("chosen", "rejected")}
                kept = {k: pair[k] for k in ("id", "group_id", "set_id", "source", "subset", "p_chosen")}
                kept["label_margin"] = pair["margin"]
                records.append(kept | names | chars | styles | numbers[pair["id"]])
    return pa.Table.from_pylist(records, SCORES)


def _styles(batch: pa.RecordBatch) -> Iterator[dict[str, dict[str, int]]]:
    """What each pair's responses hold of `STYLES`."""
    sides = []
    for side in ("chosen", "rejected"):
        counts = format_counts(pa.chunked_array([batch[side]]), tuple(STYLES.values()))
        sides.append(
            [dict(zip(STYLES, row, strict=True)) for row in zip(*(c.tolist() for c in counts.values()), strict=True)]
        )
    for chosen, rejected in zip(*sides, strict=True):
        yield {"style_chosen": chosen, "style_rejected": rejected}


def token_table(rows: list[Row], scored: ByRole, tokenizer: Any) -> pa.Table:
    """`TOKENS`: token strings as the tokenizer spells them, and each token's log-probabilities."""
    told = _token_rows(rows, scored, tokenizer)
    batches = iter(lambda: list(islice(told, TOKEN_ROWS)), [])
    return pa.Table.from_batches([pa.RecordBatch.from_pylist(b, TOKENS) for b in batches], TOKENS)


def _token_rows(rows: list[Row], scored: ByRole, tokenizer: Any) -> Iterator[dict[str, Any]]:
    policy, ref = scored["policy"], scored.get("reference")

    def spell(ids: np.ndarray) -> list[str]:
        return tokenizer.convert_ids_to_tokens(ids.tolist())

    for i, row in enumerate(rows):
        prompt, responses = spell(row.prompt_ids), [spell(r) for r in row.response_ids]
        for pair, sides in zip(row.pair_ids, row.pairs, strict=True):
            record: dict[str, Any] = {"id": pair, "prompt_tokens": prompt}
            for side, r in zip(("chosen", "rejected"), sides, strict=True):
                record[f"{side}_tokens"] = responses[r]
                record[f"policy_{side}"] = policy[i].token_logps[r]
                record[f"ref_{side}"] = ref[i].token_logps[r] if ref else None
            yield record


def _numbers(rows: list[Row], scored: ByRole) -> Iterator[tuple[str, dict[str, Any]]]:
    """(pair id, its columns of SCORES that models determine)."""
    policy, ref = scored["policy"], scored.get("reference")
    for i, row in enumerate(rows):
        for pair, (w, x) in zip(row.pair_ids, row.pairs, strict=True):
            yield (
                pair,
                {
                    "n_chosen": policy[i].counts_R[w],
                    "n_rejected": policy[i].counts_R[x],
                    "policy_chosen": policy[i].logps_R[w],
                    "policy_rejected": policy[i].logps_R[x],
                    "ref_chosen": ref[i].logps_R[w] if ref else None,
                    "ref_rejected": ref[i].logps_R[x] if ref else None,
                    "chosen_key": sequence_key(row.prompt_ids, row.response_ids[w]).hex(),
                    "rejected_key": sequence_key(row.prompt_ids, row.response_ids[x]).hex(),
                    "norm_chosen": float(np.linalg.norm(policy[i].token_logps[w].astype(float))),
                    "norm_rejected": float(np.linalg.norm(policy[i].token_logps[x].astype(float))),
                    "truncated": row.prompt_truncated or row.truncated[w] or row.truncated[x],
                },
            )
