"""HTML as Stack Exchange renders it → Markdown, without losing superscripts, math, spoilers or deeply nested text."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from html_to_markdown import ConversionOptions, _html_to_markdown, api

SPOILER = re.compile(r'<blockquote class="spoiler"[^>]*>(.*?)</blockquote>', re.S)
# Math is text between its delimiters, outside tags and code; only there a backslash before punctuation must stay
# single.
DELIMITED = (
    r"(\\\$[^<]+?\\\$|\$\$[^<]+?\$\$|\\\([^<]+?\\\)|\\\[[^<]+?\\\]|\\begin\{[^<]+?\\end\{[^}<]*\}|\$[^<$]+\$|\\\$)"
)
MATH = re.compile(DELIMITED)
MATH_OR_NOT = re.compile(rf"<(?:pre|code)\b.*?</(?:pre|code)\s*>|<[^>]*>|{DELIMITED}", re.S)
MISLEADING = re.compile(r"<(?:pre|code)\b|<[^>]*[\\$]")  # code, or a delimiter inside a tag
OPEN, CLOSE = "\ue0f0", "\ue0f1"  # private-use characters: what is set aside travels as ⟨number⟩
ASIDE = re.compile(f"{OPEN}(\\d+){CLOSE}")


# Markup that html-to-markdown's one-pass converter (tier 1, 1.7 times as fast) renders as its tree converter does.
PLAIN = (
    r"^(?:[^<&`\t\r\f\v\x{a0}\x{200b}-\x{200d}]|&(?:lt|gt|amp|quot);|</?(?:p|em|strong|code|pre|li|ul|ol)>|<hr ?/?>"
    r"|</a>|<a href=\"https?://[^\"<>]*\"(?: [a-z]+=\"[^\"<>]*\")*>)*$"
)
NOT_PLAIN = (
    r"<li>\s*<p>|</[uo]l>\s*</li>|</pre>\s*</li>|\n +[\n>]"
    r"|<(?:p|em|strong|li|code)>(?:\s|</)|</(?:em|strong|a|code)><[^/]"
)


def is_plain(bodies: pa.Array) -> list[bool]:
    """Which bodies both converters of html-to-markdown render alike: three in four of real posts."""
    return pc.and_not(pc.match_substring_regex(bodies, PLAIN), pc.match_substring_regex(bodies, NOT_PLAIN)).to_pylist()


@cache
def _options(base_url: str | None, plain: bool = False) -> Any:
    """Options as the Rust side holds them: translating the dataclass at each call halves the speed on short posts."""
    options = ConversionOptions(
        sup_symbol="^",
        sub_symbol="~",
        bullets="-",
        extract_metadata=False,
        base_url=base_url,
        tier_strategy="tier1" if plain else "auto",
    )
    return api._to_rust_conversion_options(options)


def to_markdown(
    html: str, base_url: str | None = None, tally: Counter[str] | None = None, *, plain: bool = False
) -> str:
    """One post's HTML as Markdown; relative links are resolved against `base_url`; `plain` is what `is_plain` says.

    Counts in `tally`: `repairs.markup_fallback`, text that html-to-markdown dropped and lxml gave back without
    structure.
    """
    aside: list[str] = []
    source = html
    if OPEN not in html:
        if 'class="spoiler"' in html:
            source = SPOILER.sub(lambda m: _set_aside(aside, _spoiler(m[1], base_url, tally), block=True), source)
        if "\\" in source:
            math = MATH_OR_NOT if MISLEADING.search(source) else MATH
            source = math.sub(lambda m: m[0] if m[1] is None else _set_aside(aside, _unescape(m[1])), source)
    text = _html_to_markdown.convert(html=source, options=_options(base_url, plain)).content or ""
    if aside:
        text = _put_back(text, aside)
    text = text.rstrip().lstrip("\n")
    if not text and html.strip():
        text = _text_only(html)
        if text and tally is not None:
            tally["repairs.markup_fallback"] += 1
    return text


def _set_aside(aside: list[str], text: str, *, block: bool = False) -> str:
    aside.append(text)
    mark = f"{OPEN}{len(aside) - 1}{CLOSE}"
    return f"<p>{mark}</p>" if block else mark


def _put_back(text: str, aside: list[str]) -> str:
    while OPEN in text:  # math inside a spoiler was set aside within it already, so this ends
        before = text
        text = ASIDE.sub(lambda m: _back(m, aside), before)
        if text == before:
            break
    return text


def _back(m: re.Match[str], aside: list[str]) -> str:
    if int(m[1]) >= len(aside):  # not ours: the post's own characters
        return m[0]
    kept = aside[int(m[1])]
    if not kept.startswith(">!"):  # math keeps its own lines
        return kept
    # A spoiler inside a list or a quote continues under the same prefix.
    line = m.string[m.string.rfind("\n", 0, m.start()) + 1 : m.start()]
    return kept.replace("\n", "\n" + re.sub(r"[^\s>]", " ", line))


def _spoiler(html: str, base_url: str | None, tally: Counter[str] | None) -> str:
    return "\n".join(f">! {line}".rstrip() for line in to_markdown(html, base_url, tally).split("\n"))


def _unescape(math: str) -> str:
    return math.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")


class _Text(HTMLParser):
    """Collects character data: the one parser at hand that has no limit of depth."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def _text_only(html: str) -> str:
    parser = _Text()
    parser.feed(html)
    parser.close()
    return "".join(parser.pieces).strip()
