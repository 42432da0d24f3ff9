"""Cells of a record as messages: text, message lists, transcripts; which turns are the prompt. Refuses what is none."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from prefkit.schema import Message
from prefkit.sources import Refused

ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
TOOL_FIELDS = ("tool_calls", "tool_call_id", "function_call")
TURN = re.compile(r"\n\n(Human|Assistant): ?")  # before each turn of a transcript


def messages_of(value: Any, role: str) -> list[Message] | None:
    """A cell as messages: a string is one turn, a message list keeps its roles (ShareGPT's from and value too)."""
    if isinstance(value, str) and value.lstrip().startswith('[{"'):  # a message list that went through CSV
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if isinstance(value, str):
        return [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        return None
    return [_message(turn) for turn in value]


def system_turns(value: Any) -> list[Message]:
    """The system turns that a cell holds, as text or as messages; none where it is blank."""
    if value is None or value == [] or value != value or (isinstance(value, str) and not value.strip()):
        return []
    turns = messages_of(value, "system")
    if turns is None or any(turn["role"] != "system" for turn in turns):
        raise Refused("bad_message")
    return turns


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise Refused("bad_message")
    if any(turn.get(k) for k in TOOL_FIELDS):
        raise Refused("tools_unsupported")
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if isinstance(content, list):
        content = _text_of(content)
    if not isinstance(role, str) or not isinstance(content, str):
        raise Refused("bad_message")
    return {"role": ROLES.get(role, role), "content": content}


def _text_of(parts: list) -> str | None:
    """Typed content parts as one text; None if one is no text (an image)."""
    texts = [p.get("text", p.get("value")) for p in parts if isinstance(p, dict) and p.get("type", "text") == "text"]
    sound = [t for t in texts if isinstance(t, str)]
    return "".join(sound) if len(sound) == len(parts) else None


def transcript_turns(response: list[Message]) -> list[Message]:
    """A transcript ("\\n\\nHuman: …\\n\\nAssistant: …") as its turns; any other response as it is."""
    start, *parts = TURN.split(response[0]["content"])
    if len(response) > 1 or start or not parts:
        return response
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": text} for who, text in zip(parts[::2], parts[1::2], strict=True)]


def shared_prompt(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """The prompt is what both conversations share, up to the last user turn before they part."""
    if len(chosen) < 2 or len(rejected) < 2:
        raise Refused("missing_prompt")
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    while shared and chosen[shared - 1]["role"] not in ("user", "tool"):
        shared -= 1
    if not shared:
        raise Refused("prompt_mismatch")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def without_prompt(prompt: list[Message], response: list[Message]) -> list[Message]:
    """A response that repeats the prompt loses it; one that begins with another prompt is refused."""
    if response[0]["role"] == "assistant":
        return response
    if response[: len(prompt)] != prompt or len(response) == len(prompt):
        raise Refused("prompt_mismatch")
    return response[len(prompt) :]
