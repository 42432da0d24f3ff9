"""stack-exchange-paired Parquet → data set: `prefkit convert` against the same map, filter and save through `datasets`.

The peer does what the original recipe did with this set: prompt template, a filter on length in characters, save_to_disk; it
counts at the faster of one process and two. Ours also checks, finds duplicates and near duplicates, and splits by question. Rows of about 3 KB are made of
real posts (tile_dump.py's word swaps keep them different), and like those of the set, which has 31.3 million of 10.7 million
questions, globally shuffled: three of a question, the pairs of three answers, in any order.

    python benchmarks/convert_vs_datasets.py [ROWS=40000]
"""

import json
import random
import subprocess
import sys
import tempfile
from itertools import combinations
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from convert_vs_recipe import REAL, SOURCES, timed
from tile_dump import TEXT, rows

import prefkit.markup as markup


def write_rows(path: Path, count: int) -> None:
    """Rows in the set's columns: each four real posts in the order they come are a question with three answers."""
    import html

    made, texts = [], []
    for row in rows([REAL / s / "Posts.xml" for s in SOURCES]):
        found = dict(TEXT.findall(row))
        if b"Body" in found:
            texts.append(markup.to_markdown(html.unescape(found[b"Body"].decode())))
        if len(texts) == 4:
            question, *answers = texts
            qid, site = len(made) // 3, "https://beer.stackexchange.com"
            links = [f"{site}/questions/{qid}", site, f"{site}/users/{qid}/"]
            made += [(qid, question, *pair, "2019/01/01", links) for pair in combinations(answers, 2)]
            texts = []
        if len(made) >= count:
            break
    random.Random(0).shuffle(made)
    names = ("qid", "question", "response_j", "response_k", "date", "metadata")
    columns = dict(zip(names, map(list, zip(*made[:count], strict=True)), strict=True))
    pq.write_table(pa.table(columns), path, row_group_size=1000)


def peer(path: str, out: str, processes: str) -> None:
    """Map, filter, save."""
    from datasets import load_dataset

    num_proc = int(processes) if int(processes) > 1 else None
    data = load_dataset("parquet", data_files=path, split="train", cache_dir=f"{out}-cache")
    old = data.column_names

    def convert(batch: dict) -> dict:
        return {
            "prompt": ["Question: " + q + "\n\nAnswer: " for q in batch["question"]],
            "chosen": batch["response_j"],
            "rejected": batch["response_k"],
        }

    data = data.map(convert, batched=True, num_proc=num_proc, remove_columns=old)
    data = data.filter(
        lambda r: len(r["prompt"]) + len(r["chosen"]) <= 10**6 and len(r["prompt"]) + len(r["rejected"]) <= 10**6,
        num_proc=num_proc,
    )
    data.save_to_disk(out)


def main(count: int = 40_000) -> None:
    """Time both on the same file."""
    if not (REAL / SOURCES[0]).is_dir():
        sys.exit(f"no dumps at {REAL}: set PREFKIT_REAL_DATA")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "stack-exchange-paired.parquet")
        subprocess.run([sys.executable, __file__, "--rows", str(path), str(count)], check=True)
        n, size = pq.ParquetFile(path).metadata.num_rows, path.stat().st_size
        ours = [
            str(Path(sys.executable).parent / "prefkit"),
            "convert",
            str(path),
            "--out",
            f"{folder}/ours",
            "--workers",
            "2",
        ]
        ours_s, ours_mb = timed(ours)
        tried = {k: timed([sys.executable, __file__, "--peer", str(path), f"{folder}/peer{k}", k]) for k in "12"}
        processes = min(tried, key=lambda k: tried[k][0])
        peer_s, peer_mb = tried[processes]
    print(
        f"{n} rows, {size / 1e6:.0f} MB · ours {ours_s:.1f} s, {n / ours_s:.0f} rows/s · datasets (fastest with {processes}) {peer_s:.1f} s, {n / peer_s:.0f} rows/s"
    )
    result = {"benchmark": "convert_vs_datasets", "ours": round(n / ours_s), "peer": round(n / peer_s)}
    print(
        json.dumps(
            result | {"ratio": round(peer_s / ours_s, 2), "memory_ratio": round(ours_mb / peer_mb, 3), "unit": "rows/s"}
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rows"]:  # apart: what a process holds at its fork counts as its children's peak
        write_rows(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["--peer"]:
        peer(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
