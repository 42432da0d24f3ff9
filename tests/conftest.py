"""A real browser for the pages: the system's Chromium, driven by Playwright; absent, the tests say so and skip."""

import os
import shutil
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas  # noqa: F401  # loaded first, so that commands called in this process cannot hide it from later tests
import pytest
from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # a busy machine is no bug
settings.load_profile("no deadline")

SETTLED = 320  # milliseconds after which a new screen takes keys (SETTLE_MS of page.js)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
]


DATA = Path(os.environ.get("PREFKIT_REAL_DATA") or Path(__file__).parents[2] / "shared" / "data")


@pytest.fixture(scope="session")
def real_data():
    """The folder of real dumps and pairs; absent, the tests say so and skip."""
    if not DATA.is_dir():
        pytest.skip(f"no real data: {DATA} is absent and PREFKIT_REAL_DATA is not set")
    return DATA


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """No test reads what another run of the tests, or the user, has cached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def chromium():
    sync_api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH: run `make system`")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """One browser window on a page, and all that passed between them."""

    page: object
    requests: list = field(default_factory=list)
    responses: list = field(default_factory=list)
    errors: list = field(default_factory=list)

    def settle(self) -> None:
        """Wait until a new screen takes keys."""
        self.page.wait_for_timeout(SETTLED)

    def press(self, key: str) -> str:
        """Press a key, wait for the next screen, return what the page says about it."""
        self.settle()
        before = self.screen()
        self.page.keyboard.press(key)
        return self.wait_after(before)

    def click(self, choice: str) -> str:
        self.settle()
        before = self.screen()
        self.page.click(f'button[data-choice="{choice}"]')
        return self.wait_after(before)

    def screen(self) -> str:
        return self.page.get_attribute("#pk .pk", "data-view")

    def wait_after(self, before: str) -> str:
        self.page.wait_for_function("before => document.querySelector('#pk .pk').dataset.view !== before", arg=before)
        return self.page.inner_text(".pk-said")

    def item(self) -> str | None:
        return self.page.get_attribute("#pk .pk", "data-item")

    def count(self) -> str:
        return self.page.inner_text(".pk-count")

    def received(self) -> str:
        """All the browser got: every answered body, and the page as it now stands."""
        bodies = [r.text() for r in self.responses if "event-stream" not in r.headers.get("content-type", "")]
        return "\n".join([*bodies, self.page.content()])


@contextmanager
def served(session, judge="ann"):
    import uvicorn

    from prefkit.web.address import bind, url
    from prefkit.web.page import build_page
    from prefkit.web.server import make_app

    listening = bind("127.0.0.1", 0)
    config = uvicorn.Config(make_app(build_page(session, judge)), log_level="error", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    yield url(listening)
    server.should_exit = True
    thread.join(10)
    listening.close()


@contextmanager
def visiting(chromium, address, **context):
    window = chromium.new_context(**({"viewport": {"width": 1280, "height": 800}} | context))
    page = window.new_page()
    visit = Visit(page)
    page.on("request", lambda r: visit.requests.append(r.url))
    page.on("response", lambda r: visit.responses.append(r))
    page.on("pageerror", lambda e: visit.errors.append(str(e)))
    page.on("console", lambda m: visit.errors.append(m.text) if m.type == "error" else None)
    page.on("dialog", lambda d: (visit.errors.append(f"dialog {d.message}"), d.dismiss()))
    page.goto(address)
    page.wait_for_selector("#pk .pk[data-view]")
    page.wait_for_function("Boolean(window.prefkitKeys)")  # drawn is not yet listening: a key pressed between is lost
    visit.settle()
    yield visit
    window.close()


@pytest.fixture
def open_page(chromium):
    """open_page(session, **context) serves a session and returns a `Visit` of it."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def open_page(session, judge="ann", **context):
            address = stack.enter_context(served(session, judge))
            return stack.enter_context(visiting(chromium, address, **context))

        yield open_page


@pytest.fixture
def visit_address(chromium):
    """visit_address(url) opens what someone else serves."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda address, **context: stack.enter_context(visiting(chromium, address, **context))
