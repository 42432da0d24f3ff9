"""The commands of `prefkit`: each takes its arguments, calls one function and prints what came of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console

from prefkit.shards import Manifest, counts_text, ledger_lines
from prefkit.split import DEFAULT_SPLITS

STDOUT = Console(markup=False, highlight=False, soft_wrap=True, emoji=False)
STDERR = Console(stderr=True, markup=False, highlight=False, soft_wrap=True, emoji=False)


def convert(
    *inputs: str,
    out: str | None = None,
    source: str | None = None,
    splits: str = DEFAULT_SPLITS,
    where: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    limit: int | None = None,
    dry_run: bool = False,
    format: Literal["arrow", "parquet"] = "arrow",
    check: list[str] | None = None,
    near: float = 0.8,
    against: list[Path] | None = None,
    splits_from: Path | None = None,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    profile: bool = False,
    options: dict[str, str] | None = None,
) -> None:
    """Turn a preference source into validated Arrow shards.

    Parameters
    ----------
    inputs
        Dumps, files of pairs, or folders of them; paths or URLs (s3://…, gs://…, https://…).
    out
        Folder (or URL) for the data set, new or empty. A stopped run goes on when the same command is given again.
    source
        One of `prefkit sources`; guessed where the input tells.
    splits
        Names and shares. Pairs with the same prompt, question or duplicate link stay in one split.
    where
        SQL condition over the columns of a pair, such as "margin > 0.5 and len(chosen[1].content) < 4000".
    seed
        Decides splits and which pairs a long question keeps.
    workers
        Processes; changes nothing in the output.
    limit
        At most so many questions (records, for sources of lines).
    dry_run
        Count, show a few pairs, estimate time and disk, write nothing; with --limit, from so many questions.
    format
        parquet for tools that do not read Arrow streams.
    check
        NAME=reject, flag or off: what becomes of rows that a check finds; may be given more than once.
    near
        Prompts whose word 3-grams overlap at least so much (Jaccard) never part; 0 does not look for them.
    against
        Evaluation sets, files or folders, whose texts no pair may repeat; may be given more than once.
    splits_from
        A data set whose prompts stay in their splits.
    engine
        ray for a cluster of machines that see the same files.
    ray_address
        Of a running cluster, such as auto or ray://host:10001; without it a new one starts here.
    profile
        Show where the time went, step by step and check by check.
    options
        Options of the source, such as --options.site beer.
    """
    from prefkit.engine import warm_up

    if engine == "local" and not dry_run:
        warm_up(inputs, workers)  # before the imports, which take as long as its own
    from prefkit.convert import convert_dataset
    from prefkit.errors import UserError
    from prefkit.folder import discard
    from prefkit.preview import preview_dataset

    shared: dict[str, Any] = {
        "source": source, "splits": splits, "where": where, "seed": seed, "workers": workers, "limit": limit,
        "checks": _severities(check), "near": near, "against": against or (), "splits_from": splits_from,
    }  # fmt: skip
    if dry_run:
        seen = preview_dataset(inputs, options=options, format=format, **shared)
        _print_ledgers(seen.manifest)
        for pair in seen.pairs.to_pylist():
            _print_pair(pair)
        sizes = f"{seen.data_bytes / 1e6:.1f} MB on disk, {seen.work_bytes / 1e6:.1f} MB more while it runs"
        STDOUT.print(f"estimate for all of it, from {seen.share:.1%} of the records: {seen.seconds:.1f} s, {sizes}")
        STDOUT.print("dry run: nothing was written")
        return
    if out is None:
        raise UserError("no output folder", fix="add --out DIR, or --dry-run to look first")
    started = time.perf_counter()
    manifest = convert_dataset(
        inputs, out, options=options, format=format, engine=engine, ray_address=ray_address, **shared
    )
    _print_ledgers(manifest)
    if profile:
        _print_profile(Path(out))
    if not any(split["rows"] for split in manifest.splits.values()):
        discard(Path(out))  # so that the mended command can have the folder
        fix = "see the reasons above"
        if "pairs" in manifest.sources:
            fix += "; `prefkit sources` lists options that name columns, such as --options.prompt"
        raise UserError("not one pair came out, nothing was kept", inputs[0], fix)
    seconds = max(time.perf_counter() - started, 1e-9)
    megabytes = sum(i["bytes"] for i in manifest.inputs) / 1e6
    STDOUT.print(f"{out}: {megabytes:.1f} MB in {seconds:.1f} s ({megabytes / seconds:.1f} MB/s)")


def _severities(given: list[str] | None) -> dict[str, str]:
    """`["too_long=reject"]` as a mapping."""
    from prefkit.errors import UserError

    pairs = [g.partition("=") for g in given or []]
    if bad := [name for name, equals, _ in pairs if not equals]:
        raise UserError(f"--check {bad[0]} says nothing", fix=f"such as --check {bad[0]}=off")
    return {name: severity for name, _, severity in pairs}


def _print_profile(data: Path) -> None:
    """Times out of `_run.log`: phases in wall seconds, checks in seconds of all workers together."""
    import json

    notes = [json.loads(line) for line in (data / "_run.log").read_text("utf-8").splitlines()]
    for note in notes:
        if "phase" in note:
            STDOUT.print(f"  {note['phase']:<28} {note['wall_seconds']:8.2f} s")
        if "check_seconds" in note:
            for name, seconds in sorted(note["check_seconds"].items(), key=lambda c: -c[1]):
                STDOUT.print(f"    {name:<26} {seconds:8.3f} s of all workers")


def _print_ledgers(manifest: Manifest) -> None:
    for line in ledger_lines(manifest.sources):
        STDOUT.print(line)
    if manifest.repairs:
        STDOUT.print(f"  repairs     {counts_text(manifest.repairs)}")
    if manifest.links:
        STDOUT.print(f"  links       {counts_text(manifest.links)}")
    for name, counts in manifest.tables.items():
        STDOUT.print(f"  {name:<11} {counts_text(counts)}")
    splits = (f"{name} {c['rows']:,} pairs in {c['groups']:,} groups" for name, c in manifest.splits.items())
    STDOUT.print(f"  splits      {', '.join(splits)}")
    for warning in manifest.warnings:
        STDERR.print(f"warning: {warning}")


def sources() -> None:
    """List the sources convert understands, with their options."""
    from dataclasses import fields

    from prefkit.sources import SOURCES, get_source

    for name in sorted(SOURCES):
        source = get_source(name)
        STDOUT.print(f"{name:<22} {source.summary} [{source.licence}]")
        for option in fields(source.options):
            STDOUT.print(f"{'':<22} --options.{option.name} {option.default!r}")


def show(data: Path, /, *, n: Annotated[int, Parameter(name=["-n", "--number"])] = 3, split: str | None = None) -> None:
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
    from prefkit.shards import open_pairs

    for pair in open_pairs(data, split).slice(0, n).to_pylist():
        _print_pair(pair)


def _print_pair(pair: dict[str, Any]) -> None:
    strength = "" if pair["margin"] is None else f"  margin {pair['margin']:.3f}"
    STDOUT.rule(f"{pair['id']}  {pair['source_id']}{strength}", align="left", style="")
    for name in ("prompt", "chosen", "rejected"):
        for message in pair[name]:
            STDOUT.print(f"── {name} · {message['role']}\n{message['content']}\n")


def verify(data: Path, /) -> int:
    """Check a data set against its manifest: exit 1 and one line for each thing that is wrong.

    Parameters
    ----------
    data
        Folder that convert wrote.
    """
    from prefkit.shards import verify as problems_of

    problems = problems_of(data)
    for problem in problems:
        STDOUT.print(problem)
    if not problems:
        manifest = Manifest.read(data)
        rows = sum(c["rows"] for c in manifest.splits.values())
        STDOUT.print(f"{data}: whole; {len(manifest.files)} files, {rows:,} pairs, both ledgers balance")
    return 1 if problems else 0


def rejects(
    data: Path,
    /,
    *,
    n: Annotated[int, Parameter(name=["-n", "--number"])] = 0,
    reason: str | None = None,
    replay: bool = False,
    out: Path | None = None,
    check: list[str] | None = None,
) -> None:
    """Say what was refused and why; show it, or convert it again after a fix.

    Parameters
    ----------
    data
        Folder that convert wrote.
    n
        Show so many of them, whole.
    reason
        Only those refused for this reason, whatever else was wrong with them.
    replay
        Convert them again, into a data set of their own at --out.
    out
        Folder for --replay.
    check
        With --replay: NAME=reject, flag or off.
    """
    from itertools import islice

    from prefkit.convert import convert_dataset
    from prefkit.errors import UserError
    from prefkit.sources.rejects import rows, summarise

    if replay:
        if out is None:
            raise UserError("no output folder", fix="add --out DIR")
        _print_ledgers(convert_dataset(data, out, source="rejects", checks=_severities(check)))
        return
    for kind, reasons in summarise(data).items():
        STDOUT.print(f"{kind + 's':<11} {counts_text(reasons) if reasons else 'none'}")
    for row in islice(rows(data, reason), n):
        STDOUT.rule(f"{', '.join(row['reasons'])}  {row['position']}", align="left", style="")
        STDOUT.print(row["raw"])


def stats(data: Path, /, *, html: Path | None = None) -> None:
    """Describe a data set: counts, years, strengths, lengths, and what length and format give away.

    Parameters
    ----------
    data
        Folder that convert wrote.
    html
        File for the same as a page with plots.
    """
    from prefkit.stats import QUANTILES, describe

    found = describe(data)
    if html is not None:
        from prefkit.stats_page import write_page

        write_page(found, data, html)
        STDOUT.print(f"wrote {html}")
        return
    for split, counts in found.splits.items():
        subsets = ", ".join(f"{s or '-'} {n:,}" for s, n in found.subsets[split].items())
        STDOUT.print(f"{split:<10} {counts['rows']:,} pairs, {counts['groups']:,} groups: {subsets}")
    if found.scores:
        STDOUT.print(f"score gap  {', '.join(f'{gap}: {n:,}' for gap, n in found.scores.items())}")
    if found.margins:
        bins = (f"{i / 10:.1f} to {(i + 1) / 10:.1f}: {n:,}" for i, n in enumerate(found.margins) if n)
        STDOUT.print(f"margin     {', '.join(bins)}")
    if found.chars:
        STDOUT.print(
            "characters " + "".join(f"{'min' if q == 0 else 'max' if q == 1 else f'{q:.0%}':>9}" for q in QUANTILES)
        )
        for name, values in found.chars.items():
            STDOUT.print(f"  {name:<9}" + "".join(f"{v:>9,}" for v in values))
    for subset, years in found.years.items():
        STDOUT.print(f"years      {subset or '-'} " + ", ".join(f"{year}: {n:,}" for year, n in years.items()))
    if found.longer_wins is not None:
        STDOUT.print(f"longer     is chosen in {_share(found.longer_wins)} of pairs, equal lengths half")
        STDOUT.print(f"           chosen is longer than a rejected one of any prompt in {found.length_auc:.3f}")
    for name, f in found.formats.items():
        if f.wins is not None:
            sides = f"{f.chosen:.1%} of chosen, {f.rejected:.1%} of rejected"
            STDOUT.print(f"{name:<12} {sides}; of {f.n:,} pairs with one, chosen has it in {_share(f.wins)}")
    if found.flags:
        STDOUT.print(f"flags      {counts_text(found.flags)}")
    STDOUT.print(f"rejects    {counts_text(found.rejects) if found.rejects else 'none'}")


def _share(share: Any) -> str:
    return f"{share.value:.3f} [{share.low:.3f}, {share.high:.3f}]"


def diff(a: Path, b: Path, /) -> int:
    """Say what differs between two data sets: exit 1 if pairs came, went or moved to another split.

    Parameters
    ----------
    a
        Folder that convert wrote.
    b
        Another one.
    """
    from prefkit.diff import diff as compare

    found = compare(a, b)
    for title, changes in (("setting", found.settings), ("input", found.inputs), ("count", found.counts)):
        for name, (before, now) in changes.items():
            STDOUT.print(f"{title:<8} {name}: {before} → {now}")
    STDOUT.print(f"pairs    {found.both:,} in both, {found.only_a:,} only in {a}, {found.only_b:,} only in {b}")
    for (before, now), count in found.moved.items():
        STDOUT.print(f"moved    {count:,} from {before} to {now}")
    for what, names in found.examples.items():
        if names:
            STDOUT.print(f"{what:<10} {', '.join(names)}{' …' if len(names) == 10 else ''}")
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


def sample(folder: Path, /, *, questions: int = 600, seed: int = 0) -> None:
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
    from prefkit.errors import UserError
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
        The pair's id, or its first characters.
    data
        Folder that convert wrote.
    scores
        Folder (or its scores.parquet) that evalkit score wrote.
    report
        Folder that evalkit report wrote.
    """
    from prefkit.trace import find, follow
    from prefkit.trace_scores import report_steps, score_steps

    steps = follow(pair_id, data)
    whole_id = find(pair_id, data, Manifest.read(data)).row["id"]
    steps += score_steps(whole_id, scores) if scores is not None else []
    steps += report_steps(whole_id, report) if report is not None else []
    for step in steps:
        STDOUT.print(f"{step.stage:<18} {step.text}")
