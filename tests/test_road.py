"""The road with shuffled labels: where there is nothing to learn, the number must say so."""

import json
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


def run(*command: object, cwd: Path) -> None:
    argv = [str(BIN / str(command[0])), *map(str, command[1:])]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def shuffled(data: Path, out: Path) -> None:
    """The pairs of a data set with the sides of each exchanged by a coin, the same coin for equal pairs of answers."""
    from prefkit import open_pairs

    coin = random.Random(0)
    with out.open("w") as f:
        for pair in open_pairs(data).to_pylist():
            sides = [pair["chosen"], pair["rejected"]]
            coin.shuffle(sides)
            f.write(json.dumps({"prompt": pair["prompt"], "chosen": sides[0], "rejected": sides[1]}) + "\n")


def test_shuffled_labels_land_at_one_half(tmp_path):
    run("prefkit", "sample", "dump", cwd=tmp_path)
    run("prefkit", "convert", "dump", "--out", "true", cwd=tmp_path)
    shuffled(tmp_path / "true", tmp_path / "shuffled.jsonl")
    convert = (
        "prefkit",
        "convert",
        "shuffled.jsonl",
        "--source",
        "pairs",
        "--out",
        "data",
        "--splits",
        "train=.8,test=.2",
    )
    run(*convert, cwd=tmp_path)
    run("prefkit", "train", "tiny-model", "--data.path", "data", "--out", "tiny", cwd=tmp_path)
    for kind, start in (("sft", "tiny"), ("dpo", "sft")):
        recipe = ROOT / "recipes" / f"demo_{kind}.yaml"
        run(
            "prefkit",
            "train",
            kind,
            "--config",
            recipe,
            "--model.path",
            start,
            "--data.path",
            "data",
            "--out",
            kind,
            cwd=tmp_path,
        )
    run("evalkit", "score", "--policy", "dpo", "--data", "data", "--out", "scores", cwd=tmp_path)
    run("evalkit", "report", "scores", "--out", "report", cwd=tmp_path)
    accuracy = json.loads((tmp_path / "report" / "report.json").read_text())["accuracy"]
    assert accuracy["low"] <= 0.5 <= accuracy["high"]
    assert abs(accuracy["value"] - 0.5) < 0.06
