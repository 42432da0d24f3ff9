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
LAYERS_PER_TRIM = 4


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
    """Give pages in holes of the heap back to the system every few layers of a forward that keeps tensors.

    Between tensors that wait for backward lie the holes of temporaries. An aligned block needs more than its size to
    fit in, so glibc leaves these holes empty and grows: half as much again as a step's tensors.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    import torch
    from torch import nn

    def after(*args: Any) -> None:
        if torch.is_grad_enabled():
            trim(ctypes.c_size_t(TOP_PAD))

    layers: Any = next((m for m in model.modules() if isinstance(m, nn.ModuleList)), ())  # the outermost
    for layer in list(layers)[LAYERS_PER_TRIM - 1 :: LAYERS_PER_TRIM]:
        layer.register_forward_hook(after)


def peak_megabytes() -> float:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
