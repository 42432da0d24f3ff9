"""Memory of the process that computes: freed pages are kept, and the peak is known."""

from __future__ import annotations

import ctypes
import os
import resource
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # <malloc.h>


def keep_pages() -> None:
    """Let glibc keep freed memory instead of giving it back and faulting it in again, in huge pages if it may.

    Tensors of megabytes come and go in every layer; by default the kernel maps, zeroes and unmaps them each time. Call
    it before torch allocates anything. Nothing happens on other C libraries.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch aligns large tensors: fewer holes
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 256 << 20)):
        mallopt(parameter, value)


def peak_megabytes() -> float:
    """The largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
