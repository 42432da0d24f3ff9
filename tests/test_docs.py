"""The pages say what is: every command is shown, and what is shown under it is what it prints."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from evalkit.cli import app as evalkit_app
from prefkit.cli import app as prefkit_app
from prefkit.cli import train as train_app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

spec = importlib.util.spec_from_file_location("console", ROOT / "docs" / "console.py")
console = importlib.util.module_from_spec(spec)
spec.loader.exec_module(console)


def names(app) -> list[str]:
    return [n for n in app._commands if not n.startswith("-")]


COMMANDS = [
    *(f"prefkit {n}" for n in names(prefkit_app) if n not in ("train", "push")),  # push writes to the Hub
    *(f"prefkit train {n}" for n in names(train_app)),
    *(f"evalkit {n}" for n in names(evalkit_app)),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_shown_with_its_output(command):
    shown = [c for block in console.BLOCK.findall(README) for c in console.commands(block)]
    assert any(c.startswith(command + " ") or c == command for c in shown), f"README shows no `$ {command}`"


def test_no_command_is_shown_with_an_error():
    assert not [line for block in console.BLOCK.findall(README) for line in block.splitlines() if "error:" in line]


def test_links_of_the_pages_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_mask_hides_numbers_and_blanks_and_nothing_else():
    assert console.mask("accuracy 0.71  [0.6, 0.8]\n") == console.mask("accuracy -0.7 [1, 1e-3]")
    assert console.mask("12 pairs") != console.mask("12 ties")


def test_a_changed_word_is_found(tmp_path):
    page = "```console\n$ echo 7 pairs\n7 ties\n```\n"
    found = console.differences(page, console.rewrite(page, tmp_path))
    assert "-# ties" in found and "+# pairs" in found  # noqa: PT018


def test_readme_shows_what_the_commands_print(tmp_path):
    """The whole road, as a user types it: this is also the test of `make demo`."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    found = console.differences(README, console.rewrite(README, tmp_path))
    assert not found, "\n".join(found)
    report = json.loads((tmp_path / "demo" / "report" / "report.json").read_text())
    assert report["accuracy"]["low"] > 0.5, "the demo learns what its sample teaches"
    assert abs(report["baselines"]["longer_wins"]["value"] - 0.5) <= 0.05, "and length does not give it away"
