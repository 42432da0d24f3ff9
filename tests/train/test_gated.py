"""Gated layers: the numbers of autograd, less kept for backward, and other arithmetic left alone."""

import pytest
import torch
from torch import nn
from train_toys import FAMILIES, make_model

from train.models.gated import Gated, keep_less

GATED = ["llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "gemma2", "gemma3_text", "cohere", "granite"]


@pytest.mark.parametrize("act", [nn.SiLU(), nn.GELU(approximate="tanh"), torch.relu])
def test_values_and_gradients_are_those_of_autograd(act):
    torch.manual_seed(0)
    ours = [torch.randn(5, 7, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    peer = [x.detach().clone().requires_grad_() for x in ours]
    up = torch.randn(5, 7, dtype=torch.float64)
    out, wanted = Gated.apply(*ours, act), act(peer[0]) * peer[1]
    assert torch.equal(out, wanted)
    out.backward(up)
    wanted.backward(up)
    for a, b in zip(ours, peer, strict=True):
        assert torch.equal(a.grad, b.grad)


def kept(model):
    """Elements that a forward keeps for backward, weights left out."""
    weights, seen = {p.data_ptr() for p in model.parameters()}, {}

    def pack(t):
        if t.data_ptr() not in weights:
            seen[t.data_ptr()] = t.numel()
        return t

    for p in model.parameters():
        p.requires_grad_(False)
    torch.manual_seed(1)
    x = torch.randn(1, 50, 32, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = model.model(inputs_embeds=x, use_cache=False).last_hidden_state
    out.sum().backward()
    return sum(seen.values()), out, x.grad


@pytest.mark.parametrize("family", FAMILIES)
def test_models_compute_the_same_and_keep_less(family):
    if family not in GATED:
        model = make_model(family)
        keep_less(model)
        assert not any("forward" in vars(m) for m in model.modules())
        return
    torch.manual_seed(1)
    many, wanted, _ = kept(make_model(family))
    model = make_model(family)
    keep_less(model)
    torch.manual_seed(1)
    few, out, _ = kept(model)
    assert sum("forward" in vars(m) for m in model.modules()) == 2, "one a layer"
    assert few <= many - 2 * 50 * 64
    assert torch.equal(out, wanted)


def test_gradients_of_a_model_do_not_change():
    results = []
    for lean in (False, True):
        model = make_model("llama")
        if lean:
            keep_less(model)
        torch.manual_seed(2)
        results.append(kept(model)[1:])
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_layers_that_do_more_are_left_alone():
    model = make_model("llama")
    layer = model.model.layers[0].mlp
    kind = type("Sparse", (type(layer),), {"forward": lambda self, x: self.down_proj(self.act_fn(self.gate_proj(x)))})
    layer.__class__ = kind
    keep_less(model)
    assert "forward" not in vars(layer)
    assert "forward" in vars(model.model.layers[1].mlp)


def test_a_layer_whose_activation_is_the_identity_is_left_alone():
    """The product is written over the activation, which here is the gate itself."""
    model = make_model("llama")
    for layer in model.model.layers:
        layer.mlp.act_fn = nn.Identity()
    keep_less(model)
    assert not any("forward" in vars(m) for m in model.modules())
