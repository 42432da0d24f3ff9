"""Time and memory of `prefkit convert` as the dump grows: seconds per size, the largest process, all processes together.

Memory is the proportional set size (shared pages divided among who shares them), read five times a second from each
process of the conversion, so that its peak is of one moment. No peer converts a dump of any size, so none is in the JSON
line: `ours` is MB of XML a second on the largest dump, `ratio` how many times the smallest one's seconds per MB it
takes, and `memory_ratio` its memory, all processes together, over the smallest one's.

    python benchmarks/convert_scale.py [MB…=300 3000 6000]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from convert_vs_recipe import REAL, SOURCES

ROOT = Path(__file__).resolve().parent


def members(root: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def megabytes(pid: int) -> float:
    """Proportional set size."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in rollup.splitlines() if line.startswith("Pss:")), 0.0)


def measured(dump: Path, out: Path) -> tuple[float, float, float]:
    """Seconds, and the peaks in MB of the largest process and of all together."""
    command = [str(Path(sys.executable).parent / "prefkit"), "convert", str(dump), "--out", str(out), "--workers", "2"]
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    largest = together = 0.0
    while process.poll() is None:
        sizes = [megabytes(pid) for pid in members(process.pid)]
        largest, together = max([largest, *sizes]), max(together, sum(sizes))
        time.sleep(0.2)
    seconds = time.monotonic() - start
    if process.returncode:
        sys.exit(f"failed: {' '.join(command)}")
    return seconds, largest, together


def main(*sizes: str) -> None:
    """One dump after the other, the next made when the last is gone."""
    if not (REAL / SOURCES[0]).is_dir():
        sys.exit(f"no dumps at {REAL}: set PREFKIT_REAL_DATA")
    rows = []
    for size in map(float, sizes or ("300", "3000", "6000")):
        with tempfile.TemporaryDirectory() as folder:
            dump = Path(folder, "Posts.xml")
            posts = [str(REAL / s / "Posts.xml") for s in SOURCES]
            subprocess.run([sys.executable, str(ROOT / "tile_dump.py"), str(dump), str(size), *posts], check=True)
            os.sync()
            seconds, largest, together = measured(dump, Path(folder, "out"))
            rows.append((dump.stat().st_size / 1e6, seconds, largest, together))
        print("{:.0f} MB: {:.1f} s, largest process {:.0f} MB, all together {:.0f} MB".format(*rows[-1]), flush=True)
    (mb_0, s_0, _, memory_0), (mb, s, _, memory) = rows[0], rows[-1]
    result = {"benchmark": "convert_scale", "ours": round(mb / s, 1), "peer": None}
    result |= {"ratio": round(s / mb / (s_0 / mb_0), 2), "memory_ratio": round(memory / memory_0, 2)}
    print(json.dumps(result | {"unit": "MB of XML/s"}))


if __name__ == "__main__":
    main(*sys.argv[1:])
