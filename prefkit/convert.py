"""From preference sources to a data set, top to bottom: plan → map → look up → pair → near → resolve → publish.

Exact prompts and pair ids exist only once markup is converted, so duplicates and groups are resolved after pairing.
What is published depends on the inputs, the configuration and the tool versions alone.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prefkit import engine as engines
from prefkit import tables
from prefkit.card import NAME as CARD
from prefkit.card import card
from prefkit.files import write_text
from prefkit.finish import rejects_table
from prefkit.folder import (
    claimed,
    discard_work,
    full_disk,
    log_of,
    only_writer,
    refuse_finished,
)
from prefkit.keys import Columns, find
from prefkit.ledgers import ledgers_of, nested_counts
from prefkit.near import THRESHOLD, near_duplicates
from prefkit.plan import Plan, Settings, make_plan, prepare, refuse_changed, tool_versions
from prefkit.publish import Publication, Published, publish
from prefkit.remote import is_url, local_copies, published
from prefkit.schema import Reject
from prefkit.shards import WORK, Manifest
from prefkit.shards import describe as describe_file
from prefkit.sources import Slice
from prefkit.split import CAPPED, DEFAULT_SPLITS, DUPLICATE, KEYS, REFUSED, Anchors, Resolved, cap, joined_by, resolve
from prefkit.tasks import Job, Mapped, Task, bucket_keys, count_slice, reads_together, run, write_table
from prefkit.wording import counted

SHOWN = 10  # names in a warning
TALLIED = {"records", "candidates", "repairs", "links"}  # parts of the manifest of their own


@dataclass(frozen=True)
class Outcome:
    """What a conversion found, before anything is published."""

    tally: Counter[str]
    warnings: list[str]
    publication: Publication


def convert_dataset(
    inputs: Sequence[Path | str] | Path | str,
    out: Path | str,
    *,
    source: str | None = None,
    splits: str | Mapping[str, float] = DEFAULT_SPLITS,
    where: str | None = None,
    seed: int = 0,
    workers: int | None = None,
    limit: int | None = None,
    max_pairs: int | None = None,
    options: Mapping[str, object] | None = None,
    format: Literal["arrow", "parquet"] = "arrow",
    checks: Mapping[str, str] | None = None,
    near: float = THRESHOLD,
    against: Sequence[Path | str] = (),
    splits_from: Path | str | None = None,
    engine: str = "local",
    ray_address: str | None = None,
) -> Manifest:
    """Convert inputs into a data set at `out` and return its manifest.

    `checks` changes severities of `checks.CHECKS`; `near` is the least Jaccard index of word 3-grams at which prompts
    are near duplicates, which never part (0: not looked for); `against` names evaluation sets whose texts no pair may
    repeat; `splits_from` is a data set whose prompts stay in their splits; `engine="ray"` runs the tasks on a Ray
    cluster whose nodes see the same files (inputs and `out`). `where` is an SQL condition over the columns of
    `schema.PAIRS` but group_id; `limit` takes at most so many questions (records, for sources of lines), `max_pairs`
    at most so many pairs of one prompt. A conversion that was stopped goes on when called again with the same
    arguments.
    Errors: `UserError` for what the caller can mend; then no manifest is written.
    """
    settings = Settings(
        source=source,
        splits=splits,
        where=where,
        seed=seed,
        limit=limit,
        max_pairs=max_pairs,
        options=options,
        format=format,
        checks=checks,
        near=near,
        against=against,
        splits_from=splits_from,
    )
    with engines.on(engine, ray_address):
        if is_url(out):
            return published(
                str(out),
                (inputs, settings),
                make=lambda local: _convert(inputs, local, settings, workers),
                is_current=lambda manifest: _is_of(manifest, inputs, settings, workers),
            )
        return _convert(inputs, Path(out), settings, workers)


def _convert(inputs: Sequence[Path | str] | Path | str, out: Path, settings: Settings, workers: int | None) -> Manifest:
    """plan → `work` → publish, into a local folder that nobody else writes to."""
    refuse_finished(out)
    inputs = local_copies(inputs)
    engines.warm_up(inputs, workers)
    plan = make_plan(inputs, out / WORK, settings, workers)
    with only_writer(out), full_disk(out), claimed(out, plan), log_of(out, plan) as lap:
        outcome = work(plan, lap)
        made = publish(out, outcome.publication, plan.job, plan.workers, settings.format)
        lap("publish")
        manifest = describe(plan, outcome, made)
        write_text(out / CARD, card(manifest))
        manifest.files[CARD] = describe_file(out / CARD)
        manifest.write(out)
        discard_work(plan.job.work)
    return manifest


def _is_of(
    manifest: Manifest, inputs: Sequence[Path | str] | Path | str, settings: Settings, workers: int | None
) -> bool:
    """Whether a conversion of these inputs, as they now are, would have made this data set."""
    plan = make_plan(local_copies(inputs), Path(WORK), settings, workers)
    now, then = [plan.config, plan.inputs, tool_versions()], [manifest.config, manifest.inputs, manifest.tools]
    return json.dumps(now, sort_keys=True) == json.dumps(then, sort_keys=True)


def work(plan: Plan, lap: Any) -> Outcome:
    """map → look up → pair → near → resolve: from inputs to rows that know their split, group and shard."""
    prepare(plan)
    job, tally, troubles = plan.job, Counter[str](), defaultdict[str, list[str]](list)
    if plan.source.join is None:
        lines = _lines_before(job.slices, engines.run_tasks(count_slice, job.slices, plan.workers, "count"))
        tasks = [Task(job, "read", n, Mapped(lines)) for n in range(1 if reads_together(job) else len(job.slices))]
        links = np.zeros((0, 2), np.uint64)
    else:
        maps = [Task(job, "map", n) for n in range(len(job.slices))]
        engines.run_tasks(run, maps, plan.workers, "map")
        markers = [t.read_marker() for t in maps]
        for marker in markers:
            tally.update(marker["tally"])
            for what, name in marker["warnings"]:
                troubles[what].append(name)
        links = _links(markers)
        mapped = _mapped(job, markers)
        _write_map_rejects(job, markers, mapped.lines)
        looks = [Task(job, "look", n, mapped) for n in range(job.note_buckets if mapped.notes else 0)]
        engines.run_tasks(run, looks, plan.workers, "look up")
        tasks = [Task(job, "pair", n, mapped) for n in range(job.buckets)]
        lap("map")
    engines.run_tasks(run, tasks, plan.workers, "pair")
    seconds, kept, made = defaultdict[str, float](float), [], Counter[str]()
    for task in tasks:
        marker = task.read_marker()
        kept.append(marker["rows"])
        if plan.source.join is None and len(tasks) == len(job.slices):  # a task is of one file
            made[job.slices[task.number].name] += marker["tally"].get("candidates.made", 0)
        tally.update(marker["tally"])
        for name, spent in marker.get("seconds", {}).items():
            seconds[name] += spent
    refuse_changed(plan)
    lap("pair", check_seconds={name: round(spent, 3) for name, spent in sorted(seconds.items())})
    stems = [t.stem for t in tasks]
    rows = Columns(stems, ".keys", KEYS)
    assert rows.counts == kept, "a file of the work folder is damaged or gone"
    if job.near:
        alike = near_duplicates(stems, job.near, plan.workers)
        links = np.concatenate([links, alike])
        tally["links.near_duplicates"] += joined_by(alike)
        lap("near duplicates")
    resolved = resolve(rows, links, job.seed, plan.splits, plan.anchors)
    resolved = _settle_conflicts(resolved, job.checks["conflicting_labels"], tally)
    if job.max_pairs is not None:
        resolved = cap(resolved, rows, job.max_pairs, job.seed)
        tally["candidates.capped"] += int((resolved.split == CAPPED).sum())
    tally["candidates.duplicate"] += int((resolved.split == DUPLICATE).sum())
    tally["candidates.pairs"] += int((resolved.split >= 0).sum())
    lap("resolve")
    ledgers_of(tally)  # before anything is written
    if any(made.values()):
        troubles["no pair was made of it"] += [name for name, n in made.items() if not n]
    publication = Publication.of(stems, rows.counts, rows["bytes"], resolved, list(plan.splits))
    warnings = [*plan.warnings, *_unmatched(rows, plan.anchors)]
    warnings += [plan.source.split_warning] if plan.source.split_warning and len(plan.splits) > 1 else []
    warnings += [_of_inputs(what, names) for what, names in troubles.items() if names]
    return Outcome(tally, warnings + _link_warnings(tally) + publication.warnings(), publication)


def _of_inputs(what: str, names: list[str]) -> str:
    """What is wrong with some of the inputs, the first of them by name."""
    return f"{what} ({len(names)} of the inputs: {', '.join(names[:SHOWN])}{' …' * (len(names) > SHOWN)})"


def _settle_conflicts(found: Resolved, severity: str, tally: Counter[str]) -> Resolved:
    """Contradicted rows flagged, refused or left alone; a duplicate of an earlier row is none."""
    conflict = found.conflict & (found.split >= 0)
    if severity == "flag":
        return found._replace(conflict=conflict)
    if severity == "reject":
        tally["candidates.rejected.conflicting_labels"] += int(conflict.sum())
        return found._replace(split=np.where(conflict, REFUSED, found.split))
    return found._replace(conflict=np.zeros_like(conflict))


# --- between the phases -------------------------------------------------------------------------------------------


def _lines_before(slices: list[Slice], lines: list[int]) -> tuple[int, ...]:
    """How many line ends of its file lie before each slice."""
    seen: Counter[Path] = Counter()
    first = []
    for piece, count in zip(slices, lines, strict=True):
        first.append(seen[piece.path])
        seen[piece.path] += count
    return tuple(first)


def _mapped(job: Job, markers: list[dict]) -> Mapped:
    """What map found of each slice; of groups the `limit` smallest keys are kept."""
    parts, kinds = tuple(m["parts"] for m in markers), sorted({kind for m in markers for kind in m["notes"]})
    largest = 2**64 - 1
    if job.limit is not None:
        keys = bucket_keys(job, parts)
        largest = int(keys[min(job.limit, len(keys)) - 1]) if len(keys) else 0
    return Mapped(
        _lines_before(job.slices, [m["lines"] for m in markers]),
        parts,
        {kind: tuple(m["notes"].get(kind, 0) for m in markers) for kind in kinds},
        largest,
    )


def _links(markers: list[dict]) -> np.ndarray:
    """Duplicate links as pairs of group keys: uint64[m, 2]."""
    return tables.hash64(k for m in markers for link in m["links"] for k in link).reshape(-1, 2)


def _unmatched(rows: Columns, anchors: Anchors | None) -> list[str]:
    """A warning where nothing of what --splits-from names is here: it may be another data set than was meant."""
    if anchors is None or len(find(rows["prompt"], anchors.prompts)[0]) or len(find(rows["group"], anchors.groups)[0]):
        return []
    return ["no prompt and no group is in what --splits-from names, so it decided nothing"]


def _link_warnings(tally: Counter[str]) -> list[str]:
    """Of damaged links nothing is known, so the questions they name may lie in different splits."""
    damaged = tally["links.damaged"]
    what = "damaged: questions that belong together may lie in different splits"
    return [f"{counted(damaged, 'duplicate link')} {what}"] if damaged else []


def _write_map_rejects(job: Job, markers: list[dict], first_lines: Sequence[int]) -> None:
    rejects = [
        Reject(reason, f"{piece.name}:{first + line + 1}", raw)
        for piece, marker, first in zip(job.slices, markers, first_lines, strict=True)
        for reason, line, raw in marker["rejects"]
    ]
    if rejects:
        write_table(job.work / "map.rejects.arrow", rejects_table(job.source, ["record"] * len(rejects), rejects))


# --- manifest -----------------------------------------------------------------------------------------------------


def describe(plan: Plan, outcome: Outcome, made: Published) -> Manifest:
    """The manifest of what was found and written."""
    nested = nested_counts(outcome.tally)
    manifest = Manifest(
        config=plan.config,
        inputs=plan.inputs,
        splits=outcome.publication.split_counts(),
        sources={plan.source.name: ledgers_of(outcome.tally)},
        files=made.files,
        repairs=nested.get("repairs", {}),
        flags=made.flags,
        links=nested.get("links", {}),
        tables={name: nested[name] for name in sorted(nested) if name not in TALLIED},
        warnings=outcome.warnings,
        tools=tool_versions(),
    )
    return manifest
