"""The commands `prefkit train tiny-model | sft | dpo`; libraries load only after the configuration was checked."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from prefkit.command_line import whole_numbers
from prefkit.errors import UserError
from train.check import check, check_places
from train.config import DpoRun, Run, SftRun
from train.config_file import from_yaml
from train.folder import only_run
from train.models.libraries import lean_libraries, lean_peft
from train.models.memory import keep_pages

RunFolder = Annotated[
    Path,
    Parameter(
        help="Run folder: adapter or model, run.yaml, metrics.jsonl, summary.json, checkpoints."
        " The same command resumes it."
    ),
]
ConfigFile = Annotated[
    Path | None, Parameter(help="YAML file with these sections (model, data, lora, …); flags win over it.")
]

sft = App(name="sft", config=(from_yaml, whole_numbers), help="Supervised fine-tuning on the chosen responses.")
dpo = App(name="dpo", config=(from_yaml, whole_numbers), help="Direct preference optimisation on pairs.")


@sft.default
def _sft(
    *,
    run: Annotated[SftRun, Parameter(name="*")] = SftRun(),  # noqa: B008 - frozen
    out: RunFolder,
    config: ConfigFile = None,
) -> None:
    """Supervised fine-tuning on the chosen responses."""
    _start("train.sft:train_sft", run, out)


@dpo.default
def _dpo(
    *,
    run: Annotated[DpoRun, Parameter(name="*")] = DpoRun(),  # noqa: B008 - frozen
    out: RunFolder,
    config: ConfigFile = None,
) -> None:
    """Direct preference optimisation on pairs."""
    _start("train.dpo:train_dpo", run, out)


def _start(trainer: str, run: Run, out: Path) -> None:
    checked = check(run)  # before libraries that take seconds to import
    with only_run(out):
        check_places(checked, out)  # another run may have finished there since
        keep_pages()
        lean_peft()
        module, _, function = trainer.partition(":")
        getattr(importlib.import_module(module), function)(checked, out)


def tiny_model(
    *,
    data: Annotated[Path, Parameter(name="--data.path")],
    out: Path,
    vocab_size: int = 1024,
    hidden: int = 128,
    layers: int = 3,
    heads: int = 4,
    max_positions: int = 2048,
    seed: int = 0,
) -> None:
    """Train a byte-level tokenizer on a data set and write a small random Llama beside it.

    Parameters
    ----------
    data
        Data set folder; its train split makes the tokenizer.
    out
        Model folder.
    """
    from train.tiny_model import check_shape, write_tiny_model

    check_shape(out, vocab_size, hidden, layers, heads, max_positions)
    lean_libraries()
    write_tiny_model(data, out, vocab_size, hidden, layers, heads, max_positions, seed)


def cache(*, prune: bool = False, days: Annotated[float | None, Parameter(validator=Number(gte=0))] = None) -> None:
    """List cached token ids and log-probabilities, or remove those that were not used lately.

    Parameters
    ----------
    prune
        Remove instead of listing; whatever is needed again is computed again.
    days
        With --prune: what was not used for so long, by default 30; 0 is everything.
    """
    from prefkit.files import cache_folder
    from train.data.cached_files import entries
    from train.data.cached_files import prune as remove

    if days is not None and not prune:
        raise UserError("--days goes with --prune", fix="add --prune")
    found = remove(30 if days is None else days) if prune else entries()
    for e in found:
        print(f"{e.kind:<7} {e.megabytes:9.1f} MB  {e.days:5.1f} days  {e.about}")
    total, place = sum(e.megabytes for e in found), str(cache_folder()).replace(str(Path.home()), "~", 1)
    print(f"{'removed ' * prune}{len(found)} files, {total:.1f} MB in {place}")
