"""Rows: one prompt with its distinct responses, each computed once, and the pairs among them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.schema import Message
from train.core.encode import Dropped, Encoded, Ids, Limits, Template, encode_prompt_group


@dataclass(frozen=True, eq=False)
class Row:
    """A prompt (int32 ids), its k distinct responses, and (winner, loser) indices into them, one per pair id.

    `ref_logps` holds each response's log-probability under the reference where that is known beforehand.
    """

    prompt_ids: Ids
    response_ids: tuple[Ids, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    pair_ids: tuple[str, ...] = ()
    truncated: tuple[bool, ...] = ()
    prompt_truncated: bool = False
    ref_logps: tuple[float, ...] = ()

    @property
    def parts(self) -> tuple[tuple[int, ...], ...]:
        """Responses that belong together: the two of each pair, or each by itself where there are no pairs."""
        return self.pairs or tuple((i,) for i in range(len(self.response_ids)))

    def boundary(self, tokenizer: Any, width: int = 4) -> str:
        """The last tokens of the prompt and the first of a response: `"Ċ" "Answer" ":" | "ĠThe" "Ġhop"`."""
        sides = (self.prompt_ids[-width:], self.response_ids[0][:width])
        return " | ".join(" ".join(f'"{t}"' for t in tokenizer.convert_ids_to_tokens(s.tolist())) for s in sides)

    @property
    def tokens(self) -> int:
        """Tokens of the row with its prompt computed once."""
        return len(self.prompt_ids) + self.response_tokens

    @property
    def response_tokens(self) -> int:
        """Tokens that are trained or scored."""
        return sum(map(len, self.response_ids))

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest response."""
        return len(self.prompt_ids) + max(map(len, self.response_ids))

    def select(self, pairs: Sequence[int]) -> Row:
        """The same prompt with only these pairs (indices) and the responses they use."""
        used = sorted({r for p in pairs for r in self.pairs[p]})
        new = {old: i for i, old in enumerate(used)}
        kept = tuple((new[w], new[x]) for w, x in (self.pairs[p] for p in pairs))
        return replace(self.only(used), pairs=kept, pair_ids=tuple(self.pair_ids[p] for p in pairs))

    def only(self, responses: Sequence[int]) -> Row:
        """The same prompt with only these responses (indices), without pairs."""
        return replace(
            self,
            response_ids=tuple(self.response_ids[r] for r in responses),
            truncated=tuple(self.truncated[r] for r in responses if self.truncated),
            ref_logps=tuple(self.ref_logps[r] for r in responses if self.ref_logps),
            pairs=(),
            pair_ids=(),
        )


def sequence_key(prompt_ids: Ids, response_ids: Ids) -> bytes:
    """Names a prompt with a response, boundary included: blake2b-128 of their token ids."""
    known = len(prompt_ids).to_bytes(8, "little") + prompt_ids.tobytes() + response_ids.tobytes()
    return hashlib.blake2b(known, digest_size=16).digest()


class SequenceLogp(NamedTuple):
    """log π of a response: the sum over its tokens (fp64), and each token's own (float32)."""

    total: float
    tokens: np.ndarray


class PairText(NamedTuple):
    """One pair as text; `id` follows it to the metrics and to the scores."""

    id: str
    prompt: list[Message]
    chosen: list[Message]
    rejected: list[Message]


@dataclass
class Rows:
    """Rows built from pairs, what was dropped (reason → pair ids), and how many records were read."""

    rows: list[Row] = field(default_factory=list)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    read: int = 0

    def drop(self, reason: str, *ids: str) -> None:
        """Count pairs that are not used, by name."""
        self.dropped.setdefault(reason, []).extend(ids)

    @property
    def kept(self) -> int:
        """Pairs in the rows; examples in rows made for SFT."""
        return sum(len(r.pair_ids) for r in self.rows)

    def counts(self) -> dict[str, Any]:
        """Counts for the run's summary: pairs kept, dropped by reason, truncated; prompts, responses, tokens."""
        cut = sum(r.prompt_truncated or any(r.truncated[i] for i in p) for r in self.rows for p in r.parts)
        return {
            "pairs": self.kept,
            "dropped": {reason: len(ids) for reason, ids in sorted(self.dropped.items())},
            "truncated_pairs": cut,
            "prompts": len({r.prompt_ids.tobytes() for r in self.rows}),
            "responses": sum(len(r.response_ids) for r in self.rows),
            "tokens": sum(r.tokens for r in self.rows),
            "tokens_as_pairs": sum(
                2 * len(r.prompt_ids) + len(r.response_ids[w]) + len(r.response_ids[x])
                for r in self.rows
                for w, x in r.pairs
            ),
        }


def pair_texts(table: Any) -> Iterable[PairText]:
    """The pairs of a pyarrow table in the PAIRS schema, in order."""
    for batch in table.select(["id", "prompt", "chosen", "rejected"]).to_batches(max_chunksize=1024):
        for record in batch.to_pylist():
            yield PairText(**record)


def without_ties(table: pa.Table) -> tuple[pa.Table, list[str]]:
    """The pairs of which one response is preferred, and the ids of the others (p_chosen = ½), to be counted."""
    tied = pc.equal(table["p_chosen"], 0.5).fill_null(False)
    return table.filter(pc.invert(tied)), table.filter(tied)["id"].to_pylist()


def build_rows(
    pairs: Iterable[PairText], tokenizer: Any, template: Template, limits: Limits, one_pair_per_row: bool = False
) -> Rows:
    """Group pairs by prompt in order of first appearance, encode each group once, and keep each response once.

    `one_pair_per_row` gives every pair a row of its own, for parity with trainers that know only pairs.
    """
    groups: dict[Any, list[PairText]] = {}
    for i, pair in enumerate(pairs):
        groups.setdefault(i if one_pair_per_row else _text(pair.prompt), []).append(pair)
    result = Rows()
    for group in groups.values():
        texts = {_text(side): side for pair in group for side in (pair.chosen, pair.rejected)}
        encoded = encode_prompt_group(tokenizer, template, group[0].prompt, list(texts.values()), limits)
        if isinstance(encoded, Dropped):
            result.drop(encoded.reason, *(pair.id for pair in group))
        elif (row := _row(group, list(texts), encoded, result)).pairs:
            result.rows.append(row)
    return result


def _row(group: list[PairText], texts: list[tuple], encoded: Encoded, result: Rows) -> Row:
    """The pairs of a prompt that can be used, over their distinct responses; `encoded` has those of `texts`."""
    seen: dict[Any, int] = {}  # of two texts with the same tokens the first stands for both
    place = {
        text: i if isinstance(ids, Dropped) else seen.setdefault(ids.tobytes(), i)
        for i, (text, ids) in enumerate(zip(texts, encoded.response_ids, strict=True))
    }
    pairs, names = [], []
    for pair in group:
        winner, loser = place[_text(pair.chosen)], place[_text(pair.rejected)]
        sides = (encoded.response_ids[winner], encoded.response_ids[loser])
        bad = next((ids for ids in sides if isinstance(ids, Dropped)), None)
        if bad is not None or winner == loser:
            result.drop(bad.reason if bad else "chosen and rejected have the same tokens", pair.id)
        else:
            pairs.append((winner, loser))
            names.append(pair.id)
    responses: Any = encoded.response_ids  # dropped ones are of no pair here, and not selected
    row = Row(encoded.prompt_ids, responses, tuple(pairs), tuple(names), encoded.truncated, encoded.prompt_truncated)
    return row.select(range(len(pairs)))


def build_examples(pairs: Iterable[PairText], tokenizer: Any, template: Template, limits: Limits) -> Rows:
    """Rows for SFT: each distinct (prompt, chosen response) once, one row each, bearing its first pair's id."""
    groups: dict[Any, dict[Any, PairText]] = {}
    result = Rows()
    for pair in pairs:
        if groups.setdefault(_text(pair.prompt), {}).setdefault(_text(pair.chosen), pair) is not pair:
            result.drop("same prompt and answer as an earlier pair", pair.id)
    for group in groups.values():
        first = next(iter(group.values()))
        encoded = encode_prompt_group(tokenizer, template, first.prompt, [p.chosen for p in group.values()], limits)
        for i, pair in enumerate(group.values()):
            ids = encoded if isinstance(encoded, Dropped) else encoded.response_ids[i]
            if isinstance(ids, Dropped):
                result.drop(ids.reason, pair.id)
            elif isinstance(encoded, Encoded):
                cut = (encoded.truncated[i],)
                result.rows.append(Row(encoded.prompt_ids, (ids,), (), (pair.id,), cut, encoded.prompt_truncated))
    return result


def _text(messages: list[Message]) -> tuple:
    """Messages as a key."""
    return tuple((m["role"], m["content"]) for m in messages)
