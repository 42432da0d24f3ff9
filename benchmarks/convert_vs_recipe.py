"""Raw dump → data set on disk: `prefkit convert` against the recipe the published set was made with.

The peer is that recipe, step for step: ElementTree.iterparse, group in memory, markdownify through `datasets.map` on both
cores, save_to_disk. It checks nothing, keeps no provenance and does not split. Real posts are tiled (tile_dump.py).

    python benchmarks/convert_vs_recipe.py [MB=300] [POSTS.xml…]
"""

import json
import math
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("PREFKIT_REAL_DATA", ROOT.parent / "shared" / "data")) / "stack-exchange"
SOURCES = ["beer-2020-06", "ai-2017-03", "matheducators-2014-05", "bicycles.meta-2023-08"]


def recipe(posts: str, out: str) -> None:
    """The published recipe."""
    from datasets import Dataset
    from markdownify import markdownify

    questions, answers = {}, {}
    for _, element in ET.iterparse(posts):
        if element.tag == "row":
            row = dict(element.attrib)
            element.clear()
            if row["PostTypeId"] == "1":
                questions[row["Id"]] = row
            elif row["PostTypeId"] == "2":
                answers.setdefault(row.get("ParentId"), []).append(row)

    def score(answer: dict, question: dict) -> int:
        votes = int(answer["Score"])
        return (-1 if votes < 0 else round(math.log2(1 + votes))) + (answer["Id"] == question.get("AcceptedAnswerId"))

    rows = []
    for q, replies in answers.items():
        if q in questions and len(replies) > 1:
            scored = [(score(a, questions[q]), a) for a in replies]
            pairs = [(x, y) for x in scored for y in scored if x[0] > y[0]][:10]
            rows += [{"q": questions[q]["Body"], "j": x[1]["Body"], "k": y[1]["Body"]} for x, y in pairs]

    def convert(row: dict) -> dict:
        prompt = "Question: " + markdownify(row["q"]) + "\n\nAnswer: "
        return {"prompt": prompt, "chosen": markdownify(row["j"]), "rejected": markdownify(row["k"])}

    Dataset.from_list(rows).map(convert, remove_columns=["q", "j", "k"], num_proc=2).save_to_disk(out)


def timed(command: list[str]) -> tuple[float, float]:
    """Wall seconds, and the peak memory in MB of the largest process it was made of."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return time.monotonic() - start, usage.ru_maxrss / 1024


def markup_rates(dump: Path) -> str:
    """How fast bodies become Markdown on one core: all that prefkit does to them, and html-to-markdown alone."""
    import html
    import re

    import pyarrow as pa
    from html_to_markdown import convert

    from prefkit.markup import is_plain, to_markdown

    bodies = [html.unescape(b.decode()) for b in re.findall(rb' Body="([^"]*)"', dump.read_bytes()[: 20 << 20])]
    megabytes, times = sum(len(b.encode()) for b in bodies) / 1e6, []
    for work in (
        lambda: [to_markdown(b, plain=p) for b, p in zip(bodies, is_plain(pa.array(bodies)), strict=True)],
        lambda: [convert(b).content for b in bodies],
    ):
        start = time.process_time()
        work()
        times.append(megabytes / (time.process_time() - start))
    return f"markup on one core: ours {times[0]:.1f} MB/s, html-to-markdown alone {times[1]:.1f} MB/s"


def main(megabytes: float = 300, *posts: str) -> None:
    """Time both on the same file."""
    sources = [Path(p) for p in posts] or [REAL / s / "Posts.xml" for s in SOURCES]
    if missing := [p for p in sources if not p.is_file()]:
        sys.exit(f"no dump at {missing[0]}: name Posts.xml files, or set PREFKIT_REAL_DATA")
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder, "Posts.xml")
        command = [
            sys.executable,
            str(Path(__file__).with_name("tile_dump.py")),
            str(dump),
            str(megabytes),
            *map(str, sources),
        ]
        subprocess.run(command, check=True)  # apart: what a process holds at its fork counts as its children's peak
        os.sync()  # ours comes first: the dump must not still be on its way to the disk
        size = dump.stat().st_size / 1e6
        ours = ["prefkit", "convert", str(dump), "--out", f"{folder}/ours", "--workers", "2"]
        ours_s, ours_mb = timed([str(Path(sys.executable).parent / ours[0]), *ours[1:]])
        peer_s, peer_mb = timed([sys.executable, __file__, "--recipe", str(dump), f"{folder}/peer"])
        print(markup_rates(dump))
    print(
        f"ours {ours_s:.1f} s, {size / ours_s:.1f} MB/s · recipe {peer_s:.1f} s, {size / peer_s:.1f} MB/s · {size:.0f} MB"
    )
    result = {"benchmark": "convert_vs_recipe", "ours": round(size / ours_s, 2), "peer": round(size / peer_s, 2)}
    result |= {"ratio": round(peer_s / ours_s, 2), "memory_ratio": round(ours_mb / peer_mb, 3), "unit": "MB of XML/s"}
    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--recipe"]:
        recipe(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
