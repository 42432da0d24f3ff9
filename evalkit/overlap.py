"""Was the policy trained on what it is evaluated on? Prompts compared exactly and nearly, by shared word 5-grams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from prefkit.errors import UserError
from prefkit.schema import Message, prompt_hash
from prefkit.shards import open_pairs, read_manifest

WORDS = 5
NEAR = 0.8  # Jaccard similarity of the sets of 5-grams


class Overlap(NamedTuple):
    """Of so many distinct evaluated prompts, those that are among the trained ones, and those that nearly are."""

    run_data: str
    prompts: int
    exact: int
    near: int


def training_overlap(config: dict[str, Any], pairs: pa.Table) -> Overlap | str:
    """Compare a run's training split with evaluated pairs; a sentence says why, where that cannot be done."""
    data = config.get("data", {})
    path, recorded = data.get("path"), config.get("digests", {}).get("data")
    if not path:
        return "the policy is no run of ours, so what it was trained on is not known"
    try:
        manifest = read_manifest(path)
    except UserError:
        return f"the data it was trained on is not at {path} any more"
    if recorded is not None and manifest.digest != recorded:
        return f"the data at {path} has changed since it was trained"
    trained = open_pairs(path, data.get("split", "train"))
    if data.get("limit") is not None:
        trained = trained.slice(0, data["limit"])
    return count_overlap(Path(path).name, _prompts(pairs), _prompts(trained).values())


def count_overlap(name: str, evaluated: dict[str, str], trained: Iterable[str]) -> Overlap:
    """Of `evaluated` prompts (by hash), how many are among the trained texts; near ones by Jaccard ≥ 0.8 of 5-grams.

    Exact set comparison through an inverted index of the evaluated prompts: cost is one lookup a trained 5-gram.
    """
    texts = list(evaluated.values())
    exact = set(texts)
    sets = [shingles(t) for t in texts]
    gram_M = np.concatenate([*sets, np.empty(0, np.uint64)])
    owner_M = np.repeat(np.arange(len(texts)), [len(s) for s in sets])
    order = np.argsort(gram_M, kind="stable")
    gram_M, owner_M = gram_M[order], owner_M[order]
    size_N = np.array([len(s) for s in sets])
    same, near_N = set(), np.zeros(len(texts), bool)
    for text in trained:
        if text in exact:
            same.add(text)
        found = shingles(text)
        first, last = (np.searchsorted(gram_M, found, side=side) for side in ("left", "right"))
        hits = [owner_M[a:b] for a, b in zip(first, last, strict=True) if a < b]
        shared_N = np.bincount(np.concatenate(hits or [owner_M[:0]]), minlength=len(texts))
        near_N |= shared_N >= NEAR * (size_N + len(found) - shared_N)
    near = sum(bool(n) and t not in same for t, n in zip(texts, near_N, strict=True))
    return Overlap(name, len(texts), len(same), near)


def shingles(text: str) -> np.ndarray:
    """Distinct hashes [M] of the 5-grams of a text's words, case aside; a shorter text is one gram."""
    words = text.casefold().split()
    grams = (" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1)))
    return np.unique(np.fromiter((hash(g) & (2**64 - 1) for g in grams), np.uint64))


def _prompts(pairs: pa.Table) -> dict[str, str]:
    """Distinct prompts as one text each, by their hash."""
    return {prompt_hash(p): _text(p) for p in _column(pairs)}


def _column(pairs: pa.Table) -> Iterator[list[Message]]:
    for batch in pairs.select(["prompt"]).to_batches(max_chunksize=1024):
        yield from batch["prompt"].to_pylist()


def _text(prompt: list[Message]) -> str:
    return "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
