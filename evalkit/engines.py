"""Where what the cache lacks is computed: in this process, on the processes of torchrun, or on a Ray cluster.

All of them meet at the cache: whoever computes a sequence keeps it there, so a stopped run goes on where it was.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from evalkit.models import Models, Role
from prefkit.errors import UserError
from train.core.plan import plan
from train.core.rows import Row, SequenceLogp

Say = Callable[[str], None]
Found = Iterable[dict[bytes, SequenceLogp]]
CHUNKS = 8  # of rows for each Ray worker: what is lost with one of them
RETRIES = 3  # of a Ray worker that dies
READY_SECONDS = 60


def rank_and_size() -> tuple[int, int]:
    """Of this process among those that torchrun started."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def compute_local(models: Models, role: Role, rows: Sequence[Row], budget: int, say: Say) -> Found:
    """All of the rows, or under torchrun this process's share, by tokens; the cache then holds the others'."""
    rank, size = rank_and_size()
    if size == 1:
        yield from models.compute(role, rows, budget, say)
        return
    from accelerate.utils import broadcast_object_list

    state = processes()
    agreed: list[Row] = broadcast_object_list([list(rows)])[0]  # what is missing, as the first process saw it
    mine = [agreed[i] for i in _shares(agreed, size)[rank]]
    yield from models.compute(role, mine, budget, say)
    state.wait_for_everyone()


def processes() -> Any:
    """This process among those of torchrun, each with its device."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def compute_on_ray(models: Models, role: Role, rows: Sequence[Row], budget: int, address: str | None) -> Found:
    """One worker a free GPU, or a node where there is none; a worker that dies is started again, its share repeated."""
    ray = connect(address)
    workers = _workers(ray, models)
    pool = ray.util.ActorPool(workers)
    shares = [[rows[i] for i in share] for share in _shares(rows, len(workers) * CHUNKS) if share]
    try:
        yield from pool.map_unordered(lambda worker, share: worker.compute.remote(role, share, budget), shares)
    finally:
        for worker in workers:
            ray.kill(worker)


def _workers(ray: Any, models: Models) -> list[Any]:
    """Workers that have answered: one whose resources another job holds would keep its share waiting for ever."""
    free = ray.available_resources()
    gpus = int(free.get("GPU", 0))
    nodes = sum(node["Alive"] and node["Resources"].get("CPU", 0) >= 1 for node in ray.nodes())
    count = gpus or min(nodes, int(free.get("CPU", 0)))
    needs: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
    remote = ray.remote(**needs, max_restarts=RETRIES, max_task_retries=RETRIES)(Worker)
    asked = [remote.remote(models) for _ in range(count)]
    answers = {worker.ready.remote(): worker for worker in asked}
    ready, waiting = ray.wait(list(answers), num_returns=count, timeout=READY_SECONDS) if asked else ([], [])
    for answer in waiting:
        ray.kill(answers[answer])
    if not ready:
        raise UserError("the Ray cluster has no GPU and no CPU free", fix="wait for its other jobs, or add a node")
    return [answers[answer] for answer in ready]


class Worker:
    """A process of the cluster with the models, which are loaded with the first rows."""

    def __init__(self, models: Models):
        self.models = models

    def ready(self) -> bool:
        """Whether it has started."""
        return True

    def compute(self, role: Role, rows: Sequence[Row], budget: int) -> dict[bytes, SequenceLogp]:
        """As `Models.compute`, in one piece."""
        found: dict[bytes, SequenceLogp] = {}
        for part in self.models.compute(role, rows, budget, lambda line: None):
            found |= part
        return found


def connect(address: str | None) -> Any:
    """The ray module, connected to a cluster: the one at `address`, or one started here."""
    try:
        import ray
        import ray.util
    except ImportError as e:
        raise UserError("ray is not installed", fix="pip install 'prefkit[ray]'") from e
    if not ray.is_initialized():
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as e:
            raise UserError("no Ray cluster answers", address, "ray start --head, or leave --ray-address out") from e
    return ray


def _shares(rows: Sequence[Row], count: int) -> list[list[int]]:
    """Indices of rows in `count` lists of about equally many tokens."""
    if not rows:
        return [[] for _ in range(count)]
    lengths = [r.tokens for r in rows]
    budget = max(1, -(-sum(lengths) // count))
    return [[i for micro in share for i in micro] for share in plan(lengths, count, budget)]
