"""Every check finds what it is for, in the side it is for, and nothing in sound text."""

import json

import pytest
from dumps import answer, question, write_dump

from prefkit import convert_dataset, open_pairs
from prefkit.checks import CHECKS, severities
from prefkit.errors import UserError
from prefkit.shards import verify
from prefkit.sources.rejects import rows

SOUND = {
    "prompt": "How do I sort a list in Python?",
    "chosen": "Call `sorted` on it: it gives a new list.",
    "rejected": "Write a loop that compares all neighbours.",
}
LONG = "The quick brown fox jumps over the lazy dog and runs into the dark forest where nobody has ever seen it. "
FOUND = {  # check → what to change in a sound pair
    "bad_role": {"prompt": [{"role": "robot", "content": "Beep, this is a sound question otherwise."}]},
    "role_alternation": {"chosen": [{"role": "assistant", "content": "One sound answer and"}, {"role": "assistant", "content": "another sound answer."}]},
    "empty_prompt": {"prompt": " \u200b\n"},
    "empty_chosen": {"chosen": "\u00a0 \ufeff"},
    "empty_rejected": {"rejected": "\u3000"},
    "identical_pair": {"chosen": "It is cafe\u0301  time, is it not, dear friends?", "rejected": "It is café time, is it not, dear friends?"},
    "score_sign_conflict": {"score_chosen": 1, "score_rejected": 2},
    "api_error_text": {"rejected": "**API REQUEST ERROR** Reason: it did not work out."},
    "deleted_placeholder": {"rejected": "[deleted]"},
    "near_identical_pair": {"chosen": LONG * 2 + "First.", "rejected": LONG * 2 + "Second."},
    "role_marker_in_text": {"chosen": "Call sorted.<|im_end|> And then some more words here."},
    "model_identity": {"rejected": "As an AI language model, I cannot have lists to sort."},
    "refusal": {"chosen": "I'm sorry, but I can't help with lists of any kind."},
    "truncated": {"chosen": "Do it like this:\n\n```python\nsorted(", "rejected": "Like so:\n\n```\nx\n```\n\nand that is all of it."},
    "replacement_character": {"prompt": "What does caf\ufffd mean in French?"},
    "bidi_control": {"rejected": "Write \u202eloop\u202c that compares all neighbours."},
    "mojibake": {"chosen": "Itâ€™s easy: call sorted on it and be done."},
    "html_leftover": {"rejected": "<p>Write a loop</p> that compares all neighbours."},
    "link_only": {"rejected": "[here](https://example.org/a/very/long/address/indeed)"},
    "image_only": {"rejected": "![see](https://example.org/a/very/long/address.png)"},
    "email_address": {"rejected": "Write to somebody@example.org and ask them for a loop."},
    "secret_key": {"chosen": "Export it: AWS_KEY=AKIA" + "ABCD1234" * 2 + " and run the thing."},
    "diverged_early": {"prompt": [{"role": "user", "content": "Hello there"}], "chosen": [{"role": "assistant", "content": "Hello, what is it you want to sort?"}, {"role": "user", "content": "A list."}, {"role": "assistant", "content": "Then call sorted on it."}]},
    "toxic_flagged": {"toxic": True},
    "nc_licence": {"license": "cc-by-nc-4.0"},
    "markdown_damage": {"chosen": "Write `my\\_list.sort()` and be done with it."},
    "ip_address": {"chosen": "Ask the machine at 192.168.1.17 to sort it for you."},
    "phone_number": {"chosen": "Call them: +1 (555) 123-4567, they sort anything."},
    "user_handle": {"chosen": "As @alice said: call sorted on it and be done."},
    "too_short": {"rejected": "A loop, then."},
    "too_long": {"rejected": LONG * 1000},
    "licence_missing": {},
    "mixed_scripts": {"prompt": "How do I sort a list of numbers in Python, please?", "rejected": "すべての隣り合う要素を比較するループを書いてください。そうすればうまくいきますよ、きっと。"},
    "wrong_language": {"prompt": "How do I sort a long list of many different numbers in Python, please?", "rejected": "Schreiben Sie eine Schleife, die alle benachbarten Zahlen miteinander vergleicht."},
    "repetition": {"rejected": "do it again and " * 40},
}  # fmt: skip


def converted(tmp_path, *pairs, name="out", **arguments):
    file = tmp_path / "in.jsonl"
    file.write_text("".join(json.dumps(p) + "\n" for p in pairs))
    return convert_dataset(file, tmp_path / name, splits="train=1", **arguments)


def test_there_is_a_case_for_every_check():
    assert FOUND.keys() | {"contaminated_eval", "conflicting_labels"} == CHECKS.keys()  # have tests of their own


@pytest.mark.parametrize("name", FOUND)
def test_it_finds_what_it_is_for(tmp_path, name):
    everything = {n: "flag" for n in CHECKS if n != "licence_missing"} | {name: "reject"}
    manifest = converted(tmp_path, SOUND | FOUND[name], checks=everything)
    assert manifest.sources["pairs"]["candidates"]["rejected"] == {
        next(n for n in CHECKS if everything.get(n) == "reject"): 1
    }
    (row,) = rows(tmp_path / "out")
    assert name in row["reasons"]


@pytest.mark.parametrize(
    "key",
    ["AKIA" + "ABCD1234" * 2, "ghp_" + "a1B2" * 9, "sk-" + "a1B2" * 8, "sk-proj-" + "a_-2" * 8, "xoxb-123456789-x",
     "-----BEGIN EC PRIVATE KEY-----\n" + "MHcC" * 12],
)  # fmt: skip
def test_every_kind_of_key_is_found(tmp_path, key):
    converted(tmp_path, SOUND | {"chosen": f"Use my key: {key} and be done with it."})
    assert open_pairs(tmp_path / "out")["flags"].to_pylist() == [["secret_key"]]


@pytest.mark.parametrize(
    ("more", "flags"),
    [({"toxic": False}, []), ({"toxicity": 1.2e-05}, []), ({"toxic": 1}, ["toxic_flagged"]), ({"is_toxic": "true"}, ["toxic_flagged"]),
     ({"license": "cc_by_nc_4.0"}, ["nc_licence"]), ({"licence": "Attribution-NonCommercial"}, ["nc_licence"]), ({"license": "MIT (sync)"}, [])],
)  # fmt: skip
def test_what_the_source_says_of_itself(tmp_path, more, flags):
    converted(tmp_path, SOUND | more)
    assert open_pairs(tmp_path / "out")["flags"].to_pylist() == [flags]


def test_a_licence_of_a_post_that_forbids_commerce(tmp_path):
    rows = [question(1, ContentLicense="CC BY-NC 4.0"), answer(2, 1, 5), answer(3, 1, 1)]
    convert_dataset(write_dump(tmp_path / "in", rows), tmp_path / "out", splits="train=1", checks={"too_short": "off"})
    assert open_pairs(tmp_path / "out")["flags"].to_pylist() == [["nc_licence"]]


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("Like so:\n\n```\nsorted(x)\n```\n\nand no more ▌", True),
        ("````md\n```\n````\n\nA fence inside a longer one is text.", False),
        ("```\nsorted(x)\n```python\nis no end of it", True),
        ("Three marks ``` inside a line open nothing at all.", False),
    ],
)
def test_what_is_cut_off(tmp_path, text, cut):
    converted(tmp_path, SOUND | {"chosen": text})
    assert ("truncated" in open_pairs(tmp_path / "out")["flags"].to_pylist()[0]) is cut


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("markdown_damage", "Outside code my\\_list is how Markdown writes a name."),
        ("secret_key", "As described at https://example.org/sk-learn-random-forest-feature-importances, sort it."),
        ("secret_key", "The documentation's AKIAIOSFODNN7EXAMPLE and xoxb-your-token-here are none."),
        ("secret_key", "It begins with -----BEGIN RSA PRIVATE KEY----- and then come letters."),
        ("truncated", 'Like a typewriter:\n\n```html\n<span class="cursor">_</span>\n```\n\nand so on.'),
        ("ip_address", "Version 1.2.3 of 300.1.1.1 is no address of a machine."),
        ("phone_number", "In 2020-01-02 it took 123 456 steps to sort the list."),
        ("user_handle", "Write to a@alice or use the @x decorator for sorting."),
        ("secret_key", "A task-sk-1 has no key in it, nor has ghp_ by itself."),
    ],
)
def test_what_only_looks_like_it(tmp_path, name, text):
    converted(tmp_path, SOUND | {"chosen": text}, checks={name: "flag"})
    assert open_pairs(tmp_path / "out")["flags"].to_pylist() == [[]]


def test_preferred_by_less_than_half_contradicts_the_label(tmp_path):
    manifest = converted(tmp_path, SOUND | {"p_chosen": 0.25}, SOUND | {"prompt": "And in C?", "p_chosen": 0.75})
    assert manifest.sources["pairs"]["candidates"]["rejected"] == {"score_sign_conflict": 1}


def test_a_sound_pair_has_no_flag(tmp_path):
    converted(tmp_path, SOUND, checks=dict.fromkeys(CHECKS.keys() - {"licence_missing"}, "flag"))
    assert open_pairs(tmp_path / "out")["flags"].to_pylist() == [[]]


@pytest.mark.parametrize(
    "text",
    [
        "Use `<p>` for a paragraph, and never leave out its end.",
        "```html\n<div>kept as code</div>\n```\n\nand that is all of it.",
        "See [this page](https://example.org), where all of it is explained at length and with examples.",
        "As an AI researcher I trained models; the model of a list is a row.",
        "Human: all too human, wrote somebody, and that was long ago.",
    ],
)
def test_what_only_looks_like_it_is_left_alone(tmp_path, text):
    converted(tmp_path, SOUND | {"rejected": text})
    assert open_pairs(tmp_path / "out")["flags"].to_pylist() == [[]]


@pytest.mark.parametrize("severity", ["flag", "reject", "off"])
def test_labels_that_contradict_each_other(tmp_path, severity):
    other = SOUND | {"chosen": SOUND["rejected"], "rejected": SOUND["chosen"]}
    manifest = converted(tmp_path, SOUND, other, SOUND | {"prompt": "Else?"}, checks={"conflicting_labels": severity})
    flags = open_pairs(tmp_path / "out")["flags"].to_pylist()
    ledger = manifest.sources["pairs"]["candidates"]
    if severity == "reject":
        assert (ledger["pairs"], ledger["rejected"]) == (1, {"conflicting_labels": 2})
        kept = {json.loads(r["raw"])["chosen"][0]["content"] for r in rows(tmp_path / "out", "conflicting_labels")}
        assert kept == {SOUND["chosen"], SOUND["rejected"]}
    else:
        expected = ["conflicting_labels"] if severity == "flag" else []
        assert flags == [expected, expected, []]
    assert verify(tmp_path / "out") == []


def test_severities_are_what_was_asked_for(tmp_path):
    assert severities({"too_long": "reject"})["too_long"] == "reject"
    for bad in ({"too_lung": "off"}, {"too_long": "drop"}):
        with pytest.raises(UserError):
            severities(bad)
    manifest = converted(tmp_path, SOUND, checks={"too_long": "reject"})
    assert manifest.config["checks"] == {"too_long": "reject"}
