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
SAFE_LINK = re.compile(r"^(https?://|mailto:)", re.IGNORECASE)


def to_html(text: str) -> str:
    """CommonMark with tables and strikethrough as safe HTML; an image becomes a link that names its host."""
    if len(text) > MAX_CHARACTERS:
        return f'<pre class="plain">{html.escape(text)}</pre>'
    return _MARKDOWN.render(text)


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
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
_MARKDOWN.add_render_rule("image", _image)
_MARKDOWN.add_render_rule("link_open", _link_open)
_MARKDOWN.validateLink = lambda url: bool(SAFE_LINK.match(url.strip()))  # type: ignore[method-assign]  # markdown-it has no option
