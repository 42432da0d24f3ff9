"""Off the CPU all tensors of a step must lie on one device, and nothing may wait for a value of it.

No GPU is needed to hold this: torch lets a made-up device be registered, and its fake tensors have shapes and devices but
no values, so that an operation over two devices, or one that asks for a value, fails at once.
"""

import os
import subprocess
import sys

STEPS = """
import dataclasses
import numpy as np, torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, Qwen3Config
from train.core.attention import ROWS
from train.core.batch import collate
from train.core.logprobs import PairPolicy
from train.models.load import new_adapter
from train.core.rows import Row
from train.dpo import DpoObjective
from train.losses import find_loss
from train.sft import SftObjective

_setup_privateuseone_for_python_backend("madeup")
torch.madeup.get_amp_supported_dtype = lambda: [torch.bfloat16]
device, mode = torch.device("madeup:0"), FakeTensorMode()
sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
gqa = sizes | dict(num_key_value_heads=2, head_dim=8)
row = Row(
    np.arange(1, 9, dtype=np.int32),
    tuple(np.arange(a, a + 5, dtype=np.int32) for a in (3, 4, 9)),
    pair_ids=["a", "b"],
    pairs=[(0, 1), (1, 2)],
)


def moved(tensor):
    return FakeTensor(mode, tensor.detach().to("meta"), device)


def step(config, dtype, packed=True, adapter=True):
    config._attn_implementation = ROWS if packed else "eager"
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model = new_adapter(model, ("all-linear",), 4, 8, 0.0) if adapter else model
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = torch.nn.Parameter(moved(value), value.requires_grad)
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = moved(value)
    model.tie_weights()
    for objective in (DpoObjective(find_loss("sigmoid"), 0.1, 0.0, "adapter_off" if adapter else "none"), SftObjective()):
        batch = collate([row] * 3, packed)
        there = {k: moved(v) for k, v in vars(batch).items() if isinstance(v, torch.Tensor)}
        with mode:
            found = objective(PairPolicy(model), model, dataclasses.replace(batch, **there))
            found.losses.sum().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
        assert gradients and {t.device for t in (found.losses, *found.sums.values(), *gradients)} == {device}


step(LlamaConfig(**gqa), torch.bfloat16)
step(LlamaConfig(**gqa), torch.bfloat16, packed=False)
step(LlamaConfig(**sizes, tie_word_embeddings=True), torch.float32, adapter=False)
step(Qwen3Config(**gqa), torch.bfloat16)
step(Gemma2Config(**gqa, sliding_window=4), torch.bfloat16)
step(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4), torch.float32)
print("one device")
"""


def test_a_step_lies_on_one_device_and_waits_for_no_value():
    done = subprocess.run(
        [sys.executable, "-c", STEPS], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.stdout.endswith("one device\n"), done.stderr[-2000:]
