"""tile_dump.py OUT MB POSTS.xml…  Tiles real posts to any size: ids are shifted and, from the second tile on, half of
the word types are swapped for others of the same length, so that a deduplicator finds about as much in the whole as in
the source."""

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

IDS = re.compile(rb'( (?:Id|ParentId|AcceptedAnswerId)=")(\d+)"')
TEXT = re.compile(rb' (Body|Title)="([^"]*)"')
WORD = re.compile(rb"(?<![&/=\w.#;:-])[a-z]{4,12}(?![\w;:=/.-])")
MARKUP = set(
    b"code strong blockquote href http https nofollow noreferrer class lang image kbd table tbody thead quot hellip nbsp spoiler".split()
)


def swaps(words: list[bytes], seed: int) -> dict[bytes, bytes]:
    """Half of the words, each with another of the same length."""
    rng, same_length = random.Random(seed), {}
    for word in words:
        same_length.setdefault(len(word), []).append(word)
    return {w: rng.choice(same_length[len(w)]) for w in words if rng.random() < 0.5}


def perturbed(line: bytes, offset: int, swap: dict[bytes, bytes]) -> bytes:
    """A row with shifted ids and, in its texts, other words."""
    row = IDS.sub(lambda m: m[1] + str(int(m[2]) + offset).encode() + b'"', line)
    if not swap:
        return row
    return TEXT.sub(lambda m: b" " + m[1] + b'="' + WORD.sub(lambda w: swap.get(w[0], w[0]), m[2]) + b'"', row)


def rows(sources: list[Path]) -> Iterator[bytes]:
    """Endless rows, tile after tile."""
    loaded = []
    for path in sources:
        lines = [line.strip() for line in path.open("rb") if line.lstrip().startswith(b"<row")]
        words = sorted({w for line in lines for m in TEXT.finditer(line) for w in WORD.findall(m[2])} - MARKUP)
        loaded.append((lines, words, max(int(re.search(rb' Id="(\d+)"', line)[1]) for line in lines)))
    offset = tile = 0
    while True:
        for lines, words, top in loaded:
            swap = swaps(words, tile) if tile else {}
            for line in lines:
                yield perturbed(line, offset, swap)
            offset += top + 1
        tile += 1


def tile(out: Path, megabytes: float, sources: list[Path]) -> None:
    """Write a Posts.xml of about that size."""
    written = 0
    with out.open("wb") as f:
        f.write(b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?>\r\n<posts>\r\n')
        for row in rows(sources):
            written += f.write(b"  " + row + b"\r\n")
            if written >= megabytes * 1e6:
                break
        f.write(b"</posts>\r\n")


if __name__ == "__main__":
    tile(Path(sys.argv[1]), float(sys.argv[2]), [Path(p) for p in sys.argv[3:]])
