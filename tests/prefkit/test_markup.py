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
