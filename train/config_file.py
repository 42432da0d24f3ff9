"""A configuration file: the same sections and keys as the flags, which win over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection
from cyclopts import Token as CliToken
from cyclopts.config import Dict as DictConfig

from prefkit.errors import UserError, unknown_name
from prefkit.yaml_file import read_yaml


def from_yaml(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """cyclopts configuration hook: fill what the command line left open from the file named by --config.

    Unlike cyclopts' own, it merges `trainer` key by key, so that `--trainer.x` adds to the file's section.
    """
    (trainer,) = (a for a in arguments if a.name == "--trainer")
    if nested := next((t for t in trainer.tokens if len(t.keys) > 1), None):
        field, key = nested.keys[:2]
        fix = f"write --trainer.{field} VALUE, or '{{{key}: {nested.value}}}' as VALUE where it takes names"
        raise UserError(f"{nested.keyword} is too deep", fix=fix)
    (chosen,) = (a for a in arguments if a.name == "--config")
    if not chosen.tokens:
        return
    path = Path(chosen.tokens[-1].value)
    values = _read_sections(path)
    if values.pop("command", app.name[0]) != app.name[0]:
        raise UserError(f"this file does not configure {app.name[0]}", path, "leave out its line command, if it should")
    known = {a.name.removeprefix("--").partition(".")[0] for a in arguments if a.name.startswith("--")} - {"config"}
    if unknown := next((k for k in values if k.replace("_", "-") not in known), None):
        raise unknown_name("section", unknown, known)
    given = {t.keys[0].replace("-", "_") for t in trainer.tokens if t.keys}
    section = values.pop("trainer", None) or {}
    if again := {k for k in section if "-" in k} & {k.replace("_", "-") for k in section if "_" in k}:
        raise UserError(f"trainer.{min(again).replace('-', '_')} is given twice", path, "leave one spelling out")
    for key, value in section.items():
        if key.replace("-", "_") not in given:
            text = value if isinstance(value, str) else json.dumps(value)
            trainer.append(CliToken(keyword=f"--trainer.{key}", value=text, source=str(path), keys=(key,)))
    for command in reversed(commands):  # without its commands as keys, cyclopts skips sections named like a command
        values = {command: values}
    DictConfig(values, source=str(path))(app, commands, arguments)


def _read_sections(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError("configuration file not found", path, "check the path")
    values = read_yaml(path, "name a YAML file; recipes/ has examples") or {}
    sections = ("model", "data", "lora", "dpo", "sft", "trainer")
    if not isinstance(values, dict) or any(not isinstance(values.get(k) or {}, dict) for k in sections):
        raise UserError("a configuration is sections with keys", path, "see recipes/ for examples")
    names = [*values, *(key for section in sections for key in values.get(section) or ())]
    if odd := [name for name in names if not isinstance(name, str)]:
        raise UserError(f"{odd[0]!r} is no name of a section or key", path, "see recipes/ for examples")
    return {k: _without_nulls(v) for k, v in values.items() if k not in ("versions", "digests")}


def _without_nulls(value: Any) -> Any:
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value
