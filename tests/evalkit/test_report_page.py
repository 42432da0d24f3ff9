"""report.html in a real browser: one file that asks for nothing, reads in light and dark, and lets no text act."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scored_pairs import random_scores, scores, with_margins, write

from evalkit.page import page
from evalkit.report import build_report, load_all
from evalkit.report_commands import report as report_command
from evalkit.scores import tokens_path
from evalkit.shown import KINDS, MOST_CHARS, _residual, choose, find_data, pairs_of
from evalkit.spelled import readable
from prefkit import convert_dataset, open_pairs
from prefkit.errors import UserError
from prefkit.html import json_block
from prefkit.shards import read_manifest
from prefkit.trace_scores import score_steps
from prefkit.unseen import visible

HOSTILE = [
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "<svg/onload=document.title='owned'>",
    '"><a href="javascript:document.title=1">x</a>',
    "<!--<script>",
    "\u202eevil\u202c right to left \u2066isolate\u2069",
    "{{ 7 * 7 }} {% raw %} ${7*7}",
    "]]> \u2028 & &amp; <b>bold</b>",
]


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """A data set of hostile texts, its scores and tokens, and the report the command makes of them."""
    folder = tmp_path_factory.mktemp("page")
    with (folder / "pairs.jsonl").open("w") as f:
        for n in range(60):
            word = HOSTILE[n % len(HOSTILE)]
            row = {"prompt": f"Question {n}? {word}", "chosen": f"Yes, {n}. {word}", "rejected": f"No: {word}"}
            f.write(json.dumps(row) + "\n")
    convert_dataset(folder / "pairs.jsonl", folder / "data", source="pairs", splits="test=1")
    pairs = open_pairs(folder / "data", "test")
    n = pairs.num_rows
    table = random_scores(n, n, seed=2)
    table = table.set_column(0, "id", [pairs["id"].to_pylist()])
    table = table.set_column(4, "subset", [[HOSTILE[i % 3] for i in range(n)]])
    table = table.set_column(5, "policy", [[HOSTILE[0]] * n])
    write(table, folder / "scores", data="data", manifest=read_manifest(folder / "data").digest, template=HOSTILE[1])
    tokens = [
        {
            "id": p["id"],
            "prompt_tokens": ["Q"],
            **{f"{s}_tokens": ["<b>", HOSTILE[0], "▁word", "\u202e"] for s in ("chosen", "rejected")},
            **{f"{w}_{s}": [row[f"{w}_{s}"] / 4] * 4 for w in ("policy", "ref") for s in ("chosen", "rejected")},
        }
        for p, row in zip(pairs.to_pylist(), table.to_pylist(), strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(tokens), folder / "scores" / "tokens.parquet")
    report_command(folder / "scores", out=folder / "report")
    return folder


@pytest.fixture
def opened(road, chromium):
    """The page as a file in a browser, with all it asked for and all that went wrong."""
    seen = {"requests": [], "errors": []}
    window = chromium.new_context(viewport={"width": 1280, "height": 900})
    tab = window.new_page()
    tab.on("request", lambda r: seen["requests"].append(r.url))
    tab.on("pageerror", lambda e: seen["errors"].append(str(e)))
    tab.on("console", lambda m: seen["errors"].append(m.text) if m.type in ("error", "warning") else None)
    tab.on("dialog", lambda d: (seen["errors"].append(d.message), d.dismiss()))
    tab.goto((road / "report" / "report.html").as_uri())
    yield tab, seen
    window.close()


def test_the_page_asks_for_nothing_and_no_text_acts(opened, road):
    tab, seen = opened
    for _ in range(tab.locator("#pairs details").count()):
        tab.evaluate("document.querySelector('#pairs details:not([open])')?.setAttribute('open', '')")
    tab.wait_for_function("[...document.querySelectorAll('#pairs details')].every(d => d.children.length > 1)")
    assert seen["requests"] == [(road / "report" / "report.html").as_uri()]
    assert seen["errors"] == []
    assert tab.title() != "owned"
    assert tab.locator("#pairs img, #pairs svg, #pairs a, #pairs b, #pairs script, main a").count() == 0
    assert "‹U+202E›evil" in tab.inner_text("#pairs")
    assert "\u202e" not in tab.content()
    assert "{{ 7 * 7 }}" in tab.inner_text("#pairs")


def test_numbers_and_plots_are_there_without_the_program(opened, road):
    tab, _ = opened
    report = json.loads((road / "report" / "report.json").read_text())
    assert f"{report['accuracy']['value']:.3f}" in tab.inner_text("header")
    assert tab.locator("svg[role=img]").count() >= 5
    tab.evaluate("document.querySelectorAll('details.part').forEach(d => { d.open = true })")
    assert all(tab.locator("svg[role=img]").nth(i).get_attribute("aria-label") for i in range(5))
    for title in ("Length.", "Displacement.", "Calibration."):
        assert title in tab.inner_text("main")


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_first_screen_is_the_number_what_it_is_beside_and_the_verdict(opened, road, width, height):
    """All else is folded, opens by the browser's own means, and prints as it would open."""
    tab, _ = opened
    tab.set_viewport_size({"width": width, "height": height})
    header, parts = tab.inner_text("header"), tab.locator("details.part")
    report = json.loads((road / "report" / "report.json").read_text())
    assert f"{report['accuracy']['value']:.3f}" in header
    assert "than guessing (p" in header or "not distinguishable from guessing" in header
    assert "longer answer wins" in header
    below = tab.locator("header").bounding_box()
    assert below["y"] + below["height"] < height * 0.8
    assert parts.count() == 5
    assert not any(parts.nth(i).get_attribute("open") for i in range(5))
    assert "Displacement." not in tab.inner_text("main")
    tab.locator("details.part summary").first.focus()
    tab.keyboard.press("Enter")
    assert "Displacement." in tab.inner_text("main")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.emulate_media(media="print")
    assert tab.locator("details.part dl").bounding_box()["height"] > 50


def test_pairs_are_filtered_searched_and_ordered(opened):
    tab, _ = opened
    count = tab.locator("#pairs details").count
    assert count() == 60
    tab.select_option("#side", "0")
    wrong = count()
    assert tab.inner_text("#count") == f"{wrong} pairs"
    assert 0 < wrong < 60
    assert all(m.startswith("−") for m in tab.locator("#pairs .margin").all_inner_texts())
    tab.select_option("#side", "")
    tab.fill("#search", "question 17?")
    assert count() == 1
    tab.fill("#search", "")
    tab.select_option("#order", "-margin")
    margins = [float(m.replace("−", "-")) for m in tab.locator("#pairs .margin").all_inner_texts()]
    assert margins == sorted(margins, reverse=True)
    tab.select_option("#kind", "worst")
    assert 0 < count() < 60


def test_pairs_within_the_noise_have_a_mark_and_a_filter(chromium, tmp_path):
    """Margins of one to sixty tenths at β 1 with a noise of .65: six."""
    table = scores(policy_chosen=np.arange(1, 61) / 10 - 5, ref_chosen=[-5.0] * 60, beta=[1.0] * 60)
    write(table, tmp_path / "scores", noise={"max": 0.65, "pairs": 60, "p95": 0.1, "how": ""})
    report_command(tmp_path / "scores", out=tmp_path / "out")
    tab = chromium.new_page()
    tab.goto((tmp_path / "out" / "report.html").as_uri())
    marked = [t for t in tab.locator("#pairs .is-right:not(.margin)").all_inner_texts() if t.endswith("±")]
    tab.select_option("#side", "±")
    assert tab.locator("#pairs details").count() == len(marked) == 6
    tab.close()


def test_a_pair_opens_by_keyboard_and_shows_its_tokens(opened):
    tab, _ = opened
    tab.focus("#pairs summary >> nth=0")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#pairs details[open] .sides")
    tokens = tab.locator("#pairs details[open] .text span").all_inner_texts()
    assert HOSTILE[0] in tokens
    assert " word" in tokens


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(road, chromium, scheme):
    tab = chromium.new_page(color_scheme=scheme)
    tab.goto((road / "report" / "report.html").as_uri())
    colours = tab.evaluate(
        "['color', 'backgroundColor'].map(k => getComputedStyle(document.body)[k].match(/[0-9]+/g).slice(0, 3).map(Number))"
    )

    def luminance(rgb):
        parts = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted(map(luminance, colours))
    assert (high + 0.05) / (low + 0.05) > 7
    tab.close()


def test_the_page_is_the_same_twice(road, tmp_path):
    report_command(road / "scores", out=tmp_path / "again")
    for name in ("report.html", "report.md", "report.json", "pairs.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (road / "report" / name).read_bytes(), name


def test_no_more_pairs_than_asked_for_and_each_kind_has_some():
    first, other = load_all([random_scores(3000, 900), random_scores(3000, 900, policy=["b"] * 3000)], None, None)
    other = load_all([other.table.take(pa.array(range(2999, -1, -1)))], "sum", None)[0]
    chosen = choose(first, [other], 160)
    assert len(chosen) == 160
    kinds = {k for why in chosen.values() for k in why}
    assert kinds == set(KINDS)
    worst = [row for row, why in chosen.items() if "worst" in why]
    assert set(worst) >= set(first.margin_N.argsort()[:10])
    assert choose(first, [], 0) == {}


def test_the_most_surprising_is_what_length_and_reference_do_not_foretell():
    """A margin that follows both but in one pair: neither the largest nor the longest, and yet the first shown."""
    rng = np.random.default_rng(0)
    d, ref = rng.integers(-50, 50, 200), rng.normal(0, 5, 200)
    margins = 1.0 + 0.1 * d - 0.4 * ref
    odd = int(np.argmin(np.abs(margins)))
    margins[odd] += 2.0
    columns = {"n_chosen": 100 + d, "n_rejected": [100] * 200}
    columns |= {"policy_chosen": margins + ref - 5, "policy_rejected": [-5.0] * 200}
    s = with_margins(np.zeros(200), **columns, ref_chosen=ref - 5, ref_rejected=[-5.0] * 200)
    assert s.margin_N == pytest.approx(margins)
    assert [row for row, why in choose(s, [], 8).items() if "surprising" in why] == [odd]
    left = _residual(s)
    for feature in (np.ones(200), d, ref):  # least squares leaves nothing that goes with a feature
        assert abs(left @ feature) < 1e-6 * np.abs(left).sum() * np.abs(feature).max()


def test_the_data_set_given_must_be_the_one_scored(road):
    (s,) = load_all([road / "scores"], None, None)
    assert find_data(s, road / "scores", None) == road / "data"
    convert_dataset(road / "pairs.jsonl", road / "other", source="pairs", splits="test=.5,train=.5")
    with pytest.raises(UserError, match="not the data set that was scored"):
        find_data(s, road / "scores", road / "other")


def test_tokens_of_other_scores_are_refused_and_a_damaged_data_set_nearby_is_not_taken(road, tmp_path):
    shutil.copytree(road / "scores", tmp_path / "scores")
    file = tmp_path / "scores" / "tokens.parquet"
    kept = pq.read_table(file).to_pylist()
    kept[7]["policy_chosen"][0] -= 5.0
    pq.write_table(pa.Table.from_pylist(kept), file)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{")
    (s,) = load_all([tmp_path / "scores"], None, None)
    assert find_data(s, tmp_path / "scores", None) is None
    with pytest.raises(UserError, match=f"not those of the scores, first in pair {kept[7]['id']}"):
        pairs_of(s, [], 100, tmp_path / "scores" / "scores.parquet", None)
    kept[7]["policy_chosen"][0] += 5.0
    kept[8]["ref_rejected"][1] += 5.0  # the reference's sums count too
    pq.write_table(pa.Table.from_pylist(kept), file)
    with pytest.raises(UserError, match=f"not those of the scores, first in pair {kept[8]['id']}"):
        pairs_of(s, [], 100, tmp_path / "scores" / "scores.parquet", None)
    file.write_bytes(b"rubbish")
    with pytest.raises(UserError, match="cannot read the tokens"):
        pairs_of(s, [], 100, tmp_path / "scores" / "scores.parquet", None)


def test_scores_of_another_name_have_tokens_of_that_name(road, tmp_path):
    """Two outputs in one folder: each has its own."""
    assert tokens_path(tmp_path) == tmp_path / "tokens.parquet"
    assert tokens_path(tmp_path / "scores.parquet") == tmp_path / "tokens.parquet"
    assert tokens_path(tmp_path / "dpo.parquet") == tmp_path / "dpo.tokens.parquet"
    for kind in ("scores.parquet", "scores.json"):
        shutil.copy(road / "scores" / kind, tmp_path / kind.replace("scores", "dpo"))
    (tmp_path / "tokens.parquet").write_bytes(b"of other scores")
    (s,) = load_all([tmp_path / "dpo.parquet"], None, None)
    assert all(p["spelled"] is None for p in pairs_of(s, [], 5, tmp_path / "dpo.parquet", None))
    shutil.copy(road / "scores" / "tokens.parquet", tmp_path / "dpo.tokens.parquet")
    assert all(p["spelled"] for p in pairs_of(s, [], 5, tmp_path / "dpo.parquet", None))
    steps = score_steps(s.table["id"][0].as_py(), tmp_path / "dpo.parquet")
    assert "tokens chosen" in [step.stage for step in steps]


def test_ids_and_names_in_the_page_are_made_visible(tmp_path):
    evil = "\u202egnp.exe"
    tables = [
        random_scores(5, 5).set_column(0, "id", [[f"{evil}{i}" for i in range(5)]])
        .set_column(1, "group_id", [[evil] * 5]).set_column(5, "policy", [[name] * 5])
        for name in (evil, f"{evil} two")
    ]  # fmt: skip
    first, second = load_all(tables, None, None)
    html = page(build_report(first, second), pairs_of(first, [second], 5, None, None))
    assert "\u202e" not in html
    assert html.count("‹U+202E›") > 10


def test_long_texts_are_cut_and_say_so(tmp_path):
    rows = [{"prompt": "p" * (MOST_CHARS + 5), "chosen": "yes", "rejected": "no"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    convert_dataset(tmp_path / "pairs.jsonl", tmp_path / "data", source="pairs", splits="test=1")
    table = random_scores(1, 1).set_column(0, "id", [open_pairs(tmp_path / "data", "test")["id"].to_pylist()])
    (s,) = load_all([table], None, None)
    (shown,) = pairs_of(s, [], 10, None, tmp_path / "data")
    assert shown["texts"]["prompt"].endswith(f"cut here: {MOST_CHARS + 5:,} characters in all")
    assert "owned" not in page(build_report(s), [shown])


def test_tokens_join_to_the_text_they_spell():
    assert "".join(readable(["ĠCaf", "Ã", "©", "Ċ", "ð", "Ł", "ĺ", "Ģ"])) == " Café\n😀"
    assert "".join(readable(["▁Caf", "<0xC3>", "<0xA9>", "<0x0A>", "</s>"])) == " Café\n</s>"
    assert readable([]) == []


def test_nothing_unseen_and_nothing_that_ends_a_block_is_left():
    assert visible("a\u202eb\x00c\ud800\n\t") == "a‹U+202E›b‹U+0000›c‹U+D800›\n\t"
    block = json_block({"x": HOSTILE})
    assert not set("<>&\u2028") & set(block)
    assert json.loads(str(block)) == {"x": HOSTILE}
