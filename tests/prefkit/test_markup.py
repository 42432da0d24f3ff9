"""The traps of HTML → Markdown, each with the text that must come out."""

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefkit.markup import is_plain, to_markdown

CASES = {
    "superscripts stay": ("<p>10<sup>5</sup> H<sub>2</sub>O</p>", "10^5^ H~2~O"),
    "inline math": (r"<p>so \(x_1 &lt; y\) holds</p>", r"so \(x_1 < y\) holds"),
    "display math": (r"<p>\[a \\ b\]</p>", r"\[a \\ b\]"),
    "dollars with braces": (r"<p>$\{a\} \&amp; b$ and $$\,x$$</p>", r"$\{a\} \& b$ and $$\,x$$"),
    "escaped dollars": (r"<p>\$x_i\$ is</p>", r"\$x_i\$ is"),
    "environments": (r"<p>\begin{align} a \\ b \end{align}</p>", r"\begin{align} a \\ b \end{align}"),
    "code keeps its backslashes": (r"<p><code>\(a\)</code></p>", r"`\(a\)`"),
    "fence with a language": (
        '<pre class="lang-python prettyprint-override"><code>if x &lt; 1:\n    y = "\\("\n</code></pre>',
        '```python\nif x < 1:\n    y = "\\("\n```',
    ),
    "language comments go": ("<!-- language: lang-js -->\n<p>a</p>", "a"),
    "spoiler": ('<p>q</p><blockquote class="spoiler"><p>a \\(x\\)</p><p>b</p></blockquote>', "q\n\n>! a \\(x\\)\n>!\n>! b"),
    "spoiler in a list": ('<ul><li>a<blockquote class="spoiler"><p>x</p><p>y</p></blockquote></li></ul>', "- a\n\n  >! x\n  >!\n  >! y"),
    "relative links": ('<p><a href="/q/1">q</a> <img src="/i.png" alt="i"></p>', "[q](https://beer.stackexchange.com/q/1) ![i](https://beer.stackexchange.com/i.png)"),
    "protocol-relative": ('<p><a href="//x.com/y">z</a></p>', "[z](https://x.com/y)"),
    "table": ("<table><tr><th>a</th></tr><tr><td>1</td></tr></table>", "| a |\n| --- |\n| 1 |"),
    "entities once": ("<p>&amp;lt;b&amp;gt; &lt;i&gt;</p>", "&lt;b&gt; <i>"),
    "indent of a first code line": ("<pre><code>  a\n b</code></pre>", "```\n  a\n b\n```"),
    "nothing": ("<!-- only a comment -->", ""),
}  # fmt: skip


@pytest.mark.parametrize(("html", "markdown"), CASES.values(), ids=CASES)
def test_traps(html, markdown):
    assert to_markdown(html, "https://beer.stackexchange.com") == markdown


def test_deep_nesting_keeps_its_text_and_is_counted():
    tally = Counter()
    assert to_markdown("<div>" * 20_000 + "deep" + "</div>" * 20_000, None, tally) == "deep"
    assert tally["repairs.markup_fallback"] == 1


def test_text_that_holds_our_own_marks():
    assert "\ue0f00\ue0f1" in to_markdown("<p>\ue0f00\ue0f1 \\(x\\)</p>")


TEXT = st.lists(
    st.sampled_from(["word", "a_b", "*x*", "#", "-", "1.", "&lt;tag&gt;", "&amp;", "$x_1$", "http://x.y/a_b", "é", "漢字", "🍺", "\\", "|", "+", "~~~", "__i__", "="]),
    max_size=5,
).map(" ".join)  # fmt: skip
INLINE = st.one_of(
    TEXT,
    *(TEXT.map(lambda t, tag=tag: f"<{tag}>{t}</{tag}>") for tag in ("em", "strong", "code")),
    TEXT.map(lambda t: f'so <a href="https://x.y/a_b?q=1&amp;r=(2)" rel="nofollow">{t}</a>'),
)
BLOCK = st.one_of(
    *(INLINE.map(lambda t, tag=tag: f"<p>{t}</p>") for tag in "pp"),
    TEXT.map(lambda t: f"<pre><code>{t}\n</code></pre>"),
    st.tuples(st.sampled_from(["ul", "ol"]), st.lists(INLINE, min_size=1, max_size=3)).map(
        lambda s: f"<{s[0]}>\n" + "".join(f"<li>{i}</li>\n" for i in s[1]) + f"</{s[0]}>"
    ),
    st.just("<hr>"),
)


@given(st.lists(BLOCK, min_size=1, max_size=4).map("\n\n".join))
def test_plain_markup_is_the_same_in_one_pass(html):
    (plain,) = is_plain(pa.array([html]))
    assert to_markdown(html, plain=plain) == to_markdown(html)


def test_what_is_plain():
    bodies = ["<p>A <em>b</em> &amp; c</p>", "<p>10<sup>5</sup></p>", "<p>a&nbsp;b</p>", "<ul>\n<li><p>a</p></li></ul>"]
    assert is_plain(pa.array(bodies)) == [True, False, False, False]


CORPUS = {
    "nested lists": ("<ul>\n<li>a\n<ul>\n<li>b</li>\n<li>c</li>\n</ul></li>\n<li>d</li>\n</ul>", "- a\n  - b\n  - c\n- d"),
    "a list that starts at three": ('<ol start="3">\n<li>c</li>\n<li>d</li>\n</ol>', "3. c\n4. d"),
    "a fence inside code": ("<pre><code>```\nfence\n```\n</code></pre>", "````\n```\nfence\n```\n````"),
    "backticks inside code": ("<p>Use <code>a `b` c</code>.</p>", "Use ``a `b` c``."),
    "keys": ("<p><kbd>Ctrl</kbd>+<kbd>C</kbd></p>", "`Ctrl`+`C`"),
    "a snippet": (
        '<div class="snippet" data-lang="js">\n<div class="snippet-code">\n<pre class="snippet-code-js lang-js prettyprint-override">'
        '<code>let x = 1;\n</code></pre>\n<pre class="snippet-code-html lang-html prettyprint-override"><code>&lt;b&gt;\n</code></pre>\n'
        "</div>\n</div>",
        "```js\nlet x = 1;\n```\n\n```html\n<b>\n```",
    ),
    "snippet comments go": ("<!-- begin snippet: js hide: false -->\n<pre><code>x\n</code></pre>\n<!-- end snippet -->", "```\nx\n```"),
    "a list in a quote": ("<blockquote>\n<p>a</p>\n<ul>\n<li>b</li>\n</ul>\n</blockquote>", "> a\n>\n> - b"),
    "three ways to strike": ("<p><strike>a</strike> <del>b</del> <s>c</s></p>", "~~a~~ ~~b~~ ~~c~~"),
    "a linked image": (
        '<p><a href="//i.sstatic.net/x.png" rel="nofollow"><img src="https://i.sstatic.net/xm.png" alt="a b"></a></p>',
        "[![a b](https://i.sstatic.net/xm.png)](https://i.sstatic.net/x.png)",
    ),
    "no-break spaces": ("<p>a&nbsp;b\u00a0c</p>", "a b c"),
    "right to left": ("<p>\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627</p>", "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627"),
    "beyond the basic plane": ("<p>🍺 𝒜 𠀀</p>", "🍺 𝒜 𠀀"),
    "line breaks": ("<p>a<br>b<br/>\nc</p>", "a  \nb  \nc"),
    "money is no math": ("<p>It costs $5 and then $10.</p>", "It costs $5 and then $10."),
    "stars in math": ("<p>$x_i * y_i * z$ and $a&lt;b$</p>", "$x_i * y_i * z$ and $a<b$"),
    "math on lines of its own": ("<p>$$\na * b\n\\\\\n= x_1\n$$</p>", "$$\na * b\n\\\\\n= x_1\n$$"),
    "chemistry": ("<p>$\\ce{2 H2O}$</p>", "$\\ce{2 H2O}$"),
    "math in a list": ("<ul>\n<li>\\[x \\\\ y\\]</li>\n</ul>", "- \\[x \\\\ y\\]"),
    "dollars in code are none": ("<p><code>$a_1$</code> and $b_1$ \\$</p>", "`$a_1$` and $b_1$ \\$"),
    "the newer way to name a language": ('<pre><code class="language-py">x = 1\n</code></pre>', "```py\nx = 1\n```"),
    "code in a list": (
        "<ol>\n<li><p>do</p>\n\n<pre><code>a\n  b\n</code></pre></li>\n<li><p>then</p></li>\n</ol>",
        "1. do\n\n   ```\n   a\n     b\n   ```\n\n2. then",
    ),
    "pipes in a table": (
        '<div class="s-table-container"><table>\n<thead>\n<tr>\n<th>a</th>\n<th>b|c</th>\n</tr>\n</thead>\n<tbody>\n<tr>\n<td>1</td>\n'
        "<td><code>x|y</code></td>\n</tr>\n</tbody>\n</table></div>",
        "| a | b\\|c   |\n| --- | ------ |\n| 1 | `x\\|y` |",
    ),
    "text that looks like Markdown": ("<p># no heading</p>\n<p>1. no list</p>\n<p>&gt; no quote</p>", "\\# no heading\n\n1\\. no list\n\n\\> no quote"),
    "tabs and blank lines in code": ("<pre><code>\tx\n\n\n\ty  \nz\n</code></pre>", "```\n\tx\n\n\n\ty  \nz\n```"),
}  # fmt: skip


@pytest.mark.parametrize(("html", "markdown"), CORPUS.values(), ids=CORPUS)
def test_bodies_as_sites_write_them(html, markdown):
    (plain,) = is_plain(pa.array([html]))
    assert to_markdown(html, "https://beer.stackexchange.com", plain=plain) == markdown
    assert to_markdown(html, "https://beer.stackexchange.com") == markdown
