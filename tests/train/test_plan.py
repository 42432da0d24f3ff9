"""The plan and the mask: within budget, equal numbers on every rank, every unit once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from train.core.plan import plan, plan_rows, split_row
from train.core.rows import Row, collate
from train.core.sharing import shareable
from train.trainer import schedule

lengths = st.lists(st.integers(1, 300), max_size=40)


@given(lengths, st.integers(1, 5), st.integers(1, 1000))
@settings(deadline=None)
def test_every_unit_once_within_budget_the_same_number_everywhere(lengths, ranks, budget):
    planned = plan(lengths, ranks, budget)
    assert len(planned) == ranks
    assert len({len(rank) for rank in planned}) == 1
    assert sorted(i for rank in planned for micro in rank for i in micro) == list(range(len(lengths)))
    for micro in (m for rank in planned for m in rank):
        assert len(micro) <= 1 or max(lengths[i] for i in micro) * len(micro) <= budget
    assert planned == plan(lengths, ranks, budget)


def test_ranks_are_balanced_and_none_is_idle_while_there_is_work():
    planned = plan([100] * 7, 4, 1000)
    assert all(any(rank) for rank in planned)
    tokens = [sum(100 * len(m) for m in rank) for rank in plan(list(range(50, 450)), 4, 4096)]
    assert max(tokens) <= 1.2 * min(tokens) or max(tokens) - min(tokens) <= 100 * 41


def row(prompt, responses, pairs):
    ids = tuple(np.full(n, i, np.int32) for i, n in enumerate(responses))
    return Row(np.zeros(prompt, np.int32), ids, tuple(pairs), tuple(map(str, pairs)), (False,) * len(ids))


@given(st.data())
@settings(deadline=None)
def test_split_rows_hold_every_pair_once_with_both_responses(data):
    k = data.draw(st.integers(2, 7))
    sizes = data.draw(st.lists(st.integers(1, 60), min_size=k, max_size=k))
    pairs = data.draw(
        st.lists(st.sampled_from([(i, j) for i in range(k) for j in range(k) if i != j]), min_size=1, unique=True)
    )
    whole, budget = row(20, sizes, pairs), data.draw(st.integers(1, 400))
    attention = data.draw(st.sampled_from([math.inf, 1000.0, 30.0]))
    parts = split_row(whole, budget, attention)

    def cost(rows):
        return sum(r.tokens + r.tokens**2 / attention for r in rows)

    assert cost(parts) <= cost(split_row(whole, budget))
    assert sorted(i for p in parts for i in p.pair_ids) == sorted(whole.pair_ids)
    for part in parts:
        assert part.tokens <= budget or len(part.pairs) == 1
        for (w, x), name in zip(part.pairs, part.pair_ids, strict=True):
            left, right = eval(name)  # noqa: S307 - the test's own names
            assert (part.response_ids[w][0], part.response_ids[x][0]) == (left, right)


def test_long_rows_are_cut_where_attention_costs_more_than_the_prompt():
    whole = row(10, [200] * 6, [(0, 1), (2, 3), (4, 5)])
    assert len(split_row(whole, 5000)) == 1
    assert len(split_row(whole, 5000, 100.0)) == 3
    assert len(split_row(row(1000, [10] * 6, [(0, 1), (2, 3), (4, 5)]), 5000, 1000.0)) == 1, "the prompt is what costs"


def test_mask_shows_the_prompt_to_all_and_a_response_to_itself():
    batch = collate([row(2, [2, 1], [(0, 1)]), row(1, [1, 1], [(0, 1)])])
    seen = batch.mask_B1LL[:, 0].int()
    assert seen[0].tolist() == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert seen.sum(-1).min() > 0, "no position without anything to attend to"
    assert batch.positions_BL[0].tolist() == [0, 1, 2, 3, 2]
    assert batch.select_N.tolist() == [1, 2, 1, 5, 5]
    assert batch.labels_N.tolist() == [0, 0, 1, 0, 1]
    assert batch.response_N.tolist() == [0, 0, 1, 2, 3]
    assert batch.pairs_P2.tolist() == [[0, 1], [2, 3]]


def test_single_responses_need_no_mask():
    assert collate([row(2, [2], [])]).mask_B1LL is None
    assert collate([row(2, [2, 3], [(0, 1)])], shared=False).mask_B1LL is None


def test_all_tokens_can_be_labelled():
    batch = collate([row(3, [2], [])], shared=False, loss_on="all")
    assert batch.select_N.tolist() == [0, 1, 2, 3]
    assert batch.counts_R.tolist() == [4]


def test_empty_micro_batches_collate():
    micro = [m for rank in plan_rows([row(2, [2, 1], [(0, 1)])], 3, 100) for m in rank]
    assert [len(m) for m in micro] == [1, 0, 0]
    assert collate(micro[1]).pairs_P2.shape == (0, 2)


def test_steps_close_at_the_prompt_that_reaches_the_count():
    units = [3, 1, 2, 4, 1, 1]
    cut = schedule(units, 4, 2, -1, 0, shuffled=False)
    assert [s.tolist() for s in cut.steps] == [[0, 1], [2, 3], [4, 5]] * 2
    assert cut.epoch_ends == [3, 6]
    assert [cut.epoch_at(i) for i in (0, 3, 6)] == [0.0, 1.0, 2.0]
    assert len(schedule(units, 4, 1, 7, 0, shuffled=True).steps) == 7
    first, second = (np.concatenate(schedule(units, 4, 2, -1, 0, True).steps[i::2]) for i in (0, 1))
    assert len(first) + len(second) == 12


SHAPES = {
    "llama": (AutoConfig.for_model("llama"), True),
    "qwen2": (AutoConfig.for_model("qwen2"), True),
    "qwen3": (AutoConfig.for_model("qwen3"), True),
    "gpt2": (AutoConfig.for_model("gpt2"), True),
    "gpt_neox": (AutoConfig.for_model("gpt_neox"), True),
    "olmo": (AutoConfig.for_model("olmo"), True),
    "phi": (AutoConfig.for_model("phi"), True),
    "mistral, long window": (AutoConfig.for_model("mistral", sliding_window=4096), True),
    "mistral, short window": (AutoConfig.for_model("mistral", sliding_window=64), False),
    "gemma2": (AutoConfig.for_model("gemma2"), False),
    "gemma3": (AutoConfig.for_model("gemma3_text", sliding_window=64), False),
    "bloom": (AutoConfig.for_model("bloom"), False),
    "mpt": (AutoConfig.for_model("mpt"), False),
    "mamba": (AutoConfig.for_model("mamba"), False),
    "dynamic rope": (
        AutoConfig.for_model("llama", rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
        False,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_sharing_is_decided_from_the_configuration(name):
    config, wanted = SHAPES[name]
    config._attn_implementation = "sdpa"
    assert (shareable(config, 512) is None) == wanted, shareable(config, 512)


def test_flash_attention_cannot_express_the_mask():
    config = AutoConfig.for_model("llama")
    config._attn_implementation = "flash_attention_2"
    assert "sdpa" in shareable(config, 10)


def test_batches_move_between_devices():
    moved = collate([row(2, [2, 1], [(0, 1)])]).to("cpu")
    assert isinstance(moved.ids_BL, torch.Tensor)
    assert moved.pair_ids == ["(0, 1)"]
