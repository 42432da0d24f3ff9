"""Answers from a local model: a run folder, an adapter, a model folder or a hub name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice

import torch

from evalkit.generate.base import Answer, Settings
from prefkit.schema import Message
from train.core.encode import encode_prompt, stop_ids
from train.models.policies import describe_policy, load_policy


@torch.no_grad()
def answers(model: str, prompts: Sequence[list[Message]], settings: Settings) -> Iterator[Answer]:
    """Answer prompts in batches of similar length, longest first; prompts are encoded as in training.

    Left padding with an attention mask, so that an answer does not depend on its neighbours (greedy, up to rounding).
    """
    policy = describe_policy(model, template=settings.template, reference=False)
    tokenizer, network = policy.tokenizer, load_policy(policy).model
    for note in policy.template.notes(policy.tokenizer):
        print(f"note: {note}")
    stop = stop_ids(tokenizer, policy.template)
    encoded = [encode_prompt(tokenizer, policy.template, p) for p in prompts]
    room = getattr(network.config, "max_position_embeddings", None) or 1 << 30
    limit = [min(settings.max_new_tokens, room - len(ids)) for ids in encoded]
    order = sorted(range(len(prompts)), key=lambda i: (limit[i], -len(encoded[i]), i))
    torch.manual_seed(settings.seed)
    for new, alike in groupby(order, key=limit.__getitem__):
        for batch in batched(alike, settings.batch_size):
            if new < 1:
                yield from (Answer(i, "", 0, "prompt too long") for i in batch)
                continue
            rows = _draw(network, tokenizer, [encoded[i] for i in batch], new, stop, settings)
            for i, ids in zip(batch, rows, strict=True):
                end = next((k for k, t in enumerate(ids) if t in stop), None)
                text = tokenizer.decode(ids[:end], skip_special_tokens=True).strip()
                yield Answer(i, text, len(ids) if end is None else end + 1, "length" if end is None else "stop")


def batched(items: Iterable[int], size: int) -> Iterator[list[int]]:
    """Lists of at most `size` items (itertools.batched of Python 3.12)."""
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


def _draw(
    network, tokenizer, prompts: list[list[int]], new: int, stop: list[int], settings: Settings
) -> list[list[int]]:
    """At most `new` token ids after each prompt, those after a stop token included."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    width = max(map(len, prompts))
    ids_BL = torch.full((len(prompts), width), pad)
    mask_BL = torch.zeros_like(ids_BL)
    for row, ids in enumerate(prompts):
        ids_BL[row, width - len(ids) :] = torch.tensor(ids)
        mask_BL[row, width - len(ids) :] = 1
    sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p}
    out_BL = network.generate(
        input_ids=ids_BL.to(network.device),
        attention_mask=mask_BL.to(network.device),
        max_new_tokens=new,
        eos_token_id=stop,
        pad_token_id=pad,
        **(sampling if settings.temperature > 0 else {"do_sample": False}),
    )
    return out_BL[:, width:].tolist()
