"""Runs the ```console blocks of a Markdown page and writes, or checks, the output shown under each `$` command.

    python docs/console.py README.md            check: exit 1 and a diff where a page shows what is not printed
    python docs/console.py README.md --write    put in what is printed now

Commands run in order in one empty folder. Numbers, signs and runs of blanks are masked in the comparison, nothing else.
A command that serves a page is stopped with Ctrl-C once it has said how.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
NUMBER = re.compile(r"[+\-−]?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][+-]?\d+)?")


DIGEST = re.compile(r"\b[0-9a-f]{16}\b")  # as `evalkit verify` prints them: weights differ in their last bits


def mask(text: str) -> str:
    """Replace every number and digest by `#`, every run of blanks by one: only words and shape are compared."""
    lines = (
        re.sub(r"[ \t]+", " ", NUMBER.sub("#", DIGEST.sub("#", line))).strip() for line in text.strip().splitlines()
    )
    return "\n".join(lines)


def commands(block: str) -> list[str]:
    """The commands of a block, without their output; a command may go on after a backslash."""
    parts = re.split(r"^\$ ", block, flags=re.M)[1:]
    found = []
    for part in parts:
        lines = part.splitlines()
        n = 1
        while lines[n - 1].endswith("\\"):
            n += 1
        found.append("\n".join(lines[:n]))
    return found


def run(command: str, folder: Path) -> str:
    """What a command prints, both streams together, without colours and without progress bars."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {
        **os.environ,
        "PATH": path,
        "COLUMNS": "100",
        "NO_COLOR": "1",
        "TERM": "dumb",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "HOME": str(folder),  # caches begin empty
    }
    env.pop("PREFKIT_CACHE", None)
    process = subprocess.Popen(
        ["sh", "-c", f"exec 2>&1; {command}"],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    lines = []
    for line in process.stdout:
        lines.append(line.rstrip())
        if "Ctrl-C" in line:
            os.killpg(process.pid, signal.SIGINT)
    process.wait()
    return "\n".join(lines).strip("\n")


def rewrite(page: str, folder: Path) -> str:
    """The page with every output replaced by what is printed now."""

    def block(match: re.Match[str]) -> str:
        parts = []
        for command in commands(match[1]):
            print(f"$ {command}", file=sys.stderr)
            printed = run(command, folder)
            parts.append(f"$ {command}\n" + (printed + "\n" if printed else ""))
        return "```console\n" + "".join(parts) + "```"

    return BLOCK.sub(block, page)


def differences(page: str, rewritten: str) -> list[str]:
    """Lines of a diff between what the page shows and what was printed, both masked."""
    shown = [mask(b) for b in BLOCK.findall(page)]
    printed = [mask(b) for b in BLOCK.findall(rewritten)]
    return list(
        difflib.unified_diff(
            "\n".join(shown).split("\n"), "\n".join(printed).split("\n"), "page", "printed", lineterm=""
        )
    )


def main(argv: list[str]) -> int:
    """Check or rewrite one page."""
    path = Path(argv[0])
    page = path.read_text(encoding="utf-8")
    folder = Path(tempfile.mkdtemp())
    try:
        shutil.copytree(ROOT / "recipes", folder / "recipes")
        rewritten = rewrite(page, folder)
    finally:
        shutil.rmtree(folder)
    if "--write" in argv:
        path.write_text(rewritten, encoding="utf-8")
        return 0
    found = differences(page, rewritten)
    print("\n".join(found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
