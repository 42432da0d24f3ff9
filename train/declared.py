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
    return {field: ast.unparse(declared.annotation) for field, declared in _declared(found.body).items()}


@cache
def keys_of(module: str, name: str) -> tuple[str, ...]:
    """The keys of a dict in a module, written as texts there."""
    found = _declared(_tree(module).body)[name].value
    assert isinstance(found, ast.Dict)
    return tuple(ast.literal_eval(key) for key in found.keys if key is not None)


def _declared(body: list[ast.stmt]) -> dict[str, ast.AnnAssign]:
    """What is written `name: type` or `name: type = value`."""
    return {n.target.id: n for n in body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}


def _tree(module: str) -> ast.Module:
    package, *rest = module.split(".")
    spec = find_spec(package)  # of the outermost package: to find one inside it would load it
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"no module named {package!r}", name=package)
    return ast.parse(Path(spec.submodule_search_locations[0], *rest).with_suffix(".py").read_text("utf-8"))
