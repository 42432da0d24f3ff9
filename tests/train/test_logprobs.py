"""The tiled head and prompt rows against an oracle that shares no code: one plain forward per sequence, in fp64."""

import copy

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from train_toys import FAMILIES, make_model, save_model

from prefkit.errors import UserError
from train.core import attention
from train.core.batch import collate
from train.core.head import Head, tiled_logps
from train.core.logprobs import PairPolicy, check_head, response_logps, separate_logps, token_logps
from train.core.rows import Row
from train.models.flex import FLEX
from train.models.load import load_model, new_adapter
from train.models.sharing import decide_sharing, probe

V, D, N = 23, 8, 37


def naive(hidden, weight, bias, labels, scale, cap):
    logits = hidden @ weight.t()
    logits = (logits if bias is None else logits + bias) * scale
    if cap:
        logits = cap * torch.tanh(logits / cap)
    return logits.log_softmax(-1)[torch.arange(len(labels)), labels]


@pytest.mark.parametrize("tile", [(1, 1), (7, 5), (5, V - 1), (N, V), (N + 1, V + 1), (1000, 1000)])
@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize(
    ("bias", "scale", "cap"), [(False, 1.0, None), (True, 1.0, None), (False, 0.25, None), (True, 1.0, 3.0)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiles_equal_naive_fp64(tile, trains, bias, scale, cap, dtype):
    torch.manual_seed(0)
    exact = [torch.randn(N, D, dtype=torch.float64), torch.randn(V, D, dtype=torch.float64)]
    exact += [torch.randn(V, dtype=torch.float64)] if bias else []
    labels, up = torch.randint(V, (N,)), torch.randn(N, dtype=torch.float64)
    ours = [x.to(dtype).requires_grad_(i == 0 or trains) for i, x in enumerate(exact)]
    peer = [x.detach().double().requires_grad_() for x in ours]  # the same rounded inputs
    head = Head(ours[1], ours[2] if bias else None, scale, cap)
    logps = tiled_logps(ours[0], head, labels, tile).logps_N
    wanted = naive(peer[0], peer[1], peer[2] if bias else None, labels, scale, cap)
    assert logps.dtype == torch.float64
    (logps * up).sum().backward()
    (wanted * up).sum().backward()
    close = 1e-12 if dtype == torch.float64 else 2e-6
    assert (logps - wanted).abs().max() < close
    for mine, theirs in zip(ours, peer, strict=True):
        if mine.requires_grad:
            assert (mine.grad - theirs.grad).abs().max() < close * 10


@pytest.mark.parametrize("tile", [(1, 1), (7, 5), (1000, 1000)])
@pytest.mark.parametrize(("bias", "scale", "cap"), [(False, 1.0, None), (True, 0.5, 3.0)])
def test_entropy_and_hits_equal_naive(tile, bias, scale, cap):
    torch.manual_seed(0)
    hidden, weight = torch.randn(N, D, dtype=torch.float64), torch.randn(V, D, dtype=torch.float64)
    offset = torch.randn(V, dtype=torch.float64) if bias else None
    all_labels = torch.arange(V)
    logps_NV = torch.stack([naive(hidden, weight, offset, all_labels[[v] * N], scale, cap) for v in range(V)], 1)
    labels = torch.where(torch.arange(N) % 2 == 0, logps_NV.argmax(1), torch.randint(V, (N,)))
    found = tiled_logps(hidden, Head(weight, offset, scale, cap), labels, tile, entropy=True)
    assert (found.entropy_N + (logps_NV.exp() * logps_NV).sum(1)).abs().max() < 1e-12
    assert found.hits_N.tolist() == (logps_NV.argmax(1) == labels).double().tolist()
    without = tiled_logps(hidden, Head(weight, offset, scale, cap), labels, tile)
    assert torch.equal(without.logps_N, found.logps_N)
    assert without.entropy_N.isnan().all(), "not computed unless asked for"


def test_no_token_gives_zero_with_gradient():
    hidden = torch.randn(0, D, requires_grad=True)
    logps = tiled_logps(hidden, Head(torch.randn(V, D)), torch.empty(0, dtype=torch.int64), (4, 4)).logps_N
    logps.sum().backward()
    assert logps.shape == (0,)
    assert hidden.grad.shape == (0, D)


def test_a_label_outside_the_vocabulary_is_no_number():
    labels = torch.tensor([0, V, V - 1])
    logps = tiled_logps(torch.randn(3, D), Head(torch.randn(V, D)), labels, (2, 10)).logps_N
    assert logps.isnan().tolist() == [False, True, False]


def test_bfloat16_stays_within_its_rounding():
    torch.manual_seed(0)
    hidden, weight, labels = torch.randn(N, D), torch.randn(V, D), torch.randint(V, (N,))
    ours = tiled_logps(hidden.bfloat16(), Head(weight.bfloat16()), labels, (8, 6)).logps_N
    assert (ours - naive(hidden.double(), weight.double(), None, labels, 1.0, None)).abs().max() < 0.15


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            self.elements = max(self.elements, t.numel() if isinstance(t, torch.Tensor) else 0)
        return out


@pytest.mark.parametrize("trains", [False, True], ids=["frozen", "trainable"])
def test_no_tensor_of_tokens_by_vocabulary_is_allocated(trains):
    tokens, vocabulary = 64, 1000
    hidden, weight = torch.randn(tokens, D, requires_grad=True), torch.randn(vocabulary, D, requires_grad=trains)
    labels = torch.randint(vocabulary, (tokens,))
    with Largest() as seen:
        tiled_logps(hidden, Head(weight), labels, (8, 100), entropy=True).logps_N.sum().backward()
    assert seen.elements == (weight.numel() if trains else 8 * 100)  # the gradient of the head, or a tile


def random_rows(seed=0, vocab=300):
    rng = np.random.default_rng(seed)

    def ids(low, high):
        return rng.integers(3, vocab, rng.integers(low, high)).astype(np.int32)

    return [
        Row(ids(1, 25), tuple(ids(1, 20) for _ in range(k)), ((0, 1), (k - 1, 0)), ("a", "b"), (False,) * k)
        for k in (2, 3, 4, 2, 5)
    ]


def oracle(model, row):
    """One plain forward of a whole sequence at a time under transformers' own attention, full logits, fp64."""
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager" if model.config.model_type == "gemma2" else "sdpa")
    out = []
    for response in row.response_ids:
        ids = torch.tensor(np.concatenate([row.prompt_ids, response]))[None].long()
        with torch.no_grad():
            logps = model(ids).logits[0, :-1].double().log_softmax(-1)
        out.append(logps[torch.arange(ids.shape[1] - 1), ids[0, 1:]][len(row.prompt_ids) - 1 :].numpy())
    return out


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-10)])
@pytest.mark.parametrize("shared", [True, False], ids=["prompt rows", "separate"])
def test_rows_equal_the_oracle(family, dtype, tolerance, shared):
    exact = make_model(family).double()
    if dtype == torch.float64 and family == "gemma2":
        tolerance = 1e-6  # transformers has its soft-capped attention in fp32 only
    model = copy.deepcopy(exact).to(dtype)
    check_head(model)
    rows = random_rows()
    wanted = [oracle(exact, row) for row in rows]
    with torch.no_grad():
        tokens = token_logps(model, collate(rows, shared)).logps_N.numpy()
    assert np.abs(tokens - np.concatenate([t for ts in wanted for t in ts])).max() <= tolerance
    for row, ts, scored in zip(rows, wanted, response_logps(model, rows, 120, shared), strict=True):
        for total, own, t in zip(scored.logps_R, scored.token_logps, ts, strict=True):
            assert abs(total - t.sum()) <= tolerance * len(t)
            assert np.abs(own - t).max() <= max(tolerance, 1e-6)
        assert scored.counts_R.tolist() == [len(r) for r in row.response_ids]


@pytest.mark.parametrize("family", FAMILIES)
def test_flex_attention_equals_the_oracle(family):
    model = make_model(family)  # FlexAttention knows no fp64
    model.set_attn_implementation(FLEX)
    rows = random_rows()
    wanted = [t for row in rows for t in oracle(copy.deepcopy(model).double(), row)]
    with torch.no_grad():
        tokens = token_logps(model, collate(rows)).logps_N.numpy()
    assert np.abs(tokens - np.concatenate(wanted)).max() <= 2e-6


def test_a_mask_comes_with_keys_for_every_head(monkeypatch):
    """With fewer heads of keys only the kernel that holds all scores takes one on a GPU."""
    real, calls = attention.scaled_dot_product_attention, []

    def sdpa(q, k, v, mask, *rest, enable_gqa, **more):
        calls.append((mask is not None, enable_gqa, q.shape[1] == k.shape[1]))
        return real(q, k, v, mask, *rest, enable_gqa=enable_gqa, **more)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", sdpa)
    token_logps(make_model("mistral"), collate(random_rows()))  # its sliding window is not FlashRows's
    assert set(calls) == {(True, False, True), (False, True, False)}, "the shared stretch needs no mask"


def test_scores_do_not_depend_on_budget_order_or_company():
    model, rows = make_model(), random_rows()
    wanted = [s.logps_R for s in response_logps(model, rows, 10_000)]
    for budget in (1, 40, 90, 300):
        for a, b in zip(wanted, response_logps(model, rows, budget), strict=True):
            assert np.abs(a - b.logps_R).max() < 2e-5
    backwards = response_logps(model, rows[::-1], 100)[::-1]
    for a, b in zip(wanted, backwards, strict=True):
        assert np.abs(a - b.logps_R).max() < 2e-5


def gradients(model, rows, shared):
    model.zero_grad()
    batch = collate(rows, shared)
    (token_logps(model, batch).logps_N * torch.linspace(-1, 1, len(batch.labels_N))).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_gradients_equal_separate_ones(family):
    model = new_adapter(make_model(family).double(), ("all-linear",), 4, 8, 0.0).double()
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.1)
    shared, separate = (gradients(model, random_rows(), s) for s in (True, False))
    assert shared
    assert shared.keys() == separate.keys()
    close = 1e-10 if family in ("gpt2", "gpt_neox", "phi") else 1e-6  # other norms work in fp32 in an fp64 model
    for name, grad in shared.items():
        assert (grad - separate[name]).abs().max() < close, name


def test_full_fine_tuning_gets_the_gradient_of_a_tied_head():
    model = make_model(tie_word_embeddings=True).double()
    row = random_rows()[0]
    ours = gradients(model, [row], True)
    model.zero_grad()
    total, start = 0.0, 0
    weights = torch.linspace(-1, 1, row.response_tokens, dtype=torch.float64)
    for response in row.response_ids:
        ids = torch.tensor(np.concatenate([row.prompt_ids, response]))[None].long()
        logps = model(ids).logits[0, :-1].log_softmax(-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        total = total + (logps[len(row.prompt_ids) - 1 :] * weights[start : start + len(response)]).sum()
        start += len(response)
    total.backward()
    for name, p in model.named_parameters():
        assert (p.grad - ours[name]).abs().max() < 1e-6, name  # RMSNorm again


def test_padding_and_row_order_change_nothing():
    model, rows = make_model(), random_rows()
    policy = PairPolicy(model)
    with torch.no_grad():
        together = policy(collate(rows)).logps_N
        alone = torch.cat([policy(collate([r])).logps_N for r in rows])
    assert (together - alone).abs().max() < 2e-5


def test_a_batch_of_nothing_still_reaches_every_weight():
    model = new_adapter(make_model(), ("q_proj",), 4, 8, 0.0)
    logps = PairPolicy(model)(collate([])).logps_N
    logps.sum().backward()
    assert logps.shape == (0,)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_packed_when_it_is_loaded(family, tmp_path):
    path = save_model(tmp_path / family, family)
    assert decide_sharing(load_model(str(path)), random_rows()).packed


def test_sharing_is_probed():
    assert probe(make_model(), random_rows()) < 1e-4


def test_frequencies_that_depend_on_length_are_computed_alone():
    """The longest sequence beside it would choose a short one's rotary frequencies, packed or padded."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 30}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **factors}
    model = make_model(rope_parameters=rope, max_position_embeddings=120)
    ids = np.arange(3, 90, dtype=np.int32)
    short, long = Row(ids[:8], (ids[20:28], ids[30:36])), Row(ids[:40], (ids[40:70], ids[50:54]))
    decided = decide_sharing(model, [short, long])
    assert (decided.packed, decided.alone) == (False, True)
    assert decided.line.endswith("repeats its prompt, 1.50 times the tokens"), "(2·8 + 14 + 2·40 + 34) / (22 + 74)"
    assert decide_sharing(model, [short]).packed, "below the first length nothing depends on it"
    padded = response_logps(model, [short, long], 10_000, packed=False)[0].logps_R
    alone = separate_logps(model, [short, long])
    assert np.abs(padded - separate_logps(model, [short])[0].logps_R).max() > 1e-2, "what the test is about"
    assert np.array_equal(alone[0].logps_R, separate_logps(model, [short])[0].logps_R)
    assert np.abs(alone[0].logps_R - [t.sum() for t in oracle(model, short)]).max() < 1e-4


def test_the_line_says_what_was_measured_decided_and_paid(monkeypatch):
    model = make_model().bfloat16()
    rows = [Row(np.arange(3, 23, dtype=np.int32), tuple(np.arange(a, a + 8, dtype=np.int32) for a in (30, 50)))]
    rounding = "rounding of bfloat16 may cost 2.0e-01 over 16 response tokens"  # 0.05 · √16
    for off, said in (
        (0.1, f"rows are packed: responses are within 1.0e-01 nats of each computed alone; {rounding}"),
        (
            0.5,
            "rows are not packed: responses would be 5.0e-01 nats off each computed alone, but "
            f"{rounding}; each response repeats its prompt, 1.56 times the tokens",
        ),  # 56 of 36
    ):
        monkeypatch.setattr("train.models.sharing.probe", lambda *args, off=off: off)
        assert decide_sharing(model, rows).line == said


def test_a_head_that_does_more_is_refused():
    model = make_model()
    model.lm_head.register_forward_hook(lambda m, a, out: out * 2)
    with pytest.raises(UserError, match="differ from the model's own logits"):
        check_head(model)


def test_lora_on_the_head_is_refused():
    model = new_adapter(make_model(), ("lm_head",), 4, 8, 0.0)
    with pytest.raises(UserError, match="not a plain linear layer"):
        token_logps(model, collate(random_rows()[:1]))
