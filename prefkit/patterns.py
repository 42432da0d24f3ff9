"""Checks that look for a pattern in texts: one pass of RE2 over all of them finds the few texts to look at closely."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prefkit.shingles import texts_of
from prefkit.tables import SIDES, Candidates

RESPONSES = SIDES[1:]


class Pattern(NamedTuple):
    """A rule for texts: an RE2 pattern, and on which sides it counts; `sure(text)` decides where it alone cannot."""

    regex: str
    sides: tuple[str, ...] = SIDES
    sure: Callable[[str], bool] | None = None

    @property
    def is_quick(self) -> bool:
        """Whether it can only begin where the text does, or with one character that RE2 leaps to."""
        return self.regex.removeprefix("(?i)").startswith(("^", "!", "\ufffd"))


def _outside_code(pattern: str) -> Callable[[str], bool]:
    found, code = re.compile(pattern), re.compile(r"^(```+|~~~+)[^\n]*\n.*?^\1|`[^`\n]+`", re.S | re.M)
    return lambda text: found.search(code.sub("", text)) is not None


def _only(link: str) -> Callable[[str], bool]:
    found = re.compile(link)

    def little_else(text: str) -> bool:
        lines = text.split("\n")  # no link goes on in the next one: most texts soon have a line without any
        if any(len(line.strip()) >= 20 and "](" not in line and "http" not in line for line in lines):
            return False
        return len(found.sub("", text).strip()) < 20

    return little_else


def _cut_off(text: str) -> bool:
    """Ends in the cursor of a page, or in a code fence that no line of as many marks closes."""
    opened = 0
    for marks, rest in FENCE.findall(text):
        if not opened:
            opened = len(marks) if "`" not in rest else 0
        elif len(marks) >= opened and not rest.strip():
            opened = 0
    return opened > 0 or CURSOR.search(text) is not None or _outside_code(CURSOR_TAG)(text)


FENCE = re.compile(r"^\s*(?:>\s*)*(?:[-*+]\s+|\d+\.\s+)?(`{3,})([^\n]*)", re.M)
KEYS = (
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}\b|\bsk-[A-Za-z0-9]{32,}\b|\bxox[abprs]-\d{6,}-"
    r"|\bsk-(?:proj|svcacct|admin|ant-api\d\d)-[A-Za-z0-9_-]{32,}|PRIVATE KEY-----\s+[A-Za-z0-9+/=]{40,}"
)
CURSOR = re.compile(r"▌\s*$")
CURSOR_TAG = r"<span class=\"cursor\">"
HTML_TAG = r"</?(?:p|div|pre|code|br|span|ul|ol|li|td|tr|table|blockquote|strong|em)(?:\s[^<>]*)?/?>"
HTML = HTML_TAG + r"|&(?:lt|gt|amp|quot|nbsp);"
LINK = r"\[[^\]\n]*\]\([^)\n]*\)|https?://\S+"
ROLE_MARKER = (
    r"\n\n(?:Human|Assistant):|<\|(?:im_start|im_end|eot_id|end|user|assistant|system)\|>"
    r"|\[/?INST\]|<extra_id_1>|</?think>"
)
REFUSAL = (
    r"(?i)^\W*(?:I'm|I am) (?:sorry|unable|not able)[^.]{0,60}(?:cannot|can't|unable|assist|help with)"
    r"|^\W*I (?:cannot|can't) (?:assist|help|provide|answer)"
)
IDENTITY = r"(?i)\b(?:as|I am) an AI(?: language)? model\b|trained by (?:OpenAI|Anthropic|Google)"
API_ERROR = r"API REQUEST ERROR|NETWORK ERROR DUE TO HIGH TRAFFIC|CONTENT VIOLATES OUR GUIDELINES"
PATTERNS: dict[str, Pattern] = {
    "api_error_text": Pattern(API_ERROR, RESPONSES),
    "deleted_placeholder": Pattern(r"^\s*\[(?:deleted|removed)\]\s*$"),
    "role_marker_in_text": Pattern(ROLE_MARKER),
    "model_identity": Pattern(IDENTITY, RESPONSES),
    "refusal": Pattern(REFUSAL, ("chosen",)),
    "truncated": Pattern(f"{CURSOR.pattern}|{CURSOR_TAG}|```", RESPONSES, _cut_off),
    "replacement_character": Pattern("\ufffd"),
    "bidi_control": Pattern(r"[\x{202a}-\x{202e}\x{2066}-\x{2069}]"),
    "mojibake": Pattern(r"â€[™œ\x{9d}“”¦]|Ã[©¨¼¶¤Ÿ±³¡]|ï»¿"),
    "html_leftover": Pattern(HTML, SIDES, _outside_code(HTML)),
    "link_only": Pattern(r"^[^\n]{0,40}(?:\[[^\]\n]*\]\(|https?://)", RESPONSES, _only(LINK)),
    "image_only": Pattern(r"!\[[^\]\n]*\]\(", RESPONSES, _only(rf"!(?:{LINK})")),
    "markdown_damage": Pattern(r"`[^`\n]*\\_[^`\n]*`"),
    "secret_key": Pattern(KEYS, SIDES, lambda text: re.search(KEYS, text.replace("EXAMPLE", "")) is not None),
    "ip_address": Pattern(r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b"),
    "phone_number": Pattern(r"(?:\+\d{1,3}[ .-]?)?(?:\(\d{2,4}\)|\b\d{2,4})[ .-]\d{3,4}[ .-]\d{3,4}\b"),
    "user_handle": Pattern(r"(?:^|\s)@[A-Za-z]\w{2,}"),
    "email_address": Pattern(r"\b[A-Za-z0-9._%+-]{2,}@[A-Za-z0-9-]{2,}\.[a-z]{2,6}\b"),
}


class Suspects:
    """The cells in which any of the wanted patterns occurs, found in one pass, and the rows that a pattern marks.

    Quick patterns cost next to nothing and are looked for one by one.
    """

    def __init__(self, made: Candidates, names: set[str]):
        self.made, self.contents = made, texts_of(made.cells)
        wanted = [p.regex for n, p in PATTERNS.items() if n in names and not p.is_quick]
        anything = "|".join(f"(?:{p})" for p in wanted)
        hits = pc.match_substring_regex(self.contents, anything) if wanted else pa.array([False] * len(made.cells))
        self.cells = np.flatnonzero(hits.to_numpy(zero_copy_only=False))
        self.texts = self.contents.take(pa.array(self.cells))

    def rows(self, name: str) -> np.ndarray:
        """Which rows the pattern marks: bool[n]."""
        pattern = PATTERNS[name]
        found = pc.match_substring_regex(self.contents if pattern.is_quick else self.texts, pattern.regex)
        here = np.flatnonzero(found.to_numpy(zero_copy_only=False))
        here = here if pattern.is_quick else self.cells[here]
        if pattern.sure is not None:
            here = np.array([c for c in here.tolist() if pattern.sure(self.contents[c].as_py())], dtype=np.int64)
        marked = np.zeros(len(self.made.cells), dtype=bool)
        marked[here] = True
        return np.logical_or.reduce([marked[self.made.side(side)] for side in pattern.sides])
