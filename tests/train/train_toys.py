"""Tiny real things the tests of train are made of: data sets, tokenizers, models; all built here, nothing fetched."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from prefkit.schema import PAIRS, pair_id
from prefkit.shards import Manifest, write_shard
from train.core.attention import ROWS
from train.tiny_model import train_tokenizer

WORDS = [
    "the",
    "hop",
    "malt",
    "beer",
    "yeast",
    "is",
    "are",
    "very",
    "bitter",
    "sweet",
    "good",
    "bad",
    "old",
    "new",
    "cold",
    "warm",
    "dark",
    "pale",
    "brew",
    "drink",
]


def text(rng: random.Random, low: int = 2, high: int = 12) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(low, high)))


def user(content: str) -> list[dict]:
    return [{"role": "user", "content": content}]


def reply(content: str) -> list[dict]:
    return [{"role": "assistant", "content": content}]


def make_pairs(prompts: int, pairs_each: int, seed: int = 0) -> list[dict]:
    """Pairs whose chosen answer begins with "good": learnable in a few steps."""
    rng = random.Random(seed)
    out = []
    for _ in range(prompts):
        prompt = user(text(rng, 3, 15) + "?")
        chosen = [reply("good " + text(rng)) for _ in range(2)]
        rejected = [reply("bad " + text(rng)) for _ in range(pairs_each)]
        for i in range(pairs_each):
            pair = {"prompt": prompt, "chosen": chosen[i % 2], "rejected": rejected[i]}
            out.append(pair | {"id": pair_id(*pair.values())})
    return out


def write_data(path: Path, splits: dict[str, list[dict]]) -> Path:
    """A data set folder of these pairs."""
    files = {}
    for split, pairs in splits.items():
        rows = [dict.fromkeys(PAIRS.names) | {"group_id": p["id"], "source": "toy"} | p for p in pairs]
        name = f"{split}/data-00000-of-00001.arrow"
        files[name] = write_shard(path / name, PAIRS, [pa.Table.from_pylist(rows, PAIRS)])
    counts = {s: {"rows": len(p), "groups": len(p)} for s, p in splits.items()}
    Manifest({"splits": dict.fromkeys(splits, 1)}, [], counts, {}, files).write(path)
    return path


def make_tokenizer(vocab_size: int = 300):
    rng = random.Random(1)
    return train_tokenizer(iter([text(rng, 5, 30) for _ in range(200)]), vocab_size, 512)


_SHAPE = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_WIDE = {**_SHAPE, **_SPECIAL, "intermediate_size": 64, "max_position_embeddings": 512}
_GROUPED = _WIDE | {"num_key_value_heads": 2, "head_dim": 8}
FAMILIES: dict[str, dict] = {  # model type -> configuration of a tiny one
    "llama": _WIDE,
    "mistral": _GROUPED | {"sliding_window": 7},
    "qwen2": _WIDE | {"num_key_value_heads": 2},
    "qwen3": _GROUPED,
    "gpt2": {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, **_SPECIAL},
    "gpt_neox": _WIDE,
    "olmo": _WIDE,
    "olmo2": _WIDE,
    "phi": _WIDE,
    "gemma2": _GROUPED | {"sliding_window": 7, "query_pre_attn_scalar": 8},
    "gemma3_text": _GROUPED | {"sliding_window": 7, "layer_types": ["sliding_attention", "full_attention"]},
    "cohere": _WIDE | {"logit_scale": 0.25},
    "granite": _WIDE | {"logits_scaling": 3.0},
}


def make_model(family: str = "llama", seed: int = 0, **overrides):
    """A random model of a family, its weights spread out so that log-probabilities are far from uniform."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **FAMILIES[family] | overrides)
    attn = overrides.get("attn_implementation", ROWS)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attn)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.06)
    return model.eval()


def save_model(path: Path, family: str = "llama", seed: int = 0, **overrides) -> Path:
    make_model(family, seed, **overrides).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return path


def metrics(run: Path, key: str = "loss") -> list[float]:
    """Values of a metric in the order logged."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [r[key] for r in records if key in r]
