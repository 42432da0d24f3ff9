"""Text of strangers as HTML that cannot act: no raw HTML or scripts, nothing fetched, links to http(s) and mail."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

MAX_CHARACTERS = 100_000  # longer texts are shown as they are: nobody reads their markup, and parsing must stay quick
MAX_NESTING = 100  # so are texts with lists and quotes within each other that are deeper: what is inside would be lost
SAFE_LINK = re.compile(r"^(https?://|mailto:)", re.IGNORECASE)


def to_html(text: str) -> str:
    """CommonMark with tables and strikethrough as safe HTML; an image becomes a link that names its host."""
    if len(text) <= MAX_CHARACTERS:
        tokens = _MARKDOWN.parse(text)
        if all(token.level < MAX_NESTING - 1 for token in tokens):
            return _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, {})
    return f'<pre class="plain">{html.escape(text)}</pre>'


def _image(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """Fetching an image would tell its host who reads what, and when: a link lets the reader choose."""
    token = tokens[index]
    address = str(token.attrs.get("src", ""))
    words = self.renderInlineAsText(token.children or [], options, env) or "untitled"
    label = html.escape(f"image: {words}")
    if not SAFE_LINK.match(address):
        return f'<span class="image">[{label}]</span>'
    host = html.escape(urlsplit(address).netloc)
    return f'<a class="image" href="{html.escape(address)}"{_LINK}>[{label} · {host}]</a>'


def _link_open(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    return f'<a href="{html.escape(str(tokens[index].attrs["href"]))}"{_LINK}>'


_LINK = ' target="_blank" rel="noopener noreferrer nofollow" referrerpolicy="no-referrer"'
# Line breaks stay, for answers may differ by them alone, and so do link definitions, which no link may use.
_MARKDOWN = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": MAX_NESTING})
_MARKDOWN.enable(["table", "strikethrough"]).disable("reference")
_MARKDOWN.add_render_rule("image", _image)
_MARKDOWN.add_render_rule("link_open", _link_open)
_MARKDOWN.validateLink = lambda url: bool(SAFE_LINK.match(url.strip()))  # type: ignore[method-assign]  # markdown-it has no option
