"""Runs a list of tasks on local processes or on a Ray cluster that shares the file system.

A task is a picklable function of plain values and files; run twice, it leaves the same files.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any, TypeVar

from prefkit.errors import UserError, unknown_name
from prefkit.progress import progress

ENGINES = ("local", "ray")
SMALL_BYTES = 16 << 20  # of inputs: below it, starting processes costs more than they save
_cluster = False  # whether `on` has a Ray cluster
_keeps = False  # whether the local processes stay for the next tasks: within `on`
_pool: ProcessPoolExecutor | None = None
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerLost(UserError):
    """A worker process died under a task; what is done stays done."""


def warm_up(inputs: Sequence[Path | str] | Path | str, workers: int | None) -> None:
    """Start the process that workers are forked from, so that it loads libraries while this one does too, unless the
    inputs (files or folders) are so small that there will be none."""
    if workers == 1 or _cluster:
        return
    paths = [Path(p) for p in ([inputs] if isinstance(inputs, str | Path) else inputs)]
    files = [f for p in paths for f in (p.rglob("*") if p.is_dir() else [p])]
    if sum(f.stat().st_size for f in files if f.is_file()) <= SMALL_BYTES:
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["prefkit.preloaded"])
    with _interrupt_waits():
        forkserver.ensure_running()


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def on(engine: str, address: str | None = None) -> Iterator[None]:
    """Where the tasks of the block run: `local`, or `ray` (a new local cluster unless an address is given)."""
    global _cluster, _keeps
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    if engine == "local":
        _keeps = True
        try:
            yield
        finally:
            _keeps = False
            _close_pool()
        return
    import ray

    try:
        _join_ray(address)
        _cluster = True
        yield
    finally:
        _cluster = False
        ray.shutdown()  # also of a cluster that Ctrl-C found starting


def _join_ray(address: str | None) -> None:
    import ray

    try:
        host, _, port = (address or "").removeprefix("ray://").rpartition(":")
        if host:  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address or "local", ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError) as e:
        fix = "start one with `ray start --head`; if it asks for a token, set RAY_AUTH_MODE=token here too"
        raise UserError(f"no Ray cluster there: {e}", address or "", fix) from None


def run_tasks(fn: Callable[[Task], Result], tasks: Sequence[Task], workers: int, label: str) -> list[Result]:
    """The results in the order of the tasks; an exception of a task comes out as it is and stops the rest."""
    with progress(label, len(tasks)) as advance:
        if _cluster:
            return _on_ray(fn, tasks, lambda result: advance(1, _rows(result)))
        if workers <= 1 or len(tasks) <= 1:
            results = []
            for task in tasks:
                results.append(fn(task))
                advance(1, _rows(results[-1]))
            return results
        return _in_processes(fn, tasks, workers, lambda result: advance(1, _rows(result)))


def _in_processes(
    fn: Callable[[Task], Result], tasks: Sequence[Task], workers: int, advance: Callable[[Result], None]
) -> list[Result]:
    global _pool
    if _pool is None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["prefkit.preloaded"])
        _pool = ProcessPoolExecutor(workers, context, initializer=_begin_worker)  # starts them as they are needed
    try:
        with _interrupt_waits():
            futures = [_pool.submit(fn, task) for task in tasks]
        for done in as_completed(futures):
            advance(done.result())
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
        if not _keeps or sys.exc_info()[0] is not None:
            _close_pool(wait=sys.exc_info()[0] is not KeyboardInterrupt)


def _close_pool(*, wait: bool = True) -> None:
    global _pool
    if _pool is not None:
        _pool.shutdown(wait=wait, cancel_futures=True)
        _pool = None


def _on_ray(fn: Callable[[Task], Result], tasks: Sequence[Task], advance: Callable[[Result], None]) -> list[Result]:
    """A task whose node dies is run again elsewhere; no more are handed out than keep the cluster busy."""
    import ray

    remote = ray.remote(max_retries=5)(fn)
    at_once = 4 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting, running = list(enumerate(tasks))[::-1], dict[Any, int]()
    results: dict[int, Result] = {}
    while waiting or running:
        while waiting and len(running) < at_once:
            number, task = waiting.pop()
            running[remote.remote(task)] = number
        done, _ = ray.wait(list(running), num_returns=1)
        number = running.pop(done[0])
        try:
            results[number] = ray.get(done[0])
        except ray.exceptions.RayTaskError as e:
            raise (e.cause if isinstance(e.cause, Exception) else e) from None
        except ray.exceptions.RayError as e:
            raise WorkerLost(f"the Ray cluster lost a task: {e}", fix="run the same command again to go on") from None
        advance(results[number])
    return [results[i] for i in range(len(tasks))]


def _rows(result: object) -> int:
    """A task that returns a number says how many rows it was."""
    return result if isinstance(result, int) else 0


@contextmanager
def _interrupt_waits() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, not even while they import; this one sees it when it is out."""
    resource_tracker.ensure_running()  # first, for it lets signals through again when it has started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent; look for cycles seldom, for rows by the thousand have none; keep freed memory for the
    next task: asking the system for it anew is slow."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    gc.set_threshold(50_000)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc
            libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
            libc.mallopt(M_TRIM_THRESHOLD, 256 << 20)
