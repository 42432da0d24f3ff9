"""What the commands of `evalkit` do with their arguments: call, and print what a person wants to know."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from evalkit import terminal
from evalkit.files import check_folder
from evalkit.generate.base import Settings
from evalkit.generate.files import distinct_prompts, write_answers
from evalkit.inputs import open_data
from evalkit.options import NO_REFERENCE, ScoreOptions
from evalkit.scores import scores_path, tokens_path
from prefkit.errors import UserError
from prefkit.shards import open_pairs
from train.core.encode import Template
from train.models.libraries import lean_peft
from train.models.locate import locate
from train.models.memory import keep_pages


def score(
    *,
    policy: list[str],
    data: str,
    out: Path,
    source: str | None = None,
    options: dict[str, str] | None = None,
    how: Annotated[ScoreOptions, Parameter(name="*")] = ScoreOptions(),  # noqa: B008 - frozen
) -> None:
    """Score held-out pairs with a policy and its reference.

    Parameters
    ----------
    policy
        Run folder, adapter, model folder or hub name; give it again for further policies.
    data
        A data set made by `prefkit convert`, or what it could convert (a file, folder or URL), all in split test.
    out
        Folder, or a .parquet file, for the scores; of several policies, a folder with a folder for each.
    source
        Of data that is no data set yet: one of `prefkit sources`; guessed where the input tells.
    options
        Options of the source, such as --options.prompt question.
    """
    if how.ray_address is not None and how.engine != "ray":
        raise UserError("--ray-address goes with --engine ray", fix="add --engine ray")
    if len(policy) > 1 and out.suffix == ".parquet":
        raise UserError("several policies need a folder", out, "give --out DIR")
    check_folder(scores_path(out).parent)
    if len(policy) == 1 and scores_path(out).with_suffix(".json").exists():
        raise UserError("scores exist already", scores_path(out), "give another --out or remove them")
    for path in [*policy, *([how.reference] if how.reference not in (None, NO_REFERENCE) else [])]:
        locate(path)
    if how.template is not None:
        Template.named(how.template)
    first = os.environ.get("RANK", "0") == "0"
    say = terminal.say if first else (lambda line: None)
    found = open_data(data, source, options, say)
    open_pairs(found.folder, how.split)  # like all above: a mistake is told before torch is loaded
    keep_pages()
    lean_peft()
    from evalkit.models import short_names
    from evalkit.results import already_scored, write_result
    from evalkit.score import find_models, made_of
    from evalkit.score import score as run

    homes = dict(zip(policy, [out / n for n in short_names(policy)] if len(policy) > 1 else [out], strict=True))
    for home in homes.values():
        file = scores_path(home)
        check_folder(file.parent, files=(file.name, tokens_path(file).name), column="policy_chosen")
    # A mistake in the last one is found before the first is computed.
    made = {home: made_of(find_models(path, how)) for path, home in homes.items()}
    done = {home for home in made if already_scored(home, made[home], found, how)}
    for path, home in homes.items():
        if home in done:
            say(f"scores   {scores_path(home)}: there already, of the same policy, data and settings")
            continue
        result = run(path, found, how, say=say)
        if first:
            say(f"scores   {write_result(result, home)}: {result.table.num_rows} pairs")


def generate(
    *,
    model: str,
    data: Path,
    out: Path,
    split: str = "test",
    limit: int | None = None,
    name: str | None = None,
    template: str | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 8,
) -> None:
    """Answer the held-out prompts of a data set, one JSON line a prompt.

    Parameters
    ----------
    model
        Run folder, adapter, model folder or hub name.
    data
        A data set made by `prefkit convert`.
    out
        The .jsonl file to write; an interrupted run goes on where it stopped.
    split
        Which split's prompts to answer.
    limit
        Answer only the first prompts.
    name
        How the model is called in results; the folder's name by default.
    template
        Chat template or format string; the run's own by default.
    max_new_tokens
        Tokens of an answer at most.
    temperature
        0 takes the likeliest token each time.
    top_p
        Share of probability to draw from, with a temperature.
    seed
        Of the draws.
    batch_size
        Prompts answered at once.
    """
    if max_new_tokens < 1 or batch_size < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise UserError("these settings draw no answer", fix="tokens and batch above 0, temperature from 0, top-p to 1")
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit} leaves nothing", fix="give at least 1")
    locate(model)
    pairs = open_pairs(data, split)
    text = Template.named(template).source if template is not None else None
    lean_peft()
    prompts = distinct_prompts(pairs, limit)
    chosen = Settings(max_new_tokens, temperature, top_p, seed, batch_size, text)
    cut = write_answers(model, prompts, out, chosen, name=name)
    terminal.say(f"wrote {out}: {len(prompts)} answers" + (f", {cut} cut at the token limit" if cut else ""))
