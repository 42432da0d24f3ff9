"""Runs a list of tasks: here on local processes. A task is a picklable function of plain values and files."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver
from typing import TypeVar

from prefkit.errors import UserError
from prefkit.progress import progress

# Imported once by the process that workers are forked from: it knows no threads, and a worker starts in milliseconds.
PRELOAD = ["prefkit.tasks", "prefkit.publish", "prefkit.sources.stack_exchange_dump", "prefkit.sources.pairs"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerLost(UserError):
    """A worker process died under a task; what is done stays done."""


def warm_up() -> None:
    """Start the process that workers are forked from, so that it loads libraries while the work is planned."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    forkserver.ensure_running()


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(fn: Callable[[Task], Result], tasks: Sequence[Task], workers: int, label: str) -> list[Result]:
    """The results in the order of the tasks; an exception of a task comes out as it is and stops the rest."""
    with progress(label, len(tasks)) as advance:
        if workers <= 1 or len(tasks) <= 1:
            results = []
            for task in tasks:
                results.append(fn(task))
                advance(1)
            return results
        return _in_processes(fn, tasks, min(workers, len(tasks)), lambda: advance(1))


def _in_processes(
    fn: Callable[[Task], Result], tasks: Sequence[Task], workers: int, advance: Callable[[], None]
) -> list[Result]:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker)
    try:
        futures = [pool.submit(fn, task) for task in tasks]
        for done in as_completed(futures):
            done.result()
            advance()
        return [f.result() for f in futures]
    except BrokenProcessPool:
        raise WorkerLost(
            "a worker process died, for want of memory or because the script that called has no __main__ guard",
            fix="run the same command again with fewer --workers; put a script's calls under if __name__ == '__main__'",
        ) from None
    except KeyboardInterrupt:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=sys.exc_info()[0] is not KeyboardInterrupt, cancel_futures=True)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent, and keep freed memory for the next task: asking the system for it anew is slow."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, 256 << 20)
