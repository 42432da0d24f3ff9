"""What a judge sees next, and on which side: both follow from seed, judge and item, so a restart changes nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from prefkit.judgements.store import Store


@dataclass(frozen=True, slots=True)
class Progress:
    """Items of a batch, those this judge has dealt with, and how many of these were skipped."""

    done: int
    total: int
    skipped: int = 0


def item_sequence(item_ids: list[str], judge: str, seed: int) -> list[str]:
    """The batch in this judge's own order, so that two judges do not tire over the same items."""
    return sorted(item_ids, key=lambda item: _hash(seed, judge, item))


def blind_order(item_id: str, judge: str, seed: int, responses: int = 2) -> tuple[int, ...]:
    """Which response stands at A, B, …: a random permutation, fixed by (seed, item, judge)."""
    return tuple(sorted(range(responses), key=lambda i: _hash(seed, judge, item_id, "side", str(i))))


class Queue:
    """One judge's way through a batch. It holds no progress of its own: what is judged is asked of the store.

    Leases, when several judges share the items of a batch, belong between `position` and the store.
    """

    def __init__(self, store: Store, batch_id: str, judge: str, *, seed: int = 0, kind: str = "person"):
        self.store, self.judge, self.seed = store, judge, seed
        self.judge_id = store.judge(judge, kind)
        self.sequence = item_sequence(store.item_ids(batch_id), judge, seed)
        self.items = frozenset(self.sequence)

    def position(self) -> tuple[str | None, Progress]:
        """The first item of the judge's order that this judge has not judged (None when all are), and how far."""
        judged = self.store.judged(self.judge_id)
        outcomes = [judged[item] for item in self.sequence if item in judged]
        following = next((item for item in self.sequence if item not in judged), None)
        return following, Progress(len(outcomes), len(self.sequence), outcomes.count("skip"))

    def shown(self, item_id: str, responses: int = 2) -> tuple[int, ...]:
        """The blind order of an item's responses for this judge."""
        return blind_order(item_id, self.judge, self.seed, responses)


def _hash(seed: int, *parts: str) -> bytes:
    return hashlib.blake2b("\n".join([str(seed), *parts]).encode(), digest_size=8).digest()
