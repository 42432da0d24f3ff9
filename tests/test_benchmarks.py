"""The table of the benchmarks: nothing measured is lost, nothing that failed looks measured."""

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parent.parent / "benchmarks"
LINE = {"benchmark": "a", "ours": 4000, "peer": 2, "ratio": 2000, "memory_ratio": None, "unit": "rows/s"}


@pytest.fixture
def table(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("table", SCRIPTS / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "COMMANDS", ("good.py 7", "bad.py", "mute.py", "odd.py"))
    (tmp_path / "good.py").write_text(f"import sys\nprint('seen', sys.argv[1])\nprint({json.dumps(LINE)!r})\n")
    (tmp_path / "bad.py").write_text(f"print({json.dumps(LINE)!r})\nraise SystemExit(3)\n")
    (tmp_path / "mute.py").write_text("print('no line')\n")
    (tmp_path / "odd.py").write_text("print(42)\n")
    return module


def test_what_ended_well_is_a_row_and_the_rest_is_named(table, capsys):
    assert table.main() == 1
    shown = capsys.readouterr().out
    assert "seen 7" in shown
    assert shown.count("| a |") == 1
    assert "| a | 4,000 rows/s | 2 rows/s | 2000× |  | `good.py 7` |" in shown
    assert "failed: bad.py" in shown
    assert "failed: mute.py" in shown
    assert "failed: odd.py" in shown


def test_a_part_of_a_command_chooses(table, capsys):
    assert table.main("good") == 0
    assert "bad.py" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no benchmark is called other"):
        table.main("other")


def test_every_benchmark_against_a_peer_is_in_the_table():
    text = (SCRIPTS / "table.py").read_text()
    missing = [p.name for p in SCRIPTS.glob("*.py") if ("_vs_" in p.name or "_scale" in p.name) and p.name not in text]
    assert not missing
