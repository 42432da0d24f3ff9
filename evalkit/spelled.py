"""The tokens of responses as a reader sees them, each with what the model learned to say more or less often."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evalkit.scores import tokens_path
from prefkit.errors import UserError
from prefkit.unseen import visible

MODELS, SIDES = ("policy", "ref"), ("chosen", "rejected")
MOST_TOKENS = 800  # of a response, before it is cut and the page says so


def tokens_of(scores: Path, table: pa.Table) -> dict[str, dict[str, list]]:
    """Tokens of both responses with their log-ratio (log π where there is no reference), two decimals.

    Read from `tokens_path`. UserError where they are not those of the scores: their sums differ.
    """
    file = tokens_path(scores)
    if not file.is_file():
        return {}
    sums = {p["id"]: p for p in table.to_pylist()}
    found = {}
    try:
        for kept in pq.read_table(file, filters=pc.field("id").isin(table["id"].combine_chunks())).to_pylist():
            if not all(_adds_up(kept, sums[kept["id"]], f"{w}_{x}") for w in MODELS for x in SIDES):
                raise UserError(
                    f"these tokens are not those of the scores, first in pair {kept['id']}", file, "score again"
                )
            found[kept["id"]] = {side: _spelled(kept, side) for side in SIDES}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as e:
        raise UserError("cannot read the tokens beside the scores", file, "score again, or remove the file") from e
    return found


def _adds_up(kept: dict[str, Any], row: dict[str, Any], name: str) -> bool:
    """Whether the log-probabilities of tokens have the sum that the scores have; or both none, without a reference."""
    if kept[name] is None or row[name] is None:
        return kept[name] is None and row[name] is None
    return abs(sum(kept[name]) - row[name]) <= 1e-3 * max(1.0, abs(row[name]))


def _spelled(pair: dict[str, Any], side: str) -> list[list]:
    numbers = np.array(pair[f"policy_{side}"][:MOST_TOKENS], float)
    if pair[f"ref_{side}"] is not None:
        numbers = numbers - np.array(pair[f"ref_{side}"][:MOST_TOKENS], float)
    spelled = readable(pair[f"{side}_tokens"][:MOST_TOKENS])
    cut = len(pair[f"{side}_tokens"]) - MOST_TOKENS
    rows = [[visible(t), round(float(n), 2)] for t, n in zip(spelled, numbers, strict=True)]
    return [*rows, [f" … {cut} more tokens", 0.0]] if cut > 0 else rows


def readable(tokens: list[str]) -> list[str]:
    """Tokens as text, byte-level spelling (Ġ) and SentencePiece's (▁, <0xE2>) undone.

    A character of several tokens stands at the last of them; the joined texts are the whole text.
    """
    byte_level = any("Ġ" in t or "Ċ" in t for t in tokens)
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    return [decode(_from_bytes(t) if byte_level else _from_pieces(t)) for t in tokens]


def _from_bytes(token: str) -> bytes:
    """GPT-2's printable stand-ins for bytes, undone; a token that is not so spelled stays as it is."""
    return bytes(BYTES[c] for c in token) if all(c in BYTES for c in token) else token.encode()


def _from_pieces(token: str) -> bytes:
    if match := re.fullmatch("<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(match[1])
    return token.replace("▁", " ").encode("utf-8", "replace")


def _byte_alphabet() -> dict[str, int]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


BYTES = _byte_alphabet()
