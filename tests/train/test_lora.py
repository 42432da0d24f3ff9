"""LoRA layers computed in place: peft's numbers and gradients, and peft itself wherever the layer is not plain."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from train_toys import make_model

from train.models.load import new_adapter
from train.models.lora import lean_lora

X = torch.arange(3, 40)[None]


def adapted(dtype=torch.float64, **config):
    """A model under an adapter that changes it, as peft computes it, and its twin with our forward."""
    torch.manual_seed(0)
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | config
    peft = get_peft_model(make_model().to(dtype), LoraConfig(**options))
    for name, p in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.1)
    lean = copy.deepcopy(peft)
    lean_lora(lean)
    return peft, lean


def gradients(model):
    model.zero_grad()
    logits = model(X).logits
    (logits.float() * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])  # RMSNorm is fp32
def test_numbers_and_gradients_are_those_of_peft(dtype, close):
    peft, lean = adapted(dtype)
    (wanted, wanted_grads), (found, grads) = gradients(peft), gradients(lean)
    assert (found - wanted).abs().max() < close
    assert grads.keys() == wanted_grads.keys()
    for name, grad in grads.items():
        assert (grad - wanted_grads[name]).abs().max() <= close * (1 + wanted_grads[name].abs().max()), name
    with peft.disable_adapter():
        assert (peft(X).logits - wanted).abs().max() > 1e-2, "the adapter does something"


def test_a_bfloat16_base_under_a_float32_adapter_is_rounded_once():
    layers = {}
    for kind in ("peft", "lean"):
        torch.manual_seed(0)
        base = torch.nn.Sequential()
        base.add_module("proj", torch.nn.Linear(64, 96, dtype=torch.bfloat16))
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["proj"]))
        torch.nn.init.normal_(model.base_model.model.proj.lora_B["default"].weight)
        layers[kind] = model
    lean_lora(layers["lean"])
    layer = layers["peft"].base_model.model.proj
    assert layer.lora_A["default"].weight.dtype == torch.float32
    x = torch.randn(2, 9, 64, dtype=torch.bfloat16)
    wanted, found = (layers[k](x) for k in ("peft", "lean"))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("case", ["disabled", "merged", "two adapters", "dora", "dropout", "bias"])
def test_whatever_is_not_plain_goes_the_way_of_peft(case):
    config = {"dora": {"use_dora": True}, "dropout": {"lora_dropout": 0.5}, "bias": {"lora_bias": True}}
    peft, lean = adapted(**config.get(case, {}))
    plain = peft(X).logits
    for model in (peft, lean):
        if case == "disabled":
            model.base_model.disable_adapter_layers()
        elif case == "merged":
            model.merge_adapter()
        elif case == "two adapters":
            torch.manual_seed(2)
            model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
            model.base_model.set_adapter(["default", "other"])
        elif case == "dropout":
            model.train()
    outs = []
    for model in (peft, lean):
        torch.manual_seed(3)
        outs.append(model(X).logits)
    assert torch.equal(*outs)
    if case in ("disabled", "two adapters", "dropout"):
        assert (outs[0] - plain).abs().max() > 1e-3


def test_dropout_in_evaluation_is_plain():
    peft, lean = adapted(lora_dropout=0.5)
    assert (peft.eval()(X).logits - lean.eval()(X).logits).abs().max() < 1e-6


def test_new_adapters_are_lean():
    model = new_adapter(make_model(), ("q_proj",), 4, 8, 0.0)
    assert sum("forward" in vars(m) and "lora" in type(m).__module__ for m in model.modules()) == 2, "one a layer"
