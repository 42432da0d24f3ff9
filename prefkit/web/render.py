"""A view as HTML. Every word from outside passes `html.escape` or `markdown.to_html`; nothing else is interpolated."""

from __future__ import annotations

import uuid
from html import escape

from prefkit.schema import Message
from prefkit.web.markdown import to_html
from prefkit.web.session import LETTERS, Results, View

BUTTONS = [  # choice, key, words
    ("a", "1", "A is better"),
    ("tie", "T", "Tie"),
    ("b", "2", "B is better"),
    ("skip", "S", "Skip"),
    ("undo", "U", "Undo"),
]


def page_html(view: View, *, title: str, question: str) -> str:
    """One screen, whole. `data-view` is new each time, so that the browser notices a screen that looks the same."""
    body = _results(view.results) if view.results else _task(view, question) if view.item_id else _done(view)
    attributes = f'data-view="{uuid.uuid4().hex}"'
    if view.item_id:
        attributes += f' data-item="{escape(view.item_id)}" data-shown="{",".join(map(str, view.shown))}"'
    return (
        f'<div class="pk" {attributes}>{_header(view, title)}{body}'
        f'<div class="pk-foot">{"" if view.results else _keys(view)}'
        f'<p class="pk-said" role="status" aria-live="polite">{escape(view.said)}</p></div></div>'
    )


def _header(view: View, title: str) -> str:
    p = view.progress
    percent = 100 * p.done / p.total if p.total else 100
    return (
        f'<header class="pk-header"><h1>{escape(title)}</h1>{_end_button(view)}'
        f'<span class="pk-count"><b>{p.done}</b> of {p.total}</span>'
        f'<div class="pk-bar" role="progressbar" aria-label="Progress" aria-valuemin="0" aria-valuemax="{p.total}"'
        f' aria-valuenow="{p.done}"><i style="width:{percent:.2f}%"></i></div></header>'
    )


def _end_button(view: View) -> str:
    """Two steps: the score is not something to see by accident."""
    if not view.reveals or not view.item_id:
        return ""
    return (
        '<details class="pk-end"><summary>End session</summary><div><p>The results name the two sides. '
        "What you judge afterwards is marked as no longer blind.</p>"
        '<button type="button" data-choice="end">Show the results</button></div></details>'
    )


def _task(view: View, question: str) -> str:
    answers = "".join(
        f'<article class="pk-answer" aria-labelledby="pk-{letter}"><h2 id="pk-{letter}">{letter}</h2>'
        f'<div class="pk-text" dir="auto">{_messages(messages)}</div></article>'
        for letter, messages in zip(LETTERS, view.responses or [], strict=True)
    )
    return (
        f'<section class="pk-prompt" aria-label="Prompt"><div class="pk-text" dir="auto">{_messages(view.prompt or [])}'
        f'</div></section><p class="pk-question">{escape(question)}</p><div class="pk-answers">{answers}</div>'
    )


def _messages(messages: list[Message]) -> str:
    """A lone message is its text; a conversation names who speaks."""
    if len(messages) == 1:
        return _text(messages[0])
    return "".join(f'<section class="pk-turn"><h3>{escape(m["role"])}</h3>{_text(m)}</section>' for m in messages)


def _text(message: Message) -> str:
    return to_html(message["content"]) if message["content"].strip() else '<p class="pk-empty">(empty)</p>'


def _done(view: View) -> str:
    p = view.progress
    skipped = f", {p.skipped} of them skipped" if p.skipped else ""
    done = "The one pair is done" if p.total == 1 else f"All {p.total} pairs are done"
    what = f"{done}{skipped}." if p.total else "There is nothing to judge here."
    more = (
        '<button type="button" class="pk-primary" data-choice="end">Show the results</button>'
        if view.reveals
        else "<p>You can close this page and stop the program in its terminal.</p>"
    )
    return f'<section class="pk-done"><h2>Thank you.</h2><p>{what}</p>{more}</section>'


def _results(results: Results) -> str:
    head = "".join(f'<th scope="col">{escape(h)}</th>' for h in results.headers)
    rows = "".join(
        "<tr>" + f'<th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(c)}</td>" for c in row[1:]) + "</tr>"
        for row in results.rows
    )
    remarks = "".join(f"<li>{escape(r)}</li>" for r in results.remarks)
    return (
        f'<section class="pk-results"><h2>Results</h2><div class="pk-scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div><ul>{remarks}</ul>"
        '<button type="button" data-choice="back">Back to the pairs</button></section>'
    )


def _keys(view: View) -> str:
    def button(choice: str, key: str, words: str) -> str:
        usable = view.progress.done if choice == "undo" else view.item_id
        off = "" if usable else " disabled"
        return (
            f'<button type="button" class="pk-{choice}" data-choice="{choice}" aria-keyshortcuts="{key}"{off}>'
            f"<kbd>{key}</kbd><span>{words}</span></button>"
        )

    return f'<nav class="pk-keys" aria-label="Your judgement">{"".join(button(*b) for b in BUTTONS)}</nav>'
