"""A report on disk: each file written under a temporary name and renamed, report.json last; and reading it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit.markdown import to_markdown
from evalkit.scores import sha256
from prefkit.errors import UserError

SCHEMA_VERSION = 4


def write_report(report: dict[str, Any], pairs: pa.Table, out: Path, html: str | None = None) -> None:
    """Write pairs.parquet, report.html, report.md and, last, report.json, each under a temporary name and renamed.

    report.json holds the sha256 of the `files` beside it.
    """
    write_table(pairs, out / "pairs.parquet")
    contents = {"report.md": to_markdown(report)} | ({"report.html": html} if html is not None else {})
    for name, text in contents.items():
        write_text(text, out / name)
    files = {name: sha256(out / name) for name in ("pairs.parquet", *contents)}
    write_text(as_json(report | {"files": files}), out / "report.json")


def read_report(path: Path | str) -> dict[str, Any]:
    """report.json of a folder, or the file itself; UserError for none, a damaged one, or one of another version."""
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    try:
        report = json.loads(file.read_text("utf-8"))
        version = report["schema_version"]
    except OSError as e:
        raise UserError(f"no report: {e.strerror}", file, "make one with `evalkit report`") from None
    except (ValueError, KeyError, TypeError) as e:
        raise UserError("this is no report.json, or a damaged one", file, "report again") from e
    if version != SCHEMA_VERSION:
        raise UserError(f"a report of version {version}, this is for {SCHEMA_VERSION}", file, "report again")
    return report


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
    """The JSON of plain data, keys sorted: the same bytes for the same numbers."""
    return json.dumps(plain(value), indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"


def write_text(text: str, path: Path) -> None:
    """Write a text file under a temporary name and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file under a temporary name and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)
