"""Where the time of a DPO step goes: matrix products, attention, the rest of the model's arithmetic, and all else.

    python benchmarks/profile_step.py [--dtype float32|bfloat16] [--pairs 24] [--posts FILE]

The run is that of train_vs_trl.py's first case, under torch's profiler. An operator's own time counts for its kind;
what lies in no operator (Python, data, bookkeeping) and the optimizer are "outside".
"""

import argparse
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

from train_vs_trl import MAX_TOKENS, PAIRS_PER_STEP, REAL, prepare

from train.models.memory import keep_pages

KINDS = {
    "matrix products": ("mm", "linear", "einsum"),
    "attention": ("attention", "FlashRows"),
    "optimizer": ("_foreach", "_fused", "Optimizer", "clip_grad", "nrm"),
}


def kind(operator: str) -> str:
    """Of an operator, by its name; elementwise arithmetic, reductions and copies are what is left."""
    found = (k for k, words in KINDS.items() if any(word in operator for word in words))
    return next(found, "elementwise, reductions, copies")


def main() -> None:
    """Train three epochs and profile from the second step's start to the last one's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--posts", type=Path, default=REAL / "stack-exchange/beer-2020-06/Posts.xml")
    args = parser.parse_args()
    keep_pages()
    from torch.profiler import ProfilerActivity, profile

    from train.check import check
    from train.config import DataConfig, DpoConfig, DpoRun, LoraConfig, ModelConfig
    from train.dpo import train_dpo
    from train.trainer import StepTrainer

    profiler = profile(activities=[ProfilerActivity.CPU])
    times: dict[int, float] = {}
    plain = StepTrainer.training_step

    def step(trainer, *given, **more):
        at, last = trainer.state.global_step, len(trainer.plan.steps) - 1
        if at == 1:
            profiler.start()
        times[at] = time.monotonic()
        if at == last:
            profiler.stop()
        return plain(trainer, *given, **more)

    StepTrainer.training_step = step
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, "body", args.posts, args.pairs)
        run = DpoRun(
            ModelConfig(path=str(folder / "model"), dtype=args.dtype),
            DataConfig(path=str(folder / "data"), template="question", max_tokens=MAX_TOKENS, eval_split=""),
            LoraConfig(r=8, alpha=16, targets=("q_proj", "v_proj")),
            DpoConfig(pairs_per_step=PAIRS_PER_STEP),
            {"learning_rate": "1e-4", "save_strategy": "no", "num_train_epochs": "3"},
        )
        train_dpo(check(run), folder / "out")
    wall = max(times.values()) - times[1]
    spent: Counter[str] = Counter()
    for event in profiler.key_averages():
        spent[kind(event.key)] += event.self_cpu_time_total / 1e6
    spent["outside the model"] = wall - sum(spent.values()) + spent.pop("optimizer", 0.0)
    for name, seconds in spent.most_common():
        print(f"{name:32} {seconds:7.2f} s {seconds / wall:6.1%}")
    print(
        json.dumps({"steps": len(times) - 2, "seconds": round(wall, 2), **{k: round(v, 3) for k, v in spent.items()}})
    )


if __name__ == "__main__":
    main()
