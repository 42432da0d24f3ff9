"""stack-exchange-paired Parquet → data set: `prefkit convert` against the same map, filter and save through `datasets`.

The peer does what the original recipe did with this set: prompt template, a filter on length in characters, save_to_disk, on
two processes. Ours also checks, finds duplicates and near duplicates, and splits by question. Rows of about 3 KB are made of
real posts (tile_dump.py's word swaps keep them different).

    python benchmarks/convert_vs_datasets.py [ROWS=40000]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from convert_vs_recipe import REAL, SOURCES, timed
from tile_dump import TEXT, rows

import prefkit.markup as markup


def write_rows(path: Path, count: int) -> None:
    """Rows in the set's columns, out of real posts in the order they come."""
    import html

    texts, columns = [], {n: [] for n in ("qid", "question", "response_j", "response_k", "date", "metadata")}
    for row in rows([REAL / s / "Posts.xml" for s in SOURCES]):
        found = dict(TEXT.findall(row))
        if b"Body" in found:
            texts.append(markup.to_markdown(html.unescape(found[b"Body"].decode())))
        if len(texts) == 3:
            n = len(columns["qid"])
            values = (n // 3, texts[0], texts[1] + f"\n\n{n}", texts[2], "2019/01/01")
            for name, value in zip(columns, values, strict=False):
                columns[name].append(value)
            links = [f"https://beer.stackexchange.com/questions/{n // 3}", "https://beer.stackexchange.com"]
            columns["metadata"].append([*links, f"https://beer.stackexchange.com/users/{n}/"])
            texts = []
        if len(columns["qid"]) == count:
            break
    pq.write_table(pa.table(columns), path, row_group_size=1000)


def peer(path: str, out: str) -> None:
    """Map, filter, save."""
    from datasets import load_dataset

    data = load_dataset("parquet", data_files=path, split="train", cache_dir=f"{out}-cache")
    old = data.column_names

    def convert(batch: dict) -> dict:
        return {
            "prompt": ["Question: " + q + "\n\nAnswer: " for q in batch["question"]],
            "chosen": batch["response_j"],
            "rejected": batch["response_k"],
        }

    data = data.map(convert, batched=True, num_proc=2, remove_columns=old)
    data = data.filter(
        lambda r: len(r["prompt"]) + len(r["chosen"]) <= 10**6 and len(r["prompt"]) + len(r["rejected"]) <= 10**6,
        num_proc=2,
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
        peer_s, peer_mb = timed([sys.executable, __file__, "--peer", str(path), f"{folder}/peer"])
    print(
        f"{n} rows, {size / 1e6:.0f} MB · ours {ours_s:.1f} s, {n / ours_s:.0f} rows/s · datasets {peer_s:.1f} s, {n / peer_s:.0f} rows/s"
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
