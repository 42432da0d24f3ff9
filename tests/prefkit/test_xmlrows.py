"""Rows survive any slicing, any damage costs the row it hits, and repairs are counted."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from dumps import answer, question, row_xml, xml
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from prefkit.xmlrows import Damaged, Framer, byte_range, parse, utf16

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), max_size=30)
ROWS = st.lists(st.fixed_dictionaries({"Id": st.integers(1, 99), "Body": TEXT, "Title": TEXT}), max_size=12)


def rows_of(chunks, block_bytes=64, tally=None):
    framer, found = Framer(block_bytes), []
    tally = Counter() if tally is None else tally
    for data in chunks:
        for line, block in framer.feed(data):
            found += parse(block, line, tally)
    for line, block in framer.close():
        found += parse(block, line, tally)
    return found


def expected(data: bytes):
    return [dict(r.attrib) for r in etree.fromstring(data, etree.XMLParser(huge_tree=True))]


@settings(max_examples=150)
@given(ROWS, st.sampled_from(["\r\n", "\n", " "]), st.lists(st.integers(0, 4000), max_size=8), st.integers(1, 300))
def test_any_slicing_gives_the_same_rows(rows, newline, cuts, block_bytes):
    data = xml(rows, newline=newline)
    want = expected(data)
    cuts = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "Posts.xml"
        path.write_bytes(data)
        got = [row for a, b in pairwise(cuts) for _, row in rows_of(byte_range(path, a, b), block_bytes)]
    assert got == want
    chunks = [data[a:b] for a, b in pairwise(cuts)]
    numbered = rows_of(chunks, block_bytes)
    assert [row for _, row in numbered] == want
    if newline != " ":
        assert [line for line, _ in numbered] == [2 + i for i in range(len(want))]


@settings(max_examples=100)
@given(st.integers(2, 9), st.data())
def test_a_damaged_row_costs_one_row(n, data):
    rows = [row_xml(answer(i, 1, i)) for i in range(n)]
    hit = data.draw(st.integers(0, n - 1))
    damage = data.draw(st.sampled_from(['Score="', "/>", 'Body="&nosuch;', "<row", 'Id=7"']))
    broken = {'Score="': rows[hit].replace('Score="', "Score="), "/>": rows[hit].replace("/>", ""),
              'Body="&nosuch;': rows[hit].replace('Body="', 'Body="&nosuch;'), "<row": rows[hit].replace("Id=", "Id=Id="),
              'Id=7"': rows[hit].replace('Id="', "Id=")}[damage]  # fmt: skip
    found = rows_of([xml([*rows[:hit], broken, *rows[hit + 1 :]])])
    assert [r["Id"] for _, r in found if not isinstance(r, Damaged)] == [str(i) for i in range(n) if i != hit]
    ((line, damaged),) = [(line, r) for line, r in found if isinstance(r, Damaged)]
    assert line == 2 + hit
    assert damaged.raw.startswith("<row ")


@pytest.mark.parametrize("bad", ["&#x0E;", "&#0;", "&#xB;", "&#xD83D;", "&#1;", "&#xFFFE;", "\x00", "\x0b"])
def test_illegal_characters_are_dropped_and_counted(bad):
    tally = Counter()
    broken = row_xml(answer(2, 1, 3, body="AB")).replace("AB", f"A{bad}B &#xA;&#65;")
    found = [r for _, r in rows_of([xml([question(1), broken, answer(3, 1, 4)])], tally=tally)]
    assert [r["Id"] for r in found] == ["1", "2", "3"]
    assert found[1]["Body"] == "AB \nA"
    assert tally["repairs.illegal_character"] == 1


def test_invalid_utf8_is_replaced_and_counted():
    tally = Counter()
    data = xml([answer(2, 1, 3, body="caf\u00e9")]).replace("caf\u00e9".encode(), b"caf\xe9")
    ((_, row),) = rows_of([data], tally=tally)
    assert row["Body"] == "caf\ufffd"
    assert tally["repairs.invalid_utf8"] == 1


@pytest.mark.parametrize(
    "prolog",
    [
        b"",
        b"<?xml version='1.0'?><!-- licence:\n  CC BY-SA -->\n<posts>",
        b"<!DOCTYPE posts SYSTEM 'posts.dtd' [<!ENTITY x 'y'>]><posts>",
        b"\xef\xbb\xbf  \n\n",
    ],
)
@pytest.mark.parametrize("tail", [b"</posts>", b"", b"</xml>", b'\n<row Id="9" Body="cut off he'])
def test_any_prolog_and_any_tail(prolog, tail):
    found = [r for _, r in rows_of([prolog + row_xml(question(1)).encode() + row_xml(answer(2, 1, 0)).encode() + tail])]
    assert [r["Id"] for r in found if isinstance(r, dict)] == ["1", "2"]
    assert sum(isinstance(r, Damaged) for r in found) == tail.endswith(b"he")


@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
@pytest.mark.parametrize("n", range(4))
def test_an_element_in_a_rows_place_is_counted_as_damage(block_bytes, n):
    rows = [row_xml(answer(i, 1, i)) for i in range(4)]
    rows[n] = rows[n].replace("<row", "<rwo")
    found = rows_of([xml(rows)], block_bytes)
    assert [r["Id"] for _, r in found if not isinstance(r, Damaged)] == [str(i) for i in range(4) if i != n]
    ((line, damaged),) = [(line, r) for line, r in found if isinstance(r, Damaged)]
    assert (line, damaged.raw) == (2 + n, rows[n].strip())


@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
@pytest.mark.parametrize("lost", ["<", "<row"])
@pytest.mark.parametrize("n", range(4))
def test_a_row_that_lost_its_beginning_is_counted_as_damage(block_bytes, lost, n):
    rows = [row_xml(answer(i, 1, i)) for i in range(4)]
    rows[n] = rows[n].replace(lost, "", 1)
    found = rows_of([xml(rows)], block_bytes)
    assert [r["Id"] for _, r in found if not isinstance(r, Damaged)] == [str(i) for i in range(4) if i != n]
    ((line, damaged),) = [(line, r) for line, r in found if isinstance(r, Damaged)]
    assert (line, damaged.raw) == (2 + n, rows[n].strip())


def test_a_root_of_another_name_with_attributes_is_no_damage():
    rows = [row_xml(answer(i, 1, i)) for i in range(2)]
    assert len(rows_of([xml(rows).replace(b"<posts>", b'<data version="1" kind="posts">')])) == 2


def test_comments_hold_neither_rows_nor_damage():
    data = xml([row_xml(answer(1, 1, 1))]).replace(b"<posts>", b'<!-- <a href="x">CC</a>\n <row Id="9" /> -->\n<posts>')
    ((line, row),) = rows_of([data])
    assert (line, row["Id"]) == (4, "1")


def test_markup_spilled_by_a_damaged_row_is_kept_with_it_and_counted_once():
    rows = [row_xml(answer(i, 1, i)) for i in range(3)]
    rows[1] = rows[1].replace('Body="', 'Body="<p><img src="a" /></p>', 1)
    found = rows_of([xml(rows)], 1 << 20)
    (damaged,) = [r for _, r in found if isinstance(r, Damaged)]
    assert damaged.raw == rows[1].strip()
    assert len(found) == 3


def test_entities_are_never_resolved(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("treasure")
    data = f'<!DOCTYPE r [<!ENTITY x SYSTEM "file://{secret}">]><posts><row Id="1" Body="&x;" /></posts>'.encode()
    ((_, row),) = rows_of([data])
    assert isinstance(row, Damaged)


def test_utf16_in_odd_chunks():
    data = xml([question(1, title="Brûlée 🍮")]).decode("utf-8-sig").encode("utf-16")
    ((_, row),) = rows_of(utf16(data[i : i + 7] for i in range(0, len(data), 7)))
    assert row["Title"] == "Brûlée 🍮"


def test_an_attribute_of_twelve_megabytes():
    ((_, row),) = rows_of([xml([question(1, body="x" * 12_000_000)])], block_bytes=1 << 20)
    assert len(row["Body"]) == 12_000_000
