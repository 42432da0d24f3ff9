"""The synthetic dump: the real format, a rule to learn, and nothing that length gives away."""

import xml.etree.ElementTree as ET
from collections import Counter

import pytest
from dumps import tree_digest

from prefkit import convert_dataset, open_pairs
from prefkit.sample import write_sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder / "dump")
    return folder, convert_dataset(folder / "dump", folder / "data")


def test_the_format(sample):
    folder, _ = sample
    for name in ("Posts", "Votes", "PostLinks", "Users"):
        data = (folder / f"dump/{name}.xml").read_bytes()
        assert data.startswith(b'\xef\xbb\xbf<?xml version="1.0" encoding="utf-8"?>\r\n<')
        assert data.count(b"\n") == data.count(b"\r\n")
    posts = ET.parse(folder / "dump/Posts.xml").getroot()
    votes = Counter((v.get("PostId"), v.get("VoteTypeId")) for v in ET.parse(folder / "dump/Votes.xml").getroot())
    ids = {p.get("Id") for p in posts}
    for post in posts:
        if post.get("PostTypeId") in ("1", "2"):
            assert votes[post.get("Id"), "2"] - votes[post.get("Id"), "3"] == int(post.get("Score"))
    types = Counter(p.get("PostTypeId") for p in posts)
    assert types["4"] == types["5"] == 1
    assert any(p.get("ParentId") not in ids for p in posts if p.get("PostTypeId") == "2")
    assert any(p.get("OwnerUserId") is None for p in posts)
    assert min(int(p.get("Score")) for p in posts) < 0
    bodies = "".join(p.get("Body") for p in posts)
    assert all(mark in bodies for mark in ("<pre", "<table", "<sup>", "\\(", "&amp;", "spoiler", "🍮"))
    assert "synthetic" in (folder / "dump/README.md").read_text()


def test_it_is_deterministic(sample, tmp_path):
    folder, _ = sample
    write_sample(tmp_path / "again")
    write_sample(tmp_path / "other", seed=1)
    assert tree_digest(tmp_path / "again") == tree_digest(folder / "dump")
    assert tree_digest(tmp_path / "other") != tree_digest(folder / "dump")


def won_by(key, pairs):
    """Share of pairs in which the chosen answer has more of `key`, a tie counting half."""
    values = [(key(p["chosen"][0]["content"]), key(p["rejected"][0]["content"])) for p in pairs]
    return sum((c > r) + (c == r) / 2 for c, r in values) / len(values)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_length_gives_nothing_away_and_the_rule_does(seed, tmp_path):
    write_sample(tmp_path / "dump", seed=seed)
    manifest = convert_dataset(tmp_path / "dump", tmp_path / "data")
    assert sum(s["rows"] for s in manifest.splits.values()) >= 1500
    for split in ("train", "test"):
        pairs = open_pairs(tmp_path / "data", split).to_pylist()
        assert won_by(len, pairs) == pytest.approx(0.5, abs=0.05)
        assert won_by(lambda text: len(text.split()), pairs) == pytest.approx(0.5, abs=0.05)
        share = won_by(lambda text: sum(w in text for w in ("because", "since", "so that", " as ")) / len(text), pairs)
        assert share > 0.7
        assert max(len((p["prompt"][0]["content"] + p["chosen"][0]["content"]).split()) for p in pairs) <= 120


def test_every_oddity_is_counted(sample):
    _, manifest = sample
    (ledgers,) = manifest.sources.values()
    assert ledgers["records"]["unused"] == {"no_answers": 1, "other_type": 2}
    assert ledgers["records"]["rejected"] == {"orphan_answer": 1}
    assert ledgers["candidates"]["ties"] >= 1
