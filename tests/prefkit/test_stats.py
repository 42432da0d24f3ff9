"""What `prefkit stats` says of a data set, against counts made by hand and by plain loops."""

import json

import pyarrow as pa
import pytest
from scipy.stats import spearmanr

from prefkit import convert_dataset, open_pairs
from prefkit.errors import UserError
from prefkit.formats import FORMATS, format_counts
from prefkit.stats import describe
from prefkit.stats_page import write_page
from prefkit.stats_text import lines

HOLDS = {
    "code block": "Do\n```\nx\n```",
    "inline code": "Use `x` there",
    "list": "Either\n- this\n- that",
    "heading": "# First\nthen",
    "bold": "It is **so**",
    "link": "[here](http://x.org/a)",
    "table": "| a | b |\n|---|---|\n| 1 | 2 |",
    "quotation": "> they said\n\nno",
    "mathematics": "so $x^2$ grows",
}


def made(folder, rows):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    convert_dataset(file, folder / "<b>data", source="pairs", splits="train=.5,test=.5", near=0)
    return folder / "<b>data"


def test_every_format_is_seen_and_nothing_else_is(tmp_path):
    assert HOLDS.keys() == FORMATS.keys()
    rows = [{"prompt": f"{n}?", "chosen": text, "rejected": "plain words"} for n, text in HOLDS.items()]
    rows.append({"prompt": "list!", "chosen": "plain words 2", "rejected": HOLDS["list"]})
    found = describe(made(tmp_path, rows))
    for name, f in found.formats.items():
        assert f.chosen == pytest.approx(1 / 10), name
        assert f.n == (2 if name == "list" else 1)
        assert f.wins.value == (0.5 if name == "list" else 1)


def test_formats_are_counted_and_code_is_code_alone():
    text = (
        "# A\n## B\n- one\n- **two**\n\n```py\n# a remark\n- x = **y**\n```\nso\n~~~\n# more\n~~~\n```\n# never closed"
    )
    turns = pa.chunked_array([[[{"role": "assistant", "content": text}] * 2, [{"role": "assistant", "content": ""}]]])
    found = {name: counts.tolist() for name, counts in format_counts(turns).items()}
    assert {n: c[0] / 2 for n, c in found.items() if c[0]} == {"heading": 2, "list": 2, "bold": 1, "code block": 3}
    assert all(c[1] == 0 for c in found.values())


def test_code_within_a_line_opens_no_block():
    turns = pa.chunked_array(
        [[[{"role": "assistant", "content": "```x``` does it:\n# Heading\n- one\n```\n# code\n```"}]]]
    )
    found = {name: int(counts[0]) for name, counts in format_counts(turns).items()}
    assert (found["code block"], found["heading"], found["list"]) == (1, 1, 1)


def test_lengths_are_those_of_plain_loops(tmp_path):
    rows = [{"prompt": f"What {n}?", "chosen": "c" * (n * 7 % 11 + 1), "rejected": "r" * (n + 1)} for n in range(12)]
    for n, row in enumerate(rows[:-1]):
        row["margin"] = n * 5 % 7
    data = made(tmp_path, rows)
    found = describe(data)
    pairs = [p for split in ("train", "test") for p in open_pairs(data, split).to_pylist()]
    lengths = [(len(p["chosen"][0]["content"]), len(p["rejected"][0]["content"])) for p in pairs]

    def beats(a, b):
        return (a > b) + 0.5 * (a == b)

    assert found.longer_wins.value == pytest.approx(sum(beats(c, r) for c, r in lengths) / len(lengths))
    assert found.longer_wins.low < found.longer_wins.value < found.longer_wins.high
    every = [beats(c, r) for c, _ in lengths for _, r in lengths]
    assert found.length_auc == pytest.approx(sum(every) / len(every))
    known = [(p["margin"], c - r) for p, (c, r) in zip(pairs, lengths, strict=True) if p["margin"] is not None]
    assert len(known) == len(rows) - 1
    assert found.length_margin == pytest.approx(spearmanr(*zip(*known, strict=True)).statistic)
    assert sum(found.doublings["chosen"]) == len(pairs)
    assert found.doublings["chosen"][1] == sum(c == 1 for c, _ in lengths)
    assert found.doublings["chosen"][2] == sum(c in (2, 3) for c, _ in lengths)


def test_the_page_is_one_file_without_requests_and_escapes_names(tmp_path):
    data = made(tmp_path, [{"prompt": "Why?", "chosen": "So.", "rejected": "No."}])
    page = tmp_path / "page.html"
    write_page(describe(data), data, page)
    text = page.read_text()
    assert "&lt;b&gt;data" in text
    assert "<b>" not in text
    assert "http" not in text.replace("http-equiv", "")
    with pytest.raises(UserError, match="exists already"):
        write_page(describe(data), data, page)


def test_years_are_those_of_the_posts(tmp_path):
    from prefkit.sample import write_sample

    write_sample(tmp_path / "s.example")
    convert_dataset(tmp_path / "s.example", tmp_path / "data")
    years = describe(tmp_path / "data").years
    pairs = [p for split in ("train", "test") for p in open_pairs(tmp_path / "data", split).to_pylist()]
    assert sum(n for subset in years.values() for n in subset.values()) == len(pairs)
    for year in years["s.example"]:
        assert years["s.example"][year] == sum(str(p["created"].year) == year for p in pairs)


def test_what_does_not_fit_the_scale_is_counted_too(tmp_path):
    rows = [
        {"prompt": f"{i} why?", "chosen": f"yes {i}", "rejected": "no", "score_chosen": i + 0.1, "score_rejected": i}
        | {"margin": 2.5 if i else 0.1}
        for i in range(9)
    ]
    found = describe(made(tmp_path, rows))
    assert found.scores == {"0.1": 9}
    assert (sum(found.margins), found.other_margins) == (1, 8)
    assert "margin     0.1 to 0.2: 1, outside 0 to 1: 8" in list(lines(found))


def test_flags_are_those_of_the_pairs_that_are_left(tmp_path):
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"{i} why?", "chosen": f"yes {i}", "rejected": "no", "margin": i / 10} for i in range(9)]
    file.write_text("".join(json.dumps(r) + "\n" for r in [*rows, rows[8]]))
    convert_dataset(file, tmp_path / "out", where="margin > 0.35")
    assert describe(tmp_path / "out").flags == {"too_short": 5}
