"""Was the policy trained on what it is evaluated on? Prompts compared exactly and nearly, by shared word 5-grams."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from prefkit.errors import UserError
from prefkit.schema import Message, prompt_hash
from train.data.dataset import data_digest, trained_prompts
from train.models.locate import locate, run_config

WORDS = 5
NEAR = 0.8  # Jaccard similarity of the sets of 5-grams


class Overlap(NamedTuple):
    """Of so many distinct evaluated prompts, those that are among the trained ones, and those that nearly are.

    `run_data` names the data sets that were compared, `unknown` what could not be.
    """

    run_data: str
    prompts: int
    exact: int
    near: int
    unknown: str = ""

    @property
    def line(self) -> str:
        """What `evalkit score` prints of it."""
        unknown = f"not known: {self.unknown}" if self.unknown else ""
        if not self.run_data:
            return unknown
        counts = f"{self.exact} of {self.prompts} prompts were trained on, {self.near} more nearly ({self.run_data})"
        return counts + f"; {unknown}" * bool(unknown)


def training_overlap(path: str, pairs: pa.Table) -> Overlap:
    """Compare the training data of a policy and of all it was made from with evaluated pairs."""
    trained: dict[str, Iterable[str]] = {}
    unknown: list[str] = []
    for data in stages(path):
        if isinstance(data, str):
            unknown.append(data)
            continue
        try:
            folder, found = Path(data["path"]), data_digest(data["path"])
        except UserError:
            unknown.append(f"{data['path']} is gone")
            continue
        if data["digest"] is not None and found != data["digest"]:
            unknown.append(f"{data['path']} has changed")
        else:
            texts = map(_text, trained_prompts(folder, data["split"], data["limit"]))
            trained[folder.name] = chain(trained.get(folder.name, ()), texts)
    distinct = {prompt_hash(p): _text(p) for p in _column(pairs)}
    counted = count_overlap(distinct, chain.from_iterable(trained.values()))
    return counted._replace(run_data=", ".join(trained), unknown="; ".join(dict.fromkeys(unknown)))


def stages(path: str) -> Iterator[dict[str, Any] | str]:
    """The data of each run that a policy was made by, the last one first; a sentence about what came before them."""
    seen: list[Any] = []
    while (config := run_config(locate(path))) is not None:
        data = config.get("data", {})
        stage = {"path": data.get("path"), "split": data.get("split", "train"), "limit": data.get("limit")}
        stage["digest"] = config.get("digests", {}).get("data")
        if stage not in seen:
            seen.append(stage)
            yield stage
        path = config.get("model", {}).get("path", "")
        try:
            locate(path)
        except UserError:
            yield f"what {path} was trained on"
            return
    yield f"what {Path(path).name} was trained on"


def count_overlap(evaluated: dict[str, str], trained: Iterable[str]) -> Overlap:
    """Of `evaluated` prompts (by hash), how many are among the trained texts; near ones by Jaccard ≥ 0.8 of 5-grams.

    Exact set comparison through an inverted index of the evaluated prompts.
    """
    texts = list(evaluated.values())
    exact = set(texts)
    sets = [grams_of(t) for t in texts]
    gram_M = np.concatenate([*sets, np.empty(0, np.uint64)])
    owner_M = np.repeat(np.arange(len(texts)), [len(s) for s in sets])
    order = np.argsort(gram_M, kind="stable")
    gram_M, owner_M = gram_M[order], owner_M[order]
    size_N = np.array([len(s) for s in sets])
    same, near_N = set(), np.zeros(len(texts), bool)
    for text in trained:
        if text in exact:
            same.add(text)
        found = grams_of(text)
        first, last = (np.searchsorted(gram_M, found, side=side) for side in ("left", "right"))
        hits = [owner_M[a:b] for a, b in zip(first, last, strict=True) if a < b]
        if hits:
            owner_H, shared_H = np.unique(np.concatenate(hits), return_counts=True)
            near_N[owner_H] |= shared_H >= NEAR * (size_N[owner_H] + len(found) - shared_H)
    near = sum(bool(n) and t not in same for t, n in zip(texts, near_N, strict=True))
    return Overlap("", len(texts), len(same), near)


def grams_of(text: str) -> np.ndarray:
    """Distinct hashes [M] of the 5-grams of a text's words, case aside; a shorter text is one gram."""
    words = text.casefold().split()
    grams = (" ".join(words[i : i + WORDS]) for i in range(max(1, len(words) - WORDS + 1)))
    return np.unique(np.fromiter((hash(g) & (2**64 - 1) for g in grams), np.uint64))


def _column(pairs: pa.Table) -> Iterator[list[Message]]:
    for batch in pairs.select(["prompt"]).to_batches(max_chunksize=1024):
        yield from batch["prompt"].to_pylist()


def _text(prompt: list[Message]) -> str:
    return "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
