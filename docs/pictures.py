"""Make docs/images/*.png in the system's Chromium.

python docs/pictures.py                      the pages of labelling and comparison over synthetic text
python docs/pictures.py report.html          the top of a report, without texts of its pairs
python docs/pictures.py report.html pairs    its list of pairs, the first one open
python docs/pictures.py stats.html stats     the top of a page of prefkit stats
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Literal
from uuid import UUID

import uvicorn
from playwright.sync_api import Browser, sync_playwright

from evalkit.side_by_side.session import Answers, match, results, store_items, tally
from prefkit.judgements.items import Draft, Response
from prefkit.judgements.store import Store
from prefkit.web.address import bind, url
from prefkit.web.page import build_page
from prefkit.web.server import make_app
from prefkit.web.session import BlindSession, Results, Vote

CHROMIUM = shutil.which("chromium")
FLAGS = ["--no-sandbox", "--disable-gpu"]
IMAGES = Path(__file__).parent / "images"
QUESTION = """**How do I undo the last commit without losing my changes?**

I committed to the wrong branch and have not pushed yet. I want the changes back in my working tree:

```
$ git log --oneline -1
3f2a9c1 fix the parser
```
"""
SHORT = """Use a soft reset:

```
git reset --soft HEAD~1
```

The commit goes away, and its changes stay **staged**. Then move them over:

1. `git switch right-branch`
2. `git commit`

If you have pushed already, use `git revert` instead: it adds a commit that takes the last one back, so nobody's
history breaks.
"""
OTHER = """You can delete the commit:

```
git reset --hard HEAD~1
```

This puts the branch back to where it was before the commit. Be careful with the option, since it also resets files in
the working tree. You may find the commit again with `git reflog`.
"""


def photograph(
    browser: Browser, session: BlindSession, path: Path, keys: str, scheme: Literal["light", "dark"], choice: str = ""
) -> None:
    """Serve a session, press keys, end it if asked, and keep what is seen."""
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(make_app(build_page(session, "you")), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    page.goto(url(listening))
    page.wait_for_selector("#pk .pk[data-view]")
    for key in keys:
        page.wait_for_timeout(320)  # a new screen takes keys after 0.3 s
        before = page.get_attribute("#pk .pk", "data-view")
        page.keyboard.press(key)
        page.wait_for_function("old => document.querySelector('#pk .pk').dataset.view !== old", arg=before)
    if choice:
        page.click(f"button[data-choice={choice}]")
        page.wait_for_selector(".pk-results")
    page.screenshot(path=path)
    page.close()
    server.should_exit = True
    thread.join()


def judged_comparison(store: Store) -> BlindSession:
    """A comparison in which a made-up judge likes the longer of two made-up answers more often than not."""
    sides = [
        {str(n): ([{"role": "user", "content": f"{n}"}], [{"role": "assistant", "content": word}]) for n in range(120)}
        for word in ("an answer of some length", "an answer")
    ]
    matched = match(Answers("a.jsonl", "sft-then-dpo", sides[0], 0), Answers("b.jsonl", "sft", sides[1], 0))
    shown, _ = store_items(store, matched, "", 0)

    def score() -> Results:
        return results(tally(store, shown.batch_id, matched.names), matched.names)

    session = BlindSession(store, shown.batch_id, title="Side by side, blind", results=score)
    view = session.view("you")
    for n in range(120):
        assert view.item_id is not None
        assert view.responses is not None
        longer = max("ab", key=lambda side: len(view.responses["ab".index(side)][0]["content"]))
        choice = "tie" if n % 8 == 3 else longer if n % 3 else "a"
        view = session.vote("you", Vote(str(UUID(int=n)), view.item_id, view.shown, choice))
    return session


def photograph_file(file: Path, part: str) -> None:
    """What one sees first of a report or of a page of statistics, or a report's list of pairs."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1180, "height": 1290}, color_scheme="light")
        page.goto(file.resolve().as_uri())
        if not part:  # as far as its pairs
            page.locator("details.part summary").nth(1).click()
            end = page.locator("h2", has_text="Pairs").bounding_box()
            page.set_viewport_size({"width": 1180, "height": int(end["y"])})
        if part == "pairs":
            page.locator("#pairs summary").first.click()
            page.locator("#pairs details[open] .sides").wait_for()
            page.set_viewport_size({"width": 1180, "height": 640})
            page.evaluate("document.querySelector('#controls').scrollIntoView()")
        page.screenshot(path=IMAGES / {"pairs": "report-pairs.png", "stats": "stats.png", "": "report.png"}[part])
        browser.close()


def main() -> None:
    """Two pictures: labelling in light colours, the reveal of a comparison in dark ones; or that of a report."""
    if CHROMIUM is None:
        sys.exit("no Chromium on PATH: run `make system`")
    if len(sys.argv) > 1:
        return photograph_file(Path(sys.argv[1]), (sys.argv[2:] or [""])[0])
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        store = Store(str(Path(folder) / "labels.db"))
        drafts = [
            Draft(
                [{"role": "user", "content": QUESTION + " " * n}],
                [Response([{"role": "assistant", "content": answer}]) for answer in (SHORT, OTHER)],
                "",
            )
            for n in range(40)
        ]
        labels = store.add_batch("labels", "", drafts)
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        labelling = BlindSession(store, labels.batch_id, title="Labelling")
        photograph(browser, labelling, IMAGES / "label.png", "12t1s12", "light")
        photograph(browser, judged_comparison(store), IMAGES / "side-by-side.png", "", "dark", "end")
        browser.close()
        store.close()


if __name__ == "__main__":
    main()
