"""The page in a real browser: keys, blindness, hostile text, and the whole road from label to pairs."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from prefkit.judgements.items import Draft, Response
from prefkit.judgements.store import Store
from prefkit.web.session import BlindSession, Results

NAMES = ("zephyr-zqxsecret-7b", "mistral-zqxsecret-8x")


def text(words, role="assistant"):
    return [{"role": role, "content": words}]


def make_session(tmp_path, drafts, results=None):
    store = Store(str(tmp_path / "labels.db"))
    origin = {"url": "https://origin-zqxsecret.example/a", "author": "author-zqxsecret", "license": "licence-zqxsecret"}
    drafts = [
        Draft(
            d.prompt,
            [Response(r.messages, n, origin) for r, n in zip(d.responses, NAMES, strict=True)],
            "group-zqxsecret",
            origin,
        )
        for d in drafts
    ]
    batch = store.add_batch("labels", "file-zqxsecret", drafts)
    return BlindSession(store, batch.batch_id, title="Which is better?", results=results)


def plain(n):
    return [
        Draft(text(f"question {i}", "user"), [Response(text(f"first {i}")), Response(text(f"second {i}"))], "")
        for i in range(n)
    ]


def judgements(session):
    store = session.store
    return store.judged(store.judge("ann"))


def test_the_whole_flow_by_keyboard(tmp_path, open_page):
    session = make_session(tmp_path, plain(5))
    visit = open_page(session)
    first = visit.item()
    assert visit.count() == "0 of 5"
    assert visit.page.is_disabled("button[data-choice=undo]")
    left = visit.page.inner_text(".pk-answer >> nth=0").removeprefix("A").strip()
    assert visit.press("1") == "Saved: A is better."
    (row,) = session.store.votes([first])
    assert session.store.item(first).responses[row.winner] == text(left)
    assert row.milliseconds > 0
    second = visit.item()
    assert visit.press("2") == "Saved: B is better."
    assert visit.press("u").startswith("Taken back.")
    assert visit.item() == second
    assert visit.count() == "1 of 5"
    assert visit.press("t") == "Saved: Tie."
    assert visit.press("s") == "Saved: Skipped."
    assert visit.click("a") == "Saved: A is better."
    visit.press("T")  # caps lock
    assert visit.count() == "5 of 5"
    assert "All 5 pairs are done, 1 of them skipped." in visit.page.inner_text(".pk-done")
    assert visit.page.is_disabled("button[data-choice=a]")
    last = [i for i in session.store.item_ids(session.batch_id)]
    visit.press("U")
    assert visit.item() in last
    assert visit.count() == "4 of 5"
    assert sorted(judgements(session).values()) == ["better", "better", "skip", "tie"]
    assert visit.errors == []


def test_keys_are_ignored_while_typing_with_modifiers_and_when_held(tmp_path, open_page):
    session = make_session(tmp_path, plain(4))
    visit = open_page(session)
    before = visit.screen()
    visit.page.evaluate(
        """() => { for (const tag of ['input', 'textarea', 'div']) {
            const e = document.createElement(tag); e.id = 'typing-' + tag; e.contentEditable = tag === 'div'; document.body.append(e); } }"""
    )
    for tag in ("input", "textarea", "div"):
        visit.page.focus(f"#typing-{tag}")
        visit.page.keyboard.press("1")
    assert visit.page.input_value("#typing-input") == "1"
    visit.page.evaluate("document.activeElement.blur()")
    for combination in ("Control+1", "Alt+2", "Meta+t", "Control+u"):
        visit.page.keyboard.press(combination)
    visit.page.evaluate("document.dispatchEvent(new KeyboardEvent('keydown', {key: '1', repeat: true}))")
    visit.page.keyboard.press("x")
    assert visit.screen() == before
    item = visit.item()
    visit.press("s")  # had any of the keys counted, this would not be the first event
    assert judgements(session) == {item: "skip"}


def test_a_key_pressed_twice_or_held_on_a_button_judges_no_pair_unseen(tmp_path, open_page):
    visit = open_page(make_session(tmp_path, plain(6)))
    visit.press("1")
    visit.page.keyboard.press("1")
    visit.settle()
    assert visit.count() == "1 of 6"
    visit.page.focus("button[data-choice=b]")
    before = visit.screen()
    visit.page.keyboard.down("Enter")
    visit.wait_after(before)
    for _ in range(20):  # held down: the keyboard repeats it
        visit.page.wait_for_timeout(50)
        visit.page.keyboard.down("Enter")
    visit.page.keyboard.up("Enter")
    assert visit.count() == "2 of 6"


def test_a_vote_that_cannot_be_stored_is_said_with_its_reason(tmp_path, open_page):
    session = make_session(tmp_path, plain(3))
    visit = open_page(session)
    item = visit.item()
    with session.store.engine.begin() as c:
        c.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON judgement BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"
        )
    assert visit.press("1").startswith("cannot write to the database: the disk is full: is there space")
    assert (visit.item(), judgements(session)) == (item, {})
    with session.store.engine.begin() as c:
        c.exec_driver_sql("DROP TRIGGER full")
    assert visit.press("1") == "Saved: A is better."
    assert judgements(session) == {item: "better"}
    assert "labels.db" not in visit.received()


def press_without_an_answer(visit):
    """Key 1, whose request is held back until the page has said so; the request, in a list."""
    held = []
    visit.page.route("**/gradio_api/run/**", lambda route: held.append(route) if not held else route.continue_())
    visit.page.keyboard.press("1")
    visit.page.wait_for_function("document.querySelector('.pk-said').textContent.startsWith('Not saved yet')")
    return held


def test_a_choice_that_is_not_yet_answered_cannot_land_after_another(tmp_path, open_page):
    session = make_session(tmp_path, plain(3))
    visit = open_page(session)
    press_without_an_answer(visit)
    for key in ("2", "u"):
        visit.page.keyboard.press(key)
        assert visit.page.inner_text(".pk-said").startswith("Another choice is not saved yet")
    assert visit.press("1") == "Saved: A is better."
    assert list(judgements(session).values()) == ["better"]


def test_pressing_faster_than_the_server_answers_judges_one_item_once(tmp_path, open_page):
    session = make_session(tmp_path, plain(4))
    visit = open_page(session)
    before, item = visit.screen(), visit.item()
    visit.page.evaluate(
        "for (const key of ['1', '2', '1', 't']) document.dispatchEvent(new KeyboardEvent('keydown', {key}))"
    )
    visit.wait_after(before)
    visit.press("s")
    with session.store.engine.connect() as c:
        events = c.exec_driver_sql("SELECT item_id, outcome FROM judgement ORDER BY seq").all()
    assert events[0] == (item, "better")
    assert [outcome for _, outcome in events] == ["better", "skip"]


def test_an_answer_that_does_not_come_is_said_and_the_key_pressed_again_is_the_same_event(tmp_path, open_page):
    session = make_session(tmp_path, plain(3))
    visit = open_page(session)
    held = press_without_an_answer(visit)
    assert visit.press("1") == "Saved: A is better."
    held[0].fetch()  # now the first arrives too
    with session.store.engine.connect() as c:
        ids = c.exec_driver_sql("SELECT id FROM judgement").scalars().all()
    assert ids == [json.loads(held[0].request.post_data)["event_data"]["id"]]


def test_after_a_lost_connection_the_page_comes_back_with_what_is_stored(tmp_path, open_page):
    session = make_session(tmp_path, plain(3))
    visit = open_page(session)
    item = visit.item()

    def lose(route):
        route.fetch()  # the server stores it
        route.abort()  # the browser never hears

    visit.page.route("**/gradio_api/run/**", lose, times=1)
    visit.page.keyboard.press("1")
    visit.page.wait_for_function(
        "old => (document.querySelector('#pk .pk')?.dataset.item ?? old) !== old", arg=item, timeout=30_000
    )
    assert visit.count() == "1 of 3"
    assert judgements(session) == {item: "better"}


def test_a_reload_resumes(tmp_path, open_page):
    visit = open_page(make_session(tmp_path, plain(4)))
    visit.press("1")
    item = visit.item()
    visit.page.reload()
    visit.page.wait_for_selector("#pk .pk[data-view]")
    assert (visit.item(), visit.count()) == (item, "1 of 4")


def test_nothing_that_names_the_sides_reaches_the_browser_before_the_reveal(tmp_path, open_page):
    table = Results(["", "wins"], [[name, "1"] for name in NAMES], ["That was it."])
    session = make_session(tmp_path, plain(3), results=lambda: table)
    visit = open_page(session)
    for key in "1t2":
        visit.press(key)
    before = visit.received()
    assert "question 1" in before  # the search does look where the text is
    assert not re.search(r"zqxsecret|labels\.db", before, re.IGNORECASE)
    assert not re.search(r"origin|producer", visit.page.inner_html("#pk"))
    visit.click("end")
    assert all(name in visit.page.inner_text(".pk-results") for name in NAMES)
    visit.click("back")
    assert all(name not in visit.page.content() for name in NAMES)


def test_ending_early_takes_two_steps(tmp_path, open_page):
    session = make_session(tmp_path, plain(3), results=lambda: Results(["", "wins"], [["one", "1"]], []))
    visit = open_page(session)
    visit.press("1")
    assert not visit.page.is_visible("button[data-choice=end]")
    visit.page.click("details.pk-end summary")
    visit.click("end")
    assert visit.page.inner_text(".pk-results h2") == "Results"
    visit.click("back")
    visit.press("2")
    flags = [v.flags for v in session.store.votes(session.store.item_ids(session.batch_id))]
    assert flags == [[], ["after_reveal"]]


HOSTILE = """<script>window.hacked = 1</script> <img src=x onerror="window.hacked=2"> ![p](https://tracker.example/pixel.png)
[click](javascript:window.hacked=3) <svg onload="window.hacked=4"> <iframe src="https://frame.example"></iframe>
${window.hacked = 5} {{window.hacked}} {{{value}}} `${alert(1)}` <a href="javascript:window.hacked=6">x</a> \\` \\${window.hacked=7}
<style>#pk { display: none }</style> <meta http-equiv="refresh" content="0;url=https://meta.example"> <link rel=prefetch href="https://link.example">
"""


def test_hostile_text_neither_runs_nor_fetches(tmp_path, open_page):
    hostile = [
        Draft(
            text(HOSTILE, "user"),
            [Response(text(HOSTILE + str(i))), Response(text(f"{i}</div></div><script>window.hacked=8</script>"))],
            "",
        )
        for i in (1, 2)
    ]
    visit = open_page(make_session(tmp_path, hostile))
    visit.press("1")
    assert visit.page.evaluate("window.hacked") is None
    assert "<script>window.hacked = 1</script>" in visit.page.inner_text(".pk-prompt")
    assert "${window.hacked = 5} {{window.hacked}} {{{value}}}" in visit.page.inner_text(".pk-prompt")
    assert visit.page.query_selector("#pk :is(script, img, svg, iframe, style, meta, link)") is None
    visit.page.click("text=image: p", button="middle", trial=True)
    hosts = {u.split("/")[2] for u in visit.requests if u.startswith("http")}
    assert hosts == {visit.page.url.split("/")[2]}  # no font, no script, no picture from elsewhere
    assert visit.errors == []


def test_buttons_are_named_and_reached_in_order_and_keep_the_focus(tmp_path, open_page):
    visit = open_page(make_session(tmp_path, plain(3)))
    assert visit.page.get_attribute("button[data-choice=a]", "aria-keyshortcuts") == "1"
    reached = []
    for _ in range(4):
        visit.page.keyboard.press("Tab")
        reached.append(visit.page.evaluate("document.activeElement.dataset.choice"))
    assert reached == ["a", "tie", "b", "skip"]
    visit.press("Enter")
    assert visit.page.evaluate("document.activeElement.dataset.choice") == "skip"
    assert visit.page.get_attribute("[role=progressbar]", "aria-valuenow") == "1"


def test_lists_keep_their_size_and_words_of_tables_stay_whole(tmp_path, open_page):
    table = "| Ingredient | Quantity | Temperature | Fermentation | Remarks |\n|---|---|---|---|---|\n| Crystal | 5.25 kg | warm | slow | none |"
    nested = "- one\n  - two\n    - three\n      - four"
    draft = Draft(text("q", "user"), [Response(text(table)), Response(text(nested))], "")
    visit = open_page(make_session(tmp_path, [draft]), viewport={"width": 375, "height": 800})
    sizes = visit.page.eval_on_selector_all(".pk-text li", "items => items.map(i => getComputedStyle(i).fontSize)")
    assert sizes == ["16px"] * 4
    heights = visit.page.eval_on_selector_all(
        ".pk-text th", "cells => cells.map(c => c.getBoundingClientRect().height)"
    )
    assert max(heights) < 2 * 1.55 * 16  # one line
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 375


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_nothing_overflows_on_a_phone(tmp_path, open_page, scheme):
    long = [
        Draft(
            text("x" * 300 + "\n\n```\n" + "code " * 60 + "\n```", "user"),
            [Response(text("| a | b |\n|---|---|\n| 1 | " + "w" * 400 + " |")), Response(text("short"))],
            "",
        )
    ]
    visit = open_page(make_session(tmp_path, long), color_scheme=scheme, viewport={"width": 400, "height": 800})
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 400
    bottoms = visit.page.eval_on_selector_all(".pk-keys button", "bs => bs.map(b => b.getBoundingClientRect().bottom)")
    assert max(bottoms) <= 800  # the buttons stay in sight however long the texts are
    for selector in (
        ".pk-text p",
        ".pk-question",
        ".pk-count",
        ".pk-answer h2",
        ".pk-keys button span",
        ".pk-keys kbd",
    ):
        assert visit.page.evaluate(CONTRAST, selector) >= 4.5, selector


CONTRAST = """selector => {
  const light = c => { const f = c.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255).map(x => x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2]; };
  const element = document.querySelector(selector);
  let behind = element;
  while (/rgba\\(.*, 0\\)/.test(getComputedStyle(behind).backgroundColor)) behind = behind.parentElement;
  const [a, b] = [light(getComputedStyle(element).color), light(getComputedStyle(behind).backgroundColor)].sort((x, y) => y - x);
  return (a + 0.05) / (b + 0.05);
}"""


def test_foreign_hosts_and_origins_are_refused(tmp_path, open_page):
    visit = open_page(make_session(tmp_path, plain(1)))
    address = visit.page.url.split("/")[2]

    def status(**headers):
        connection = http.client.HTTPConnection(address)
        connection.request("GET", "/config", headers=headers)
        response = connection.getresponse()
        assert response.status == 403 or "default-src 'self'" in response.headers["content-security-policy"]
        return response.status

    assert status() == 200
    assert status(Origin=f"http://{address}") == 200
    assert status(Host="evil.example") == 403
    assert status(Origin="https://evil.example") == 403
    assert status(Origin="null") == 403


@pytest.fixture
def run_prefkit(tmp_path):
    processes = []

    def start(*argv):
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "prefkit.cli", *argv],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_label_then_convert_gives_the_pairs_that_were_chosen(tmp_path, run_prefkit, visit_address):
    items = [{"prompt": f"Question {i}?", "responses": [f"right {i}", f"wrong {i}"]} for i in range(4)]
    (tmp_path / "zqxsecret.jsonl").write_text("".join(json.dumps(i) + "\n" for i in items))
    labelling = run_prefkit("label", "zqxsecret.jsonl", "--db", "labels.db", "--port", "0", "--judge", "ann")
    said = []
    while not (said and said[-1].startswith("open ")):
        said.append(labelling.stdout.readline())
        assert said[-1], labelling.stderr.read()
    assert said[0].strip() == "zqxsecret.jsonl: 4 pairs to judge"
    visit = visit_address(said[-1].split()[1])
    for key in "prrt":
        side = "1" if "right" in visit.page.inner_text(".pk-answer >> nth=0") else "2"
        visit.press({"p": side, "r": side, "t": "t"}[key])
    assert not re.search(r"zqxsecret|labels\.db", visit.received())
    labelling.send_signal(signal.SIGINT)
    time.sleep(0.05)
    labelling.send_signal(signal.SIGINT)  # pressed again, as people do: what the first ends is not cut
    out, err = labelling.communicate(timeout=30)
    assert (labelling.returncode, err) == (0, "")
    assert "4 of 4 judged (4 now, 0 skipped), kept in labels.db" in out
    assert out.endswith("next: prefkit convert labels.db --source judgements --out DIR\n")

    from prefkit.convert import convert_dataset
    from prefkit.shards import open_pairs

    manifest = convert_dataset(tmp_path / "labels.db", tmp_path / "out", source="judgements")
    pairs = open_pairs(tmp_path / "out").to_pylist()
    assert len(pairs) == 3
    for pair in pairs:
        assert pair["chosen"][0]["content"].startswith("right")
        assert pair["rejected"][0]["content"].startswith("wrong")
    assert manifest.sources["judgements"]["records"]["unused"] == {"only_ties": 1}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["absent.jsonl"], "no such data set or file"),
        (["items.jsonl", "--host", "0.0.0.0"], "without a login"),  # noqa: S104
        (["items.jsonl", "--limit", "0"], "--limit 0"),
        (["items.jsonl", "--split", "test"], "a file has no splits (items.jsonl): leave --split out"),
        (["empty.jsonl"], "nothing to judge: 1 not two responses (empty.jsonl)"),
        (["items.jsonl", "--db", "items.jsonl"], "cannot open the database"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(tmp_path, run_prefkit, argv, words):
    (tmp_path / "items.jsonl").write_text('{"prompt": "q", "responses": ["a", "b"]}\n')
    (tmp_path / "empty.jsonl").write_text('{"prompt": "q"}\n')
    process = run_prefkit("label", *argv, *([] if "--db" in argv else ["--db", "labels.db"]))
    err = process.communicate(timeout=30)[1]
    assert process.returncode == 2, err
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1
