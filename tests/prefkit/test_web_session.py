"""What the page shows and stores, without a browser; what it may ask the database; text of strangers made harmless."""

import html
import re
import uuid

import pytest
from sqlalchemy import event

from prefkit.errors import UserError
from prefkit.judgements.items import Draft, Response
from prefkit.judgements.store import Store
from prefkit.web.address import bind, host_of, is_loopback
from prefkit.web.markdown import to_html
from prefkit.web.render import page_html
from prefkit.web.session import BlindSession, Results, Vote


def text(words, role="assistant"):
    return [{"role": role, "content": words}]


@pytest.fixture
def session(tmp_path):
    drafts = [
        Draft(text(f"q{n}", "user"), [Response(text(f"{n} x"), "SECRET-A"), Response(text(f"{n} y"), "SECRET-B")], "g")
        for n in range(3)
    ]
    store = Store(str(tmp_path / "labels.db"))
    batch = store.add_batch("labels", "test", drafts)
    yield BlindSession(
        store, batch.batch_id, title="Test", results=lambda: Results(["", "wins"], [["SECRET-A", "1"]], ["done"])
    )
    store.close()


def vote_on(view, choice):
    return Vote(str(uuid.uuid4()), view.item_id, view.shown, choice, 1200)


def test_a_vote_names_the_response_that_stood_on_that_side(session):
    view = session.view("ann")
    chosen = view.responses[1]
    session.vote("ann", vote_on(view, "b"))
    (row,) = session.store.votes([view.item_id])
    assert session.store.item(view.item_id).responses[row.winner] == chosen
    assert (row.shown, row.milliseconds, row.outcome) == (list(view.shown), 1200, "better")


def test_voting_goes_through_all_and_undo_comes_back(session):
    first = session.view("ann")
    second = session.vote("ann", vote_on(first, "tie"))
    assert second.item_id != first.item_id
    back = session.undo("ann", str(uuid.uuid4()))
    assert (back.item_id, back.shown, back.progress.done) == (first.item_id, first.shown, 0)
    assert session.undo("ann", str(uuid.uuid4())).said == "Nothing to undo."
    view = back
    while view.item_id:
        view = session.vote("ann", vote_on(view, "skip"))
    assert (view.progress.done, view.progress.skipped) == (3, 3)
    assert session.is_over("ann")
    assert not session.is_over("ben")


def test_a_vote_sent_twice_counts_once(session):
    view = session.view("ann")
    vote = vote_on(view, "a")
    one = session.vote("ann", vote)
    two = session.vote("ann", vote)
    assert (one.item_id, one.progress) == (two.item_id, two.progress)


@pytest.mark.parametrize(
    "wrong",
    [{"item_id": "0" * 32}, {"choice": "c"}, {"choice": "undo"}, {"shown": (0, 0)}, {"shown": (1,)}, {"id": "x"}],
)
def test_votes_that_make_no_sense_are_refused(session, wrong):
    view = session.view("ann")
    good = {"id": str(uuid.uuid4()), "item_id": view.item_id, "shown": view.shown, "choice": "a"}
    with pytest.raises(UserError, match="not for a pair of this session"):
        session.vote("ann", Vote(**(good | wrong)))


def test_votes_after_the_reveal_say_so(session):
    view = session.view("ann")
    view = session.vote("ann", vote_on(view, "a"))
    assert session.end("ann").results.rows == [["SECRET-A", "1"]]
    session.vote("ann", vote_on(view, "a"))
    flags = [v.flags for v in session.store.votes(session.store.item_ids(session.batch_id))]
    assert flags == [[], ["after_reveal"]]


def test_votes_on_more_of_the_same_models_say_so_too(session):
    """The comparison is run again with more prompts: another batch, of which the judge knows the sides."""
    session.vote("ann", vote_on(session.view("ann"), "a"))
    session.end("ann")
    for names, flags in ((("SECRET-A", "SECRET-B"), ["after_reveal"]), (("SECRET-A", "SECRET-C"), [])):
        responses = [Response(text(f"{n} again"), n) for n in names]
        batch = session.store.add_batch("labels", "more", [Draft(text("more", "user"), responses, "g")])
        more = BlindSession(session.store, batch.batch_id, title="More", seed=0)
        more.vote("ann", vote_on(more.view("ann"), "a"))
        (found,) = session.store.votes(session.store.item_ids(batch.batch_id))
        assert found.flags == flags


def test_no_query_before_the_reveal_names_the_producer(session):
    asked = []
    event.listen(session.store.engine, "before_cursor_execute", lambda c, cur, sql, *rest: asked.append(sql.lower()))
    view = session.view("ann")
    html = page_html(view, title=session.title, question=session.question)
    for choice in ("a", "tie", "skip"):
        view = session.vote("ann", vote_on(view, choice))
        html += page_html(view, title=session.title, question=session.question)
    view = session.undo("ann", str(uuid.uuid4()))
    html += page_html(view, title=session.title, question=session.question)
    assert len(asked) > 10
    assert not [sql for sql in asked if "producer" in sql]
    assert not [sql for sql in asked if "origin" in sql]
    assert "SECRET" not in html
    session.store.producers([view.item_id])
    assert "producer" in asked[-1]  # the listener does hear it


HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "![x](https://tracker.example/p.png)",
    "![x](javascript:alert(1))",
    '![x" onerror="alert(1)](https://t.example/"onerror="alert(1))',
    "[x](javascript:alert(1))",
    "[x](JaVaScRiPt:alert(1))",
    "[x](data:text/html,<script>alert(1)</script>)",
    "[x](vbscript:alert(1))",
    "[x](file:///etc/passwd)",
    "<javascript:alert(1)>",
    '[x](https://e.example "t\\" onmouseover=alert(1)")',
    "<svg/onload=alert(1)>",
    "<iframe src=https://e.example></iframe>",
    '`<b onclick="x">`',
    "```html\n<script>alert(1)</script>\n```",
    '``` "><script>alert(1)</script>\ncode\n```',
    "[a]: javascript:alert(1)\n\n[a]",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<style>body{display:none}</style>",
    "<base href=https://e.example>",
    "${alert(1)} {{value}} {{{value}}}",
]


@pytest.mark.parametrize("words", HOSTILE)
def test_text_of_strangers_cannot_act(words):
    import lxml.html

    tree = lxml.html.fromstring(f"<div>{to_html(words)}</div>")
    assert {e.tag for e in tree.iter()} <= {"div", "p", "a", "code", "pre", "span", "em", "strong", "br"}
    for element in tree.iter():
        assert {*element.attrib} <= {"href", "target", "rel", "referrerpolicy", "class"}
        assert element.get("href", "https://").startswith(("http://", "https://", "mailto:"))


def test_images_become_links_that_name_their_host():
    made = to_html("![a cat](https://pics.example/cat.png)")
    assert "<img" not in made
    assert ">[image: a cat · pics.example]</a>" in made
    assert 'rel="noopener noreferrer nofollow"' in made


def test_markdown_is_drawn_and_very_long_text_is_not():
    made = to_html("# t\n\n| a |\n|---|\n| 1 |\n\n~~x~~ **b** `c`\n\n```py\nx = 1 < 2\n```")
    for tag in ("<h1>", "<td>", "<s>", "<strong>", "<code>", '<pre><code class="language-py">x = 1 &lt; 2'):
        assert tag in made
    assert to_html("*" * 200_000).startswith('<pre class="plain">')


def test_nothing_of_a_text_is_lost_by_its_markup():
    for text in (
        "".join(f"{'  ' * k}- level {k}\n" for k in range(40)),
        "> " * 60 + "deep",
        "> " * 3000 + "deeper",
        "[note]: https://a.example\n[other]: https://b.example",
        "see [this][1]\n\n[1]: https://a.example",
    ):
        shown = html.unescape(re.sub(r"<[^>]*>", "", to_html(text)))
        assert re.findall(r"\w+", text) == re.findall(r"\w+", shown)
    assert to_html("one\ntwo") == "<p>one<br />\ntwo</p>\n"


def test_only_this_machine_is_listened_to():
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback(host_of("localhost:7860"))
    for host in ("0.0.0.0", "::", "192.168.1.2", "evil.example", ""):  # noqa: S104
        assert not is_loopback(host)
        with pytest.raises(UserError, match="without a login"):
            bind(host, 0)


def test_a_taken_port_is_said():
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} is taken"):
            bind("127.0.0.1", port)
    with pytest.raises(UserError, match="cannot listen"):
        bind("127.0.0.1", 99999)
