"""Serve a page to this machine's browser: loopback, no share link, nothing fetched from elsewhere."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from types import FrameType
from urllib.parse import urlsplit

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefkit.web.address import host_of, is_loopback
from prefkit.web.page import HERE

HEADERS = {
    # gradio compiles its templates with Function and styles in line; all else comes from this server or nowhere
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; connect-src 'self'; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-dns-prefetch-control": "off",
}
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace"]


def make_app(page: gr.Blocks) -> FastAPI:
    """The page as an ASGI application, guarded, without API pages, history, monitoring or telemetry."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard)
    theme = gr.themes.Base(font=FONTS, font_mono=MONO)
    style = f"<style>{(HERE / 'page.css').read_text('utf-8')}</style>"  # as `css`, gradio would rewrite its selectors
    off = {"footer_links": [], "run_history": False, "ssr_mode": False, "mcp_server": False, "pwa": False}
    return gr.mount_gradio_app(app, page, "/", theme=theme, head=style, enable_monitoring=False, show_error=True, **off)


def serve(app: FastAPI, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Answer until interrupted (Ctrl-C returns); `ready` is called once requests are answered."""
    with listening:
        Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1), ready).run(sockets=[listening])


class Server(uvicorn.Server):
    """uvicorn that says when it is ready, and that Ctrl-C ends within its second, however often it is pressed."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT:  # uvicorn would raise it again at the end, and at the second cut what it is ending
            self.should_exit = True
        else:
            super().handle_exit(sig, frame)


class Guard:
    """ASGI middleware: refuses foreign hosts and origins (rebinding, cross-site posts) and adds `HEADERS`."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        sent = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        host, origin = sent.get("host", ""), sent.get("origin")
        if not is_loopback(host_of(host)) or (origin is not None and urlsplit(origin).netloc != host):
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b"this page answers only to this machine"})
            return

        async def add_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *extra]}
            await send(message)

        await self.app(scope, receive, add_headers)
