"""A session on the page, from the terminal's side: say where, serve, say how far it went."""

from __future__ import annotations

import socket

from prefkit.web.address import url
from prefkit.web.page import build_page
from prefkit.web.render import BUTTONS
from prefkit.web.server import make_app, serve
from prefkit.web.session import BlindSession


def serve_session(session: BlindSession, judge: str, listening: socket.socket, db: str) -> None:
    """Serve until Ctrl-C. Prints the address and the keys before, and the count of what is judged after."""
    before = session.progress(judge).done
    print(f"judging as {judge}" + (f", {before} done before" if before else ""))
    print("keys: " + " · ".join(f"{key} {words}" for _, key, words in BUTTONS))
    serve(
        make_app(build_page(session, judge)),
        listening,
        ready=lambda: print(f"open {url(listening)} in a browser; Ctrl-C ends", flush=True),
    )
    p = session.progress(judge)
    print(f"\n{p.done} of {p.total} judged ({p.done - before} now, {p.skipped} skipped), kept in {db}")
