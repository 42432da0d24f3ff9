"""The models of one policy and what is computed with them: loaded only when something must be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from prefkit.errors import UserError
from train.core.logprobs import check_fits, check_head, sequence_logps
from train.core.plan import padding, single_responses
from train.core.rows import Row, SequenceLogp
from train.data.cache import LogpCache
from train.models.locate import weights_digest
from train.models.policies import Loaded, Policy, load_policy, reference_context
from train.models.sharing import Sharing, decide_sharing

Role = Literal["policy", "reference"]


@dataclass
class Models:
    """A policy and its reference: its own (what it started from), `other`, or none where `referenced` is False."""

    policy: Policy
    other: Policy | None = None
    referenced: bool = True
    seconds: dict[Role, float] = field(default_factory=dict)  # that forwards took here
    decided: dict[int, tuple[int, Sharing]] = field(default_factory=dict)  # by model: up to which length, and what

    @cached_property
    def own(self) -> Loaded:
        """The policy's weights, and those of its own reference."""
        return load_policy(self.policy)

    @cached_property
    def others(self) -> Loaded:
        """The weights of a reference that is named apart."""
        assert self.other is not None
        return load_policy(self.other)

    @property
    def roles(self) -> list[Role]:
        """Whose log-probabilities are wanted."""
        return ["policy", "reference"] if self.referenced else ["policy"]

    def path(self, role: Role) -> str:
        """Whose weights these are: the cache of one model must never answer for another."""
        if role == "policy":
            return self.policy.path
        return self.other.path if self.other is not None else str(self.policy.start)

    def digest(self, role: Role) -> str:
        """Of those weights."""
        return weights_digest(self.path(role))

    def cache(self, role: Role) -> LogpCache:
        """Where its log-probabilities are kept."""
        kept = self.kept(role)
        return LogpCache(self.digest(role), kept.dtype, kept.four_bit, self.path(role))

    def kept(self, role: Role) -> Policy:
        """Whose precision it is computed in: that of the policy, unless the reference is named apart."""
        return self.policy if role == "policy" or self.other is None else self.other

    def open(self, role: Role) -> AbstractContextManager[Any]:
        """The model, computing as `role` while inside."""
        if role == "policy":
            return nullcontext(self.own.model)
        if self.other is not None:
            return nullcontext(self.others.model)
        return reference_context(self.own.model, self.policy.kind, self.own.frozen)

    def compute(
        self, role: Role, rows: Sequence[Row], budget: int, say: Callable[[str], None]
    ) -> Iterator[dict[bytes, SequenceLogp]]:
        """Log-probabilities of all responses of the rows, by their keys; a model is checked before its first forward.

        UserError when tokens or positions do not fit the model, or its head does what ours does not.
        """
        if not rows:
            return
        with self.open(role) as model:
            sharing = self.sharing(model, rows, say)
            if sharing.alone:
                rows, budget = single_responses(rows), 1
            padded = 0.0 if sharing.alone or sharing.packed else padding(rows, budget)
            say(f"padding  {padded:.1%} of the tokens computed")
            started = monotonic()
            yield from sequence_logps(model, rows, budget, sharing.packed)
            self.seconds[role] = monotonic() - started

    def sharing(self, model: Any, rows: Sequence[Row], say: Callable[[str], None] = lambda line: None) -> Sharing:
        """How rows of this model are computed: asked again for longer rows; the first time its head is checked."""
        check_fits(model, rows)
        longest = max(r.longest for r in rows)
        known, found = self.decided.get(id(model), (0, None))
        if found is None:
            check_head(model)
        if found is None or longest > known:
            found = decide_sharing(model, rows)
            self.decided[id(model)] = (longest, found)
            say(found.line)
        return found


def same_vocabulary(policy: Policy, other: Policy) -> None:
    """UserError where the two would read the same ids as different tokens."""
    if other.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise UserError(
            "policy and reference have different vocabularies", other.path, "give the model it started from"
        )


def short_name(path: str) -> str:
    """How a model is called in tables: a hub name, or the last part of a local path."""
    return Path(path).resolve().name if Path(path).exists() else path


def absolute(path: str) -> str:
    """Where a local model lies; a hub name as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def short_names(paths: Sequence[str]) -> list[str]:
    """The same for several, told apart by the folders above where their last parts are equal.

    UserError for one model given twice.
    """
    names = [short_name(p) for p in paths]
    for n, path in enumerate(paths):
        if [short_name(p) for p in paths].count(names[n]) > 1:
            parts = Path(path).resolve().parts
            names[n] = "-".join(parts[-2:])
    if len(set(names)) < len(names):
        raise UserError("a policy is given twice", ", ".join(sorted(paths)), "name each once")
    return [name.replace("/", "-") for name in names]
