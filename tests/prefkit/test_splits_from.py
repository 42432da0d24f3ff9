"""What stays where it was when data is added, and what is said about the rest."""

import json
import random

import pytest
from dumps import answer, question, write_dump
from test_near import HALVES, WORDS, body, edited

from prefkit import convert_dataset, open_pairs
from prefkit.errors import UserError
from prefkit.publish import JOINED


def site(texts):
    rng = random.Random(0)
    rows = []
    for number, text in texts.items():
        rows.append(question(number, title=f"About {number}", body=f"<p>{text}</p>"))
        rows += [answer(number + k, number, 3 * k, body=f"<p>{body(rng, 20)} {number}</p>") for k in (1, 2)]
    return rows


def places(folder):
    return {
        int(row["source_id"].split("/")[1]): split
        for split in ("train", "test")
        for row in open_pairs(folder, split).to_pylist()
    }


@pytest.fixture
def old(tmp_path):
    rng = random.Random(3)
    texts = {10 * i: body(rng) for i in range(1, 41)}
    convert_dataset(write_dump(tmp_path / "in", site(texts)), tmp_path / "old", splits=HALVES)
    return texts, places(tmp_path / "old")


def test_unlinked_data_moves_nothing(old, tmp_path):
    texts, before = old
    rng = random.Random(4)
    more = texts | {10 * i: body(rng) for i in range(100, 140)}
    convert_dataset(write_dump(tmp_path / "in", site(more)), tmp_path / "new", splits=HALVES)
    after = places(tmp_path / "new")
    assert {n: after[n] for n in before} == before
    assert set(after.values()) == {"train", "test"}


def bridge(one: str, other: str) -> str:
    """A text that overlaps both by more than 0.4 and so joins them under a low threshold."""
    return f"{one} {other}"


def test_splits_from_keeps_what_another_seed_would_move(old, tmp_path):
    texts, before = old
    folder = write_dump(tmp_path / "in", site(texts))
    convert_dataset(folder, tmp_path / "other", splits=HALVES, seed=1)
    assert places(tmp_path / "other") != before
    convert_dataset(folder, tmp_path / "kept", splits=HALVES, seed=1, splits_from=tmp_path / "old")
    assert places(tmp_path / "kept") == before


def test_a_new_copy_goes_where_the_old_one_is(old, tmp_path):
    texts, before = old
    rng = random.Random(5)
    copies = {n + 1000: edited(t, rng, 0.02) for n, t in texts.items()}
    rows = [
        r | ({"Title": f"About {r['Id'] - 1000}"} if "Title" in r and r["Id"] > 1000 else {})
        for r in site(texts | copies)
    ]
    new = write_dump(tmp_path / "in", rows)
    convert_dataset(new, tmp_path / "new", splits=HALVES, splits_from=tmp_path / "old", seed=7, near=0.7)
    after = places(tmp_path / "new")
    assert {n: after[n] for n in before} == before
    assert [after[n + 1000] for n in before] == list(before.values())


def test_a_link_between_splits_is_refused(old, tmp_path):
    texts, before = old
    here = next(n for n, s in before.items() if s == "train")
    there = next(n for n, s in before.items() if s == "test")
    folder = write_dump(tmp_path / "in", site(texts), [(here, there)])
    with pytest.raises(UserError, match="what --splits-from holds in different splits is joined in 1 group:"):
        convert_dataset(folder, tmp_path / "new", splits=HALVES, splits_from=tmp_path / "old")
    assert not (tmp_path / "new/manifest.json").exists()
    convert_dataset(folder, tmp_path / "new", splits=HALVES)
    after = places(tmp_path / "new")
    assert after[here] == after[there]
    moved = {n for n in before if after[n] != before[n]}
    assert len(moved) == 1
    assert moved <= {here, there}


def test_splits_from_wants_the_same_names(old, tmp_path):
    folder = write_dump(tmp_path / "in", site({1: " ".join(WORDS)}))
    with pytest.raises(UserError, match="has a split"):
        convert_dataset(folder, tmp_path / "new", splits="a=.5,b=.5", splits_from=tmp_path / "old")


def test_a_group_that_was_joined_to_another_stays_too(tmp_path):
    """B was joined to A by a prompt that both have; of new prompts of B nothing but its name tells."""

    def lines(name, *rows):
        made = ({"prompt": f"{p}?", "chosen": f"Yes, {p} {g}.", "rejected": f"No, {p}.", "g": g} for g, p in rows)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in made))
        return tmp_path / name

    names = [f"{a}{b}" for a in "ABCDEFGH" for b in "12345"]
    old = lines("old.jsonl", *((g, f"{g[0]} shared") for g in names))
    new = lines("new.jsonl", *((g, f"{g} anew") for g in names))
    convert_dataset(old, tmp_path / "old", splits=HALVES, options={"group": "g"}, near=0)
    convert_dataset(
        new, tmp_path / "new", splits=HALVES, options={"group": "g"}, near=0, seed=9, splits_from=tmp_path / "old"
    )
    where = [
        {
            json.loads(r["meta"])["g"]: split
            for split in ("train", "test")
            for r in open_pairs(tmp_path / d, split).to_pylist()
        }
        for d in ("old", "new")
    ]
    assert where[0] == where[1]
    assert set(where[0].values()) == {"train", "test"}


def test_a_data_set_that_does_not_tell_its_groups_is_refused(old, tmp_path):
    manifest = json.loads((tmp_path / "old/manifest.json").read_text())
    del manifest["files"][JOINED]
    (tmp_path / "old/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="an older version wrote this"):
        convert_dataset(tmp_path / "in", tmp_path / "new", splits=HALVES, splits_from=tmp_path / "old")


def test_that_nothing_is_in_the_older_data_set_is_told(old, tmp_path):
    rng = random.Random(9)
    other = write_dump(tmp_path / "other", site({10 * i + 5: body(rng) for i in range(1, 9)}))
    kept = convert_dataset(tmp_path / "in", tmp_path / "same", splits=HALVES, splits_from=tmp_path / "old")
    assert not any("decided nothing" in w for w in kept.warnings)
    lost = convert_dataset(other, tmp_path / "lost", splits=HALVES, splits_from=tmp_path / "old")
    assert any("decided nothing" in w for w in lost.warnings)
