"""What happens between a judge and the store, without a browser: views go out, votes and undos come in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from prefkit.errors import UserError
from prefkit.judgements.items import Judgement
from prefkit.judgements.queue import Progress, Queue
from prefkit.judgements.store import Store
from prefkit.schema import Message

LETTERS = "AB"
CHOICES = {"a": "A is better", "b": "B is better", "tie": "Tie", "skip": "Skipped"}


@dataclass(frozen=True, slots=True)
class Vote:
    """What the browser sends: a UUID of its own, the item, the order it showed, and a key of `CHOICES`."""

    id: str
    item_id: str
    shown: tuple[int, ...]
    choice: str
    milliseconds: int | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """The reveal: a table and remarks, plain text throughout."""

    headers: list[str]
    rows: list[list[str]]
    remarks: list[str]


@dataclass(frozen=True, slots=True)
class View:
    """One screen: an item to judge, or (no item) the end. Everything in it may reach the browser."""

    progress: Progress
    said: str = ""  # what the last key press did
    item_id: str | None = None
    prompt: list[Message] | None = None
    responses: list[list[Message]] | None = None  # in the order shown
    shown: tuple[int, ...] = ()
    results: Results | None = None
    reveals: bool = False  # whether this session has results to end with


class Session(Protocol):
    """What the page needs; `judge` is the name of who is at the keyboard."""

    title: str
    question: str

    def view(self, judge: str) -> View: ...

    def vote(self, judge: str, vote: Vote) -> View: ...

    def undo(self, judge: str, event_id: str) -> View: ...

    def end(self, judge: str) -> View: ...


class BlindSession:
    """A batch of the store shown to judges, each in an order of their own; used by labelling and by side by side.

    `results` makes the reveal from the store alone; without it there is nothing to reveal.
    """

    def __init__(
        self,
        store: Store,
        batch_id: str,
        *,
        title: str,
        question: str = "Which answer is better?",
        seed: int = 0,
        results: Callable[[], Results] | None = None,
    ):
        self.store, self.batch_id, self.title, self.question, self.seed = store, batch_id, title, question, seed
        self._results = results
        self._queues: dict[str, Queue] = {}
        self._lock = Lock()

    def view(self, judge: str) -> View:
        """The judge's next item, or the end."""
        return self._view(judge)

    def progress(self, judge: str) -> Progress:
        """How far this judge has come."""
        return self._queue(judge).position()[1]

    def vote(self, judge: str, vote: Vote) -> View:
        """Store a vote, then show what is next; the same vote again counts once. `UserError` if it makes no sense."""
        queue = self._queue(judge)
        known = vote.item_id in queue.items and sorted(vote.shown) == [0, 1] and len(vote.id) == 36
        if vote.choice not in CHOICES or not known:
            raise UserError("that vote is not for a pair of this session", fix="reload the page")
        side = LETTERS.lower().find(vote.choice) if len(vote.choice) == 1 else -1
        outcome, winner = ("better", vote.shown[side]) if side >= 0 else (vote.choice, None)
        time = None if vote.milliseconds is None else max(0, vote.milliseconds)
        judgement = Judgement(vote.id, self.batch_id, vote.item_id, vote.shown, outcome, winner, milliseconds=time)
        try:
            self.store.record(queue.judge_id, judgement)
        except ValueError as e:
            raise UserError(str(e), fix="reload the page") from None
        return self._view(judge, said=f"Saved: {CHOICES[vote.choice]}.")

    def undo(self, judge: str, event_id: str) -> View:
        """Take back the judge's latest vote and show that item again."""
        item = self.store.undo(event_id, self._queue(judge).judge_id, self.batch_id)
        if item is None:
            return self._view(judge, said="Nothing to undo.")
        return self._view(judge, said="Taken back. This is the pair you judged last.", item=item)

    def end(self, judge: str) -> View:
        """The reveal. From here on the judge is no longer blind, and the store remembers it."""
        if self._results is None:
            return self._view(judge)
        queue = self._queue(judge)
        self.store.reveal(self.batch_id, queue.judge_id)
        return View(queue.position()[1], results=self._results(), reveals=True)

    def is_over(self, judge: str) -> bool:
        """Whether this judge has judged everything, or has asked for the results."""
        progress = self.progress(judge)
        return progress.done == progress.total or self.store.revealed(self.batch_id, self._queue(judge).judge_id)

    def _view(self, judge: str, *, said: str = "", item: str | None = None) -> View:
        queue = self._queue(judge)
        following, progress = queue.position()
        key = item or following
        if key is None:
            return View(progress, said, reveals=self._results is not None)
        content, shown = self.store.item(key), queue.shown(key)
        responses = [content.responses[i] for i in shown]
        return View(progress, said, key, content.prompt, responses, shown, reveals=self._results is not None)

    def _queue(self, judge: str) -> Queue:
        with self._lock:
            if judge not in self._queues:
                self._queues[judge] = Queue(self.store, self.batch_id, judge, seed=self.seed)
            return self._queues[judge]
