"""The pages say what is: every command is shown, and what is shown under it is what it prints."""

import importlib.util
import json
import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from evalkit.cli import app as evalkit_app
from prefkit.cli import app as prefkit_app
from prefkit.cli import train as train_app
from prefkit.schema import PAIRS
from prefkit.sources import SOURCES, get_source

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


CONVERT = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
TRIED = (
    "stack-exchange/beer-2020-06/beer.stackexchange.com.7z",
    "stack-exchange/beer-2014-05",
    "pairs/hh-rlhf/harmless-base.test.jsonl.gz",
    "pairs/llama-factory/dpo_en_demo.json",
)


def test_every_option_of_convert_is_explained_and_shown():
    """In a row of a table, and in a command."""
    arguments = prefkit_app["convert"].assemble_argument_collection()
    options = [a.name for a in arguments if a.name.startswith("--")]
    assert len(options) > 15
    options += [f"--options.{o.name}" for s in ("stack-exchange-dump", "pairs") for o in fields(get_source(s).options)]
    shown = " ".join(re.findall(r"^```console$.*?^```$", CONVERT, re.M | re.S))
    assert [o for o in options if f"\n| `{o}" not in CONVERT and not o.startswith("--options.")] == []
    assert [o for o in options if not re.search(rf"{o}\b", shown)] == []


@pytest.mark.parametrize("name", [s for s in SOURCES if fields(get_source(s).options)])
def test_every_option_of_a_source_is_explained_with_its_default(name):
    rows = CONVERT.partition(f"\n| `{name}` | `")[2].partition("\n\n")[0]
    mine = re.split(r"\n\| `[a-z-]+` \|", f"| | `{rows}")[0]  # to the next source
    found = re.findall(r"^\| \| `(\w+)` \| (.+?) \| ", mine, re.M)
    told = {option: default.strip("`") for option, default in found}
    known = {f.name: f.default for f in fields(get_source(name).options)}
    assert told.keys() == known.keys()
    written = {k: json.dumps(v) if isinstance(v, bool) else v for k, v in known.items() if v is not None}
    assert {k: told[k] for k in written} == written


def test_every_option_of_label_is_explained():
    page = (ROOT / "docs" / "labelling.md").read_text(encoding="utf-8")
    options = [a.name for a in prefkit_app["label"].assemble_argument_collection() if a.name.startswith("--")]
    assert len(options) > 5
    assert [o for o in options if o not in page] == []


def test_a_recipe_without_what_it_needs_says_how_it_is_used_and_none_writes_colours():
    done = subprocess.run(["sh", "recipes/real_dumps.sh", "one"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "usage: sh recipes/real_dumps.sh FOLDER_OF_DUMPS MODEL OUT\n"
    assert [
        p.name for p in (ROOT / "recipes").glob("*.sh") if re.search(r"\\(033|e|x1b)\[", p.read_text("utf-8"))
    ] == []


def test_the_demo_does_not_delete_judgements(tmp_path):
    (tmp_path / "labels.db").write_text("hours of work")
    done = subprocess.run(["sh", "recipes/demo.sh", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"error: {tmp_path} holds judgements ({tmp_path}/labels.db)" in done.stderr
    assert (tmp_path / "labels.db").read_text() == "hours of work"


def test_the_page_on_converting_shows_what_the_commands_print(real_data, tmp_path):
    for name in TRIED:
        (tmp_path / Path(name).name).symlink_to(real_data / name)
    found = console.differences(CONVERT, console.rewrite(CONVERT, tmp_path))
    assert not found, "\n".join(found)


def test_the_page_on_converting_names_every_column():
    table = CONVERT.partition("## The columns of a pair")[2].partition("##")[0]
    first = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert re.findall(r"`(\w+)`", " ".join(first)) == PAIRS.names


def test_what_is_not_here_yet_is_not_here():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## Not here yet")[2].partition("##")[0]
    missing, program = [], ""
    for words in re.findall(r"`([a-z ]+)`", text):
        program = words.rpartition(" ")[0] or program
        missing.append(f"{program} {words.split()[-1]}")
    assert len(missing) == 13
    assert not {*missing} & {*COMMANDS}


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
