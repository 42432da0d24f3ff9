"""The blind A/B page. It draws and delegates: what is shown and stored is the session's business."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gradio as gr

from prefkit.errors import UserError
from prefkit.web.render import page_html
from prefkit.web.session import Session, View, Vote

HERE = Path(__file__).parent
LOADING = '<div class="pk"><p class="pk-said" role="status">Loading…</p></div>'


def build_page(session: Session, judge: str) -> gr.Blocks:
    """The page over a session; `judge` answers where nobody is logged in."""

    def draw(answer: Callable[[str], View], request: gr.Request) -> str:
        who = request.username or judge
        try:
            view = answer(who)
        except UserError as e:
            print(f"error: {e}", file=sys.stderr)
            try:
                view = replace(session.view(who), said=f"{e.what}: {e.fix}")  # not where: file names stay here
            except UserError:
                raise gr.Error(e.what, print_exception=False) from e
        return page_html(view, title=session.title, question=session.question)

    def load(request: gr.Request) -> str:
        return draw(session.view, request)

    def vote(event: gr.EventData, request: gr.Request) -> str:
        return draw(lambda who: session.vote(who, _vote(event._data)), request)

    def undo(event: gr.EventData, request: gr.Request) -> str:
        return draw(lambda who: session.undo(who, str(_field(event._data, "id"))), request)

    def end(request: gr.Request) -> str:
        return draw(session.end, request)

    with gr.Blocks(title=session.title, analytics_enabled=False) as page:
        # only ${value}: a {{…}} in the template would run what strangers wrote
        screen = gr.HTML(
            LOADING, elem_id="pk", html_template="${value}", js_on_load=(HERE / "page.js").read_text("utf-8")
        )
        for listen, answer in [
            (page.load, load),
            (screen.vote, vote),
            (screen.undo, undo),
            (screen.end, end),
            (screen.back, load),
        ]:
            # Not queued: an answer takes milliseconds, and the store puts writers in line. "multiple": a key pressed
            # again because no answer came must go out; page.js lets no other through.
            listen(
                answer,
                outputs=screen,
                queue=False,
                show_progress="hidden",
                api_visibility="private",
                trigger_mode="multiple",
            )
    return page


def _field(data: object, name: str) -> object:
    if not isinstance(data, dict) or name not in data:
        raise UserError(f"the page sent no {name}", fix="reload the page")
    return data[name]


def _vote(data: object) -> Vote:
    """What the browser sent, as a vote; anything else is a `UserError`."""
    shown = str(_field(data, "shown"))
    milliseconds = _field(data, "milliseconds")
    if shown not in ("0,1", "1,0") or not isinstance(milliseconds, int):
        raise UserError("the page sent a vote that makes no sense", fix="reload the page")
    order = tuple(int(i) for i in shown.split(","))
    return Vote(str(_field(data, "id")), str(_field(data, "item")), order, str(_field(data, "choice")), milliseconds)
