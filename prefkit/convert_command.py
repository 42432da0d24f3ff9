"""The commands `prefkit convert` and `prefkit rejects`: into a data set, and what was refused on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from prefkit.checks import CONTAMINATED
from prefkit.errors import FEW, UserError, masked
from prefkit.no_pandas import forget_pandas
from prefkit.shards import Manifest
from prefkit.split import DEFAULT_SPLITS
from prefkit.terminal import STDOUT, print_ledgers, print_pair
from prefkit.wording import counts_text, size_text


def convert(
    *inputs: str,
    out: str | None = None,
    source: str | None = None,
    splits: str = DEFAULT_SPLITS,
    where: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    limit: int | None = None,
    max_pairs: int | None = None,
    dry_run: bool = False,
    format: Literal["arrow", "parquet"] = "arrow",
    check: list[str] | None = None,
    near: float = 0.8,
    against: list[str] | None = None,
    splits_from: str | None = None,
    engine: Literal["local", "ray"] = "local",
    ray_address: str | None = None,
    profile: bool = False,
    options: dict[str, str] | None = None,
) -> None:
    """Turn a preference source into validated Arrow shards.

    Parameters
    ----------
    inputs
        Dumps, files of pairs, or folders of them; paths or URLs (s3://…, gs://…, https://…; of a store postgresql://…).
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
        Processes, by default one a core where there is much to do; changes nothing in the output.
    limit
        At most so many questions (records, for sources of lines).
    max_pairs
        At most so many pairs of one prompt; of a dump's question ten where nothing is said.
    dry_run
        Count, show a few pairs, estimate time and disk, write nothing; with --limit, from so many questions.
    format
        arrow, or parquet for tools that do not read Arrow streams.
    check
        NAME=reject, flag or off: what becomes of rows that a check finds; may be given more than once.
    near
        Prompts whose word 3-grams overlap at least so much (Jaccard) never part; 0 does not look for them.
    against
        Evaluation sets, files or folders or URLs, whose texts no pair may repeat; may be given more than once.
    splits_from
        A data set, folder or URL, whose prompts stay in their splits.
    engine
        local processes, or ray for a cluster of machines that see the same files.
    ray_address
        With --engine ray: a running cluster, such as auto or ray://host:10001; without it a new one starts here.
    profile
        Show where the time went, step by step and check by check.
    options
        Options of the source, such as --options.site beer; `prefkit sources` lists them.
    """
    from prefkit.engine import warm_up

    if ray_address is not None and engine != "ray":
        raise UserError("--ray-address goes with --engine ray", fix="add --engine ray")
    if engine != "local" and dry_run:
        raise UserError("a dry run looks on this machine alone", f"--engine {engine}", "leave one of the two out")
    if engine == "local" and not dry_run:
        warm_up(inputs, workers)  # before the imports, which take as long as its own
    forget_pandas()
    from prefkit.convert import convert_dataset
    from prefkit.remote import is_url

    shared: dict[str, Any] = {
        "source": source, "splits": splits, "where": where, "seed": seed, "workers": workers, "limit": limit,
        "max_pairs": max_pairs,
        "checks": _severities(check), "near": near, "against": against or (), "splits_from": splits_from,
        "options": options, "format": format,
    }  # fmt: skip
    if dry_run:
        _look(inputs, shared)
        return
    if not out:
        raise UserError("no output folder", fix="add --out DIR, or --dry-run to look first")
    if profile and is_url(out):
        raise UserError("--profile needs a folder on this machine", out, "leave --profile out, or choose another --out")
    started = time.perf_counter()
    manifest = convert_dataset(inputs, out, engine=engine, ray_address=ray_address, **shared)
    print_ledgers(manifest)
    if profile:
        _print_profile(Path(out))
    _refuse_if_empty(manifest, inputs[0], out)
    seconds = max(time.perf_counter() - started, 1e-9)
    read = sum(i["bytes"] for i in manifest.inputs)
    STDOUT.print(f"{masked(out)}: read {size_text(read)} in {seconds:.1f} s ({size_text(read / seconds)}/s)")


def _look(inputs: tuple[str, ...], shared: dict[str, Any]) -> None:
    """What a dry run shows."""
    from prefkit.preview import preview_dataset

    seen = preview_dataset(inputs, **shared)
    print_ledgers(seen.manifest)
    for pair in seen.pairs.to_pylist():
        print_pair(pair)
    if not seen.pairs.num_rows:
        raise UserError("not one pair comes out", inputs[0], _advice(seen.manifest, inputs[0]))
    sizes = f"{size_text(seen.data_bytes)} on disk, {size_text(seen.work_bytes)} more while it runs"
    STDOUT.print(f"estimate for all of it, from {seen.share:.1%} of the records: {seen.seconds:.1f} s, {sizes}")
    STDOUT.print("dry run: nothing was written")


def _refuse_if_empty(manifest: Manifest, given: str | Path, out: str | Path) -> None:
    """A `UserError` where not one pair came out; the mended command can have the folder."""
    from prefkit.folder import discard
    from prefkit.remote import is_url

    if any(split["rows"] for split in manifest.splits.values()):
        return
    fix = _advice(manifest, given)
    if is_url(out):
        raise UserError("not one pair came out", given, f"{fix}; delete {out} before you try again")
    discard(Path(out))
    raise UserError("not one pair came out, nothing was kept", given, fix)


def _advice(manifest: Manifest, given: str | Path) -> str:
    """What to do where not one pair came out: of files with columns, which there are, and how to name those missing."""
    from prefkit.file_formats import readable_files
    from prefkit.readers import column_names
    from prefkit.remote import local_copies
    from prefkit.sources.pairs import label_column
    from prefkit.unseen import visible

    source, options = manifest.config["source"], manifest.config["options"]
    if source == "judgements":
        return "see the reasons above"
    if source == "rejects":
        return "see the reasons above; refused posts need their dump: convert that again"
    if not manifest.sources[source]["records"]["read"]:
        return "there is no record in it"
    files = readable_files(Path(local_copies(given)[0]))
    if not files:
        return "see the reasons above"
    names = column_names(files[0])
    if not names:
        return f"see the reasons above; no record of {files[0].name} could be read, is it what its name says?"
    shown = visible(", ".join(names[:FEW])) + " …" * (len(names) > FEW)
    whose = "its columns" if len(files) == 1 else f"the columns of {files[0].name}"
    advice = f"see the reasons above; {whose} are {shown}"
    if len(names) == 1 and (apart := next((c for c in ";\t|" if c in names[0]), None)):
        return f"{advice}: they stand apart by {apart!r}, a .csv needs commas"
    if source == "pairs" and (label := label_column(names)):
        if len({*names} - {label, options["prompt"], options["system"]}) < 2:  # as for KTO
            return f"{advice}: one response a record, with its {label}, is no pair"
        return f"{advice}: {label} seems to say which response is better, write them as chosen and rejected first"
    sides = ("prompt", "chosen", "rejected") if source == "pairs" else ()
    missing = [f"--options.{side} COLUMN" for side in sides if options[side] not in names]
    if not missing:
        return advice
    unnamed = {*names} - {options[side] for side in sides}
    written = "; what no column holds has to be written first" * (len(unnamed) < len(missing))
    return f"{advice}: name yours with {' '.join(missing)}{written}"


def _severities(given: list[str] | None) -> dict[str, str]:
    """`["too_long=reject"]` as a mapping."""
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


def rejects(
    data: Path,
    /,
    *,
    n: Annotated[int, Parameter(name=["-n", "--number"], validator=Number(gte=0, lt=1 << 40))] = 0,
    reason: str | None = None,
    at_most: Annotated[float | None, Parameter(validator=Number(gte=0, lte=1))] = None,
    replay: bool = False,
    out: Path | None = None,
    check: list[str] | None = None,
    against: list[str] | None = None,
) -> int:
    """Say what was refused and why; show it, or convert it again after a fix.

    Parameters
    ----------
    data
        Folder that convert wrote.
    n
        Show so many of them, whole.
    reason
        Only those refused for this reason, whatever else was wrong with them.
    at_most
        Exit with 1 where a larger share of records or of candidates was refused, such as 0.05.
    replay
        Convert them again, into a data set of their own at --out, with the settings and the splits of the first.
    out
        Folder for --replay, new or empty.
    check
        With --replay: NAME=reject, flag or off; may be given more than once. The others are as they were.
    against
        With --replay: evaluation sets to compare with; without, what repeated one is refused again.
    """
    from itertools import islice

    from prefkit.sources.rejects import refused_shares, rows, summarise
    from prefkit.unseen import visible

    forget_pandas()
    if replay and (n or reason or at_most is not None):
        raise UserError("--replay converts all that was refused", fix="leave -n, --reason and --at-most out")
    if not replay and (out or check or against):
        raise UserError("--out, --check and --against go with --replay", fix="add --replay")
    found = summarise(data)
    if reason is not None:
        next(rows(data, reason))  # an unknown one is told, also where none is shown
    if replay:
        _replay(data, out, _severities(check), against or [], found)
        return 0
    for kind, reasons in found.items():
        counts = {name: refusals.n for name, refusals in reasons.items()}
        STDOUT.print(f"{kind + 's':<11} {counts_text(counts) if counts else 'none'}")
        for name, (number, first) in sorted(reasons.items(), key=lambda r: -r[1].n):
            STDOUT.print(visible(f"  {name:<20} {', '.join(first)}{' …' * (number > len(first))}"))
    for row in islice(rows(data, reason), n):
        STDOUT.rule(f"{', '.join(row['reasons'])}  {row['position']}", align="left", style="")
        STDOUT.print(visible(row["raw"]))
    over = {k: v for k, v in refused_shares(Manifest.read(data)).items() if at_most is not None and v > at_most}
    for name, share in over.items():
        STDOUT.print(f"{share:.2%} of the {name} were refused, more than {at_most:.2%}")
    return 1 if over else 0


def _replay(
    data: Path, out: Path | None, checks: dict[str, str], against: list[str], found: Mapping[str, Mapping[str, object]]
) -> None:
    """Convert what was refused into `out` as the data set was, its groups in the splits where that has them."""
    from prefkit.convert import convert_dataset

    if out is None:
        raise UserError("no output folder", fix="add --out DIR")
    if not any(found.values()):
        raise UserError("nothing was refused", data, "there is nothing to convert again")
    config = Manifest.read(data).config
    asked = checks.get(CONTAMINATED)
    if asked == "flag" and not against:
        raise UserError(f"--check {CONTAMINATED}=flag needs something to compare with", fix="add --against")
    kept = {name: config[name] for name in ("splits", "seed", "where", "near", "format", "max_pairs") if name in config}
    manifest = convert_dataset(
        data,
        out,
        source="rejects",
        checks=config.get("checks", {}) | checks,
        against=against,
        splits_from=data,
        options={"compared": bool(against) or asked == "off"},
        **kept,
    )
    print_ledgers(manifest)
    _refuse_if_empty(manifest, data, out)
