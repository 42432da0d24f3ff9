"""DPO pairs per second and peak memory: `prefkit train dpo` against TRL's DPOTrainer.

Same model (random weights, body-dominated Llama of 100 M), same real pairs, LoRA on q and v, precision, allocator and
pairs per optimizer step; reference online on both sides. TRL runs at each of the batch sizes and counts at its fastest;
then ours and the peer run in turn. Every run is a process of its own and is timed from its first step to its last.

    python benchmarks/train_vs_trl.py [--posts POSTS.xml] [--pairs 24] [--rounds 3] [--dtype float32]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("PREFKIT_REAL_DATA", ROOT.parent / "shared" / "data")) / "stack-exchange"
PAIRS_PER_STEP = 8
# One allocator setting for both: freed pages stay with the process instead of going back and faulting in again.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(1 << 30),
}


def prepare(folder: Path, posts: Path, pairs: int) -> None:
    """Data, a 16k tokenizer of its text, the model, and the same pairs as text for the peer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from prefkit import convert_dataset, open_pairs
    from train.core.encode import Limits, Template
    from train.core.rows import build_rows, pair_texts
    from train.tiny_model import train_tokenizer

    convert_dataset(posts, folder / "all", splits="train=1")
    table = open_pairs(folder / "all", "train")
    texts = (m["content"] for row in table.to_pylist() for k in ("prompt", "chosen", "rejected") for m in row[k])
    train_tokenizer(texts, 16000, 4096).save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16000, hidden_size=640, intermediate_size=1728, num_hidden_layers=20, num_attention_heads=10,
        num_key_value_heads=10, max_position_embeddings=4096, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "model")
    head = model.lm_head.weight.numel() / model.num_parameters()
    print(f"{model.num_parameters() / 1e6:.0f} M parameters, head {head:.0%}")

    rows = build_rows(pair_texts(table), tokenizer, Template.of("question", tokenizer), Limits(1024))
    kept: list[str] = []
    for row in rows.rows:  # whole prompts, in file order, until there are enough pairs
        if len(kept) >= pairs:
            break
        kept += row.pair_ids
    place = {pair: i for i, pair in enumerate(kept)}
    chosen = [r for r in table.to_pylist() if r["id"] in place]
    chosen.sort(key=lambda r: place[r["id"]])
    jsonl = folder / "pairs.jsonl"
    jsonl.write_text("".join(json.dumps({k: r[k] for k in ("prompt", "chosen", "rejected")}) + "\n" for r in chosen))
    convert_dataset(jsonl, folder / "data", source="pairs", splits="train=1")
    counts = build_rows(
        pair_texts(open_pairs(folder / "data", "train")), tokenizer, Template.of("question", tokenizer), Limits(1024)
    ).counts()
    print({k: counts[k] for k in ("pairs", "prompts", "responses", "tokens", "tokens_as_pairs")})


def ours(folder: Path, out: Path, dtype: str) -> dict:
    """One epoch of `prefkit train dpo`."""
    command = [
        "prefkit", "train", "dpo", "--model.path", folder / "model", "--data.path", folder / "data", "--out", out,
        "--model.dtype", dtype, "--data.template", "question", "--data.max-tokens", "1024", "--data.eval-split", "",
        "--lora.r", "8", "--lora.alpha", "16", "--lora.targets", "q_proj", "--lora.targets", "v_proj",
        "--dpo.pairs-per-step", PAIRS_PER_STEP, "--trainer.learning-rate", "1e-4", "--trainer.save-strategy", "no",
    ]  # fmt: skip
    usage = run_process([str(Path(sys.executable).parent / command[0]), *map(str, command[1:])])
    summary = json.loads((out / "summary.json").read_text())
    pairs = summary["data"]["train"]["pairs"]
    return {"pairs_per_s": pairs / summary["wall_seconds"], "memory_mb": usage}


def peer(folder: Path, out: Path, dtype: str, batch: int) -> dict:
    """One epoch of TRL, in a process of its own."""
    usage = run_process([sys.executable, __file__, "--peer", str(folder), str(out), dtype, str(batch)])
    return json.loads((out / "peer.json").read_text()) | {"memory_mb": usage}


def run_process(command: list[str]) -> float:
    """Run under the common allocator; return peak memory in MB."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env={**os.environ, **ALLOCATOR}, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            sys.exit(log.read().decode()[-3000:])
    return usage.ru_maxrss / 1024


def peer_main(folder: Path, out: Path, dtype: str, batch: int) -> None:
    """TRL on the same text: the boundary is where ours is, after "Answer:"."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from prefkit import open_pairs

    rows = [
        {
            "prompt": f"Question: {r['prompt'][0]['content']}\n\nAnswer:",
            "chosen": " " + r["chosen"][0]["content"],
            "rejected": " " + r["rejected"][0]["content"],
        }
        for r in open_pairs(folder / "data", "train").to_pylist()
    ]
    args = DPOConfig(
        output_dir=str(out), per_device_train_batch_size=batch, gradient_accumulation_steps=PAIRS_PER_STEP // batch,
        num_train_epochs=1, learning_rate=1e-4, logging_steps=10, report_to="none", use_cpu=not torch.cuda.is_available(),
        bf16=dtype == "bfloat16", max_length=2048, save_strategy="no", gradient_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, dtype)),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    start = time.monotonic()
    trainer.train()
    out.mkdir(parents=True, exist_ok=True)
    (out / "peer.json").write_text(json.dumps({"pairs_per_s": len(rows) / (time.monotonic() - start)}))


def matmul_rate(dtype: str) -> float:
    """GFLOP/s of a large matrix product, for scale."""
    import torch

    a = torch.randn(2048, 2048, dtype=getattr(torch, dtype))
    start, n = time.monotonic(), 0
    while time.monotonic() - start < 2:
        a @ a
        n += 1
    return 2 * 2048**3 * n / (time.monotonic() - start) / 1e9


def main() -> None:
    """Prepare, find the peer's best batch size, run in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--posts", type=Path, default=REAL / "beer-2020-06" / "Posts.xml")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", default="1,2,4,8")
    args = parser.parse_args()
    if not args.posts.is_file():
        sys.exit(f"no dump at {args.posts}: give --posts, or set PREFKIT_REAL_DATA")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, args.posts, args.pairs)
        tried = {b: peer(folder, folder / f"try{b}", args.dtype, b) for b in map(int, args.batches.split(","))}
        best = max(tried, key=lambda b: tried[b]["pairs_per_s"])
        print(
            "TRL at batch "
            + ", ".join(f"{b}: {t['pairs_per_s']:.3f} pairs/s, {t['memory_mb']:.0f} MB" for b, t in tried.items())
        )
        runs = []
        for n in range(args.rounds):
            a, b = ours(folder, folder / f"o{n}", args.dtype), peer(folder, folder / f"p{n}", args.dtype, best)
            runs.append((a, b))
            print(
                f"ours {a['pairs_per_s']:.3f} pairs/s, {a['memory_mb']:.0f} MB · TRL {b['pairs_per_s']:.3f}, {b['memory_mb']:.0f} MB"
            )
    speed = [statistics.median(r[i]["pairs_per_s"] for r in runs) for i in (0, 1)]
    memory = [statistics.median(r[i]["memory_mb"] for r in runs) for i in (0, 1)]
    ratios = sorted(a["pairs_per_s"] / b["pairs_per_s"] for a, b in runs)
    print(
        f"ratio of each round {ratios[0]:.2f} to {ratios[-1]:.2f}; matrix product {matmul_rate(args.dtype):.0f} GFLOP/s"
    )
    result = {"benchmark": f"train_vs_trl {args.dtype}", "ours": round(speed[0], 3), "peer": round(speed[1], 3)}
    result |= {
        "ratio": round(speed[0] / speed[1], 2),
        "memory_ratio": round(memory[0] / memory[1], 3),
        "unit": "pairs/s",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer_main(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        main()
