"""A report on disk: each file written under a temporary name and renamed, report.json last; and reading it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from evalkit.files import write_file
from evalkit.markdown import to_markdown
from evalkit.scores import sha256
from prefkit.errors import UserError

SCHEMA_VERSION = 6
FILES = ("pairs.parquet", "report.md", "report.html")  # beside report.json, in the order in which they are written
# of every policy, what is read back of it
NEEDED = ("policy", "mode", "where", "on_outcome", "caveats", "accuracy", "displacement", "run", "scores_sha256")


def write_report(report: dict[str, Any], pairs: pa.Table, out: Path, html: str | None = None) -> None:
    """Write pairs.parquet, report.md, report.html and, last, report.json, which holds the sha256 of those `files`."""
    files = {"pairs.parquet": pairs, "report.md": to_markdown(report), "report.html": html}
    written = {}
    for name, content in files.items():
        if content is not None:
            write_file(content, out / name)
            written[name] = sha256(out / name)
    write_file(as_json(report | {"files": written}), out / "report.json")


def read_report(path: Path | str) -> dict[str, Any]:
    """report.json of a folder, or the file itself; UserError for none, a damaged one, or one of another version."""
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise UserError("there is no report", path, "name a folder that `evalkit report` wrote")
    try:
        report = json.loads(file.read_text("utf-8"))
        version = report["schema_version"]
    except OSError as e:
        raise UserError(f"no report: {e.strerror}", file, "make one with `evalkit report`") from None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError("this is no report.json, or a damaged one", file, "report again") from e
    if version != SCHEMA_VERSION:
        raise UserError(f"a report of version {version}, this is for {SCHEMA_VERSION}", file, "report again")
    others = report.get("others")
    if lacking := [k for k in (*NEEDED, "others") if k not in report]:
        raise UserError(f"report.json is not whole, it lacks {lacking[0]}", file, "report again")
    if not (isinstance(others, list) and all(isinstance(r, dict) for r in others)):
        raise UserError("report.json is damaged: others is no list of reports", file, "report again")
    if lacking := [k for r in others for k in NEEDED if k not in r]:
        raise UserError(f"report.json is not whole, one of its others lacks {lacking[0]}", file, "report again")
    for r in (report, *others):
        if wrong := [k for k, is_whole in SHAPES.items() if not is_whole(r[k])]:
            raise UserError(f"report.json is damaged: {wrong[0]} is not what a report says", file, "report again")
    return report


def _is_share(value: Any) -> bool:
    """Whether it is a number with an interval."""
    return isinstance(value, dict) and all(isinstance(value.get(k), int | float) for k in ("low", "value", "high"))


def _is_displacement(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and _is_share(value.get("chosen_fell")))


SHAPES = {"accuracy": _is_share, "displacement": _is_displacement}  # of what `gate` looks into


def plain(value: Any) -> Any:
    """Numbers and lists as JSON knows them; what is not finite becomes null."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def as_json(value: Any) -> str:
    """The JSON of plain data in its own order, in which report.md has it too."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
