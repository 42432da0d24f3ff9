"""SFT examples per second and peak memory: `prefkit train sft` against TRL's SFTTrainer.

Same model, real chosen answers (each distinct one once, on both sides), LoRA on q and v, precision, allocator and
examples per optimizer step, loss on answers only. The peer counts at its fastest batch size. See train_vs_trl.py.
With `--of pairs` it is given the data set as the published recipe gives it, the chosen answer of every pair: an answer
that is in three pairs is computed three times, and by ours once.

    python benchmarks/sft_vs_trl.py [--case body|toy] [--dtype float32|bfloat16] [--rounds 3] [--batches 1,2,4,8]
                                    [--of answers|pairs]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from train_vs_trl import (
    MAX_TOKENS,
    REAL,
    body_weights,
    matmul_rate,
    prepare_apart,
    run_process,
    trl_arguments,
    trl_lora,
)

EXAMPLES_PER_STEP = 8


def ours(folder: Path, out: Path, dtype: str, of: str) -> dict:
    """One epoch of `prefkit train sft`."""
    command = [
        "prefkit", "train", "sft", "--model.path", folder / "model", "--data.path", folder / "data", "--out", out,
        "--model.dtype", dtype, "--data.template", "question", "--data.max-tokens", MAX_TOKENS, "--data.eval-split", "",
        "--lora.r", "8", "--lora.alpha", "16", "--lora.targets", "q_proj", "--lora.targets", "v_proj",
        "--sft.examples-per-step", EXAMPLES_PER_STEP,
        "--trainer.learning-rate", "1e-4", "--trainer.save-strategy", "no",
    ]  # fmt: skip
    usage = run_process([str(Path(sys.executable).parent / command[0]), *map(str, command[1:])], folder)
    summary = json.loads((out / "summary.json").read_text())
    read = summary["data"]["train"]
    again = read["dropped"].get("same prompt and answer as an earlier pair", 0)
    examples = read["responses"] + again * (of == "pairs")
    return {"per_s": examples / summary["wall_seconds"], "memory_mb": usage, "examples": examples}


def peer(folder: Path, out: Path, dtype: str, of: str, batch: int) -> dict:
    """One epoch of TRL, in a process of its own."""
    usage = run_process([sys.executable, __file__, "--peer", str(folder), str(out), dtype, of, str(batch)], folder)
    return json.loads((out / "peer.json").read_text()) | {"memory_mb": usage}


def useful_flops(folder: Path) -> float:
    """Of an example: forward and gradient of the input, each token once, the head where a response is predicted."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prefkit import open_pairs
    from train.core.encode import Limits, Template
    from train.core.rows import build_examples, pair_texts

    model, tokenizer = (kind.from_pretrained(folder / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    template = Template.of("question", tokenizer)
    rows = build_examples(
        pair_texts(open_pairs(folder / "data", "train")), tokenizer, template, Limits(MAX_TOKENS)
    ).rows
    body, head = body_weights(model), model.lm_head.weight.numel()
    return 4 * sum(body * r.tokens + head * r.response_tokens for r in rows) / len(rows)


def peer_main(folder: Path, out: Path, dtype: str, of: str, batch: int) -> None:
    """TRL on the same text."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from prefkit import open_pairs

    rows = [
        {
            "prompt": f"Question: {r['prompt'][0]['content']}\n\nAnswer:",
            "completion": " " + r["chosen"][0]["content"],
        }
        for r in open_pairs(folder / "data", "train").to_pylist()
    ]
    if of == "answers":
        rows = list({(r["prompt"], r["completion"]): r for r in rows}.values())
    args = SFTConfig(**trl_arguments(out, dtype, batch, EXAMPLES_PER_STEP))
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, dtype)),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        peft_config=trl_lora(),
    )
    start = time.monotonic()
    trainer.train()
    out.mkdir(parents=True, exist_ok=True)
    (out / "peer.json").write_text(json.dumps({"per_s": len(rows) / (time.monotonic() - start), "examples": len(rows)}))


def main() -> None:
    """Prepare, find the peer's best batch size, run in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=["body", "toy"], default="body")
    parser.add_argument("--posts", type=Path, default=REAL / "stack-exchange/beer-2020-06/Posts.xml")
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--of", choices=["answers", "pairs"], default="answers")
    args = parser.parse_args()
    if not args.posts.is_file():
        sys.exit(f"no dump at {args.posts}: give --posts, or set PREFKIT_REAL_DATA")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_apart(folder, args.case, args.posts, args.pairs)
        flops = useful_flops(folder)
        tried = {b: peer(folder, folder / f"try{b}", args.dtype, args.of, b) for b in map(int, args.batches.split(","))}
        best = max(tried, key=lambda b: tried[b]["per_s"])
        print("TRL " + ", ".join(f"batch {b}: {t['per_s']:.3f}/s {t['memory_mb']:.0f} MB" for b, t in tried.items()))
        runs, rates = [], [matmul_rate(args.dtype)]
        for n in range(args.rounds):
            a = ours(folder, folder / f"o{n}", args.dtype, args.of)
            b = peer(folder, folder / f"p{n}", args.dtype, args.of, best)
            assert a["examples"] == b["examples"], (a, b)
            rates.append(matmul_rate(args.dtype))
            runs.append((a, b))
            print(
                f"ours {a['per_s']:.3f}/s {a['memory_mb']:.0f} MB · TRL {b['per_s']:.3f}/s {b['memory_mb']:.0f} MB",
                flush=True,
            )
    speed, memory = ([statistics.median(r[i][k] for r in runs) for i in (0, 1)] for k in ("per_s", "memory_mb"))
    ratios = sorted(a["per_s"] / b["per_s"] for a, b in runs)
    rate = statistics.median(rates)
    most = rate * 1e9 / flops  # answers/s of a trainer that does nothing but its matrix products
    print(f"ratio of each round {ratios[0]:.2f} to {ratios[-1]:.2f}; matrix product {rate:.0f} GFLOP/s", end="")
    print(
        f": {most:.2f} answers/s at most, {most / speed[1]:.1f} times the peer; ours uses {speed[0] / most:.0%} of it"
        if args.of == "answers"
        else ""
    )
    result = {
        "benchmark": f"sft_vs_trl {args.case} {args.dtype}, {args.of}",
        "ours": round(speed[0], 3),
        "peer": round(speed[1], 3),
    }
    result |= {"ratio": round(speed[0] / speed[1], 2), "memory_ratio": round(memory[0] / memory[1], 3)}
    print(json.dumps(result | {"unit": f"{args.of}/s"}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer_main(Path(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:6], int(sys.argv[6]))
    else:
        main()
