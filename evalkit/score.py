"""From models and held-out pairs to scores: the log-probabilities of every response under policy and reference.

Everything is computed by train.core, once: what a cache holds is not computed again, and a model is only loaded when
something is missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from evalkit.engines import Found, compute_local, compute_on_ray
from evalkit.inputs import Data, open_data
from evalkit.models import Models, Role, absolute, same_vocabulary, short_name, short_names
from evalkit.noise import UNMEASURED, noise_floor
from evalkit.options import NO_REFERENCE, ScoreOptions
from evalkit.overlap import training_overlap
from evalkit.results import Result, score_table, token_table
from evalkit.scored import RECORDS, caveats_of
from evalkit.template_check import disagreements
from prefkit.errors import UserError
from prefkit.progress import progress
from prefkit.shards import open_pairs, read_manifest
from train.core.encode import Limits
from train.core.logprobs import Scored, collect_logps
from train.core.rows import Row, Rows
from train.data.cache import tokenizer_digest
from train.data.dataset import load_rows
from train.models.load import context_length
from train.models.policies import Policy, describe_policy

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_BETA = 0.1


Say = Callable[[str], None]


def score_pairs(
    policy: str | Sequence[str],
    data: str | Path,
    source: str | None = None,
    source_options: dict[str, str] | None = None,
    say: Say | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Scores of one policy or several on held-out pairs, as a pandas frame; keywords are fields of `ScoreOptions`.

    Its `attrs` keep each policy's record, what scores.json is of a file. `say` gets the lines that the command prints;
    without it what was dropped, trained on or does not fit is warned of. Policies whose folders have one name are told
    apart by the folders above. Raises UserError for a missing model or data set, or a reference of another vocabulary.
    """
    import pandas as pd

    tell = say or (lambda line: None)
    folder, how = open_data(data, source, source_options, tell), ScoreOptions(**options)
    paths = [policy] if isinstance(policy, str) else list(policy)
    policies = dict(zip([short_name(p) for p in paths] if len(paths) == 1 else short_names(paths), paths, strict=True))
    results = {name: score(path, folder, how, tell) for name, path in policies.items()}
    for name, result in results.items() if say is None else ():
        for line in (*caveats_of(result.record), *result.record["warnings"]):
            warnings.warn(f"{name}: {line}", stacklevel=2)
    frame = pd.concat([r.table.to_pandas().assign(policy=name) for name, r in results.items()], ignore_index=True)
    frame.attrs[RECORDS] = {name: result.record for name, result in results.items()}
    return frame


def score(policy: str, data: Data | Path, options: ScoreOptions, say: Say = lambda line: None) -> Result:
    """Encode the split, compute what no cache holds, and put the numbers beside their pairs.

    `data` is a folder of shards, or what `open_data` made of something else. Of several processes (torchrun) each
    computes its share; all return the same.
    """
    data = data if isinstance(data, Data) else Data(data, data.resolve().name)
    split = open_pairs(data.folder, options.split)
    pairs = split.slice(0, options.limit) if options.limit is not None else split
    models = find_models(policy, options)
    limits = _limits(models.policy, options)
    built = _read(data.folder, options, models.policy, limits)
    boundary = built.rows[0].boundary(models.policy.tokenizer)
    counts = built.counts()
    dropped = "".join(f", {n} dropped: {reason}" for reason, n in counts["dropped"].items())
    say(f"pairs    {built.read} read, {built.kept} to score of {counts['prompts']} prompts{dropped}")
    if counts["truncated_pairs"]:
        say(f"cut      {counts['truncated_pairs']} pairs were truncated to {limits.max_tokens} tokens")
    say(f"boundary {boundary}")
    warned = list(disagreements(models.policy, pairs))
    for warning in warned:
        say(f"warning: {warning}")
    kept = pa.array([i for row in built.rows for i in row.pair_ids])
    overlap = training_overlap(policy, pairs.filter(pc.is_in(pairs["id"], value_set=kept)))
    say(f"overlap  {overlap.line}")
    if overlap.exact or overlap.near:
        say("warning: the policy was trained on prompts that it is evaluated on: this is no held-out number")
    scored = {role: _collect(models, role, built.rows, options, say) for role in models.roles}
    noise = noise_floor(models, built.rows, options.tokens_per_batch) if options.noise else None
    if options.noise:
        say(f"noise    {noise.line if noise is not None else UNMEASURED}")

    reference = short_name(models.path("reference")) if models.referenced else None
    say(f"policy   {short_name(policy)} · reference {reference or NO_REFERENCE}")
    trained = models.policy.config.get("dpo", {})
    beta = options.beta if options.beta is not None else float(trained.get("beta", DEFAULT_BETA))
    names = {"policy": short_name(policy), "reference": reference, "beta": beta}
    record = {
        **names,
        "data": data.name,
        "data_path": str(data.folder.resolve()),
        "ledgers": data.ledgers,
        "manifest": read_manifest(data.folder).digest,
        "split": options.split,
        "in_split": split.num_rows,
        "max_tokens": limits.max_tokens,
        "boundary": boundary,
        "read": built.read,
        "scored": built.kept,
        "dropped": counts["dropped"],
        "four_bit": models.policy.four_bit,
        "reference_four_bit": models.kept("reference").four_bit if models.referenced else None,
        "warnings": warned,
        "noise": noise._asdict() if noise is not None else None,
        "overlap": overlap._asdict() if overlap.line else None,
        "policy_path": absolute(policy),
        "reference_path": absolute(models.path("reference")) if models.referenced else None,
        "asked": asdict(options),
        **made_of(models),
        "run": _run_record(models.policy),
        "versions": {name: version(name) for name in ("prefkit", "torch", "transformers", "peft")},
    }
    tables = score_table(pairs, built.rows, scored, names), token_table(built.rows, scored, models.policy.tokenizer)
    return Result(*tables, record)


def find_models(policy: str, options: ScoreOptions) -> Models:
    """The policy with the reference that the options ask for; UserError where there is none, or it does not fit."""
    described = describe_policy(policy, template=options.template, reference=options.reference is None)
    if options.reference == NO_REFERENCE:
        return Models(described, referenced=False)
    if options.reference is None:
        if described.kind == "none":
            fix = "give --reference MODEL, or --reference none for plain log π"
            raise UserError("this policy names no reference", policy, fix)
        return Models(described)
    other = describe_policy(options.reference, dtype=described.dtype, reference=False)
    if described.four_bit and not other.config:  # a plain model beside a QLoRA policy: over the same 4-bit weights
        other = replace(other, four_bit=True)
    same_vocabulary(described, other)
    return Models(described, other)


def made_of(models: Models) -> dict[str, Any]:
    """What log-probabilities follow from besides data and options, whatever the names of the folders."""
    return {
        "policy_digest": models.digest("policy"),
        "reference_digest": models.digest("reference") if models.referenced else None,
        "tokenizer_digest": tokenizer_digest(models.policy.tokenizer),
        "template": models.policy.template.source,
        "dtype": models.policy.dtype,
    }


def _limits(policy: Policy, options: ScoreOptions) -> Limits:
    """Of tokens: those asked for, else all that the model has positions for."""
    context = context_length(policy.path)
    if options.max_tokens is not None and context is not None and options.max_tokens > context:
        what = f"--max-tokens {options.max_tokens} is more than the model's {context} positions"
        raise UserError(what, policy.path, f"--max-tokens {context} at most")
    return Limits(options.max_tokens or context or 4096, None, options.too_long)


def _read(data: Path, options: ScoreOptions, policy: Policy, limits: Limits) -> Rows:
    built = load_rows(data, options.split, options.limit, "pairs", policy.tokenizer, policy.template, limits)
    if not built.rows:
        reasons = ", ".join(f"{len(ids)} {reason}" for reason, ids in built.dropped.items())
        what = (
            f"no pair of split {options.split!r} is left within {limits.max_tokens} tokens ({reasons or 'none read'})"
        )
        raise UserError(what, data, "raise --max-tokens, or see --too-long")
    return built


def _collect(models: Models, role: Role, rows: list[Row], options: ScoreOptions, say: Say) -> list[Scored]:
    """One model's log-probabilities: from its cache, and what that lacks from the engine."""
    cache, name = models.cache(role), short_name(models.path(role))
    total, started = sum(len(r.response_ids) for r in rows), monotonic()
    asked = known = 0
    with progress(name, total) as advance:

        def compute(missing: list[Row]) -> Found:
            nonlocal asked, known
            known, asked = cache.hits, sum(len(r.response_ids) for r in missing)
            advance(total - asked)
            if options.engine == "ray" and missing:
                return compute_on_ray(models, role, missing, options.tokens_per_batch, options.ray_address)
            return compute_local(models, role, missing, options.tokens_per_batch, say)

        scored = collect_logps(rows, compute, cache, advance)
    seconds = models.seconds.get(role, monotonic() - started)  # without loading, where that is known
    pairs = sum(len(r.pairs) for r in rows) * asked / total
    rate = f", {pairs / seconds:,.1f} pairs/s" if asked else ""
    say(f"forwards {asked} responses computed{rate}, {known} from the cache: {name} in {models.policy.dtype}")
    return scored


def _run_record(policy: Policy) -> dict[str, Any] | None:
    """What ties the scores to the run that made the policy: digests of its data and of what it started from."""
    if not policy.config:
        return None
    return {"digests": policy.config.get("digests"), "data_path": policy.config.get("data", {}).get("path")}
