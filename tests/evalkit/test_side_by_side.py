"""Two files of answers: what is matched, what is hidden, what the reveal says."""

import json
import os
import re
import signal
import subprocess
import sys
import uuid

import numpy as np
import pytest

from evalkit.side_by_side.session import Tally, match, read_answers, results, store_items, tally
from prefkit.errors import UserError
from prefkit.judgements.items import Judgement
from prefkit.judgements.store import Store

ALPHA, BETA = "alpha-zqxsecret-7b", "beta-zqxsecret-8x"


def write(path, model, responses, prompts=None):
    lines = []
    for key, response in responses.items():
        prompt = (prompts or {}).get(key, f"Question {key}?")
        lines.append({"id": key, "prompt": [{"role": "user", "content": prompt}], "response": response, "model": model})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def files(tmp_path):
    a = write(
        tmp_path / "run-one.jsonl",
        ALPHA,
        {"1": "from alpha 1", "2": "from alpha 2", "3": "same", "5": "alone", "6": "x"},
    )
    b = write(
        tmp_path / "run-two.jsonl",
        BETA,
        {"1": "from beta 1", "2": "from beta 2", "3": "same", "4": "alone", "6": "y"},
        {"6": "Other?"},
    )
    return a, b


def test_answers_are_matched_by_prompt_and_the_rest_is_counted(files):
    matched = match(*map(read_answers, files))
    assert matched.names == (ALPHA, BETA)
    assert [d.prompt[0]["content"] for d in matched.different] == ["Question 1?", "Question 2?"]
    assert [d.prompt[0]["content"] for d in matched.identical] == ["Question 3?"]
    assert matched.left_out == {f"only in {ALPHA}": 1, f"only in {BETA}": 1, "same id, another prompt": 1}


def test_the_same_comparison_in_the_other_order_goes_on_where_it_was(files, tmp_path):
    a, b = map(read_answers, files)
    store = Store(str(tmp_path / "votes.db"))
    first, alike = store_items(store, match(a, b), "t", 0)
    second, _ = store_items(store, match(b, a), "t", 0)
    assert (first.batch_id, first.items, alike.items) == (second.batch_id, 2, 1)
    assert second.new == 0
    rule = store.votes(store.item_ids(alike.batch_id), ("rule",))
    assert [(v.judge_name, v.outcome) for v in rule] == [("identical", "tie")]
    assert store.votes(store.item_ids(alike.batch_id)) == []
    store.close()


def test_one_model_twice_is_told_apart_by_its_file(tmp_path):
    one = read_answers(write(tmp_path / "a.jsonl", "m", {"1": "x"}))
    two = read_answers(write(tmp_path / "b.jsonl", "m", {"1": "y"}))
    assert match(one, two).names == ("m (a.jsonl)", "m (b.jsonl)")
    assert match(two, one).names == ("m (b.jsonl)", "m (a.jsonl)")
    (tmp_path / "later").mkdir()
    other = read_answers(write(tmp_path / "later" / "a.jsonl", "m", {"1": "z"}))
    assert match(one, other).names == ("m (first file)", "m (second file)")


def test_repeated_ids_and_empty_answers(tmp_path):
    path = write(tmp_path / "a.jsonl", "m", {"1": ""})
    path.write_text(path.read_text() * 2)
    found = read_answers(path)
    assert (len(found.by_id), found.repeated) == (1, 1)
    assert found.by_id["1"][1] == [{"role": "assistant", "content": ""}]


def test_a_prompt_that_comes_twice_with_the_same_answers_is_judged_once_and_counted(tmp_path):
    prompts = dict.fromkeys("123", "The same?")
    a = read_answers(write(tmp_path / "a.jsonl", ALPHA, {"1": "x", "2": "x", "3": "y"}, prompts))
    b = read_answers(write(tmp_path / "b.jsonl", BETA, {"1": "y", "2": "y", "3": "x"}, prompts))
    matched = match(a, b)
    assert [[r.messages[0]["content"] for r in d.responses] for d in matched.different] == [["x", "y"]]
    assert matched.left_out == {"same prompt and answers under another id": 2}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no answers"),
        ('{"id": "1", "prompt": "p"}\n', r"not an answer.*a.jsonl:1"),
        ('{"id": "1", "prompt": "p", "response": "r"}\n{"id"\n', r"damaged line.*a.jsonl:2"),
        ('{"id": "9", "prompt": "p", "response": "r"}\n', "no prompt in common: 1 only in a, 1 only in m:"),
    ],
)
def test_bad_files_are_named_with_the_line(tmp_path, content, words):
    (tmp_path / "a.jsonl").write_text(content)
    other = read_answers(write(tmp_path / "b.jsonl", "m", {"1": "x"}))
    with pytest.raises(UserError, match=words):
        match(read_answers(tmp_path / "a.jsonl"), other)


def test_the_tally_counts_sides_by_who_made_them(tmp_path):
    a = read_answers(write(tmp_path / "a.jsonl", ALPHA, {str(n): f"a{n}" for n in range(6)}))
    b = read_answers(write(tmp_path / "b.jsonl", BETA, {str(n): f"b{n}" for n in range(6)}))
    matched = match(a, b)
    store = Store(str(tmp_path / "votes.db"))
    batch, _ = store_items(store, matched, "t", 0)
    ann = store.judge("ann")
    votes = ["a", "a", "b", "a", "tie", "skip"]
    for item, vote in zip(store.item_ids(batch.batch_id), votes, strict=True):
        responses = [r[0]["content"] for r in store.item(item).responses]
        winner = next((i for i, r in enumerate(responses) if r.startswith(vote)), None) if vote in "ab" else None
        outcome = "better" if winner is not None else vote
        store.record(ann, Judgement(str(uuid.uuid4()), batch.batch_id, item, (0, 1), outcome, winner))
    found = tally(store, batch.batch_id, matched.names)
    assert (found.wins, found.ties, found.skips, found.judges, found.items) == ((3, 1), 1, 1, 1, 6)
    store.close()


def test_results_say_wins_ties_losses_interval_and_position_bias():
    n = np.arange(10)
    found = results(Tally(n < 8, n % 2 == 0, n, 3, 1, 2, 2, 14, 4), (ALPHA, BETA))
    assert found.rows == [[ALPHA, "8", "3", "2", "80 % (49 to 94)"], [BETA, "2", "3", "8", "20 % (6 to 51)"]]
    words = " ".join(found.remarks)
    for part in (
        "13 judgements on 14 prompts by 2 judges; 1 skipped",
        "Side A was chosen in 5 of 10 decided: 50 % (24 to 76)",
        "4 more prompts had the same answer",
        "2 judgements were made after",
    ):
        assert part in words
    none = np.zeros(0, bool)
    assert results(Tally(none, none, none, 0, 0, 0, 0, 1, 0), ("a", "b")).rows[0][-1] == "–"


def test_three_judges_who_agree_are_no_sixty_prompts():
    """65 % of 20 prompts is 43 to 82 by Wilson's interval, whoever repeats it."""
    prompts, won = np.repeat(np.arange(20), 3), np.repeat(np.arange(20) < 13, 3)
    found = results(Tally(won, won, prompts, 0, 0, 0, 3, 20, 0), (ALPHA, BETA))
    assert found.rows[0][-1] == "65 % (42 to 83)"
    assert "Some prompts were judged more than once" in found.remarks[-1]


def test_side_by_side_stays_blind_in_the_browser_and_reveals_at_the_end(files, tmp_path, visit_address):
    argv = [
        sys.executable,
        "-m",
        "evalkit.cli",
        "side-by-side",
        *map(str, files),
        "--db",
        "votes.db",
        "--port",
        "0",
        "--judge",
        "ann",
    ]
    with subprocess.Popen(
        argv,
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        said = []
        while not (said and said[-1].startswith("open ")):
            said.append(process.stdout.readline())
            assert said[-1], process.stderr.read()
        assert said[0].startswith("2 prompts to judge · 1 identical, not shown · 1 left out: only in")
        visit = visit_address(said[-1].split()[1])
        for _ in range(2):  # this judge prefers beta
            visit.press("1" if "beta" in visit.page.inner_text(".pk-answer >> nth=0") else "2")
        before = visit.received()
        assert "from alpha 1" in before
        assert not re.search(r"zqxsecret|run-one|run-two|votes\.db", before)
        visit.click("end")
        rows = visit.page.eval_on_selector_all(
            ".pk-results tbody tr", "rows => rows.map(r => [...r.children].map(c => c.textContent))"
        )
        assert rows == [[ALPHA, "0", "0", "2", "0 % (0 to 66)"], [BETA, "2", "0", "0", "100 % (34 to 100)"]]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert BETA in out
    assert "100 % (34 to 100)" in out
    assert out.endswith("next: prefkit convert votes.db --source judgements --out DIR\n")


def test_where_all_answers_are_the_same_no_database_is_left(tmp_path):
    one, two = (write(tmp_path / f"{name}.jsonl", name, {"1": "x"}) for name in "ab")
    argv = [sys.executable, "-m", "evalkit.cli", "side-by-side", str(one), str(two), "--db", "votes.db", "--port", "0"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "both models gave the same answers" in done.stderr) == (2, True)
    assert not (tmp_path / "votes.db").exists()
