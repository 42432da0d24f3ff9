"""Near duplicates: shingles against plain sets, planted copies found, and nothing that is alike crosses a split."""

import json
import random
import re
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from dumps import answer, question, write_dump
from hypothesis import given
from hypothesis import strategies as st

from prefkit import convert_dataset, near, open_pairs, plan
from prefkit.near import joined, may_overlap, proposals, signatures
from prefkit.shingles import jaccard_of, shingles
from prefkit.split import components
from prefkit.tables import single_turns

WORDS = [a + b for a in ("ale", "bar", "cask", "dray", "keg", "malt") for b in ("ing", "ed", "er", "s", "less", "ful")]
HALVES = "train=.5,test=.5"


def plain_grams(text: str, n: int = 3) -> set[tuple[str, ...]]:
    """Word n-grams, the slow way."""
    text = re.sub("[\u00a0-\u00bf\u2000-\u207f\u3000-\u303f]", " ", text)
    words = re.findall("[\u3040-\ud7ff]|[A-Za-z0-9\u00c0-\u2fff\ue000-\U0010ffff]+", text)
    words = [w.lower() if w.isascii() else re.sub("[A-Z]", lambda m: m[0].lower(), w) for w in words]
    if not words:
        return set()
    return {tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))}


def plain_jaccard(a: str, b: str) -> float:
    one, other = plain_grams(a), plain_grams(b)
    return len(one & other) / max(len(one | other), 1)


@given(st.lists(st.text(st.sampled_from("ab AB1.é漢字-\n🍺한“、"), max_size=40), max_size=6))
def test_shingles_are_the_words_in_a_row(texts):
    found = shingles(pa.array(texts, pa.string()))
    for i, text in enumerate(texts):
        assert len(np.unique(found.hashes[found.cuts[i] : found.cuts[i + 1]])) == len(plain_grams(text))
        for k in range(found.cuts[i], found.cuts[i + 1]):
            begin = sum(len(t.encode()) for t in texts[:i])
            piece = text.encode()[found.starts[k] - begin : found.stops[k] - begin].decode()
            assert len(plain_grams(piece)) == 1


@given(st.lists(st.text(st.sampled_from("abc 漢."), max_size=30), min_size=2, max_size=5))
def test_jaccard_against_plain_sets(texts):
    cells = single_turns(pa.array(["user"] * len(texts)), pa.array(texts, pa.string()))
    pairs = list(combinations(range(len(texts)), 2))
    one, other = (np.array([p[k] for p in pairs]) for k in (0, 1))
    expected = [plain_jaccard(texts[a], texts[b]) for a, b in pairs]
    assert jaccard_of(cells, one, other).tolist() == pytest.approx(expected)


def body(rng, words=60):
    return " ".join(rng.choices(WORDS, k=words))


def edited(text, rng, share):
    words = text.split()
    for i in rng.sample(range(len(words)), max(1, int(share * len(words)))):
        words[i] = "zzz"
    return " ".join(words)


def test_planted_copies_are_proposed():
    """Of 400 pairs that overlap by 0.9 or more, the bands miss none."""
    rng = random.Random(0)
    texts = []
    while len(texts) < 800:
        text = body(rng, 120)
        copy = edited(text, rng, 0.02)
        if plain_jaccard(text, copy) >= 0.9:
            texts += [text, copy]
    found = signatures(pa.array(texts), *(np.arange(len(texts)),) * 3)
    proposed = np.concatenate([proposals(found[f"band{band}"], found["prompt"]).pairs for band in range(16)])
    assert {(2 * i, 2 * i + 1) for i in range(400)} <= set(map(tuple, proposed.tolist()))
    assert len(np.unique(proposed, axis=0)) < 1000  # and hardly anything else


def crowd(rng, originals, twins):
    """Prompts that begin with the same 60 words, and twins of some, nearer to them than to the others: by name."""
    words = [f"word{i}" for i in range(3000)]
    preamble = rng.sample(words, 60)
    own = [rng.sample(words, 8) for _ in range(originals)]
    changed = [[*q[:2], rng.choice(words), *q[3:5], rng.choice(words), *q[6:]] for q in own[:twins]]
    named = {(i, k): " ".join(preamble + q) for k, qs in enumerate((own, changed)) for i, q in enumerate(qs)}
    return dict(rng.sample(sorted(named.items()), len(named)))


@pytest.mark.parametrize(("tile", "rare"), [(7, 2), (64, 10), (2048, 32), (7, 100)])
def test_a_crowd_is_joined_as_plain_sets_say(tile, rare, monkeypatch):
    monkeypatch.setattr(near, "TILE", tile)
    monkeypatch.setattr(near, "RARE", rare)
    monkeypatch.setattr(near, "COLUMNS", 50)
    texts = list(crowd(random.Random(5), 60, 20).values())
    for threshold in (0.75, 0.8, 0.83, 1.0):
        pairs = [(a, b) for a, b in combinations(range(80), 2) if plain_jaccard(texts[a], texts[b]) >= threshold]
        one, other = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
        assert joined(pa.array(texts), threshold).tolist() == components(80, one, other).tolist()


@pytest.mark.parametrize("seed", [0, 1])
def test_twins_in_a_crowd_share_a_group_in_any_order(tmp_path, seed):
    """800 prompts overlap by 0.78, 200 of them by 0.83 with their twin, which must lie where it does."""
    prompts = crowd(random.Random(6), 600, 200)
    names = random.Random(seed).sample(sorted(prompts), len(prompts))
    lines = [{"prompt": prompts[n], "chosen": f"Yes {n}, surely.", "rejected": f"No {n}.", "id": n[0]} for n in names]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = convert_dataset(tmp_path / "in.jsonl", tmp_path / "out", splits=HALVES)
    groups, rows = {}, open_pairs(tmp_path / "out").to_pylist()
    for row in rows:
        groups.setdefault(row["source_id"], []).append(row["group_id"])
    assert sum(len(g) == 2 and g[0] == g[1] for g in groups.values()) >= 199
    found = manifest.links["near_duplicates"]
    assert len({row["group_id"] for row in rows}) == 800 - found
    exact = 800 - len(np.unique(joined(pa.array(list(prompts.values())), 0.8)))
    assert 0.99 * exact <= found <= exact


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_sketches_lose_no_pair_that_overlaps_and_drop_most_that_do_not(threshold):
    rng = random.Random(1)
    texts, pairs = [], []
    for i in range(400):
        text = body(rng, 150)
        texts += [text, edited(text, rng, rng.choice([0.02, 0.05, 0.1, 0.3]))]
        pairs.append((2 * i, 2 * i + 1))
    found = signatures(pa.array(texts), *(np.arange(len(texts)),) * 3)
    may = may_overlap(found["sketch"], np.array(pairs), threshold)
    overlap = np.array([plain_jaccard(texts[a], texts[b]) for a, b in pairs])
    assert may[overlap >= threshold].all()
    assert (overlap >= threshold).sum() > 50
    agree = (found["sketch"][::2] == found["sketch"][1::2]).mean(1)
    assert abs(agree - overlap).mean() < 0.05  # three to four hundredths are the standard error of 96 draws
    assert not may[overlap < threshold - 0.4].any()


def planted(rng, originals=60):
    """Questions, each with a copy in which a word or two differ, shuffled; the texts by question."""
    texts = {}
    for i in range(originals):
        texts[1000 * i + 1] = body(rng)
        texts[1000 * i + 501] = edited(texts[1000 * i + 1], rng, 0.02)
    rows = []
    for number, text in texts.items():
        rows.append(question(number, title=f"About {text[:20]}", body=f"<p>{text}</p>"))
        rows += [answer(number + k, number, 3 * k, body=f"<p>{body(rng, 20)}</p>") for k in (1, 2)]
    rng.shuffle(rows)
    return rows, texts


def test_no_near_duplicate_crosses_a_split(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SLICE_BYTES", 10_000)
    rows, texts = planted(random.Random(1))
    convert_dataset(write_dump(tmp_path / "in", rows), tmp_path / "out", splits=HALVES)
    where, prompts, groups = {}, {}, {}
    for split in ("train", "test"):
        for row in open_pairs(tmp_path / "out", split).to_pylist():
            number = int(row["source_id"].split("/")[1])
            where[number], groups[number] = split, row["group_id"]
            prompts[number] = row["prompt"][0]["content"]
    assert len(where) == len(texts)
    alike = [(a, b) for a, b in combinations(prompts, 2) if plain_jaccard(prompts[a], prompts[b]) >= 0.8]
    assert len(alike) >= 50
    assert all(where[a] == where[b] and groups[a] == groups[b] for a, b in alike)
    assert len(set(groups.values())) == len(texts) - len(alike)  # nothing else was joined
    convert_dataset(tmp_path / "in", tmp_path / "off", splits=HALVES, near=0)
    groups = {r["source_id"]: r["group_id"] for r in open_pairs(tmp_path / "off").to_pylist()}
    assert len(set(groups.values())) == len(texts)


def test_the_same_groups_for_any_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SLICE_BYTES", 10_000)
    folder = write_dump(tmp_path / "in", planted(random.Random(2))[0])
    one = convert_dataset(folder, tmp_path / "one", workers=1)
    two = convert_dataset(folder, tmp_path / "two", workers=2)
    assert one == two
    assert one.links["near_duplicates"] >= 50


def test_a_group_that_swallows_much_is_warned_about(tmp_path):
    rng = random.Random(4)
    text = body(rng, 200)
    rows = []
    for i in range(1, 61):
        rows.append(question(10 * i, title="About", body=f"<p>{edited(text, rng, 0.01) if i < 30 else body(rng)}</p>"))
        rows += [answer(10 * i + k, 10 * i, 3 * k, body=f"<p>{body(rng, 20)}</p>") for k in (1, 2, 3)]
    manifest = convert_dataset(write_dump(tmp_path / "in", rows), tmp_path / "out")
    assert any("48% of the pairs are one group" in w for w in manifest.warnings)
    assert not any("are one group" in w for w in convert_dataset(tmp_path / "in", tmp_path / "b", near=0).warnings)
