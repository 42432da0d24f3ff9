"""Converts every real dump there is and writes, or checks, the README's table of what came of them.

    python docs/dump_table.py             check: exit 1 and a diff where the table is not what conversion makes
    python docs/dump_table.py --write     put in what conversion makes now

Dumps are looked for in $PREFKIT_REAL_DATA/stack-exchange (../shared/data without it); none are part of this project.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc

from prefkit import convert_dataset, open_pairs
from prefkit.errors import UserError
from prefkit.stats import describe
from prefkit.wording import counts_text

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("PREFKIT_REAL_DATA", ROOT.parent / "shared" / "data")) / "stack-exchange"
TABLE = re.compile(r"(?<=<!-- dumps -->\n).*?(?=<!-- /dumps -->)", re.S)
COLUMNS = ("dump", "bytes read", "posts read", "rejected", "questions", "prompts", "near-duplicates", "pairs")
COLUMNS += ("P(chosen is longer)", "CC BY-SA")


def dumps(folder: Path) -> list[Path]:
    """Folders with a Posts.xml, archives, and Posts of other names."""
    found = [*folder.rglob("*")]
    sites = {p.parent for p in found if p.name.lower() == "posts.xml"}
    files = [p for p in found if p.suffix == ".7z" or (p.suffix == ".xml" and p.parent not in sites)]
    return sorted([*sites, *files], key=lambda p: p.as_posix().lower())


def cells(dump: Path, out: Path) -> list[str]:
    """One dump's line of the table; a `UserError` where it makes no pairs.

    Questions are those that have pairs. A pair with sides of one length counts half; the interval is Wilson's, on the
    effective number of pairs, for those of one question are not independent.
    """
    manifest = convert_dataset(dump, out)
    pairs = open_pairs(out)
    if not pairs.num_rows:
        raise UserError("not one pair in it", dump)
    (ledgers,) = manifest.sources.values()
    rejected = Counter(ledgers["records"]["rejected"]) + Counter(ledgers["candidates"]["rejected"])
    longer = describe(out).longer_wins
    assert longer
    licences = pc.unique(pc.list_flatten(pairs["licenses"])).to_pylist()
    return [
        dump.relative_to(DATA).as_posix(),
        f"{sum(i['bytes'] for i in manifest.inputs):,}",
        f"{ledgers['records']['read']:,}",
        counts_text(rejected) or "0",
        f"{len(pc.unique(pairs['set_id'])):,}",
        f"{len(set(map(str, pairs['prompt'].to_pylist()))):,}",
        f"{manifest.links.get('near_duplicates', 0):,}",
        f"{pairs.num_rows:,}",
        f"{longer.value:.3f} [{longer.low:.3f}, {longer.high:.3f}]",
        ", ".join(sorted(name.removeprefix("CC BY-SA ") for name in licences)),
    ]


def lines(folder: Path) -> Iterator[str]:
    """The table, and of what no pairs came why not."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|---|{'--:|' * 7}---|---|"
    refused: Counter[str] = Counter()
    for dump in dumps(folder):
        with tempfile.TemporaryDirectory() as out:
            try:
                yield f"| {' | '.join(cells(dump, Path(out) / 'data'))} |"
            except UserError as e:
                refused[e.what.replace(dump.name, "a table").partition(":")[0]] += 1
    yield ""
    yield f"No pairs come of {refused.total()} more: {', '.join(f'{n} × {what}' for what, n in refused.most_common())}."


def rewrite(page: str, folder: Path) -> str:
    """The page with the table as conversion makes it now."""
    table = "\n".join(lines(folder)) + "\n"
    return TABLE.sub(lambda _: table, page)


def main(argv: list[str]) -> int:
    """Check or rewrite the README."""
    if not DATA.is_dir():
        print(f"error: no real dumps ({DATA}): set PREFKIT_REAL_DATA to the folder that holds stack-exchange/")
        return 2
    path = ROOT / "README.md"
    page = path.read_text(encoding="utf-8")
    now = rewrite(page, DATA)
    if "--write" in argv:
        path.write_text(now, encoding="utf-8")
        return 0
    found = list(difflib.unified_diff(page.splitlines(), now.splitlines(), "README.md", "converted", lineterm=""))
    print("\n".join(found))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
