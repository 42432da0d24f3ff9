"""Pairs that repeat evaluation sets: word 13-grams that a pair and an evaluation text have in common.

The rule is that of GPT-3 (arXiv 2005.14165, appendix C) with its 13 words; a text of an evaluation set with fewer
words counts if all of it occurs, and a question of fewer than `FEWEST` if it is the last turn of a pair's prompt. Case
and punctuation do not matter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from prefkit.errors import UserError
from prefkit.file_formats import readable_files
from prefkit.files import renamed
from prefkit.readers import read_records
from prefkit.shards import MANIFEST, Manifest, shards_of
from prefkit.shingles import shingles, texts_of
from prefkit.tables import SIDES, Candidates, clean_column, offsets, string_offsets

N_WORDS, FEWEST = 13, 8
QUESTIONS = ("prompt", "question", "instruction", "query", "input", "goal", "turns")  # columns of evaluation sets
FILE = "evaluation.arrow"


class Evaluation:
    """The n-grams of evaluation sets, sorted by hash, with where each comes from."""

    def __init__(self, table: pa.Table):
        self.hashes = table["hash"].to_numpy()
        self.words = table["words"].to_numpy()
        self.origin = table["origin"]

    @classmethod
    def load(cls, work: Path) -> Evaluation:
        """What `write_evaluation` left in the work folder."""
        return cls(pa.ipc.open_file(pa.memory_map(str(work / FILE))).read_all())

    def matches(self, made: Candidates) -> dict[int, dict[str, Any]]:
        """Of each row with a text in common: the side, the matching text and the evaluation record's position."""
        contents = texts_of(made.cells)
        found = self._short_questions(made)
        for n_words in np.unique(self.words[self.words >= FEWEST]).tolist():
            of_length = self.words == n_words
            hashes, origins = self.hashes[of_length], np.flatnonzero(of_length)
            grams = shingles(contents, n_words)
            at = np.searchsorted(hashes, grams.hashes).clip(max=len(hashes) - 1)
            hit = np.flatnonzero(hashes[at] == grams.hashes)
            cells = np.searchsorted(grams.cuts, hit, side="right") - 1
            hit, cells = hit[np.concatenate([[True], np.diff(cells) != 0])[: len(cells)]], np.unique(cells)
            if not len(hit):
                continue
            of_cell = dict(zip(cells.tolist(), hit.tolist(), strict=True))
            for side in SIDES:
                numbers = made.side(side)
                for row in np.flatnonzero(np.isin(numbers, cells)).tolist():
                    cell = int(numbers[row])
                    k = of_cell[cell]
                    text = contents[cell].as_py().encode()
                    begin = int(grams.starts[k]) - _begin(contents, cell)
                    end = int(grams.stops[k]) - _begin(contents, cell)
                    match = {
                        "side": side,
                        "text": text[begin:end].decode(),
                        "evaluation": self.origin[int(origins[at[k]])].as_py(),
                    }
                    found.setdefault(row, match)
        return found

    def _short_questions(self, made: Candidates) -> dict[int, dict[str, Any]]:
        """Of each row whose prompt ends with a question of fewer than `FEWEST` words: what `matches` says of it."""
        if not (self.words < FEWEST).any():
            return {}
        cells, place = np.unique(made.side("prompt"), return_inverse=True)
        ends = offsets(made.cells)[1:][cells]
        last = made.cells.flatten().field(1).take(pa.array(np.maximum(ends - 1, 0)))
        counts = np.where(offsets(made.cells)[:-1][cells] < ends, np.diff(shingles(last, 1).cuts), 0)
        origin_of: dict[int, tuple[str, str]] = {}
        for n_words in np.unique(self.words[self.words < FEWEST]).tolist():
            here = np.flatnonzero(counts == n_words)
            of_length = np.flatnonzero(self.words == n_words)
            known = dict(zip(self.hashes[of_length].tolist(), of_length.tolist(), strict=True))
            grams = shingles(last.take(pa.array(here)), n_words).hashes.tolist()
            for cell, gram in zip(here.tolist(), grams, strict=True):
                if gram in known:
                    origin_of[cell] = (last[cell].as_py(), self.origin[known[gram]].as_py())
        hit = np.flatnonzero(np.isin(place, list(origin_of)))
        found = {int(row): origin_of[int(place[row])] for row in hit}
        return {row: {"side": SIDES[0], "text": t, "evaluation": origin} for row, (t, origin) in found.items()}


def _begin(contents: pa.Array, cell: int) -> int:
    cuts = string_offsets(contents)
    return int(cuts[cell] - cuts[0])


def write_evaluation(work: Path, sets: list[Path]) -> None:
    """All n-grams of the evaluation sets' files as one sorted file in the work folder."""
    texts, origins, asked = [], [], []
    for file in sets:
        for position, record in read_records(file):
            for text, is_question in _strings(record):
                texts.append(text)
                origins.append(position)
                asked.append(is_question)
    contents = clean_column(texts, Counter())
    hashes, words, origin = [], [], []
    counts = np.diff(shingles(contents, 1).cuts)
    counts[(counts < FEWEST) & ~np.array(asked, dtype=bool)] = 0
    for n_words in sorted({min(int(c), N_WORDS) for c in counts if c}):
        these = np.flatnonzero(counts == n_words if n_words < N_WORDS else counts >= N_WORDS)
        grams = shingles(contents.take(pa.array(these)), n_words)
        hashes.append(grams.hashes)
        words.append(np.full(len(grams.hashes), n_words))
        origin.append(np.repeat(these, np.diff(grams.cuts)))
    if not hashes:
        raise UserError(
            f"no question in the evaluation sets, and no text of {FEWEST} words or more",
            ", ".join(map(str, sets)),
            "name files with their prompts",
        )
    all_hashes, all_words, all_origins = map(np.concatenate, (hashes, words, origin))
    _, first = np.unique(np.stack([all_words.astype(np.uint64), all_hashes], 1), axis=0, return_index=True)
    table = pa.table(
        {
            "hash": all_hashes[first],
            "words": all_words[first],
            "origin": [origins[i] for i in all_origins[first].tolist()],
        }
    )
    with renamed(work / FILE) as new, pa.ipc.new_file(str(new), table.schema) as out:
        out.write_table(table)


def evaluation_files(sets: list[Path]) -> dict[Path, str]:
    """The files of evaluation sets, each with its name: records of any kind that `readers` knows, folders of them, or
    our data sets.

    Errors: `UserError` where one adds no file, for then nothing would be looked for.
    """
    files: dict[Path, str] = {}
    for path in sets:
        if not path.exists():
            raise UserError("no such evaluation set", path, "check the path")
        if (path / MANIFEST).is_file():
            manifest = Manifest.read(path)
            found = [path / shard for split in manifest.splits for shard in shards_of(manifest, split)]
        else:
            found = readable_files(path) if path.is_dir() else [path]
        if not found:
            raise UserError("no file of this evaluation set can be read", path, "name files with their prompts")
        files |= {f: f.name if f == path else f"{path.name}/{f.relative_to(path).as_posix()}" for f in found}
    return files


def _strings(value: Any, is_question: bool = False) -> Iterator[tuple[str, bool]]:
    """All texts in a record, however deep, and whether each is asked: in a column of `QUESTIONS`, or a user's turn."""
    if isinstance(value, str):
        yield value, is_question
    elif isinstance(value, dict):
        users = value.get("role", value.get("from")) in ("user", "human")
        for name, inner in value.items():
            if "role" in value or "from" in value:
                yield from _strings(inner, users and name in ("content", "value"))
            else:
                yield from _strings(inner, is_question or name in QUESTIONS)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, is_question)
