"""The commands of `prefkit`: each takes its arguments, calls one function and prints what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from prefkit.errors import UserError
from prefkit.no_pandas import forget_pandas
from prefkit.shards import MANIFEST, Manifest, open_pairs
from prefkit.shards import verify as problems_of
from prefkit.terminal import STDOUT, print_pair
from prefkit.wording import counted, counts_text


def sources() -> None:
    """List the sources convert understands, with the defaults of their options."""
    import json
    from dataclasses import fields

    from prefkit.sources import SOURCES, get_source

    for name in sorted(SOURCES):
        source = get_source(name)
        STDOUT.print(f"{name:<22} {source.summary} [{source.licence}]")
        for option in fields(source.options):
            default = json.dumps(option.default) if isinstance(option.default, bool) else option.default or "…"
            STDOUT.print(f"{'':<22} --options.{option.name} {default}")


def show(
    data: Path,
    /,
    *,
    n: Annotated[int, Parameter(name=["-n", "--number"], validator=Number(gte=0, lt=1 << 40))] = 3,
    split: str | None = None,
) -> None:
    """Print pairs of a data set.

    Parameters
    ----------
    data
        Folder that convert wrote.
    n
        How many pairs, from the first.
    split
        Of this split only.
    """
    forget_pandas()
    for pair in open_pairs(data, split).slice(0, n).to_pylist():
        print_pair(pair)


def verify(data: Path, /) -> int:
    """Check a data set against its manifest: exit 1 and one line for each thing that is wrong.

    Parameters
    ----------
    data
        Folder that convert wrote.
    """
    if not (data / MANIFEST).is_file():
        Manifest.read(data)  # says what this is instead
    problems = problems_of(data)
    for problem in problems:
        STDOUT.print(problem)
    if not problems:
        manifest = Manifest.read(data)
        rows = sum(c["rows"] for c in manifest.splits.values())
        STDOUT.print(f"{data}: whole; {len(manifest.files)} files, {counted(rows, 'pair')}, both ledgers balance")
    return 1 if problems else 0


def stats(data: Path, /, *, html: Path | None = None) -> None:
    """Describe a data set: counts, years, strengths, lengths, and what length and format give away.

    Parameters
    ----------
    data
        Folder that convert wrote.
    html
        File for the same as a page with plots.
    """
    from prefkit.stats import describe
    from prefkit.stats_text import lines

    forget_pandas()
    found = describe(data)
    if html is not None:
        from prefkit.stats_page import write_page

        write_page(found, data, html)
        STDOUT.print(f"wrote {html}")
        return
    for line in lines(found):
        STDOUT.print(line)


def diff(a: Path, b: Path, /) -> int:
    """Say what differs between two data sets: exit 1 if pairs came, went or moved, 0 if only settings or counts did.

    Parameters
    ----------
    a
        Folder that convert wrote.
    b
        Another one.
    """
    from prefkit.diff import diff as compare
    from prefkit.diff import lines

    forget_pandas()
    found = compare(a, b)
    for line in lines(found, a, b):
        STDOUT.print(line)
    return 0 if found.is_empty() else 1


def push(data: Path, repo: str, /, *, public: bool = False) -> None:
    """Upload a data set to the Hugging Face Hub.

    Parameters
    ----------
    data
        Folder that convert wrote; it must be whole.
    repo
        OWNER/NAME on the Hub; made if it does not exist.
    public
        Let everybody see a repository that is made now.
    """
    from prefkit.push import push as upload

    STDOUT.print(upload(data, repo, private=not public))


def sample(
    folder: Path, /, *, questions: Annotated[int, Parameter(validator=Number(gte=1))] = 600, seed: int = 0
) -> None:
    """Write a small synthetic dump in the real Stack Exchange format, for demos and tests.

    Parameters
    ----------
    folder
        Where to write; must be new or empty.
    questions
        How many questions.
    seed
        Another seed, another dump.
    """
    from prefkit.sample import write_sample

    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError("the folder is not empty", folder, "choose another one")
    rows = write_sample(folder, questions, seed)
    STDOUT.print(f"{folder}: a synthetic dump, {counts_text(rows)} (rows)")


def trace(pair_id: str, data: Path, /, *, scores: Path | None = None, report: Path | None = None) -> None:
    """Follow one pair from its lines in the dump to its row in the shards, and on to its row in the report.

    Parameters
    ----------
    pair_id
        The pair's id or source id (beer/123/456-789), how one of them begins, or the position of one of its records.
    data
        Folder that convert wrote.
    scores
        Folder (or its scores.parquet) that evalkit score wrote.
    report
        Folder that evalkit report wrote.
    """
    from prefkit.trace import find, follow
    from prefkit.trace_scores import report_steps, score_steps

    found = find(pair_id, data)
    steps = follow(found)
    steps += score_steps(found.row["id"], scores) if scores is not None else []
    steps += report_steps(found.row["id"], report) if report is not None else []
    for step in steps:
        STDOUT.print(f"{step.stage:<18} {step.text}")
