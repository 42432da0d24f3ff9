"""Memory of a training step: what lies in holes of the heap is given back, and numbers stay."""

import subprocess
import sys
from functools import reduce
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from train.models import memory

STEP = """
import sys, torch
from torch import nn
from torch.nn.functional import linear
from train.models.memory import keep_pages, trim_holes
keep_pages()

class Layer(nn.Module):  # keeps one tensor of 3 MB for backward, and makes temporaries of other sizes
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.eye(640))
    def forward(self, x):
        wide = x.repeat(1, 3)
        return linear(x + wide[:, :640], self.w) / 2

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(60))
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x

torch.manual_seed(0)
torch.set_num_threads(1)
model, x = Model(), torch.randn(1212, 640)
if sys.argv[1] == "trim":
    trim_holes(model)
def anonymous():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("RssAnon")) >> 10

before = anonymous()
out = model(x).sum()
grown = anonymous() - before
out.backward()
print(grown, float(model.layers[0].w.grad.double().sum()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_holes_are_given_back_and_the_gradient_is_the_same():
    found = {}
    for kind in ("trim", "keep"):
        done = subprocess.run([sys.executable, "-c", STEP, kind], capture_output=True, text=True, check=True)
        megabytes, gradient = done.stdout.split()
        found[kind] = (int(megabytes), gradient)
    assert found["trim"][1] == found["keep"][1]
    assert found["trim"][0] < 0.75 * found["keep"][0], "60 tensors of 3 MB are kept: 186 MB"


@pytest.mark.parametrize("small", [False, True])
def test_memory_is_given_back_while_tensors_are_kept_and_where_backward_begins(monkeypatch, small):
    """Not of a small model, whose steps it would slow by a quarter."""
    at = []
    if not small:
        monkeypatch.setattr(memory, "SMALL", 0)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: SimpleNamespace(malloc_trim=lambda pad: at.append(where[0])))
    layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(16))
    model = nn.Sequential()
    model.layers = layers
    model.forward = lambda x: reduce(lambda hidden, layer: layer(hidden), layers, x)
    where = ["loading"]
    memory.trim_holes(model)
    where[0] = "evaluation"
    with torch.no_grad():
        model.eval()(torch.ones(1, 2))
    where[0] = "reference beside training"
    with torch.no_grad():
        model.train()(torch.ones(1, 2))
    where[0] = "forward"
    loss = model(torch.ones(1, 2)).sum()
    where[0] = "backward"
    loss.backward()
    wanted = ["reference beside training", *["forward"] * 5, *["backward"] * 2]
    assert at == ["loading", *([] if small else wanted)]


LEAN = """
import sys
from train.models.libraries import UNNEEDED, lean_peft
lean_peft()
import evalkit.models, pyarrow, train.dpo, train.sft
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig
sizes = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
def adapted(model):
    layer = get_peft_model(model, LoraConfig(target_modules=["q_proj"])).base_model.model.model.layers[0]
    return type(layer.self_attn.q_proj)

model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes))
model.save_pretrained(sys.argv[1])
layer = adapted(model)
pyarrow.array([1])
loaded = [name for name in (*UNNEEDED, "bitsandbytes", "networkx", "pandas") if name in sys.modules]
assert not loaded, loaded
"""
USES = {  # what others may do later in the same process
    "data sets and frames": "import datasets, pandas, scipy.stats\n"
    "column = datasets.Dataset.from_list([{'a': 1}])['a']\n"
    "assert pyarrow.table({'a': column}).to_pandas().a.sum() == 1",
    "optimizers": "import bitsandbytes.functional as f\n"
    "from bitsandbytes.optim import AdamW8bit\n"
    "from bitsandbytes.nn.modules import QuantState\n"
    "assert QuantState is f.QuantState and AdamW8bit(model.parameters())",
    "peft's class": "from peft.tuners.lora import Linear4bit\nassert Linear4bit.__module__ == 'peft.tuners.lora.bnb'",
    "four bits": "from transformers import BitsAndBytesConfig\n"
    "four = BitsAndBytesConfig(load_in_4bit=True)\n"
    "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=four)\n"
    "model.save_pretrained(sys.argv[1] + '/four')\n"
    "assert adapted(model).__name__ == 'Linear4bit' and layer.__name__ == 'Linear'\n"
    "model = AutoModelForCausalLM.from_pretrained(sys.argv[1] + '/four')  # says itself that it is quantised\n"
    "assert adapted(model).__name__ == 'Linear4bit'",
    "the same again": "lean_peft()\nimport bitsandbytes\n"
    "from peft.tuners.lora import model as lora\nassert lora.is_bnb_available()",
}


@pytest.mark.parametrize("use", USES)
def test_a_command_does_not_load_what_only_others_need(use, tmp_path):
    done = subprocess.run([sys.executable, "-c", LEAN + USES[use], str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
