"""Two files of answers as items to judge blind, and the score once the judge has seen enough."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import numpy as np

from prefkit.errors import UserError
from prefkit.judgements.drafts import as_messages
from prefkit.judgements.items import Draft, Judgement, Response, item_id
from prefkit.judgements.store import Imported, Store
from prefkit.readers import read_records
from prefkit.schema import Message, prompt_hash
from prefkit.shares import share
from prefkit.unseen import encodable
from prefkit.web.session import Results
from prefkit.wording import counts_text

KIND = "side-by-side"
SHAPE = "an answers file has lines {id, prompt, response, model}, as `evalkit generate` writes them"


@dataclass(frozen=True, slots=True)
class Answers:
    """One file: its name, who answered, prompt id → (prompt, response), and how many lines repeated an id."""

    file: str
    name: str
    by_id: dict[str, tuple[list[Message], list[Message]]]
    repeated: int


@dataclass(frozen=True, slots=True)
class Matched:
    """Items both files answer, those on which they say the same, and what had no partner, by reason."""

    names: tuple[str, str]
    different: list[Draft]
    identical: list[Draft]
    left_out: Counter[str]


@dataclass(frozen=True, slots=True)
class Tally:
    """Judgements of a comparison: of each that decided, whether the first file won, whether the left (upper) answer was
    chosen, and the group of its prompt; and what was no win."""

    first_D: np.ndarray
    left_D: np.ndarray
    group_D: np.ndarray
    ties: int
    skips: int
    after_reveal: int
    judges: int
    items: int
    identical: int

    @property
    def wins(self) -> tuple[int, int]:
        """Of either side."""
        won = int(self.first_D.sum())
        return won, len(self.first_D) - won


def read_answers(path: Path) -> Answers:
    """The answers of one file; `UserError` names the first line that is not one. A repeated id counts once."""
    by_id: dict[str, tuple[list[Message], list[Message]]] = {}
    models: Counter[str] = Counter()
    repeated = 0
    if not path.is_file():
        raise UserError("no such file of answers", path, "make one with `evalkit generate`")
    for position, record in read_records(path):
        try:
            key, prompt, response, model = _answer(record)
        except ValueError as e:
            raise UserError(f"not an answer: {e}", position, SHAPE) from None
        if key in by_id:
            repeated += 1
            continue
        by_id[key] = (prompt, response)
        models[model] += 1
    if not by_id:
        raise UserError("no answers", path, SHAPE)
    one_model = next(iter(models)) if len(models) == 1 else ""
    return Answers(encodable(path.name), one_model or encodable(path.name.partition(".")[0]), by_id, repeated)


def match(a: Answers, b: Answers) -> Matched:
    """Pair the answers by prompt id; `UserError` when the files have no prompt in common."""
    names = (a.name, b.name)
    if a.name == b.name:  # one model twice, told apart by its files whichever comes first
        files = (a.file, b.file) if a.file != b.file else ("first file", "second file")
        names = (f"{a.name} ({files[0]})", f"{b.name} ({files[1]})")
    left_out: Counter[str] = Counter()
    for name, mine, theirs in ((names[0], a, b), (names[1], b, a)):
        left_out[f"only in {name}"] = len(mine.by_id.keys() - theirs.by_id.keys())
        left_out[f"answered again in {name}"] = mine.repeated
    different: list[Draft] = []
    identical: list[Draft] = []
    seen: set[str] = set()
    for key in (k for k in a.by_id if k in b.by_id):
        (prompt, one), (other_prompt, other) = a.by_id[key], b.by_id[key]
        if prompt_hash(prompt) != prompt_hash(other_prompt):
            left_out["same id, another prompt"] += 1
            continue
        draft = Draft(prompt, [Response(one, names[0]), Response(other, names[1])], prompt_hash(prompt))
        if (shown := item_id(draft)) in seen:  # one vote cannot count twice
            left_out["same prompt and answers under another id"] += 1
            continue
        seen.add(shown)
        (identical if one == other else different).append(draft)
    if not different and not identical:
        what = f"the two files have no prompt in common: {counts_text(+left_out)}"
        raise UserError(what, fix="answer the same data with both")
    return Matched(names, different, identical, +left_out)


def store_items(store: Store, matched: Matched, title: str, seed: int) -> tuple[Imported, Imported]:
    """Put the items to judge, and those that need no judge, into the store; again changes nothing.

    What both sides answered alike is judged by a rule named `identical`, once: it is never shown and always counted.
    """
    settings = {"seed": seed}
    shown = store.add_batch(KIND, title, matched.different, settings)
    if not matched.identical:
        return shown, Imported("", 0, 0)
    alike = store.add_batch(f"{KIND}/identical", title, matched.identical, settings)
    rule = store.judge("identical", kind="rule")
    for draft in matched.identical:
        event = str(uuid5(NAMESPACE_URL, f"prefkit:identical:{item_id(draft)}"))
        store.record(rule, Judgement(event, alike.batch_id, item_id(draft), (0, 1), "tie"))
    return shown, alike


def tally(store: Store, batch_id: str, names: tuple[str, str], identical: int = 0) -> Tally:
    """Count what people's standing judgements say of the two sides."""
    ids = store.item_ids(batch_id)
    made_by = {(p.item_id, p.response): p.name for p in store.producers(ids, batch_id)}
    votes = store.votes(ids)
    decided = [v for v in votes if v.outcome == "better"]
    groups = store.groups(v.item_id for v in decided)
    return Tally(
        first_D=np.array([made_by[v.item_id, v.winner] == names[0] for v in decided], bool),
        left_D=np.array([v.winner == v.shown[0] for v in decided], bool),
        group_D=np.array([groups[v.item_id] for v in decided], str),
        ties=sum(v.outcome in ("tie", "both_bad") for v in votes),
        skips=sum(v.outcome == "skip" for v in votes),
        after_reveal=sum("after_reveal" in v.flags for v in votes),
        judges=len({v.judge_name for v in votes}),
        items=len(ids),
        identical=identical,
    )


def results(t: Tally, names: tuple[str, str]) -> Results:
    """The tally in words: wins, ties, losses, share of decided with its 95 % interval, and position bias.

    The interval is that of `shares.share`: several judgements of one prompt count for less than as many prompts.
    """
    decided = len(t.first_D)
    sides = (t.first_D, ~t.first_D)
    rows = [
        [name, str(int(won.sum())), str(t.ties), str(int((~won).sum())), _share(won, t.group_D)]
        for name, won in zip(names, sides, strict=True)
    ]
    remarks = [
        f"{decided + t.ties} judgements on {t.items} prompts by {t.judges} judge{'s' * (t.judges != 1)}; "
        f"{t.skips} skipped. Ties are left out of the share.",
        f"Side A was chosen in {int(t.left_D.sum())} of {decided} decided: {_share(t.left_D, t.group_D)}. "
        "Far from 50 % means that the position swayed the judge.",
    ]
    if t.identical:
        remarks.append(f"{t.identical} more prompts had the same answer from both and were not shown.")
    if t.after_reveal:
        remarks.append(f"{t.after_reveal} judgements were made after the results had been seen: not blind.")
    if len(np.unique(t.group_D)) < decided:
        remarks.append("Some prompts were judged more than once: the intervals allow for it.")
    return Results(["", "wins", "ties", "losses", "share of decided, 95 % interval"], rows, remarks)


def _answer(record: dict | str) -> tuple[str, list[Message], list[Message], str]:
    if isinstance(record, str):
        raise ValueError("a damaged line")
    response = record.get("response")
    if isinstance(response, str) and not response.strip():  # a model that says nothing has answered, badly
        answer: list[Message] = [{"role": "assistant", "content": response}]
    else:
        answer = as_messages(response, "assistant")
    prompt = as_messages(record.get("prompt"), "user")
    return str(record.get("id") or prompt_hash(prompt)), prompt, answer, encodable(str(record.get("model") or ""))


def _share(hits_D: np.ndarray, group_D: np.ndarray) -> str:
    if not len(hits_D):
        return "–"
    found = share(hits_D.astype(float), group_D)
    return f"{100 * found.value:.0f} % ({100 * found.low:.0f} to {100 * found.high:.0f})"
