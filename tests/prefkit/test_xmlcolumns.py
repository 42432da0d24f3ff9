"""Rows by columns are the rows that XML has there, or none at all."""

from collections import Counter
from html import escape

import pytest
from dumps import answer, question, row_xml, write_dump, xml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefkit import convert_dataset
from prefkit.sources import dump_posts
from prefkit.xmlcolumns import columns
from prefkit.xmlrows import parse

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=30)
MARKUP = st.lists(
    st.sampled_from(["&lt;p&gt;", "&#xA;", "&amp;", "&quot;", "\t", "é", "'", ">", "=", "/>", " a "]), max_size=9
)
ROWS = st.lists(
    st.fixed_dictionaries({"Id": st.integers(1, 99)}, optional={"Body": TEXT, "Title": TEXT, "Raw": MARKUP}), min_size=1
)
PIECES = [b'"', b"<", b"<row ", b"/>", b"&", b"&#65;", b"&nosuch;", b"\x00", b"\n", b"\t", b"\xff", b"\xef\xbf\xbf", b"'", b"=",
          b"<!-- -->", b' Id="7"', b" xmlns='a'", b' xmlns="a"', b"x"]  # fmt: skip


def block_of(rows) -> bytes:
    """Rows as a dump writes them; `Raw` goes in as it is."""
    lines = []
    for row in rows:
        raw = "".join(row.get("Raw", []))
        values = {n: raw if n == "Raw" else escape(str(v)) for n, v in row.items()}
        lines.append("  <row " + " ".join(f'{n}="{v}"' for n, v in values.items()) + " />\r\n")
    return "".join(lines).encode()


def same(block: bytes) -> bool | None:
    """Whether both ways find the same rows, on the same lines, without a repair; None where columns leave it."""
    found, tally = columns(block, 5), Counter()
    if found is None:
        return None
    rows = [(int(line), found.row(i)) for i, line in enumerate(found.lines)]
    names = {name for _, row in rows for name in row}
    whole = {name: found.column(name).to_pylist() for name in names}
    assert [{n: whole[n][i] for n in row} for i, (_, row) in enumerate(rows)] == [row for _, row in rows]
    return rows == parse(block, 5, tally) and not tally


@settings(max_examples=200)
@given(ROWS, st.sampled_from([b"", b"<posts>\n", b'\xef\xbb\xbf<?xml version="1.0"?>\r\n<posts>\r\n', b'and 3" />\n']))
@example([{"Id": 1, "Raw": ["\t", "&#xA;", "\t"]}], b"")
def test_sound_rows_are_taken(rows, before):
    for end in (b"", b"</posts>", b"</posts>\n"):
        assert same(before + block_of(rows) + end)


@settings(max_examples=500)
@given(ROWS, st.lists(st.tuples(st.floats(0, 1), st.sampled_from(PIECES), st.integers(0, 9)), min_size=1, max_size=3))
def test_what_is_not_the_same_is_left_to_the_other_way(rows, damages):
    block = block_of(rows)
    for place, piece, lost in damages:
        at = int(place * len(block))
        block = block[:at] + piece + block[at + lost :]
    assert same(block) is not False


@pytest.mark.parametrize("piece", [b"&#65;", b"&nosuch;", b"\x0b", b"\n", b"<", b'" Id="8', b"\xff", "\uffff".encode()])
def test_unusual_values_are_left_to_the_other_way(piece):
    block = block_of([{"Id": 1, "Body": "ab"}, {"Id": 2, "Body": "cd"}])
    assert same(block)
    assert same(block.replace(b"cd", b"c" + piece + b"d")) is None


def test_posts_by_columns_are_the_posts_one_by_one(tmp_path, monkeypatch):
    """Every fate a post can have, in the middle of ordinary ones."""
    odd = [
        {"PostTypeId": "5"}, {"DeletionDate": "2020-01-01T00:00:00.000"}, {"OwnerUserId": "-1"}, {"OwnerUserId": "-2"},
        {"Score": "five"}, {"Score": None}, {"ParentId": None}, {"Score": "+5"}, {"Id": "1000000001"}, {"Body": None},
        {"Score": "12345678901234567890"}, {"AcceptedAnswerId": "x"}, {"Body": ""}, {"ContentLicense": None},
    ]  # fmt: skip
    rows = [question(i, title=f"Title {i} [closed]" if i == 3 else f"Title {i}") for i in range(1, 20)]
    rows[4]["Body"] = (
        '<blockquote><p><strong>Possible Duplicate:</strong> <a href="/questions/7/x">x</a></p></blockquote>Q'
    )
    rows += [answer(100 * i + k, i, k) for i in range(1, 20) for k in range(4)]
    rows += [answer(5000 + n, 1 + n % 19, 7) | change for n, change in enumerate(odd)]
    rows += [question(6000 + n) | change for n, change in enumerate(odd)]
    rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
    mixed = rows[::3] + rows[1::3] + rows[2::3]
    trees = []
    for name, way in (("columns", columns), ("rows", lambda block, line: None)):
        monkeypatch.setattr(dump_posts, "columns", way)
        source = write_dump(tmp_path / "dump", mixed)
        manifest = convert_dataset(source, tmp_path / name, options={"site": "beer"})
        trees.append((manifest.digest, manifest.files, manifest.sources))
    assert trees[0] == trees[1]
    assert set(trees[0][2]["stack-exchange-dump"]["records"]["rejected"]) >= {"missing_number", "implausible_id"}


def test_blocks_of_a_dump_are_taken():
    assert columns(xml([row_xml(question(1)), row_xml(answer(2, 1, 3))]), 0) is not None
