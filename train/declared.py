"""What modules that load torch declare, read from their source: mistakes are seen before seconds of loading."""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path


@cache
def fields_of(module: str, name: str) -> dict[str, str]:
    """The fields of a class in a module, with their annotations."""
    (found,) = (n for n in _tree(module).body if isinstance(n, ast.ClassDef) and n.name == name)
    return {n.target.id: ast.unparse(n.annotation) for n in found.body if _declares(n)}  # type: ignore[attr-defined]


@cache
def keys_of(module: str, name: str) -> tuple[str, ...]:
    """The keys of a dict in a module, written as texts there."""
    (found,) = (n for n in _tree(module).body if _declares(n) and n.target.id == name)  # type: ignore[attr-defined]
    return tuple(ast.literal_eval(key) for key in found.value.keys)  # type: ignore[attr-defined]


def _declares(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def _tree(module: str) -> ast.Module:
    package, *rest = module.split(".")
    spec = find_spec(package)  # of the outermost package: to find one inside it would load it
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no module named {package!r}", name=package)
    return ast.parse(Path(spec.submodule_search_locations[0], *rest).with_suffix(".py").read_text("utf-8"))
