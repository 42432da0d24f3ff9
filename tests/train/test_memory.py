"""Memory of a training step: what lies in holes of the heap is given back, and numbers stay."""

import subprocess
import sys

import pytest

STEP = """
import sys, torch
from torch import nn
from torch.nn.functional import linear
from train.core.memory import keep_pages, trim_holes
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


LEAN = """
import sys
from train.core.quiet import UNNEEDED, quiet_libraries
quiet_libraries(UNNEEDED)
import evalkit.models, train.dpo, train.sft
from transformers import AutoModelForCausalLM
from transformers.models.llama import modeling_llama
print(*(name for name in UNNEEDED if name in sys.modules))
import datasets, scipy
print(datasets.Dataset.__name__)
"""


def test_a_command_does_not_load_what_only_others_need():
    done = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["", "Dataset", ""], "and whoever imports them himself still can"
