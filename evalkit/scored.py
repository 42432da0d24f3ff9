"""One policy's scored pairs as arrays, under one way of making a reward of log-probabilities. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from evalkit.scores import checked, read_record, read_scores, scores_path, sha256
from prefkit.errors import UserError, unknown_name
from train.core.rewards import PairRewards, hits, pair_rewards

if TYPE_CHECKING:
    import pandas as pd

# What the policy made of a pair: pairs selected by it have an accuracy that says nothing of others.
OUTCOMES = (
    *("policy_chosen", "policy_rejected", "norm_chosen", "norm_rejected"),
    *("reward_chosen", "reward_rejected", "margin", "hit"),
)
RECORDS = "evalkit"  # of a frame's attrs: {policy: what scores.json is of a file}
DROPPED = 0.05  # of the pairs read: more are said beside the number
DIGITS = 12  # of a digest that tells equal names apart
Columns = Callable[[str], np.ndarray]  # of SCORES, by name


def _per_token(column: Columns, name: str, side: str) -> np.ndarray:
    return column(f"{name}_{side}") / np.maximum(column(f"n_{side}"), 1)


# mode -> (policy's score of a side, reference's score of a side or None); the reward is β times their difference
MODES: dict[str, tuple[Callable[[Columns, str], np.ndarray], Callable[[Columns, str], np.ndarray] | None]] = {
    "implicit": (lambda c, s: c(f"policy_{s}"), lambda c, s: c(f"ref_{s}")),
    "normalised": (lambda c, s: _per_token(c, "policy", s), lambda c, s: _per_token(c, "ref", s)),
    "sum": (lambda c, s: c(f"policy_{s}"), None),
    "mean": (lambda c, s: _per_token(c, "policy", s), None),  # SimPO's reward, arXiv 2405.14734 equation 4
    "norm": (lambda c, s: -c(f"norm_{s}"), None),  # RewardBench's `norm`
}


@dataclass(frozen=True)
class Scored:
    """Scored pairs [N] of one policy, one reference, one β, seen in one mode."""

    table: pa.Table
    mode: str
    rewards: PairRewards
    sha256: str | None = None  # of the file they came from
    record: dict[str, Any] | None = None  # scores.json beside it
    where: str | None = None
    on_outcome: bool = False  # whether that condition looks at what the policy made of the pairs
    tied: int = 0  # pairs left out, their votes being even
    title: str | None = None  # told apart from others of the same name

    def column(self, name: str) -> np.ndarray:
        """A column of SCORES; null numbers are NaN."""
        return self.table[name].to_numpy()

    def difference(self, name: str) -> np.ndarray:
        """Chosen minus rejected of `policy`, `ref`, `n` (tokens) or `chars`."""
        return self.column(f"{name}_chosen") - self.column(f"{name}_rejected")

    def at(self, rows_N: np.ndarray) -> Scored:
        """The same of some rows only."""
        rewards = PairRewards(self.rewards.chosen[rows_N], self.rewards.rejected[rows_N])
        return replace(self, table=self.table.take(pa.array(rows_N)), rewards=rewards)

    @property
    def name(self) -> str:
        """The policy's."""
        return self.title or self.table["policy"][0].as_py()

    @property
    def tells(self) -> tuple[str, ...]:
        """What may tell it from one of the same name: where it lay, its reference, digests of weights and scores."""
        known = self.record or {}
        digests = (known.get("policy_digest") or "")[:DIGITS], (self.sha256 or "")[:DIGITS]
        return Path(known.get("policy_path") or "").parent.name, self.reference or "", *digests

    @property
    def caveats(self) -> list[str]:
        """What keeps the accuracy from being that of held-out pairs of this kind; part of every headline."""
        said = []
        if self.where is not None:
            said.append(f"only pairs where {self.where}" + ", which looks at the outcome" * self.on_outcome)
        said += caveats_of(self.record or {})
        if self.tied:
            said.append(f"{self.tied} pairs left out, whose p_chosen is ½")
        if cut := int(self.column("truncated").sum()):
            said.append(f"{cut} of {self.table.num_rows} pairs were cut to fit")
        if (open_N := self.open_N) is not None and open_N.any():
            low, high = self.closed(0.0).mean(), self.closed(1.0).mean()
            said.append(f"{open_N.sum()} undecided within the noise: accuracy between {low:.3f} and {high:.3f}")
        return said

    @property
    def reference(self) -> str | None:
        """The reference's name, None where there is none."""
        return self.table["reference"][0].as_py()

    @property
    def beta(self) -> float:
        """Scale of the rewards."""
        return self.table["beta"][0].as_py()

    @cached_property
    def margin_N(self) -> np.ndarray:
        """Reward of chosen minus reward of rejected."""
        return self.rewards.margins

    @cached_property
    def hit_N(self) -> np.ndarray:
        """1, ½ or 0: how each pair counts."""
        return hits(self.margin_N)

    @property
    def noise(self) -> float | None:
        """Largest measured noise of a log-ratio margin, in nats.

        None where it was not measured, or the mode is not the one it was measured in: implicit, or sum where there is
        no reference.
        """
        measured = (self.record or {}).get("noise")
        return measured["max"] if measured and self.mode == ("sum" if self.reference is None else "implicit") else None

    @property
    def open_N(self) -> np.ndarray | None:
        """Which pairs are undecided, their margins being within the noise; None where that is not known."""
        return None if self.noise is None else np.abs(self.margin_N) / self.beta <= self.noise

    def closed(self, credit: float) -> np.ndarray:
        """How each pair counts if the undecided ones count like this."""
        return self.hit_N if self.open_N is None else np.where(self.open_N, credit, self.hit_N)

    @cached_property
    def group_N(self) -> np.ndarray:
        """Number of each pair's group, in the order of the groups' names: the same in whatever order the rows come."""
        return codes(self.table["group_id"])[0]

    @property
    def n_groups(self) -> int:
        """How many groups there are."""
        return int(self.group_N.max()) + 1

    @cached_property
    def label_N(self) -> np.ndarray:
        """Probability that chosen is the better one: `p_chosen`, 1 where the label is hard."""
        return pc.fill_null(self.table["p_chosen"], 1.0).to_numpy().astype(float)


def caveats_of(record: dict[str, Any]) -> Iterator[str]:
    """What scores.json says of the accuracy: how little of the data it stands on, and what of that was trained on."""
    limit, of = (record.get("asked") or {}).get("limit"), record.get("in_split")
    if limit is not None and (of is None or limit < of):
        yield f"only the first {limit:,} pairs" + (f" of {of:,}" if of else "")
    read, dropped = record.get("read") or 0, sum((record.get("dropped") or {}).values())
    if dropped > DROPPED * read:
        yield f"{dropped:,} of {read:,} pairs read were dropped"
    o = record.get("overlap") or {}
    if o.get("exact") or o.get("near"):
        yield f"{o['exact']} of {o['prompts']} prompts were trained on, {o['near']} more nearly: no held-out number"


Source = Union[str, Path, pa.Table, "pd.DataFrame", Scored]


def load(scores: Source, mode: str | None = None, where: str | None = None) -> Scored:
    """Scores in a mode (implicit, or sum without a reference), where an SQL condition holds.

    Pairs whose votes are even are left out and counted, as `evalkit score` does. The condition sees the columns of
    SCORES and `reward_chosen`, `reward_rejected`, `margin`, `hit`. Raises UserError where `read_scores` does, for a
    mode these scores cannot give, and for a condition that is none or leaves nothing.
    """
    if isinstance(scores, Scored):
        return scores
    if not isinstance(scores, (str, Path)):  # a table, or a frame of pandas
        table = checked(scores if isinstance(scores, pa.Table) else pa.Table.from_pandas(scores, preserve_index=False))
        digest, record = None, _kept(scores, table["policy"][0].as_py())
    else:
        table, digest, record = read_scores(scores), sha256(scores_path(scores)), read_record(scores_path(scores))
    table, tied = _without_ties(table)
    mode = mode or ("implicit" if table["reference"][0].as_py() is not None else "sum")
    rewards = rewards_of(table, mode)
    s = Scored(table, mode, rewards, digest, record, tied=tied)
    if where is None:
        return s
    rows, on_outcome = _matching(table, rewards, where)
    return replace(s.at(rows), where=where, on_outcome=on_outcome)


def _kept(scores: pa.Table | pd.DataFrame, policy: str) -> dict[str, Any] | None:
    """The record that `score_pairs` left in a frame."""
    return getattr(scores, "attrs", {}).get(RECORDS, {}).get(policy)


def _without_ties(table: pa.Table) -> tuple[pa.Table, int]:
    """Pairs of which one side is the better by the votes, and how many are not."""
    tied_N = pc.fill_null(pc.equal(table["p_chosen"], 0.5), False)
    if not (tied := int(pc.sum(tied_N).as_py() or 0)):
        return table, 0
    if tied == table.num_rows:
        raise UserError(f"p_chosen is ½ in all {tied} pairs", fix="give pairs of which one side is the better")
    return table.filter(pc.invert(tied_N)), tied


def by_policy(scores: Source) -> list[Source]:
    """A frame of `score_pairs` over several policies as one of each, in their order; all else as it is."""
    if isinstance(scores, (str, Path, pa.Table, Scored)) or "policy" not in scores:
        return [scores]
    return [part for _, part in scores.groupby("policy", sort=False, dropna=False)] or [scores]  # parts keep attrs


def rewards_of(table: pa.Table, mode: str) -> PairRewards:
    """Rewards of both sides in a mode; UserError for an unknown mode or numbers that are not there."""
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    policy, reference = MODES[mode]
    if reference is not None and table["reference"][0].as_py() is None:
        raise UserError(
            f"--mode {mode} needs a reference and these were scored without one", fix="take sum, mean or norm"
        )
    if mode == "norm" and table["norm_chosen"].null_count + table["norm_rejected"].null_count:
        raise UserError("these scores hold no norms", fix="score again: `evalkit score` writes them now")

    def column(name: str) -> np.ndarray:
        return table[name].to_numpy()

    chosen, rejected = (policy(column, s) for s in ("chosen", "rejected"))
    ref_chosen, ref_rejected = (reference(column, s) if reference else 0.0 for s in ("chosen", "rejected"))
    return pair_rewards(chosen, rejected, ref_chosen, ref_rejected, table["beta"][0].as_py())


def told_apart(names: Sequence[str], tells: Sequence[tuple[str, ...]]) -> list[str]:
    """Names, equal ones with the first of their `tells` that differs between all of them, else with a number."""
    titles = list(names)
    for name in {n for n in names if list(names).count(n) > 1}:
        rows = [i for i, n in enumerate(names) if n == name]
        numbers = tuple(str(k + 1) for k in range(len(rows)))
        kinds = (*zip(*(tells[i] for i in rows), strict=False), numbers)
        for row, what in zip(rows, next(k for k in kinds if all(k) and len(set(k)) == len(rows)), strict=True):
            titles[row] = f"{name} ({what})"
    return titles


def codes(column: pa.ChunkedArray) -> tuple[np.ndarray, list[str]]:
    """A string column as numbers [N] into its distinct values, sorted; null counts as the empty string."""
    encoded = pc.fill_null(column, "").combine_chunks().dictionary_encode()
    order = pc.array_sort_indices(encoded.dictionary).to_numpy()
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[encoded.indices.to_numpy()], encoded.dictionary.take(pa.array(order)).to_pylist()


def _matching(table: pa.Table, rewards: PairRewards, where: str) -> tuple[np.ndarray, bool]:
    """Numbers of the rows for which the condition is true, and whether it needs `OUTCOMES`."""
    from prefkit.conditions import check_condition, rows_where

    check_condition(where)
    columns = {"reward_chosen": rewards.chosen, "reward_rejected": rewards.rejected, "margin": rewards.margins}
    for name, values in (columns | {"hit": hits(rewards.margins)}).items():
        table = table.append_column(name, pa.array(values))
    rows = rows_where(table, where)
    if not len(rows):
        raise UserError(f"--where {where!r} leaves no pair of {table.num_rows}", fix="widen it")
    try:
        blind = rows_where(table.drop_columns(list(OUTCOMES)), where)
    except UserError:
        return rows, True
    return rows, not np.array_equal(rows, blind)  # a condition may reach a column without its name
