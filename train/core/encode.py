"""The only place where text becomes token ids: prompt and responses are tokenised together, once.

The boundary between prompt and response is the longest token prefix common to the prompt's own ids and every full
sequence of the group, so that all responses of a prompt share identical prompt ids and `prompt_ids + response_ids`
is what the tokenizer makes of the whole text. Exactly one BOS, exactly one trained end token unless truncated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import TemplateError, TemplateSyntaxError

from prefkit.errors import UserError, unknown_name
from prefkit.schema import Message

Ids = np.ndarray  # int32, one dimension
TooLong = Literal["drop", "truncate_prompt", "truncate_response"]

_DIALOGUE = (
    "{% for m in messages %}{{ '\n\n' if not loop.first }}{{ m['role'] | capitalize }}: {{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"  # quoted: a line break after a block is eaten
)
TEMPLATES = {
    "question": "Question: {prompt}\n\nAnswer: {response}",
    "plain": "{prompt}\n\n{response}",
    "dialogue": _DIALOGUE,  # many turns for a base model without special tokens
}

TODAY = date(2024, 7, 26)  # for templates, always: the day that Llama's own name where there is no clock
_CODES = [pad + c for pad in ("", "-") for c in "aAbBdHIjmMpSUwWyY"]
_CLOCK = (  # transformers' strftime_now would tell the time; put before a template, this stands in its place
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace('%{c}', '{TODAY.strftime('%' + c)}')" for c in _CODES)
    + " }}{% endmacro %}\n"
)


@dataclass(frozen=True)
class Limits:
    """Lengths in tokens, and what becomes of a response or prompt that exceeds them."""

    max_tokens: int = 1024
    max_prompt_tokens: int | None = None
    too_long: TooLong = "drop"


@dataclass(frozen=True)
class Dropped:
    """Why a prompt or a response cannot be used; the reason is a key of the run's counts."""

    reason: str


@dataclass(frozen=True, eq=False)
class Encoded:
    """One prompt and its responses, in the order given.

    `prompt_ids` (int32) is shared by all; `response_ids[i]` is an int32 array or `Dropped`; `prompt_truncated` and
    `truncated[i]` tell whether tokens were cut from the left of the prompt or the right of response i.
    """

    prompt_ids: Ids
    response_ids: tuple[Ids | Dropped, ...]
    truncated: tuple[bool, ...]
    prompt_truncated: bool = False


@dataclass(frozen=True)
class Template:
    """How messages become text: a Jinja chat template, or a format string with `{prompt}` and `{response}`."""

    source: str

    @classmethod
    def of(cls, spec: str | None, tokenizer: Any) -> Template:
        """The template that `spec` names; without one the tokenizer's own, else "question"."""
        if spec is not None:
            return cls.named(spec)
        own = tokenizer.chat_template or TEMPLATES["question"]
        if isinstance(own, dict) and "default" not in own:
            what, fix = "the tokenizer has several chat templates and no default one", "write one to a .jinja file"
            raise UserError(f"{what}: {', '.join(own)}", tokenizer.name_or_path, fix)
        return cls(own["default"] if isinstance(own, dict) else own)

    @classmethod
    def named(cls, spec: str) -> Template:
        """The template of that name, written out, or stored in a file."""
        text = TEMPLATES.get(spec, spec)
        if spec.endswith((".jinja", ".jinja2", ".txt")):
            path = Path(spec)
            if not path.is_file():
                raise UserError("template file not found", spec, "give a file, a format string or a template's name")
            text = path.read_text("utf-8")
        elif "{" not in text:
            raise unknown_name("template", spec, TEMPLATES)
        template = cls(text)
        if not template.is_chat and not (text.count("{prompt}") == text.count("{response}") == 1):
            fix = f"e.g. {TEMPLATES['question']!r}"
            raise UserError("a format string needs {prompt} and {response} once each", spec, fix)
        return template

    @property
    def is_chat(self) -> bool:
        """Whether this is a Jinja chat template."""
        return "{%" in self.source or "{{" in self.source

    def is_literal(self, special_tokens: Sequence[str]) -> bool:
        """Whether the template writes no control token, so that all of its output is ordinary text."""
        return not self.is_chat or not ("_token" in self.source or any(s in self.source for s in special_tokens))

    @property
    def asks_for_the_date(self) -> bool:
        """Whether a chat template asks what day it is."""
        return self.is_chat and "strftime_now" in self.source

    def notes(self, tokenizer: Any) -> list[str]:
        """What a user must know of how the template is filled in."""
        found = []
        if self.asks_for_the_date:
            found.append(f"the template asks for today's date and is always told {TODAY}: the same tokens every day")
        if not self.is_chat and (marks := [t for t in _traits(tokenizer).special_tokens if t in self.source]):
            found.append(
                f"a format string is ordinary text, {', '.join(marks)} in it too: for control tokens use Jinja"
            )
        asked, answered = ([Message(role=role, content="a")] for role in ("user", "assistant"))
        try:
            head, whole = self.render(tokenizer, asked, [answered])
        except TemplateError as e:
            raise UserError(f"the chat template refuses a question and an answer: {e.message}") from None
        if not whole.startswith(head):
            n = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), len(whole))
            what = f"{head[n:]!r}, with which the template ends a prompt, is not what it writes before an answer"
            found.append(f"{what}: there responses begin with {whole[n : n + 20]!r}")
        return found

    def render(self, tokenizer: Any, prompt: Sequence[Message], responses: Sequence[Sequence[Message]]) -> list[str]:
        """Text of the prompt ready for an answer, then of prompt + response for each response.

        `TemplateError` where a chat template refuses the conversation; `UserError` where it is none, or a format string
        is given several turns.
        """
        if self.is_chat:
            chat: dict[str, Any] = {"chat_template": _CLOCK * self.asks_for_the_date + self.source, "tokenize": False}
            try:
                head = tokenizer.apply_chat_template(list(prompt), **chat, add_generation_prompt=True)
                return [head, *(tokenizer.apply_chat_template([*prompt, *r], **chat) for r in responses)]
            except TemplateSyntaxError as e:
                fix = "mend it, or give another one (--data.template in train, --template in evalkit)"
                raise UserError(f"the chat template is no Jinja: {e.message}", f"line {e.lineno}", fix) from None
            except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as e:
                raise TemplateError(f"{type(e).__name__}: {e}") from e
        longest = max(responses, key=len, default=())
        roles = [m["role"] for m in prompt]
        if roles not in (["user"], ["system", "user"]) or len(longest) > 1:
            found = "/".join([*roles, *(m["role"] for m in longest)])
            what = f"the template {self.source[:20]!r} takes one question and one answer (after a system turn)"
            fix = "use dialogue, or a .jinja file (--data.template in train, --template in evalkit)"
            raise UserError(f"{what}, this is {found}", fix=fix)
        before, rest = self.source.split("{prompt}")
        between, after = rest.split("{response}")
        head = before + "\n\n".join(m["content"] for m in prompt) + between
        # A trailing space merges into the first word of nearly every answer: it belongs to the response.
        return [head.rstrip(" "), *(head + r[0]["content"] + after for r in responses)]


def encode_prompt_group(
    tokenizer: Any, template: Template, prompt: list[Message], responses: list[list[Message]], limits: Limits
) -> Encoded | Dropped:
    """Token ids of one prompt with its responses; see the module's docstring for the guarantees.

    Over-long responses and prompts become `Dropped` unless `limits.too_long` says otherwise, and so do texts that hold
    the control tokens of a template. Raises UserError when the tokenizer has no EOS, or when a format string is given a
    conversation of several turns.
    """
    traits = _traits(tokenizer)
    literal = template.is_literal(traits.special_tokens)
    marked = Dropped("special token in text")
    usable = [literal or not _holds(messages, traits.special_tokens) for messages in (prompt, *responses)]
    if not usable[0]:
        return marked
    try:
        texts = template.render(tokenizer, prompt, list(compress(responses, usable[1:])))
    except TemplateError as e:
        return Dropped(f"the template refuses it: {e.message}")
    prompt_ids, *full = _tokenize(tokenizer, texts, literal, traits)
    cut = common_start([prompt_ids, *full])
    if cut == 0:
        return Dropped("prompt and responses share no token")
    ends = frozenset() if literal else traits.end_ids
    tails = [_one_end(ids[cut:], tokenizer, traits.eos, ends) for ids in full]
    keep = int(prompt_ids[0] == tokenizer.bos_token_id)  # the tokenizer's, or one that the template wrote
    encoded = _apply_limits(prompt_ids[:cut], tails, limits, keep)
    if isinstance(encoded, Dropped) or all(usable):
        return encoded
    found = zip(encoded.response_ids, encoded.truncated, strict=True)
    ids, truncated = zip(*(next(found) if ok else (marked, False) for ok in usable[1:]), strict=True)
    return replace(encoded, response_ids=ids, truncated=truncated)


def encode_prompt(tokenizer: Any, template: Template, prompt: list[Message]) -> list[int]:
    """Token ids of a prompt that awaits its answer, for generation."""
    traits = _traits(tokenizer)
    literal = template.is_literal(traits.special_tokens)
    try:
        texts = template.render(tokenizer, prompt, [])
    except TemplateError as e:
        raise UserError(f"the chat template refuses a prompt: {e.message}", str(prompt)[:60], "leave it out") from None
    return _tokenize(tokenizer, texts, literal, traits)[0]


def stop_ids(tokenizer: Any, template: Template) -> list[int]:
    """Ids that end a response: EOS, and the template's end-of-turn token where that is another one."""
    probe = encode_prompt_group(
        tokenizer, template, [{"role": "user", "content": "a"}], [[{"role": "assistant", "content": "b"}]], Limits()
    )
    last = [int(r[-1]) for r in probe.response_ids if not isinstance(r, Dropped)] if isinstance(probe, Encoded) else []
    return sorted({tokenizer.eos_token_id, *last})


@dataclass(frozen=True)
class _Traits:
    bos: int | None  # None: sequences of this tokenizer do not begin with one
    eos: int
    end_ids: frozenset[int]  # special tokens a template may end a turn with
    special_tokens: tuple[str, ...]


@lru_cache(maxsize=16)
def _traits(tokenizer: Any) -> _Traits:
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the tokenizer has no EOS token, so no response could learn to end",
            tokenizer.name_or_path,
            "set eos_token in its tokenizer_config.json",
        )
    bos = tokenizer.bos_token_id
    # A tokenizer uses BOS if it adds one itself. One with a chat template leaves that to it, and may declare what it
    # never adds (`<|im_start|>`); of one without, a BOS counts that is not just another name of EOS or padding.
    adds = bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
    apart = bos is not None and bos not in (tokenizer.eos_token_id, tokenizer.pad_token_id)
    uses = adds or (apart and not tokenizer.chat_template)
    special = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    special |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    ends = frozenset(special) - {tokenizer.unk_token_id}
    return _Traits(bos if uses else None, tokenizer.eos_token_id, ends, tuple(special.values()))


def _holds(messages: Sequence[Message], words: Sequence[str]) -> bool:
    return any(word in m["content"] for m in messages for word in words)


def _tokenize(tokenizer: Any, texts: list[str], literal: bool, traits: _Traits) -> list[list[int]]:
    # In literal text nothing may turn into a control token: "<s>" is strikethrough in half of the web's HTML.
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=literal)["input_ids"]
    return [_one_bos(ids, traits) for ids in encoded]


def _one_bos(ids: list[int], traits: _Traits) -> list[int]:
    if traits.bos is None:
        return ids
    start = next((i for i, t in enumerate(ids) if t != traits.bos), len(ids))
    return [traits.bos, *ids[start:]]


def _one_end(ids: list[int], tokenizer: Any, eos: int, ends: frozenset[int]) -> list[int]:
    """The response up to its end-of-turn token, or with EOS added; what a template writes after the turn is cut: line
    breaks, and another end (`<|end|>` and then EOS)."""
    at, end = len(ids), None
    while ends and at and (ids[at - 1] in ends or not tokenizer.decode(ids[at - 1 : at]).strip()):
        at -= 1
        end = at + 1 if ids[at] in ends else end
    return [*ids, eos] if end is None else ids[:end]


def common_start(sequences: Sequence[Sequence[int] | Ids]) -> int:
    """How many first tokens all sequences share; 0 for none."""
    n = min(map(len, sequences), default=0)
    differ = np.any([np.not_equal(s[:n], sequences[0][:n]) for s in sequences], axis=0)
    return int(differ.argmax()) if differ.any() else n


def _apply_limits(prompt: list[int], tails: list[list[int]], limits: Limits, keep: int) -> Encoded | Dropped:
    """Cut or drop; `keep` tokens at the start of the prompt (its BOS) survive a cut from the left."""
    cut_prompt, cut_response = (limits.too_long == f"truncate_{side}" for side in ("prompt", "response"))
    # for a response: what the whole prompt leaves, or a prompt cut down to its BOS and one more token
    space = limits.max_tokens - (keep + 1 if cut_prompt else len(prompt))
    truncated = tuple(cut_response and len(tail) > space > 0 for tail in tails)
    kept = [tail[:space] if cut else tail for tail, cut in zip(tails, truncated, strict=True)]
    fitting = [len(tail) for tail in kept if len(tail) <= space]
    responses = tuple(
        np.array(tail, np.int32) if len(tail) <= space else Dropped("response over max_tokens") for tail in kept
    )
    most = min(limits.max_prompt_tokens or limits.max_tokens, limits.max_tokens - 1)
    room = min(most, limits.max_tokens - max(fitting, default=0)) if cut_prompt else most
    over = len(prompt) > room
    if over and not cut_prompt:
        return Dropped("prompt over max_prompt_tokens" if limits.max_prompt_tokens else "prompt over max_tokens")
    if over:
        prompt = prompt[:keep] + prompt[len(prompt) - (room - keep) :]
    return Encoded(np.array(prompt, np.int32), responses, truncated, prompt_truncated=over)
