"""The plan and the mask: within budget, equal numbers on every rank, every unit once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from train.core.attention import ROWS, Packing, Span
from train.core.batch import collate
from train.core.plan import padding, plan, plan_padded, plan_rows, split_row
from train.core.rows import Row
from train.models.sharing import unpackable
from train.schedule import schedule

lengths = st.lists(st.integers(1, 300), max_size=40)


@given(lengths, st.integers(1, 5), st.integers(1, 1000))
@settings(deadline=None)
def test_every_unit_once_within_budget_the_same_number_everywhere(lengths, ranks, budget):
    for planned, padded in (
        (plan(lengths, ranks, budget), False),
        (plan_padded(lengths, [1] * len(lengths), ranks, budget), True),
    ):
        assert len(planned) == ranks
        assert len({len(rank) for rank in planned}) == 1
        assert sorted(i for rank in planned for micro in rank for i in micro) == list(range(len(lengths)))
        for micro in (m for rank in planned for m in rank):
            sizes = [lengths[i] for i in micro]
            assert len(micro) <= 1 or (max(sizes) * len(sizes) if padded else sum(sizes)) <= budget
    assert plan(lengths, ranks, budget) == plan(lengths, ranks, budget)


def test_ranks_are_balanced_and_none_is_idle_while_there_is_work():
    planned = plan([100] * 7, 4, 1000)
    assert all(any(rank) for rank in planned)
    tokens = [sum(n for m in rank for n in m) for rank in plan(list(range(50, 450)), 4, 4096)]
    assert max(tokens) <= 1.03 * min(tokens)


def test_as_few_micro_batches_as_the_budget_allows():
    lengths = np.random.default_rng(0).integers(50, 900, 400).tolist()
    planned = plan(lengths, 1, 4096)[0]
    assert len(planned) <= 1.06 * sum(lengths) / 4096
    assert len(plan([600] * 50, 1, 1000)[0]) == 50, "two do not fit"


def test_no_forward_is_for_nothing():
    """Units far over the budget: it would allow more micro-batches than there are units."""
    assert plan([5000, 4000], 1, 1000) == [[[0], [1]]]
    assert plan([5000, 4000, 10], 2, 1000) == [[[0], []], [[1], [2]]], "the same number on both"
    assert plan([], 2, 1000) == [[], []]


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
    parts = split_row(whole, budget)
    assert sorted(i for p in parts for i in p.pair_ids) == sorted(whole.pair_ids)
    for part in parts:
        assert part.tokens <= budget or len(part.pairs) == 1
        for (w, x), name in zip(part.pairs, part.pair_ids, strict=True):
            left, right = eval(name)  # noqa: S307 - the test's own names
            assert (part.response_ids[w][0], part.response_ids[x][0]) == (left, right)


def test_rows_side_by_side_keep_to_the_budget_too():
    whole = row(50, [50] * 20, [(i, (i + 1) % 20) for i in range(20)])
    for budget in (250, 600, 5000):
        micro = plan_rows([whole], 1, budget, packed=False)[0]
        assert sorted(name for rows in micro for r in rows for name in r.pair_ids) == sorted(whole.pair_ids)
        computed = [sum(len(r.response_ids) for r in rows) * max(r.longest for r in rows) for rows in micro]
        assert max(computed) <= budget
    assert len(plan_rows([whole], 1, 2000, packed=False)[0]) == 1


def test_rows_are_laid_end_to_end_with_positions_of_their_own():
    batch = collate([row(2, [2, 1], [(0, 1)]), row(1, [1, 1], [(0, 1)])])
    assert batch.ids_BL.shape == (1, 8), "no padding"
    assert batch.packing.spans == (Span(2, (2, 1)), Span(1, (1, 1)))
    assert batch.positions_BL.tolist() == [[0, 1, 2, 3, 2, 0, 1, 1]]
    assert batch.select_N.tolist() == [1, 2, 1, 5, 5]
    assert batch.labels_N.tolist() == [0, 0, 1, 0, 1]
    assert batch.response_N.tolist() == [0, 0, 1, 2, 3]
    assert batch.pairs_P2.tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("responses", "spans", "select", "length"),
    [
        ([[7, 8, 9]], Span(5, (0,)), [1, 2, 3], 5),
        ([[7, 8, 9], [7, 8, 5, 6]], Span(4, (1, 2)), [1, 2, 3, 1, 2, 3, 5], 7),
        ([[7, 8], [7, 8, 5]], Span(4, (0, 1)), [1, 2, 1, 2, 3], 5),
        ([[7, 8], [5]], Span(2, (2, 1)), [1, 2, 1], 5),
    ],
)
def test_what_all_responses_begin_with_is_computed_once(responses, spans, select, length):
    given = Row(np.array([1, 2], np.int32), tuple(np.array(r, np.int32) for r in responses))
    batch = collate([given])
    assert batch.packing.spans == (spans,)
    assert batch.select_N.tolist() == select
    assert batch.labels_N.tolist() == [t for r in responses for t in r]
    assert batch.ids_BL.shape == (1, length)


def test_masks_are_causal_over_the_end_of_what_is_seen():
    packing, like = Packing(()), torch.zeros(1)
    assert packing.mask(3, 3, None, like) is None
    assert packing.mask(3, 3, 3, like) is None
    hidden = torch.isinf(packing.mask(2, 4, None, like)).int().tolist()
    assert hidden == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert torch.isinf(packing.mask(2, 4, 2, like)).int().tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]
    assert packing.mask(2, 4, 2, like) is packing.mask(2, 4, 2, like), "made once for all layers"


def test_without_packing_each_response_has_its_own_prompt():
    batch = collate([row(2, [2, 3], [(0, 1)])], packed=False)
    assert batch.packing is None
    assert batch.ids_BL.shape == (2, 5)


def test_all_tokens_can_be_labelled():
    for packed in (True, False):
        batch = collate([row(3, [2], []), row(1, [1], [])], packed, loss_on="all")
        assert batch.select_N.tolist() == [0, 1, 2, 3, 5]
        assert batch.labels_N.tolist() == [0, 0, 0, 0, 0]
        assert batch.counts_R.tolist() == [4, 1]


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


LONG_ROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
LONG_ROPE |= {"original_max_position_embeddings": 4096}
SHORT_ROPE = LONG_ROPE | {"original_max_position_embeddings": 256}
SHAPES = {
    "llama": (AutoConfig.for_model("llama"), True),
    "qwen2": (AutoConfig.for_model("qwen2"), True),
    "qwen3": (AutoConfig.for_model("qwen3"), True),
    "gpt2": (AutoConfig.for_model("gpt2"), True),
    "gpt_neox": (AutoConfig.for_model("gpt_neox"), True),
    "olmo": (AutoConfig.for_model("olmo"), True),
    "phi": (AutoConfig.for_model("phi"), True),
    "mistral": (AutoConfig.for_model("mistral", sliding_window=64), True),
    "gemma2": (AutoConfig.for_model("gemma2"), True),
    "gemma3": (AutoConfig.for_model("gemma3_text", sliding_window=64), True),
    "phi3, short": (
        AutoConfig.for_model("phi3", original_max_position_embeddings=4096, rope_parameters=LONG_ROPE),
        True,
    ),
    "phi3, long": (
        AutoConfig.for_model("phi3", original_max_position_embeddings=256, rope_parameters=SHORT_ROPE),
        False,
    ),
    "bloom": (AutoConfig.for_model("bloom"), False),
    "mpt": (AutoConfig.for_model("mpt"), False),
    "mamba": (AutoConfig.for_model("mamba"), False),
    "qwen3_next": (AutoConfig.for_model("qwen3_next"), False),
    "gpt_oss": (AutoConfig.for_model("gpt_oss"), False),
    "dynamic rope": (
        AutoConfig.for_model(
            "llama",
            max_position_embeddings=256,
            rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
        ),
        False,
    ),
}


@pytest.mark.parametrize("name", SHAPES)
def test_packing_is_decided_from_the_configuration(name):
    config, wanted = SHAPES[name]
    config._attn_implementation = ROWS
    assert (unpackable(config, 512) is None) == wanted, unpackable(config, 512)


@pytest.mark.parametrize("attn", ["eager", "sdpa", "flash_attention_2"])
def test_other_attention_cannot_be_packed(attn):
    config = AutoConfig.for_model("llama")
    config._attn_implementation = attn
    assert "replaced" in unpackable(config, 10)


def test_a_fraction_of_an_epoch_is_no_whole_one():
    half = schedule([1] * 100, 10, 0.5, -1, 0, True)
    assert (len(half.steps), [half.epoch_at(i) for i in (0, 1, 5)]) == (5, [0.0, 0.1, 0.5])
    more = schedule([1] * 100, 10, 1.5, -1, 0, True)
    assert (len(more.steps), [more.epoch_at(i) for i in (10, 12, 15)]) == (15, [1.0, 1.2, 1.5])


def test_batches_move_between_devices():
    moved = collate([row(2, [2, 1], [(0, 1)])]).to("cpu")
    assert isinstance(moved.ids_BL, torch.Tensor)
    assert moved.ids == ["(0, 1)"]


def test_padding_is_what_is_computed_beyond_the_tokens():
    rows = [Row(np.zeros(2, np.int32), (np.zeros(n, np.int32),)) for n in (1, 4)]
    assert padding(rows, 12) == pytest.approx(3 / 12)  # 3 and 6 tokens side by side
    assert padding(rows, 6) == 0  # each by itself


def test_a_long_row_without_pairs_is_cut_as_little_as_the_budget_asks():
    row = Row(np.zeros(5, np.int32), tuple(np.full(3, i, np.int32) for i in range(5)))
    parts = split_row(row, 11)  # a prompt of 5 with two responses of 3
    assert [len(p.response_ids) for p in parts] == [2, 2, 1]
    assert [int(r[0]) for p in parts for r in p.response_ids] == list(range(5))
