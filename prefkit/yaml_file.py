"""A YAML file as people write it: a key that comes twice is a mistake, not the last one's value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from prefkit.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.2 section 3.2.1.1 says that the keys of a mapping differ; the library takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} comes twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path, fix: str) -> Any:
    """What a file holds; UserError, with this `fix`, for one that cannot be read or is no YAML, and in which line."""
    try:
        return yaml.load(path.read_text("utf-8"), _Loader)  # noqa: S506 - a SafeLoader
    except OSError as e:
        raise UserError(f"cannot read it: {e.strerror}", path, fix) from None
    except yaml.MarkedYAMLError as e:
        line = f"line {e.problem_mark.line + 1}: " if e.problem_mark else ""
        raise UserError(f"not YAML: {line}{' '.join(str(e.problem).split())}", path, fix) from None
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"not YAML: {' '.join(str(e).split())}", path, fix) from None
