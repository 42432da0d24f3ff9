"""Memory of the process that computes: freed pages are kept, but not those in holes, and the peak is known.

All of this is for glibc on CPU; elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from typing import Any

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # <malloc.h>
TOP_PAD = 256 << 20  # bytes kept ready at the end of the heap
SMALL = 10_000_000  # weights: below, faulting pages in again takes a quarter of a step
LAYERS_PER_TRIM = 4  # at most; of a model of few layers a quarter


def keep_pages() -> None:
    """Let glibc keep freed memory instead of giving it back and faulting it in again, in huge pages if it may.

    Tensors of megabytes come and go in every layer; by default the kernel maps, zeroes and unmaps them each time. Call
    it before torch allocates anything.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch aligns large tensors: fewer holes
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, TOP_PAD)):
        mallopt(parameter, value)


def trim_holes(model: Any) -> None:
    """Give pages in holes of the heap back to the system: now, and every few layers of a forward that keeps tensors.

    A small model's only now.

    Between tensors that wait for backward lie the holes of temporaries. An aligned block needs more than its size to
    fit in, so glibc leaves these holes empty and grows: half as much again as a step's tensors. Backward begins at the
    peak, with holes of the head's; further on it frees more than it takes, which goes when the next forward begins.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    from torch import nn

    def give_back(*args: Any) -> None:
        trim(ctypes.c_size_t(TOP_PAD))

    def after(layer: Any, args: Any, out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        if hidden.requires_grad:
            give_back()
            if layer in layers[-2 * LAYERS_PER_TRIM :]:  # the first that backward comes to
                hidden.register_hook(give_back)

    def before(layer: Any, args: Any) -> None:
        if layer.training:  # what backward left, or the reference, whose forward keeps nothing
            give_back()

    trim(ctypes.c_size_t(0))  # what loading left behind
    layers = list(next((m for m in model.modules() if isinstance(m, nn.ModuleList)), ()))  # the outermost
    every = min(LAYERS_PER_TRIM, max(1, len(layers) // 4))
    if not layers or sum(p.numel() for p in model.parameters()) < SMALL:
        return
    layers[0].register_forward_pre_hook(before)
    for layer in layers[every - 1 :: every]:
        layer.register_forward_hook(after)


def peak_megabytes() -> float:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
