"""Scored pairs per second and peak memory: `evalkit score` against a loop in the manner of RewardBench's run_dpo.py.

The peer: pairs in file order, chosen and rejected padded into one batch, full logits of both models, log-softmax over
all positions, prompt tokens masked out (its truncation to 128 tokens is left out, in fp32, so that both score the same
pairs). It counts at its fastest batch size, found on a quarter of the pairs. Policy: a LoRA over the base; reference:
the base. Every run is a process of its own; loading the models is timed apart and printed.

    python benchmarks/score_vs_peers.py [--case hh-toy|body] [--pairs 256] [--rounds 3] [--batches 1,2,4,8,16]

hh-toy: HH harmless under a toy of 20 M that is nearly all head. body: a 120 M Llama on beer pairs in whole questions.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from train_vs_trl import MAX_TOKENS, REAL, prepare_apart, trl_lora

TEMPLATE = "question"


def child(kind: str, folder: Path, *more: object) -> dict:
    """One run in a process of its own: pairs, seconds to load and to score, memory in MB, margins by pair id."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", kind, str(folder), *map(str, more)], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def ours(folder: Path, cache: str) -> dict:
    """`evalkit.score`, loading apart."""
    import os

    os.environ["PREFKIT_CACHE"] = str(folder / cache)
    from train.models.libraries import lean_peft
    from train.models.memory import keep_pages

    keep_pages()  # and this, as `evalkit score` begins
    lean_peft()
    import evalkit.models as models
    from evalkit.options import ScoreOptions
    from evalkit.score import score

    loading, load = 0.0, models.load_policy

    def timed(*args):
        nonlocal loading
        start = time.monotonic()
        try:
            return load(*args)
        finally:
            loading += time.monotonic() - start

    models.load_policy = timed
    start = time.monotonic()
    options = ScoreOptions(split="train", template=TEMPLATE, max_tokens=MAX_TOKENS)
    table = score(str(folder / "policy"), folder / "data", options).table.to_pydict()
    seconds = time.monotonic() - start - loading
    sides = zip(*(table[k] for k in ("policy_chosen", "ref_chosen", "policy_rejected", "ref_rejected")), strict=True)
    margins = [(pc - rc) - (pr - rr) for pc, rc, pr, rr in sides]
    return {"load": loading, "seconds": seconds, "margins": dict(zip(table["id"], margins, strict=True))}


def peer(folder: Path, batch: str, limit: str) -> dict:
    """The loop of RewardBench, over both models at once."""
    from train.models.memory import keep_pages

    keep_pages()
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prefkit import open_pairs

    start = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    policy = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32), folder / "policy"
    )
    both = (policy.eval(), base.eval())
    loading = time.monotonic() - start
    start = time.monotonic()
    pairs = open_pairs(folder / "data", "train").slice(0, int(limit)).to_pylist()
    margins = {}
    for first in range(0, len(pairs), int(batch)):
        part = pairs[first : first + int(batch)]
        sequences = []
        for side in ("chosen", "rejected"):
            for pair in part:
                prompt = tokenizer(f"Question: {pair['prompt'][0]['content']}\n\nAnswer:")["input_ids"]
                answer = tokenizer(" " + pair[side][0]["content"], add_special_tokens=False)["input_ids"]
                sequences.append((prompt, [*answer, tokenizer.eos_token_id]))
        longest = max(len(p) + len(r) for p, r in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        attention, response = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, (p, r) in enumerate(sequences):
            ids[i, : len(p) + len(r)] = torch.tensor([*p, *r])
            attention[i, : len(p) + len(r)] = 1
            response[i, len(p) : len(p) + len(r)] = 1
        sums = []
        for model in both:
            with torch.no_grad():
                logits = model(input_ids=ids, attention_mask=attention).logits
            logps = torch.gather(logits[:, :-1].log_softmax(-1), 2, ids[:, 1:, None]).squeeze(2)
            sums.append((logps * response[:, 1:]).sum(-1))
        ratio = (sums[0] - sums[1]).view(2, -1)
        for pair, margin in zip(part, (ratio[0] - ratio[1]).tolist(), strict=True):
            margins[pair["id"]] = margin
    return {"load": loading, "seconds": time.monotonic() - start, "margins": margins}


def write_policy(folder: Path) -> None:
    """A LoRA over the base that changes what it says."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "model"), trl_lora())
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.02)
    adapted.save_pretrained(folder / "policy")


def main() -> None:
    """Prepare, find the peer's best batch size, run in turn, then once more with all in the cache."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=["hh-toy", "body"], default="hh-toy")
    parser.add_argument("--posts", type=Path, default=REAL / "stack-exchange/beer-2020-06/Posts.xml")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", default="1,2,4,8,16")
    args = parser.parse_args()
    if not args.posts.is_file():
        sys.exit(f"no dump at {args.posts}: give --posts, or set PREFKIT_REAL_DATA")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare_apart(folder, args.case, args.posts, args.pairs)
        write_policy(folder)
        tried = {b: child("peer", folder, b, args.pairs // 4) for b in args.batches.split(",")}
        speeds = {b: len(t["margins"]) / t["seconds"] for b, t in tried.items()}
        best = max(speeds, key=lambda b: speeds[b])
        print("the peer: " + ", ".join(f"batch {b} {speed:.2f} pairs/s" for b, speed in speeds.items()), flush=True)
        rounds = []
        for n in range(args.rounds):
            a, b = child("ours", folder, f"cache{n}"), child("peer", folder, best, 10**9)
            off = max(abs(a["margins"][i] - b["margins"][i]) for i in a["margins"])
            print(
                f"ours {len(a['margins']) / a['seconds']:.2f} pairs/s {a['memory']:.0f} MB (loaded in {a['load']:.1f} s)"
                f" · peer {len(b['margins']) / b['seconds']:.2f} {b['memory']:.0f} MB ({b['load']:.1f} s)"
                f" · {len(a['margins'])} and {len(b['margins'])} pairs, margins apart by {off:.1e} nats at most",
                flush=True,
            )
            rounds.append((a, b))
        again = child("ours", folder, "cache0")
    ours_, peer_ = (statistics.median(len(r[i]["margins"]) / r[i]["seconds"] for r in rounds) for i in (0, 1))
    memory = [statistics.median(r[i]["memory"] for r in rounds) for i in (0, 1)]
    ratios = sorted(len(a["margins"]) / a["seconds"] / len(b["margins"]) * b["seconds"] for a, b in rounds)
    print(f"ratio of each round {ratios[0]:.2f} to {ratios[-1]:.2f}")
    cached = len(again["margins"]) / again["seconds"]
    known = {"cached": round(cached, 1), "cached_ratio": round(cached / peer_, 1)}
    result = {"benchmark": f"score_vs_peers {args.case}", "ours": round(ours_, 2), "peer": round(peer_, 2)}
    result |= {"ratio": round(ours_ / peer_, 2), "memory_ratio": round(memory[0] / memory[1], 3), "unit": "pairs/s"}
    print(json.dumps(result | known))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        kind, folder, *more = sys.argv[2:]
        found = {"ours": ours, "peer": peer}[kind](Path(folder), *more)
        found["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
    else:
        main()
