"""Every real dump: both ledgers balance, and pairs and ties equal a count that shares no code with the converter."""

import math
import re
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from itertools import combinations

import lxml.html
import pyarrow as pa
import pytest
from lxml import etree

from prefkit import archives, convert_dataset, open_pairs
from prefkit.ledgers import ledgers_out_of_balance
from prefkit.markup import is_plain, to_markdown
from prefkit.shards import verify

DUMPS = {
    "ai-2016-12": "ai-2016-12",
    "ai-2017-03": "ai-2017-03",
    "avp.meta-2014-09": "avp.meta-2014-09",
    "beer-2014-05": "beer-2014-05",
    "beer-2020-06": "beer-2020-06",
    "bicycles.meta-2023-08": "bicycles.meta-2023-08",
    "conlang.meta-2020-08": "conlang.meta-2020-08",
    "datascience.meta-2024-03": "datascience.meta-2024-03",
    "history.meta-2018-08-doctype": "history.meta-2018-08-doctype",
    "matheducators-2014-05": "matheducators-2014-05",
    "stackoverflow-head-2019-06": "stackoverflow-head-2019-06",
    "lf": "datascience.meta-2024-03/Posts.lf.xml",
    "mixed": "odd-small/abag_Posts_mixed.xml",
    "one line": "odd-small/clevertech_Posts.tiny.xml",
    "other root": "odd-small/jesse_posts_root_xml.xml",
    "truncated": "odd-small/marinone_Posts_small_TRUNCATED.xml",
    "beer 7z": "beer-2020-06/beer.stackexchange.com.7z",
    "avp 7z": "avp.meta-2014-09/meta.avp.stackexchange.com.7z",
    "bzip2 7z": "odd-archives/test/beer/beer.meta.stackexchange.com.7z",
}
PLAIN = {"beer 7z": "beer-2020-06", "avp 7z": "avp.meta-2014-09"}  # the same posts, unpacked


def independent_count(path):
    """(questions and answers, pairs before the cap, pairs kept, ties), from the standard library alone."""
    text = path.read_text("utf-8-sig")
    if not text.rstrip().endswith((">", "/>")) or ("</posts>" not in text and "</xml>" not in text):
        text = text[: text.rindex("/>") + 2] + "</posts>"
    root = ET.fromstring(text)
    accepted, scores, posts = {}, defaultdict(dict), 0
    for row in root:
        if row.get("PostTypeId") == "1":
            accepted[row.get("Id")] = row.get("AcceptedAnswerId")
    for row in root:
        posts += row.get("PostTypeId") in ("1", "2")
        if row.get("PostTypeId") == "2" and row.get("ParentId") in accepted:
            votes = int(row.get("Score"))
            bonus = accepted[row.get("ParentId")] == row.get("Id")
            scores[row.get("ParentId")][row.get("Id")] = -1 if votes < 0 else round(math.log2(votes + 1)) + bonus
    pairs = kept = ties = 0
    for answers in scores.values():
        different = sum(a != b for a, b in combinations(answers.values(), 2))
        ties += math.comb(len(answers), 2) - different
        pairs += different
        kept += min(different, 10)
    return posts, pairs, kept, ties


@pytest.mark.parametrize("name", DUMPS)
def test_ledgers_balance_and_counts_agree(name, real_data, tmp_path):
    folder = real_data / "stack-exchange"
    manifest = convert_dataset(folder / DUMPS[name], tmp_path / "out")
    (ledgers,) = manifest.sources.values()
    assert ledgers_out_of_balance(ledgers) == []
    assert verify(tmp_path / "out") == []
    records, candidates = ledgers["records"], ledgers["candidates"]
    assert candidates["pairs"] == open_pairs(tmp_path / "out").num_rows > 0
    plain = folder / PLAIN.get(name, DUMPS[name])
    if plain.suffix == ".7z":
        return
    posts, pairs, kept, ties = independent_count(plain / "Posts.xml" if plain.is_dir() else plain)
    assert records["read"] - records["unused"].get("other_type", 0) == posts
    assert candidates["made"] == pairs + ties
    assert candidates["ties"] == ties
    lost = candidates["duplicate"] + sum(candidates["rejected"].values())
    assert candidates["pairs"] + lost == kept
    assert candidates["capped"] == pairs - kept
    assert lost <= 0.01 * kept


def test_an_archive_and_its_folder_make_the_same_pairs(real_data, tmp_path):
    folder = real_data / "stack-exchange" / "beer-2020-06"
    convert_dataset(folder / "beer.stackexchange.com.7z", tmp_path / "a", options={"users": "false"})
    convert_dataset(folder, tmp_path / "b", options={"site": "beer"})
    for split in ("train", "test"):
        a, b = (open_pairs(tmp_path / n, split).drop_columns("meta") for n in ("a", "b"))
        assert a.sort_by("id").equals(b.sort_by("id"))


def test_names_come_out_of_the_archive_that_has_users(real_data, tmp_path):
    folder = real_data / "stack-exchange" / "beer-2020-06"
    convert_dataset(folder / "beer.stackexchange.com.7z", tmp_path / "a")
    users = {}
    archives.stream(folder / "beer.stackexchange.com.7z", {"Users.xml": users.setdefault("xml", bytearray()).extend})
    names = {r.get("Id"): r.get("DisplayName") for r in etree.fromstring(bytes(users["xml"]))}
    shown = 0
    for row in open_pairs(tmp_path / "a").to_pylist():
        for author in row["authors"]:
            name, _, profile = author.removesuffix(")").rpartition(" (https://")
            if name:
                assert name == names[profile.rpartition("/")[2]]
                shown += 1
    assert shown > 1000


def test_line_ends_change_nothing(real_data, tmp_path):
    folder = real_data / "stack-exchange" / "datascience.meta-2024-03"
    for name in ("Posts.xml", "Posts.lf.xml"):
        convert_dataset(folder / name, tmp_path / name, options={"site": "datascience.meta"})
    one, other = (open_pairs(tmp_path / n).drop_columns("meta") for n in ("Posts.xml", "Posts.lf.xml"))
    assert one.equals(other)


def test_no_question_crosses_a_split(real_data, tmp_path):
    folder = real_data / "stack-exchange"
    convert_dataset([folder / "beer-2020-06", folder / "ai-2017-03"], tmp_path / "out", splits="train=.5,test=.5")
    sides = [open_pairs(tmp_path / "out", s).to_pylist() for s in ("train", "test")]
    for key in ("group_id", "set_id"):
        train, test = ({row[key] for row in side} for side in sides)
        assert not train & test
    train, test = ({row["prompt"][0]["content"] for row in side} for side in sides)
    assert not train & test


@pytest.mark.parametrize("name", ["matheducators-2014-05", "stackoverflow-head-2019-06", "beer-2020-06"])
def test_markdown_of_real_posts_loses_no_words(name, real_data):
    posts = etree.parse(real_data / "stack-exchange" / name / "Posts.xml", etree.XMLParser(huge_tree=True)).getroot()
    for post in posts:
        html = re.sub(r"<!--.*?-->", "", post.get("Body"), flags=re.S)
        if not html.strip():
            continue
        markdown = to_markdown(post.get("Body"))
        shown = " ".join(lxml.html.fromstring(f"<div>{html}</div>").itertext())
        lost = Counter(re.findall(r"\w{3,}", shown)) - Counter(re.findall(r"\w{3,}", markdown))
        assert not lost, post.get("Id")
        outside_code = re.sub(r"(?ms)^\W*(`{3,}).*?^\W*\1|(`+)[^`].*?\2", "", markdown)
        assert not re.search(r"</?p>|<strong>|\ue0f0", outside_code), post.get("Id")


@pytest.mark.parametrize("base", [None, "https://beer.stackexchange.com"])
def test_real_posts_that_are_plain_are_the_same_in_one_pass(real_data, base):
    bodies = []
    for file in sorted((real_data / "stack-exchange").glob("*/Posts.xml")):
        rows = etree.parse(file, etree.XMLParser(huge_tree=True, recover=True)).getroot()
        bodies += [r.get("Body") for r in rows if r.get("Body")]
    plain = is_plain(pa.array(bodies))
    assert sum(plain) > 0.6 * len(bodies)
    for body in [b for b, simple in zip(bodies, plain, strict=True) if simple]:
        assert to_markdown(body, base, plain=True) == to_markdown(body, base)
