"""A byte-level tokenizer trained on a data set and a small random Llama: a base model for demos and a first look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from prefkit.errors import UserError
from prefkit.shards import open_pairs

SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
LEAST = 256 + len(SPECIAL)  # tokens of a byte-level vocabulary


def write_tiny_model(
    data: Path, out: Path, vocab_size: int, hidden: int, layers: int, heads: int, max_positions: int, seed: int
) -> None:
    """Write tokenizer and model to `out`; deterministic. UserError as in `check_shape`."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    from train.weights import save_policy

    check_shape(out, vocab_size, hidden, layers, heads, max_positions)
    tokenizer = train_tokenizer(_texts(data), vocab_size, max_positions)
    set_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = LlamaForCausalLM(config)
    save_policy(model, tokenizer, out)
    print(f"{out}: {model.num_parameters():,} random weights, {len(tokenizer)} tokens, {max_positions} positions")


def check_shape(out: Path, vocab_size: int, hidden: int, layers: int, heads: int, max_positions: int) -> None:
    """UserError when the folder is taken or the shape impossible; loads no library."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("the output folder is not empty", out, "choose another --out")
    given = {"hidden": hidden, "layers": layers, "heads": heads, "max_positions": max_positions}
    for name, value in given.items():
        if value < 1:
            raise UserError(f"{name} is {value}", fix="it must be above 0")
    if hidden % heads or (hidden // heads) % 2:
        raise UserError(f"hidden {hidden} does not divide into {heads} heads of even size", fix="e.g. 128 and 4")
    if vocab_size < LEAST:
        raise UserError(f"vocab_size is {vocab_size}", fix=f"a byte-level vocabulary has at least {LEAST} tokens")


def train_tokenizer(texts: Iterator[str], vocab_size: int, max_positions: int):
    """A byte-level BPE tokenizer that begins every text with <s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL.values()), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=max_positions, **SPECIAL)


def _texts(data: Path) -> Iterator[str]:
    table = open_pairs(data, "train").select(["prompt", "chosen", "rejected"])
    for batch in table.to_batches(max_chunksize=1024):
        for pair in batch.to_pylist():
            yield from (m["content"] for side in pair.values() for m in side)
