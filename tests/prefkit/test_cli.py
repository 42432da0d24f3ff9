"""The real commands: what they print, and one line with exit code 2 for each mistake."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from dumps import many, write_dump

from prefkit.cli import app
from prefkit.errors import UserError

PREFKIT = Path(sys.executable).with_name("prefkit")


def prefkit(*arguments, cwd=None):
    return subprocess.run([PREFKIT, *map(str, arguments)], capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    write_dump(folder / "beer.stackexchange.com", many(60), [(1, 6)])
    done = prefkit("convert", "beer.stackexchange.com", "--out", "data", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "candidates" in done.stdout
    assert re.fullmatch(r"data: read \d+\.\d [kM]B in \d+\.\d s \(\d+\.\d [kM]B/s\)", done.stdout.splitlines()[-1])
    assert "links       1 duplicates" in done.stdout
    return folder


MISTAKES = {
    "missing file": (["convert", "nowhere", "--out", "new"], "no such file or folder (nowhere)"),
    "wrong source": (["convert", "beer.stackexchange.com", "--out", "new", "--source", "stackexchange-dump"], "did you mean 'stack-exchange-dump'"),
    "no dump": (["convert", "other.xml", "--out", "new"], "is no Posts.xml"),
    "no xml": (["convert", "text.xml", "--out", "new"], "is no Posts.xml"),
    "no 7z": (["convert", "bad.7z", "--out", "new"], "cannot read the 7z archive"),
    "empty folder": (["convert", "empty", "--out", "new", "--source", "stack-exchange-dump"], "no Posts.xml in the folder"),
    "no guess": (["convert", "empty", "--out", "new"], "the folder is empty"),
    "no guess of a file": (["convert", "text.xml", "other.xml", "--out", "new"], "is no Posts.xml"),
    "a name that is no UTF-8": (["convert", "caf\udce9.jsonl", "--out", "new"], "the name of this file is not UTF-8"),
    "a name too long": (["convert", "n" * 300, "--out", "new"], "File name too long"),
    "a huge number": (["show", "data", "-n", "9" * 20], "Must be < 1099511627776"),
    "a folder of dumps": (["convert", "dumps", "--out", "new"], "give what is in the folder: dumps/a.7z dumps/b.xml\n"),
    "no record": (["convert", "lines.jsonl", "--out", "new"], "no record of lines.jsonl could be read, is it what its name says?"),
    "finished": (["convert", "beer.stackexchange.com", "--out", "data"], "already holds a data set"),
    "out under a file": (["convert", "beer.stackexchange.com", "--out", "text.xml/new"], "cannot make the output folder"),
    "out before input": (["convert", "nowhere", "--out", "text.xml/new"], "cannot make the output folder"),
    "dry ray": (["convert", "beer.stackexchange.com", "--dry-run", "--engine", "ray"], "a dry run looks on this machine alone"),
    "no ray": (["convert", "beer.stackexchange.com", "--out", "new", "--ray-address", "auto"], "add --engine ray"),
    "profile of a URL": (["convert", "beer.stackexchange.com", "--out", "memory://new", "--profile"], "--profile needs a folder on this machine"),
    "splits": (["convert", "beer.stackexchange.com", "--out", "new", "--splits", "train=2"], "bad splits"),
    "where": (["convert", "beer.stackexchange.com", "--out", "new", "--where", "margn > 1"], "bad --where 'margn > 1'"),
    "where group_id": (["convert", "beer.stackexchange.com", "--out", "new", "--where", "group_id = 'x'"], "group_id is known only afterwards: use group_key"),
    "option": (["convert", "beer.stackexchange.com", "--out", "new", "--options.sit", "x"], "did you mean 'site'"),
    "no out": (["convert", "beer.stackexchange.com"], "no output folder"),
    "unknown flag": (["convert", "beer.stackexchange.com", "--ouut", "x"], "--ouut"),
    "stats of nothing": (["stats", "empty"], "is no data set"),
    "verify nothing": (["verify", "empty"], "this is no data set"),
    "rejects of no reason": (["rejects", "data", "--reason", "nope"], "nothing was refused as 'nope'"),
    "show a negative number": (["show", "data", "-n", "-1"], 'Invalid value "-1" for -n. Must be >= 0.'),
    "rejects, a negative number": (["rejects", "data", "-n", "-1"], 'Invalid value "-1" for -n. Must be >= 0.'),
    "sample of nothing": (["sample", "new", "--questions", "0"], 'Invalid value "0" for --questions. Must be >= 1.'),
    "show nothing": (["show", "nowhere"], "no such data set"),
    "trace nothing": (["trace", "ffffffffffff", "data"], "no pair has the id"),
    "show without its argument": (["show"], "error: show needs DATA: see --help"),
    "diff with one of two": (["diff", "data"], "error: diff needs B: see --help"),
    "label without --db": (["label", "data"], "error: label needs --db: see --help"),
    "a command of a command": (["train", "dpo"], "error: train dpo needs --out: see --help"),
    "sample over something": (["sample", "data"], "not empty"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, folder):
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "other.xml").write_text('<votes><row Id="1" PostId="2" VoteTypeId="2" /></votes>')
    (folder / "dumps").mkdir(exist_ok=True)
    for dump in ("a.7z", "b.xml", "notes.txt"):
        (folder / "dumps" / dump).write_bytes(b"")
    Path(os.fsdecode(bytes(folder) + b"/caf\xe9.jsonl")).write_text("{}")
    (folder / "lines.jsonl").write_text("no line\nof this is JSON\n")
    (folder / "text.xml").write_text("no xml at all")
    (folder / "bad.7z").write_bytes(b"7z\xbc\xaf\x27\x1c rubbish")
    arguments, message = MISTAKES[name]
    done = prefkit(*arguments, cwd=folder)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr + done.stdout
    assert not (folder / "new/manifest.json").exists()


def test_verify_says_no_with_one(folder, tmp_path):
    assert prefkit("verify", "data", cwd=folder).returncode == 0
    shutil.copytree(folder / "data", tmp_path / "cut")
    (tmp_path / "cut" / "README.md").unlink()
    done = prefkit("verify", str(tmp_path / "cut"))
    assert (done.returncode, done.stdout) == (1, "README.md: missing\n")
    done = prefkit("verify", "nosuch", cwd=folder)  # no failed check but a mistake
    assert (done.returncode, done.stderr[:24]) == (2, "error: no such data set ")


def test_show_stats_sources_trace(folder):
    shown = prefkit("show", "data", "-n", "1", "--split", "test", cwd=folder)
    assert "── chosen · assistant" in shown.stdout
    pair_id = shown.stdout.split()[0]
    traced = prefkit("trace", pair_id, "data", cwd=folder)
    assert traced.returncode == 0
    for words in (
        "beer.stackexchange.com/Posts.xml:",
        "<row Id=",
        "split test (seed 0)",
        "test/data-00000-of-00001.arrow row 0",
    ):
        assert words in traced.stdout
    stats = prefkit("stats", "data", cwd=folder)
    assert "is chosen in" in stats.stdout
    assert "stack-exchange-paired" in prefkit("sources", cwd=folder).stdout


def test_dry_run_writes_nothing(folder):
    before = set(folder.iterdir())
    done = prefkit("convert", "beer.stackexchange.com", "--dry-run", "--limit", "5", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "nothing was written" in done.stdout
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize("command", ["", *(n for n in app if n not in ("train", "cache") and n[0] != "-")])
def test_help_describes_every_argument(command, monkeypatch, capsys):
    """In one row each, where there is room; no markup of docstrings, no flags that nobody needs."""
    monkeypatch.setenv("COLUMNS", "250")
    app([command, "--help"] if command else ["--help"], result_action="return_value")
    text = capsys.readouterr().out
    rows = [re.sub(r" *\[[a-z]+: .*\]", "", line).strip("│ *") for line in text.splitlines() if line.startswith("│")]
    assert rows or command == "sources"
    assert [r for r in rows if not re.fullmatch(r"\S+( \S+)*  +\S.*", r)] == []
    assert not re.search(r"``|:[a-z]+:`|--empty-|ARGS|\x1b", text)


def test_what_was_refused_cannot_act_on_the_terminal(tmp_path):
    sound = json.dumps({"prompt": "Why is it so?", "chosen": "Because.", "rejected": "No."})
    (tmp_path / "rows.jsonl").write_text(f'{sound}\n{{"prompt": \x1b[31mred\n')
    assert prefkit("convert", "rows.jsonl", "--out", "data", "--splits", "train=1", cwd=tmp_path).returncode == 0
    shown = prefkit("rejects", "data", "-n", "1", cwd=tmp_path).stdout
    assert "‹U+001B›[31mred" in shown
    assert "\x1b" not in shown


def test_one_is_no_plural(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why is it so?", "chosen": "Because.", "rejected": "No."}')
    done = prefkit("convert", "rows.jsonl", "--out", "data", "--splits", "train=1", cwd=tmp_path)
    assert "splits      train 1 pair in 1 group\n" in done.stdout
    assert "1 pair, both ledgers" in prefkit("verify", "data", cwd=tmp_path).stdout
    assert "train      1 pair, 1 group: - 1" in prefkit("stats", "data", cwd=tmp_path).stdout


COLUMNLESS = {
    "wrong names": ('{"q": "a", "chosen": "b", "no\\u202e": "c"}', [], "its columns are q, chosen, no‹U+202E›: name yours with --options.prompt COLUMN --options.rejected COLUMN"),
    "one wrong option": ('{"prompt": "a", "chosen": "b", "worse": "c"}', ["--options.rejected", "wors"], "its columns are prompt, chosen, worse: name yours with --options.rejected COLUMN"),
    "no name is wrong": ('{"prompt": "", "chosen": "b", "rejected": "c"}', [], "its columns are prompt, chosen, rejected"),
    "no record": ("", [], "there is no record in it"),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNLESS)
@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_where_no_pair_comes_out_the_columns_are_named(name, suffix, tmp_path):
    text, options, advice = COLUMNLESS[name]
    (tmp_path / f"rows.{suffix}").write_text(text)
    for where in (["--out", "out"], ["--dry-run"]):
        done = prefkit("convert", f"rows.{suffix}", *options, *where, cwd=tmp_path)
        assert (done.returncode, (tmp_path / "out").exists()) == (2, False)
        assert done.stderr.splitlines()[-1].endswith(advice)


def test_of_several_files_one_is_named_with_some_of_its_columns(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "b.jsonl").write_text("{}")
    (tmp_path / "mine" / "a.jsonl").write_text(json.dumps({f"c{n}": n for n in range(99)}))
    done = prefkit("convert", "mine", "--out", "out", cwd=tmp_path)
    listed = ", ".join(f"c{n}" for n in range(30))
    assert f"the columns of a.jsonl are {listed} …: name yours with --options.prompt COLUMN" in done.stderr


def test_a_conversion_without_pairs_leaves_the_folder_free(tmp_path):
    (tmp_path / "odd.jsonl").write_text('{"question": "a", "chosen": "b", "rejected": "c"}\n')
    arguments = ("convert", "odd.jsonl", "--source", "pairs", "--out", "out")
    done = prefkit(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "missing_prompt" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: not one pair came out, nothing was kept (odd.jsonl)")
    assert prefkit(*arguments, "--options.prompt", "question", cwd=tmp_path).returncode == 0


ENDING = """
import sys, threading, time
from prefkit.cli import app, run_to_end
sys.argv = ["prefkit", "sources"]
code = run_to_end(app)
threading.Thread(target=time.sleep, args=(60,)).start()  # the interpreter waits for it
print("ended", flush=True)
sys.exit(code)
"""


def test_ctrl_c_while_a_finished_command_ends_is_no_traceback():
    ending = subprocess.Popen([sys.executable, "-c", ENDING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert ending.stdout is not None
    while ending.stdout.readline() != "ended\n":
        pass
    ending.send_signal(signal.SIGINT)
    assert ending.communicate(timeout=30)[1] == ""
    assert ending.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ann:s3/cr@host:5432/db", "postgresql://ann:***@host:5432/db"),
        ("(postgresql:/ann:sec@localhost/db)", "(postgresql:/ann:***@localhost/db)"),
        ("postgresql://ann@h/db?host=x&password=sec): fix", "postgresql://ann@h/db?host=x&password=***): fix"),
        ("https://host:8080/a@b s3://bucket/x", "https://host:8080/a@b s3://bucket/x"),
        ("data.jsonl:12, ann@host:/path", "data.jsonl:12, ann@host:/path"),
    ],
)
def test_no_error_shows_a_password(text, shown):
    assert str(UserError("wrong", text)) == f"wrong ({shown})"
