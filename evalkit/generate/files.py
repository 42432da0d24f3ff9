"""answers.jsonl: one line a prompt {id, prompt, response, model, n_tokens, finish}; written once whole, resumable."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from evalkit.generate.base import Backend, Settings
from prefkit.errors import UserError
from prefkit.files import write_text
from prefkit.locks import hold
from prefkit.schema import Message, prompt_hash
from train.models.locate import weights_digest

BACKENDS = {"local": "evalkit.generate.local"}  # name -> module with `answers`


def distinct_prompts(pairs: pa.Table, limit: int | None = None) -> dict[str, list[Message]]:
    """The prompts of a pairs table by their hash, each once, in order of appearance."""
    found: dict[str, list[Message]] = {}
    for chunk in pairs.select(["prompt"]).to_batches():
        for prompt in chunk["prompt"].to_pylist():
            if limit is not None and len(found) == limit:
                return found
            found.setdefault(prompt_hash(prompt), prompt)
    return found


def write_answers(
    model: str,
    prompts: dict[str, list[Message]],
    out: Path,
    settings: Settings,
    *,
    name: str | None = None,
    backend: str = "local",
    progress: Callable[[int], None] = lambda n: None,
) -> int:
    """Answer prompts into `out`; return how many answers were cut at the token limit.

    Lines gather in `.OUT.partial`, so that an interrupted run goes on where it stopped; the file appears under its own
    name when it is whole, in the order of the prompts. `progress` is told of each answer.
    """
    partial = out.with_name(f".{out.name}.partial")
    _refuse_finished(out, partial)
    weights = weights_digest(model) if backend == "local" else None  # a model trained again is another model
    wanted = json.dumps({"model": model, "weights": weights, "name": name, "settings": vars(settings)}, sort_keys=True)
    answers: Backend = importlib.import_module(BACKENDS[backend]).answers
    out.parent.mkdir(parents=True, exist_ok=True)
    with partial.open("a+b") as f:
        try:
            hold(f, partial, UserError("another generate is writing there", out, "wait for it, or give another --out"))
        finally:
            _refuse_finished(out, partial)  # that one may have finished since
        done = _read_partial(f, wanted)
        progress(len(done))
        todo = [(key, prompt) for key, prompt in prompts.items() if key not in done]
        for answer in answers(model, [p for _, p in todo], settings) if todo else ():
            key, prompt = todo[answer.index]
            done[key] = {"id": key, "prompt": prompt, "response": answer.text, "model": name or Path(model).name}
            done[key] |= {"n_tokens": answer.n_tokens, "finish": answer.finish}
            f.write(json.dumps(done[key], ensure_ascii=False).encode() + b"\n")
            f.flush()
            progress(1)
        write_text(out, "".join(json.dumps(done[k], ensure_ascii=False) + "\n" for k in prompts))
        partial.unlink(missing_ok=True)
    return sum(done[k]["finish"] != "stop" for k in prompts)


def _refuse_finished(out: Path, partial: Path) -> None:
    if out.exists():
        partial.unlink(missing_ok=True)
        raise UserError("the answers exist already", out, "give another --out or remove the file")


def _read_partial(f: BinaryIO, wanted: str) -> dict[str, dict]:
    """Whole lines of an interrupted run with the same settings; the torn last line of a killed one is done again."""
    f.seek(0)
    head, *lines = f.read().split(b"\n")
    whole = lines[:-1] if head == wanted.encode() else []  # what follows the last newline was never finished
    f.truncate(0)
    f.write(b"\n".join([wanted.encode(), *whole]) + b"\n")
    f.flush()
    return {record["id"]: record for record in map(json.loads, whole)}
