"""A number followed back to its dump: report ← pairs, scores ← models and shards ← dump, each link by its digest."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.compute as pc

from evalkit.markdown import to_markdown
from evalkit.recompute import Link, number_again, pairs_again
from evalkit.report import load_all
from evalkit.report_files import FILES, read_report
from evalkit.scored import Scored, load
from evalkit.scores import read_record, scores_path, sha256
from evalkit.shown import data_folders
from prefkit.errors import UserError
from prefkit.shards import MANIFEST, Manifest, open_pairs
from prefkit.shards import verify as verify_shards
from train.models.locate import run_config, weights_digest


class Places(NamedTuple):
    """Where to look: the scores of each policy, the data set, and folders that may hold models by name."""

    scores: list[Path]
    data: Path | None
    models: list[Path]
    given: bool  # the user said where the models are


def check_chain(report: Path, scores: list[Path] | None, data: Path | None, runs: Path | None) -> Iterator[Link]:
    """Every link from the report to the dump, nearest first. What is given is believed; what is not is looked for.

    UserError where there is no readable report.
    """
    for given in (*(scores or ()), *((runs,) if runs else ())):
        if not given.exists():
            raise UserError("no such file or folder", given, "check the path")
    whole = read_report(report)
    if len(scores or ()) > (n := 1 + len(whole["others"])):
        raise UserError(
            f"{len(scores or ())} scores are given, the report is of {n}", report, "give each policy's once"
        )
    folder = report if report.is_dir() else report.parent
    places = _places(folder, scores, data, runs)
    yield from _files(folder, whole)
    loaded: list[Scored] = []
    policies = (whole, *whole["others"])
    for r, file in zip_longest(policies, places.scores[: len(policies)]):
        link = _digest(f"report ← scores of {r['policy']}", file, r["scores_sha256"])
        yield link
        if link.state == "ok":
            try:
                loaded.append(load(file, r["mode"], r["where"]))
            except UserError as e:
                yield Link("broken", f"scores of {r['policy']}", str(e))
    loaded = load_all(loaded, None, None) if loaded else []
    yield number_again(whole, loaded)
    if len(loaded) == len(policies) and (folder / "pairs.parquet").is_file():
        yield pairs_again(folder / "pairs.parquet", loaded)
    for s in loaded:
        yield from _scores_links(s, places)
    yield from _data_links(places.data, [s.record or {} for s in loaded])


def _places(folder: Path, scores: list[Path] | None, data: Path | None, runs: Path | None) -> Places:
    note = next(_notes(folder / "_run.log"), {})
    files = [scores_path(p) for p in scores] if scores else [Path(p) for p in note.get("scores", [])]
    near = [p for f in files for p in (f.resolve().parent, f.resolve().parent.parent)]
    if data is None:
        hints = [Path(note["data"])] if note.get("data") else []
        for file in files:
            with contextlib.suppress(UserError):  # a damaged record is a broken link, further down
                hints += data_folders(read_record(file) or {}, file.resolve().parent)
        data = next((d for d in hints if (d / MANIFEST).is_file()), None)
    near += [data.resolve().parent] if data else []
    return Places(files, data, [runs] if runs else near, runs is not None)


def _notes(log: Path) -> Iterator[dict[str, Any]]:
    """The lines of a `_run.log`, which is only a hint: a torn one is passed over."""
    for line in log.read_text("utf-8", "replace").splitlines() if log.is_file() else ():
        with contextlib.suppress(ValueError):
            if isinstance(note := json.loads(line), dict):
                yield note


def _files(folder: Path, report: dict[str, Any]) -> Iterator[Link]:
    """Each file beside report.json; a page that was not made need not be there, one that was not noted must not."""
    noted = report.get("files") or {}
    if "pairs.parquet" not in noted:
        yield Link("broken", "report ← pairs.parquet", "report.json notes no digest of it")
    for file in FILES:
        name, path = f"report ← {file}", folder / file
        if file in noted and path.is_file():
            link = _digest(name, path, noted[file])
            forged = link.state == "ok" and file == "report.md" and path.read_text("utf-8") != to_markdown(report)
            yield Link("broken", name, f"{path} says other than report.json") if forged else link
        elif file in noted:
            yield Link("broken" if file == "pairs.parquet" else "unknown", name, f"{path} is not there")
        elif path.is_file():
            yield Link("broken", name, f"{path} is not of this report")


def _digest(name: str, file: Path | None, wanted: str | None) -> Link:
    if wanted is None:
        return Link("unknown", name, "the report holds no digest of them")
    if file is None or not file.is_file():
        where = "where they lay is not known; say it with --scores" if file is None else f"{file} is not there"
        return Link("unknown", name, where)
    seen = sha256(file)
    return Link("ok", name, seen[:16]) if seen == wanted else Link("broken", name, f"{file} has other bytes")


def _scores_links(s: Scored, places: Places) -> Iterator[Link]:
    """scores.json says which models and data; each is looked for and its digest taken."""
    record = s.record
    if record is None:
        yield Link("unknown", f"scores of {s.name} ← models and data", "no scores.json beside them")
        return
    for role in ("policy", "reference"):
        if record.get(role) is not None:
            found = _folder(role, record, places)
            yield _model(f"scores of {s.name} ← {role}", record[role], record.get(f"{role}_digest"), found)
    yield from _run_links(s, record, places)
    if places.data is None:
        return
    name = f"scores of {s.name} ← pairs"
    try:
        ids = open_pairs(places.data, record.get("split"))["id"]
    except UserError as e:
        yield Link("broken", name, str(e))
        return
    foreign = s.table.num_rows - int(pc.sum(pc.is_in(s.table["id"], value_set=ids.combine_chunks())).as_py())
    if foreign:
        yield Link("broken", name, f"{foreign} of {s.table.num_rows} scored pairs are not in {places.data}")
    else:
        yield Link("ok", name, f"{s.table.num_rows} scored pairs are in split {record.get('split')}")


def _folder(role: str, record: dict[str, Any], places: Places) -> Path | None:
    """The weights of policy or reference: where they lay when they scored, or by name; by name alone under --runs."""
    named = [f / str(record.get(role)) for f in places.models]
    kept = [Path(record[f"{role}_path"])] if record.get(f"{role}_path") and not places.given else []
    return next((f for f in (*kept, *named) if any(f.glob("*.safetensors"))), None)


def _model(name: str, called: str, wanted: str | None, found: Path | None) -> Link:
    if wanted is None:
        return Link("unknown", name, "scores.json holds no digest of it")
    if found is None:
        return Link("unknown", name, f"{called} is not beside the scores; say where with --runs")
    try:
        seen = weights_digest(str(found))
    except UserError as e:
        return Link("unknown", name, str(e))
    return Link("ok", name, seen[:16]) if seen == wanted else Link("broken", name, f"{found} holds other weights")


def _run_links(s: Scored, record: dict[str, Any], places: Places) -> Iterator[Link]:
    """The policy's run is still the one that was scored, and was trained on this data set."""
    run, policy = record.get("run") or {}, str(record.get("policy"))
    folder = _folder("policy", record, places)
    config = (run_config(folder) if folder is not None else None) or {}
    scored_digests, digests = run.get("digests") or {}, config.get("digests") or {}
    if not config:
        yield Link("unknown", f"policy {policy} ← run", "no run folder at hand")
    elif scored_digests and scored_digests != digests:
        yield Link("broken", f"policy {policy} ← run", f"{folder} is another run than the one scored")
    elif scored_digests:
        yield Link("ok", f"policy {policy} ← run", "made from what scores.json says")
    trained = scored_digests.get("data") or digests.get("data")
    name = f"run {policy} ← shards"
    if trained is None or places.data is None:
        yield Link("unknown", name, "the run's data set is not known or not at hand")
    else:
        with contextlib.suppress(UserError):  # a damaged manifest is a broken link of its own
            same = trained == Manifest.read(places.data).digest
            other = "trained on another data set than it was scored on"
            yield Link("ok", name, "trained on this data set") if same else Link("unknown", name, other)


def _data_links(data: Path | None, records: list[dict[str, Any]]) -> Iterator[Link]:
    """The shards are whole and those scored; the dump they were made of is unchanged where it lay."""
    if data is None:
        yield Link("unknown", "scores ← shards", "the data set is not beside the scores; say where with --data")
        return
    try:
        manifest = Manifest.read(data)
    except UserError as e:
        yield Link("broken", "shards", str(e))
        return
    for wanted in dict.fromkeys(r.get("manifest") for r in records):
        if wanted is None:
            yield Link("unknown", "scores ← shards", "scores.json holds no digest of the data set")
        elif wanted == manifest.digest:
            yield Link("ok", "scores ← shards", manifest.digest[:16])
        else:
            yield Link("broken", "scores ← shards", f"{data} is not the data set that was scored")
    problems = verify_shards(data)
    count = f"{len(manifest.files)} files are those of the manifest"
    yield Link("broken", "shards", "; ".join(problems[:3])) if problems else Link("ok", "shards", count)
    yield from _dump_links(data, manifest)


def _dump_links(data: Path, manifest: Manifest) -> Iterator[Link]:
    paths = [Path(note["input"]) for note in _notes(data / "_run.log") if "input" in note]
    for entry in manifest.inputs:
        name, wanted = f"shards ← {entry['name']}", entry["sha256"]
        at = [p for p in paths if p.name == Path(entry["name"]).name and p.is_file()]
        if not at:
            yield Link("unknown", name, "no longer where it lay")
        elif any(sha256(p) == wanted for p in at):
            yield Link("ok", name, wanted[:16])
        else:
            yield Link("broken", name, f"{at[0]} has other bytes now")
