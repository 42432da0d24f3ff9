"""Numbers of a data set against plain counting, and a page that stays a page whatever the texts say."""

import re
from itertools import product

import numpy as np
import pytest
from dumps import answer, question, write_dump
from hypothesis import given
from hypothesis import strategies as st

from prefkit import convert_dataset, open_pairs
from prefkit.cli import app, run
from prefkit.stats import auc, describe


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.lists(st.integers(0, 9), min_size=1, max_size=12))
def test_auc_is_the_share_of_pairs_won(positive, negative):
    won = [(a > b) + 0.5 * (a == b) for a, b in product(positive, negative)]
    assert auc(np.array(positive), np.array(negative)) == pytest.approx(sum(won) / len(won))


@pytest.fixture
def data(tmp_path):
    rows = [
        question(1),
        answer(2, 1, 9, body="<ul>\n<li>one</li>\n<li>two</li>\n</ul>\n<p>and <code>so</code> on</p>"),
        answer(3, 1, 1, CreationDate="2021-05-01T00:00:00", body="<p>plain</p>"),
        question(10),
        answer(11, 10, 4, CreationDate="2018-01-01T00:00:00", body="<pre><code>x = 1\n</code></pre>"),
        answer(12, 10, 0, CreationDate="2017-01-01T00:00:00", body="<p><strong>Bold</strong> words</p>"),
        answer(21, 20, 1),
    ]
    convert_dataset(write_dump(tmp_path / "a<img src=x>", rows), tmp_path / "out", splits="train=1")
    return tmp_path / "out"


def test_years_formats_and_lengths(data):
    found = describe(data)
    assert found.years == {"a<img src=x>": {"2018": 1, "2021": 1}}
    assert found.formats["list"] == (0.5, 0)
    assert found.formats["code block"] == (0.5, 0)
    assert found.formats["inline code"] == (0.5, 0)
    assert found.formats["bold"] == (0, 0.5)
    assert found.rejects == {"orphan_answer": 1}
    rows = open_pairs(data).to_pylist()
    longer = [len(r["chosen"][0]["content"]) > len(r["rejected"][0]["content"]) for r in rows]
    assert found.longer_wins == sum(longer) / 2
    assert sum(found.histograms["prompt"]) == 2


def test_the_page_needs_nothing_and_escapes_everything(data, tmp_path, capsys):
    assert run(app, ["stats", str(data), "--html", str(tmp_path / "page/stats.html")]) == 0
    assert "AUC of" in capsys.readouterr().out
    page = (tmp_path / "page/stats.html").read_text("utf-8")
    assert "<img" not in page
    assert "a&lt;img src=x&gt;" in page
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", page)
    assert page.count("<svg") >= 4
    assert "default-src 'none'" in page


def test_an_empty_data_set_has_numbers_too(tmp_path):
    manifest = convert_dataset(write_dump(tmp_path / "in", [question(1)]), tmp_path / "out")
    assert describe(tmp_path / "out").longer_wins is None
    assert manifest.splits["train"]["rows"] == 0
    assert run(app, ["stats", str(tmp_path / "out"), "--html", str(tmp_path / "s.html")]) == 0
