"""The README's table of real dumps is what conversion makes of them now."""

import importlib.util
from pathlib import Path

from dumps import answer, question, write_dump

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("dump_table", ROOT / "docs" / "dump_table.py")
dump_table = importlib.util.module_from_spec(spec)
spec.loader.exec_module(dump_table)


def test_readme_shows_what_comes_of_real_dumps(real_data, monkeypatch):
    monkeypatch.setattr(dump_table, "DATA", real_data / "stack-exchange")
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    now = dump_table.rewrite(page, dump_table.DATA)
    assert now.count("\n| odd-small/") >= 5, "the table lies between its marks"
    assert now.splitlines() == page.splitlines(), "run python docs/dump_table.py --write"


def test_it_says_why_where_there_are_no_pairs(tmp_path, monkeypatch):
    monkeypatch.setattr(dump_table, "DATA", tmp_path)
    write_dump(tmp_path / "one", [question(1), answer(2, 1, 3, body="<p>long, long</p>"), answer(3, 1, 0)])
    write_dump(tmp_path / "none", [question(1)])
    (tmp_path / "bad.7z").write_bytes(b"7z")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "Tags.xml").write_text('<tags><row Id="1" /></tags>')
    table = list(dump_table.lines(tmp_path))
    assert table[2].startswith("| one | ")
    assert table[2].endswith(" | 3 | 0 | 1 | 1 | 0 | 1 | 1.000 [0.207, 1.000] | 4.0 |")
    assert len(table) == 5
    assert table[4].startswith("No pairs come of 3 more: 1 × ")
    assert all(
        f"1 × {why}" in table[4] for why in ("not one pair", "this is no Posts.xml", "cannot read the 7z archive")
    )


def test_without_dumps_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dump_table, "DATA", tmp_path / "nowhere")
    assert dump_table.main([]) == 2
    assert "set PREFKIT_REAL_DATA" in capsys.readouterr().out
