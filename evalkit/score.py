"""Held-out pairs × policy × reference → scores.parquet, one row a pair. Everything numeric comes from train.core.

Beside it: scores.json (what was read, dropped and why, with which models and template; written last) and tokens.parquet
(each pair's tokens with their log-probabilities, for `prefkit trace` and for reports).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit.scores import SCORES, scores_path, sha256, write_scores
from prefkit.errors import UserError
from prefkit.progress import progress
from prefkit.shards import open_pairs, read_manifest
from train.core.cache import LogpCache
from train.core.dataset import load_rows
from train.core.encode import Encoded, Limits
from train.core.locate import weights_digest
from train.core.logprobs import Scored, base_model, check_fits, check_head, response_logps
from train.core.policies import Loaded, load_policy, reference_context
from train.core.rows import Row, Rows, sequence_key
from train.core.sharing import Sharing, decide_sharing

if TYPE_CHECKING:
    import pandas as pd

NO_REFERENCE = "none"
DEFAULT_BETA = 0.1
TOKENS = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("prompt_tokens", pa.list_(pa.string())),
        *(pa.field(f"{side}_tokens", pa.list_(pa.string())) for side in ("chosen", "rejected")),
        *(pa.field(f"{w}_{s}", pa.list_(pa.float32())) for w in ("policy", "ref") for s in ("chosen", "rejected")),
    ]
)


@dataclass(frozen=True)
class ScoreOptions:
    """What to score and how; None takes what the policy's run was trained with, else the model's own."""

    split: str = "test"
    reference: str | None = None
    beta: float | None = None
    template: str | None = None
    max_tokens: int | None = None
    too_long: Literal["drop", "truncate_prompt", "truncate_response"] = "drop"
    tokens_per_batch: int = 8192
    limit: int | None = None


def score_pairs(policy: str, data: str | Path, **options: Any) -> pd.DataFrame:
    """Scores of one policy on held-out pairs as a pandas frame; keywords are the fields of `ScoreOptions`.

    Raises UserError for a missing model or data set, or a reference with another vocabulary.
    """
    return score(policy, Path(data), ScoreOptions(**options)).table.to_pandas()


@dataclass(frozen=True)
class Result:
    """The table of `SCORES`, the table of `TOKENS`, and the record that becomes scores.json."""

    table: pa.Table
    tokens: pa.Table
    record: dict[str, Any]


def score(policy: str, data: Path, options: ScoreOptions, say: Callable[[str], None] = lambda line: None) -> Result:
    """Encode the split, run policy and reference over the same rows, and put the numbers beside their pairs."""
    table = open_pairs(data, options.split)
    table = table.slice(0, options.limit) if options.limit is not None else table
    loaded = load_policy(policy, template=options.template, reference=options.reference is None)
    limits = _limits(loaded, options)
    built = load_rows(data, options.split, options.limit, "pairs", loaded.tokenizer, loaded.template, limits)
    if not built.rows:
        what = f"no pair of split {options.split!r} fits {limits.max_tokens} tokens"
        raise UserError(what, data, "raise --max-tokens")
    boundary = _boundary(built, loaded.tokenizer)
    counts = built.counts()
    dropped = "".join(f", {n} dropped: {reason}" for reason, n in counts["dropped"].items())
    say(f"pairs    {table.num_rows} read, {built.kept} to score of {counts['prompts']} prompts{dropped}")
    say(f"boundary {boundary}")

    checked: dict[int, Sharing] = {}  # by model: with an adapter, policy and reference are one object

    dtype = _dtype(loaded.model)

    def run(model: Any, path: str) -> list[Scored]:
        """`path` says which weights: the cache of one model must never answer for another."""
        if id(model) not in checked:
            check_fits(model, built.rows)
            check_head(model)
            checked[id(model)] = decide_sharing(model, built.rows)
            say(checked[id(model)].line)
        four_bit = bool(getattr(base_model(model), "is_loaded_in_4bit", False))
        cache = LogpCache(weights_digest(path), _dtype(model), four_bit, path)
        total = len({sequence_key(r.prompt_ids, ids) for r in built.rows for ids in r.response_ids})
        with progress(_name(path), total) as advance:
            packed = checked[id(model)].packed
            scored = response_logps(model, built.rows, options.tokens_per_batch, packed, cache, advance)
        say(f"forwards {cache.misses} responses computed, {cache.hits} from the cache: {_name(path)}")
        return scored

    policy_scored = run(loaded.model, policy)
    reference, ref_scored = _reference_scores(loaded, options, run)
    say(f"policy   {_name(policy)} · reference {reference or NO_REFERENCE}")

    beta = options.beta if options.beta is not None else float(loaded.config.get("dpo", {}).get("beta", DEFAULT_BETA))
    names = {"policy": _name(policy), "reference": reference, "beta": beta}
    numbers = dict(_numbers(built.rows, policy_scored, ref_scored))
    record = {
        **names,
        "data": Path(data).name,
        "manifest": read_manifest(data).digest,
        "split": options.split,
        "template": loaded.template.source,
        "max_tokens": limits.max_tokens,
        "boundary": boundary,
        "read": table.num_rows,
        "scored": built.kept,
        "dropped": counts["dropped"],
        "dtype": dtype,
    }
    tokens = pa.Table.from_pylist(list(_token_rows(built.rows, policy_scored, ref_scored, loaded.tokenizer)), TOKENS)
    return Result(_table(table, numbers, names), tokens, record)


def write_result(result: Result, out: Path) -> Path:
    """Write tokens, scores and, last, scores.json; return the path of the scores."""
    path = scores_path(out)
    write_scores(result.table, path)
    noted = result.record | {"scores_sha256": sha256(path)}
    tokens, record = path.with_name("tokens.parquet"), path.with_suffix(".json")
    for target, write in (
        (tokens, lambda p: pq.write_table(result.tokens, p, compression="zstd")),
        (
            record,
            lambda p: p.write_text(json.dumps(noted, indent=1, sort_keys=True, ensure_ascii=False) + "\n"),
        ),
    ):
        temporary = target.with_name(f".{target.name}.tmp")
        write(temporary)
        temporary.replace(target)
    return path


def _limits(loaded: Loaded, options: ScoreOptions) -> Limits:
    context = getattr(loaded.model.config.get_text_config(), "max_position_embeddings", None)
    return Limits(options.max_tokens or context or 4096, None, options.too_long)


def _boundary(built: Rows, tokenizer: Any) -> str:
    first = built.rows[0]
    return Encoded(first.prompt_ids, first.response_ids, first.truncated).boundary(tokenizer)


def _reference_scores(
    loaded: Loaded, options: ScoreOptions, run: Callable[[Any, str], list[Scored]]
) -> tuple[str | None, list[Scored] | None]:
    """Name of the reference and its scores; (None, None) without one."""
    if options.reference == NO_REFERENCE:
        return None, None
    if options.reference is None:
        if loaded.reference == NO_REFERENCE:
            raise UserError(
                "this policy names no reference",
                loaded.path,
                "give --reference MODEL, or --reference none for plain log π",
            )
        with reference_context(loaded.model, loaded.reference, loaded.frozen) as model:
            start = _started_from(loaded)
            return _name(start), run(model, start)
    other = load_policy(options.reference, dtype=_dtype(loaded.model), reference=False)
    if other.tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise UserError(
            "policy and reference have different vocabularies", options.reference, "give the model it started from"
        )
    return _name(options.reference), run(other.model, options.reference)


def _started_from(loaded: Loaded) -> str:
    """Path of the model a run started from; of the base under a foreign adapter."""
    return loaded.config.get("model", {}).get("path") or base_model(loaded.model).name_or_path


def _numbers(rows: list[Row], policy: list[Scored], ref: list[Scored] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(pair id, its columns of SCORES that models determine)."""
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
                    "norm_chosen": float(np.linalg.norm(policy[i].token_logps[w].astype(float))),
                    "norm_rejected": float(np.linalg.norm(policy[i].token_logps[x].astype(float))),
                    "truncated": row.prompt_truncated or row.truncated[w] or row.truncated[x],
                },
            )


def _table(pairs: pa.Table, numbers: dict[str, dict[str, Any]], names: dict[str, Any]) -> pa.Table:
    """Scores in the order of the data."""
    records = []
    for batch in pairs.to_batches(max_chunksize=1024):
        for pair in batch.to_pylist():
            if pair["id"] in numbers:
                chars = {f"chars_{s}": sum(len(m["content"]) for m in pair[s]) for s in ("chosen", "rejected")}
                kept = {k: pair[k] for k in ("id", "group_id", "set_id", "source", "subset", "p_chosen")}
                kept["label_margin"] = pair["margin"]
                records.append(kept | names | chars | numbers[pair["id"]])
    return pa.Table.from_pylist(records, SCORES)


def _token_rows(
    rows: list[Row], policy: list[Scored], ref: list[Scored] | None, tokenizer: Any
) -> Iterator[dict[str, Any]]:
    """One record of TOKENS a pair; token strings as the tokenizer spells them."""

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


def _dtype(model: Any) -> str:
    return str(model.dtype).removeprefix("torch.")


def _name(path: str) -> str:
    """How a model is called in tables: a hub name, or the last part of a local path."""
    return Path(path).resolve().name if Path(path).exists() else path
