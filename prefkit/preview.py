"""What a conversion would give, before it is begun: its ledgers, some pairs, and how long and how large it would be."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from prefkit.convert import describe, work
from prefkit.folder import full_disk
from prefkit.plan import Settings, make_plan
from prefkit.publish import Published, publish
from prefkit.records import count
from prefkit.remote import local_copies
from prefkit.shards import Manifest


class Preview(NamedTuple):
    """`manifest` and `pairs` of what was tried; `share` of all records that was; the rest is for all of them."""

    manifest: Manifest
    pairs: pa.Table
    share: float
    seconds: float
    data_bytes: int
    work_bytes: int


def preview_dataset(inputs: Sequence[Path | str], **arguments: Any) -> Preview:
    """Convert as `convert_dataset` would, up to its `limit`, in a folder that is gone afterwards.

    The estimate is what was measured: the time of the first pass, which sees everything, and time and size of the rest
    divided by the share of records that the limit let through.
    """
    started = time.perf_counter()
    phases: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="prefkit-") as folder, full_disk(Path(folder)):
        workers = arguments.pop("workers", None)
        plan = make_plan(local_copies(inputs), Path(folder, "work"), Settings(**arguments), workers)
        plan.job.work.mkdir()
        planned = time.perf_counter()
        outcome = work(plan, lambda phase, **more: phases.setdefault(phase, time.perf_counter()))
        made = publish(Path(folder, "data"), outcome.publication, plan.job, plan.workers, plan.config["format"])
        ended = time.perf_counter()
        first_pass = phases.get("map", planned)
        data = sum(entry["bytes"] for entry in made.files.values())
        kept_aside = {kind: 0 for kind in ("map", "rest")}
        for file in plan.job.work.iterdir():
            kept_aside["map" if file.name.startswith(("map-", "look-")) else "rest"] += file.stat().st_size
        read, left_out = outcome.tally["records.read"], outcome.tally["records.unused.over_limit"]
        if plan.source.join is None and read == plan.job.limit:  # those beyond the limit were not read
            left_out = count(plan.source, plan.job.options, plan.job.slices) - read
            read += left_out
        share = 1 - left_out / max(read, 1)
        return Preview(
            manifest=describe(plan, outcome, Published({}, made.flags)),
            pairs=outcome.publication.head(plan.job, 3),
            share=share,
            seconds=first_pass - started + (ended - first_pass) / share,
            data_bytes=int(data / share),
            work_bytes=int(kept_aside["map"] + kept_aside["rest"] / share),
        )
