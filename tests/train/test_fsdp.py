"""FSDP2 on two processes: weights are sharded, each forward communicates, so both must make the same number of them."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from train_toys import make_model

from train.core.batch import collate
from train.core.logprobs import PairPolicy
from train.core.plan import plan_rows
from train.core.rows import Row
from train.models.load import new_adapter

HERE = Path(__file__).parent
BUDGET = 60


def rows():
    """Three prompts of about the budget each: cut naively, one process would forward twice and the other once."""
    rng = torch.Generator().manual_seed(0)

    def ids(n):
        return torch.randint(3, 300, (n,), generator=rng).int().numpy()

    return [Row(ids(20), (ids(15), ids(20)), ((0, 1),), (str(i),)) for i in range(3)]


def policy():
    model = new_adapter(make_model(), ("q_proj", "v_proj"), 4, 8, 0.0)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1)
    return PairPolicy(model)


def backward(wrapped, micro_batches, scale=1.0):
    for micro in micro_batches:
        logps = wrapped(collate(micro)).logps_N
        (logps.sum() * scale).backward()


def main(out: str) -> None:
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    wrapped = policy()
    for layer in wrapped.model.get_base_model().model.layers:
        fully_shard(layer)
    fully_shard(wrapped)
    planned = plan_rows(rows(), ranks, BUDGET)
    assert [len(m) for m in planned] == [2, 2]
    backward(wrapped, planned[rank], ranks)  # processes average their gradients
    grads = {n: p.grad.full_tensor() for n, p in wrapped.named_parameters() if p.requires_grad}
    if rank == 0:
        torch.save(grads, out)
    dist.barrier()
    os._exit(0)  # gloo's threads may abort while the interpreter is torn down; the work is done and on disk


def test_sharded_gradients_are_those_of_one_process(tmp_path):
    alone = policy()
    backward(alone, [rows()])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", __file__, str(tmp_path / "grads.pt")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HERE.parents[1]}:{HERE}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    sharded = torch.load(tmp_path / "grads.pt", weights_only=True)
    wanted = {n: p.grad for n, p in alone.named_parameters() if p.requires_grad}
    assert sharded.keys() == wanted.keys()
    assert max(float(g.abs().max()) for g in wanted.values()) > 1
    for name, grad in wanted.items():
        torch.testing.assert_close(sharded[name], grad, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    main(sys.argv[1])
