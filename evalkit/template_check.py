"""Where a model's template and the data disagree: scores would be computed, and mean little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pyarrow as pa

from train.models.policies import Policy

MARKS = (
    "<|im_start|>",
    "<|start_header_id|>",
    "[INST]",
    "<start_of_turn>",
    "\n\nHuman:",
    "\n\nAssistant:",
    "### Instruction:",
)
LOOKED_AT = 1000  # first pairs


def disagreements(policy: Policy, pairs: pa.Table) -> Iterator[str]:
    """What to be warned of: another template than trained with, or prompts that hold the marks of one already."""
    trained, own = policy.config.get("data", {}).get("template"), policy.tokenizer.chat_template
    if trained is not None and trained != policy.template.source:
        yield "the template is not the one that the policy was trained with"
    elif trained is None and own and own != policy.template.source:
        yield "the tokenizer has a chat template, and another one is used"
    elif trained is None and not own:
        yield f"the model has no chat template: {policy.template.source!r} is used"
    yield from policy.template.notes(policy.tokenizer)
    found: Counter[str] = Counter()
    for prompt in pairs["prompt"].slice(0, LOOKED_AT).to_pylist():
        text = "\n\n" + "\n\n".join(m["content"] for m in prompt)
        found.update(mark for mark in MARKS if mark in text)
    if found:
        marks = ", ".join(f"{mark.strip()!r} in {n}" for mark, n in found.most_common(3))
        yield f"prompts hold the marks of a template already ({marks} of {min(len(pairs), LOOKED_AT)}), and get another"
