"""Seconds from scores on disk to a whole report, and of one bootstrap interval beside scipy's.

`evalkit report` in a process of its own on made-up scores whose prompts repeat: files read and checked, every metric with
its intervals, report.html with 500 pairs, all files written, start-up included. No peer makes such a report, so none is in
the JSON line. The line before it compares one interval, the mean margin's over groups from 2,000 replicates, with
`scipy.stats.bootstrap`, which runs 100 of them, its time scaled, as it is linear in them.

    python benchmarks/report_scale.py [--pairs 1000000] [--rounds 3]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.stats import bootstrap

from evalkit.scored import load
from evalkit.scores import SCORES, write_scores
from prefkit.statistics import cluster_bootstrap

PEER_REPLICATES = 100


def make(n: int, folder: Path) -> None:
    """Scores of n pairs, about four to a prompt, twenty subsets."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, n // 4, n)
    skill = rng.normal(0.3, 0.8, n // 4)[group]
    lengths = rng.integers(5, 400, (2, n))
    ref = -2.0 * lengths + rng.normal(0, 5, (2, n))
    text = {"group_id": np.char.mod("%016x", group), "subset": np.char.mod("subset-%d", group % 20)}
    columns = {
        "id": np.char.mod("%032x", np.arange(n)),
        **text,
        "source": np.full(n, "made-up"),
        "policy": np.full(n, "dpo"),
        "reference": np.full(n, "sft"),
        "beta": np.full(n, 0.1),
        "n_chosen": lengths[0],
        "n_rejected": lengths[1],
        "policy_chosen": ref[0] + rng.normal(0, 2, n) + skill,
        "policy_rejected": ref[1] + rng.normal(0, 2, n),
        "ref_chosen": ref[0],
        "ref_rejected": ref[1],
        "chars_chosen": 4 * lengths[0],
        "chars_rejected": 4 * lengths[1],
        "truncated": np.zeros(n, bool),
    }
    arrays = {f.name: pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(n, f.type) for f in SCORES}
    write_scores(pa.table(arrays, schema=SCORES), folder / "scores.parquet")


def ours(folder: Path, out: Path) -> float:
    """Seconds of one `evalkit report`."""
    start = time.perf_counter()
    subprocess.run(
        [str(Path(sys.executable).parent / "evalkit"), "report", str(folder), "--out", str(out)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def one_interval(folder: Path) -> tuple[float, float]:
    """Seconds of the mean margin's interval by us and by scipy, from the same sums of groups."""
    s = load(folder)
    counts = np.bincount(s.group_N).astype(float)
    sums = np.bincount(s.group_N, weights=s.margin_N)

    def mean(total, count, axis):
        return total.sum(axis=axis) / count.sum(axis=axis)

    start = time.perf_counter()
    cluster_bootstrap(np.stack([counts, sums], axis=1), lambda t: t[:, 1:] / t[:, :1], replicates=2000)
    middle = time.perf_counter()
    settings = {"paired": True, "vectorized": True, "method": "percentile", "batch": 10}
    bootstrap((sums, counts), mean, n_resamples=PEER_REPLICATES, rng=np.random.default_rng(0), **settings)
    return middle - start, (time.perf_counter() - middle) * 2000 / PEER_REPLICATES


def main() -> None:
    """Print a line a round and, last, one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make(args.pairs, folder / "scores")
        rounds = []
        for i in range(args.rounds):
            rounds.append((ours(folder / "scores", folder / f"report-{i}"), *one_interval(folder / "scores")))
            print("round {}: report {:.2f} s; one interval {:.2f} s, scipy {:.2f} s".format(i + 1, *rounds[-1]))
    report, mine, theirs = (statistics.median(r[k] for r in rounds) for k in range(3))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    print(f"{args.pairs:,} pairs, {peak} MB at most; one interval {theirs / mine:.1f} times as fast as scipy's")
    line = {"benchmark": f"report of {args.pairs} pairs", "ours": round(report, 2), "peer": None}
    print(json.dumps(line | {"ratio": None, "memory_ratio": None, "unit": "s"}))


if __name__ == "__main__":
    main()
