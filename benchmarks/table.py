"""Every benchmark, one after the other, and at the end one table of the JSON lines they ended with.

Each runs in a process of its own and shows what it prints; one that fails is named below the table, and then the exit
code is 1. Stopped with Ctrl-C, the table holds what was measured so far. All of them take about two hours on two cores.

    python benchmarks/table.py [PART OF A COMMAND…]      for example: convert  "train_vs_trl.py --case toy --checkpoints"
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
COMMANDS = (
    "convert_vs_recipe.py 300",
    "convert_scale.py 300 3000 6000",
    "convert_vs_datasets.py",
    "train_vs_trl.py",
    "train_vs_trl.py --reference cached --against online",
    "train_vs_trl.py --reference cached",
    "train_vs_trl.py --dtype bfloat16",
    "train_vs_trl.py --case hh",
    "train_vs_trl.py --case toy --checkpoints",
    "sft_vs_trl.py",
    "sft_vs_trl.py --of pairs",
    "score_vs_peers.py",
    "score_vs_peers.py --case body --pairs 64 --batches 1 --rounds 1",
    "report_scale.py --pairs 100000",
    "report_scale.py --pairs 1000000 --rounds 1",
)
HEAD = "| benchmark | ours | peer | ratio | memory | command |\n|---|---|---|---|---|---|"


def measured(command: str) -> dict | None:
    """The JSON line a benchmark ends with; None where it fails or ends with none."""
    print(f"\n== {command}", flush=True)
    script, *arguments = command.split()
    last = ""
    with subprocess.Popen(
        [sys.executable, "-u", str(ROOT / script), *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line.strip() or last
    try:
        found = json.loads(last)
    except ValueError:
        return None
    whole = isinstance(found, dict) and {"benchmark", "ours", "peer", "unit"} <= found.keys()
    return found if whole and not process.returncode else None


def row(command: str, found: dict) -> str:
    """A line of the table; what a benchmark has no peer or no memory for is left empty."""
    ours, peer = (f"{v:,} {found['unit']}" if (v := found[side]) is not None else "" for side in ("ours", "peer"))
    ratio, memory = (f"{v}×" if (v := found.get(name)) is not None else "" for name in ("ratio", "memory_ratio"))
    return f"| {found['benchmark']} | {ours} | {peer} | {ratio} | {memory} | `{command}` |"


def main(*parts: str) -> int:
    """Run what was asked for and print the table."""
    chosen = [c for c in COMMANDS if not parts or any(p in c for p in parts)]
    if not chosen:
        sys.exit(f"no benchmark is called {' or '.join(parts)}; there are: {', '.join(COMMANDS)}")
    rows, failed = [], []
    try:
        for command in chosen:
            found = measured(command)
            if found is None:
                failed.append(command)
            else:
                rows.append(row(command, found))
    except KeyboardInterrupt:
        failed.append("stopped before the end")
    print("\n".join(["", HEAD, *rows, *(f"\nfailed: {command}" for command in failed)]))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
