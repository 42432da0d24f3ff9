"""DPO pairs per second and peak memory: `prefkit train dpo` against TRL's DPOTrainer.

Same model (random weights), same real pairs, LoRA on q and v, precision, allocator and pairs per optimizer step. The
peer runs at each batch size once and counts at its fastest; then ours and the peer run in turn. Every run is a process
of its own and is timed from its first step to its last, so that start-up and a warm reference cost neither side.

    python benchmarks/train_vs_trl.py [--case body|toy|hh] [--dtype float32|bfloat16] [--rounds 3] [--batches 1,2,4,8]
                                      [--reference online|cached] [--against online|cached] [--pairs N] [--posts FILE]
                                      [--checkpoints]

body: a Llama of 120 M whose head is 9 % of its parameters, on beer.stackexchange pairs in whole questions. toy: 20 M,
head-dominated. hh: the 120 M model on HH harmless pairs, where prompts do not repeat.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REAL = Path(os.environ.get("PREFKIT_REAL_DATA", ROOT.parent / "shared" / "data"))
PAIRS_PER_STEP = 8
MAX_TOKENS = 1024
SHAPES = {
    "body": {"hidden_size": 640, "intermediate_size": 1728, "num_hidden_layers": 20, "num_attention_heads": 10},
    "toy": {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 4},
}
VOCABULARY = {"body": 16000, "toy": 32000}
# One allocator setting for both: freed pages stay with the process instead of going back and faulting in again.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(1 << 30),
    "THP_MEM_ALLOC_ENABLE": "1",
}


def records(case: str, posts: Path, folder: Path) -> list[dict]:
    """Pairs as prompt, chosen and rejected."""
    from prefkit import convert_dataset, open_pairs

    if case.startswith("hh"):
        with gzip.open(REAL / "pairs/hh-rlhf/harmless-base.test.jsonl.gz", "rt") as f:
            raw = [json.loads(line) for line in f]
        cut = [(r["chosen"].rfind("\n\nAssistant:"), r) for r in raw]
        return [
            {"prompt": r["chosen"][:n].strip(), "chosen": r["chosen"][n + 12 :].strip(), "rejected": rejected}
            for n, r in cut
            if r["rejected"].startswith(r["chosen"][: n + 12]) and (rejected := r["rejected"][n + 12 :].strip())
            and r["chosen"][n + 12 :].strip() and rejected != r["chosen"][n + 12 :].strip()
        ]  # fmt: skip
    convert_dataset(posts, folder / "all", splits="train=1")
    return [
        {k: r[k] for k in ("prompt", "chosen", "rejected")} for r in open_pairs(folder / "all", "train").to_pylist()
    ]


def prepare(folder: Path, case: str, posts: Path, pairs: int) -> None:
    """A tokenizer of the text, the model, and a data set of so many pairs in whole prompts, in file order."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from prefkit import convert_dataset, open_pairs
    from train.core.encode import Limits, Template
    from train.core.rows import build_rows, pair_texts
    from train.tiny_model import train_tokenizer

    shape = "toy" if case.endswith("toy") else "body"
    given = records(case, posts, folder)
    texts = (r[k] if isinstance(r[k], str) else r[k][0]["content"] for r in given for k in r)
    train_tokenizer(texts, VOCABULARY[shape], 4096).save_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 4096}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **SHAPES[shape], **special))
    model.save_pretrained(folder / "model")
    head = model.lm_head.weight.numel() / model.num_parameters()
    print(f"{model.num_parameters() / 1e6:.0f} M parameters, head {head:.0%}")

    def write(name: str, rows: list[dict]) -> Path:
        jsonl = folder / f"{name}.jsonl"
        jsonl.write_text("".join(json.dumps(r) + "\n" for r in rows))
        convert_dataset(jsonl, folder / name, source="pairs", splits="train=1")
        return folder / name

    def rows_of(data: Path):
        template = Template.of("question", tokenizer)
        return build_rows(pair_texts(open_pairs(data, "train")), tokenizer, template, Limits(MAX_TOKENS))

    whole = write("whole", given)
    kept: list[str] = []
    for row in rows_of(whole).rows:
        if len(kept) >= pairs:
            break
        kept += row.pair_ids
    place = {pair: i for i, pair in enumerate(kept)}
    chosen = sorted(
        (r for r in open_pairs(whole, "train").to_pylist() if r["id"] in place), key=lambda r: place[r["id"]]
    )
    built = rows_of(write("data", [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in chosen]))
    counts = built.counts()
    print({k: counts[k] for k in ("pairs", "prompts", "responses", "tokens", "tokens_as_pairs")})
    body = body_weights(model)
    # forward + gradient of the input, and the reference's forward: each distinct token once, the head where it is read
    flops = 2 * (body * counts["tokens"] + model.lm_head.weight.numel() * sum(r.response_tokens for r in built.rows))
    (folder / "flops.json").write_text(json.dumps(flops / counts["pairs"]))


def prepare_apart(folder: Path, case: str, posts: Path, pairs: int) -> None:
    """In a process of its own: what this one holds when it starts another counts as that one's peak."""
    subprocess.run([sys.executable, __file__, "--prepare", folder, case, posts, str(pairs)], check=True)


def body_weights(model: Any) -> int:
    """Weights of the body that every token is multiplied with."""
    return sum(p.numel() for n, p in model.model.named_parameters() if p.ndim == 2 and "embed" not in n)


def ours(folder: Path, out: Path, dtype: str, reference: str, checkpoints: bool) -> dict:
    """One epoch of `prefkit train dpo`, with checkpoints of activations or without."""
    command = [
        "prefkit", "train", "dpo", "--model.path", folder / "model", "--data.path", folder / "data", "--out", out,
        "--model.dtype", dtype, "--data.template", "question", "--data.max-tokens", MAX_TOKENS, "--data.eval-split", "",
        "--lora.r", "8", "--lora.alpha", "16", "--lora.targets", "q_proj", "--lora.targets", "v_proj",
        "--dpo.pairs-per-step", PAIRS_PER_STEP, "--dpo.reference", reference,
        "--trainer.learning-rate", "1e-4", "--trainer.save-strategy", "no",
        "--trainer.gradient-checkpointing", str(checkpoints).lower(),
    ]  # fmt: skip
    usage = run_process([str(Path(sys.executable).parent / command[0]), *map(str, command[1:])], folder)
    summary = json.loads((out / "summary.json").read_text())
    return {"pairs_per_s": summary["data"]["train"]["pairs"] / summary["wall_seconds"], "memory_mb": usage}


def peer(folder: Path, out: Path, dtype: str, batch: int, reference: str) -> dict:
    """One epoch of TRL, in a process of its own."""
    usage = run_process(
        [sys.executable, __file__, "--peer", str(folder), str(out), dtype, str(batch), reference], folder
    )
    return json.loads((out / "peer.json").read_text()) | {"memory_mb": usage}


def run_process(command: list[str], folder: Path) -> float:
    """Run under the common allocator; return peak memory in MB."""
    with tempfile.TemporaryFile() as log:
        environment = {**os.environ, **ALLOCATOR, "PREFKIT_CACHE": str(folder / "cache")}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            log.seek(0)
            sys.exit(log.read().decode()[-3000:])
    return usage.ru_maxrss / 1024


def trl_arguments(out: Path, dtype: str, batch: int, per_step: int) -> dict:
    """What TRL's trainers are told, SFT's too."""
    import torch

    return {
        "output_dir": str(out), "per_device_train_batch_size": batch, "gradient_accumulation_steps": per_step // batch,
        "num_train_epochs": 1, "learning_rate": 1e-4, "logging_steps": 10, "report_to": "none",
        "use_cpu": not torch.cuda.is_available(), "bf16": dtype == "bfloat16", "max_length": 2 * MAX_TOKENS,
        "save_strategy": "no", "gradient_checkpointing": False, "disable_tqdm": True,
    }  # fmt: skip


def trl_lora() -> Any:
    """The LoRA of both sides."""
    from peft import LoraConfig

    return LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def peer_main(folder: Path, out: Path, dtype: str, batch: int, reference: str) -> None:
    """TRL on the same text: the boundary is where ours is, after "Answer:"."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from prefkit import open_pairs

    class Clock(TrainerCallback):
        """From the first step to the last: a reference computed beforehand is not counted."""

        def on_train_begin(self, *args, **kwargs):
            self.start = time.monotonic()

        def on_train_end(self, *args, **kwargs):
            self.seconds = time.monotonic() - self.start

    rows = [
        {
            "prompt": f"Question: {r['prompt'][0]['content']}\n\nAnswer:",
            "chosen": " " + r["chosen"][0]["content"],
            "rejected": " " + r["rejected"][0]["content"],
        }
        for r in open_pairs(folder / "data", "train").to_pylist()
    ]
    args = DPOConfig(**trl_arguments(out, dtype, batch, PAIRS_PER_STEP), precompute_ref_log_probs=reference == "cached")
    clock = Clock()
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder / "model", dtype=getattr(torch, dtype)),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        peft_config=trl_lora(),
        callbacks=[clock],
    )
    trainer.train()
    out.mkdir(parents=True, exist_ok=True)
    (out / "peer.json").write_text(json.dumps({"pairs_per_s": len(rows) / clock.seconds}))


def matmul_rate(dtype: str) -> float:
    """GFLOP/s of a large matrix product, for scale."""
    import torch

    a = torch.randn(2048, 2048, dtype=getattr(torch, dtype), device="cuda" if torch.cuda.is_available() else "cpu")
    start, n = time.monotonic(), 0
    while time.monotonic() - start < 2:
        (a @ a).sum().item()
        n += 1
    return 2 * 2048**3 * n / (time.monotonic() - start) / 1e9


def main() -> None:
    """Prepare, find the peer's best batch size, run in turn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=["body", "toy", "hh"], default="body")
    parser.add_argument("--posts", type=Path, default=REAL / "stack-exchange/beer-2020-06/Posts.xml")
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batches", default="1,2,4,8")
    parser.add_argument("--reference", choices=["online", "cached"], default="online", help="ours, warm where cached")
    parser.add_argument("--against", choices=["online", "cached"], help="the peer's; default as ours")
    parser.add_argument("--checkpoints", action="store_true", help="of activations, on our side")
    args = parser.parse_args()
    against = args.against or args.reference
    if not args.posts.is_file():
        sys.exit(f"no dump at {args.posts}: give --posts, or set PREFKIT_REAL_DATA")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_apart(folder, args.case, args.posts, args.pairs)
        if args.reference == "cached":
            ours(folder, folder / "warm", args.dtype, "cached", args.checkpoints)
        tried = {b: peer(folder, folder / f"try{b}", args.dtype, b, against) for b in map(int, args.batches.split(","))}
        best = max(tried, key=lambda b: tried[b]["pairs_per_s"])
        print(
            "TRL "
            + ", ".join(f"batch {b}: {t['pairs_per_s']:.3f} pairs/s {t['memory_mb']:.0f} MB" for b, t in tried.items())
        )
        runs, rates = [], [matmul_rate(args.dtype)]
        for n in range(args.rounds):
            a = ours(folder, folder / f"o{n}", args.dtype, args.reference, args.checkpoints)
            b = peer(folder, folder / f"p{n}", args.dtype, best, against)
            rates.append(matmul_rate(args.dtype))
            runs.append((a, b))
            print(
                f"ours {a['pairs_per_s']:.3f} pairs/s {a['memory_mb']:.0f} MB · TRL {b['pairs_per_s']:.3f} {b['memory_mb']:.0f} MB",
                flush=True,
            )
        flops = json.loads((folder / "flops.json").read_text()) * (3 if args.reference == "online" else 2)
    speed, memory = ([statistics.median(r[i][k] for r in runs) for i in (0, 1)] for k in ("pairs_per_s", "memory_mb"))
    ratios = sorted(a["pairs_per_s"] / b["pairs_per_s"] for a, b in runs)
    rate = statistics.median(rates)
    print(f"ratio of each round {ratios[0]:.2f} to {ratios[-1]:.2f}")
    print(
        f"matrix product {rate:.0f} GFLOP/s (between rounds {', '.join(f'{r:.0f}' for r in rates)}); of it ours uses {speed[0] * flops / 1e9 / rate:.0%}"
    )
    label = f"train_vs_trl {args.case} {args.dtype}, reference {args.reference}"
    label += f" against {against}" * (against != args.reference) + ", checkpoints" * args.checkpoints
    result = {
        "benchmark": label,
        "ours": round(speed[0], 3),
        "peer": round(speed[1], 3),
        "ratio": round(speed[0] / speed[1], 2),
    }
    print(json.dumps(result | {"memory_ratio": round(memory[0] / memory[1], 3), "unit": "pairs/s"}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peer"]:
        peer_main(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]), sys.argv[6])
    elif sys.argv[1:2] == ["--prepare"]:
        prepare(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
