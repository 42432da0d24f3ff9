"""The traps of HTML → Markdown, each with the text that must come out."""

from collections import Counter

import pytest

from prefkit.markup import to_markdown

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
