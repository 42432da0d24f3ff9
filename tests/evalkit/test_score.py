"""Scoring real tiny runs: every number against a plain forward of the plain models, and what must not be scored."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evalkit import build_report, score_pairs
from evalkit.generate.base import Settings
from evalkit.generate.files import distinct_prompts, write_answers
from prefkit import convert_dataset, open_pairs
from prefkit.errors import UserError
from train.core.locate import weights_digest

BIN = Path(sys.executable).parent


def run(*command: object, cwd: Path) -> None:
    done = subprocess.run([str(BIN / str(command[0])), *map(str, command[1:])], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def road(tmp_path_factory) -> Path:
    """A data set, a tiny model, an SFT adapter and a DPO adapter that went on from it."""
    folder = tmp_path_factory.mktemp("road")
    words = [("ship", "sails"), ("oven", "bakes"), ("bell", "rings"), ("pump", "lifts")]
    with (folder / "pairs.jsonl").open("w") as f:
        for n in range(40):
            thing, does = words[n % 4]
            pair = {
                "prompt": f"What does the {thing} number {n} do?",
                "chosen": f"It {does}, I think.",
                "rejected": "Ask again.",
            }
            f.write(json.dumps(pair) + "\n")
            f.write(json.dumps(pair | {"chosen": "Ask again.", "rejected": f"No idea about any {thing}."}) + "\n")
        f.write(json.dumps({"prompt": "Heads?", "chosen": "Yes.", "rejected": "No.", "p_chosen": 0.5}) + "\n")
    convert_dataset(folder / "pairs.jsonl", folder / "data", source="pairs", splits="test=.5,train=.5")
    tiny = ("--vocab-size", 300, "--hidden", 32, "--layers", 2, "--heads", 2)
    run("prefkit", "train", "tiny-model", "--data.path", "data", "--out", "tiny", *tiny, cwd=folder)
    common = ("--data.path", "data", "--trainer.learning-rate", "3e-2", "--data.template", "plain")
    run("prefkit", "train", "sft", "--model.path", "tiny", "--out", "sft", *common, cwd=folder)
    more = ("--dpo.beta", "0.3", "--dpo.pairs-per-step", 8, "--trainer.save-steps", 2)
    run("prefkit", "train", "dpo", "--model.path", "sft", "--out", "dpo", *common, *more, cwd=folder)
    return folder


def oracle(model, tokenizer, prompt: str, response: str) -> float:
    """Sum of log-probabilities by one plain forward in fp64."""
    head = tokenizer(f"{prompt}\n\n")["input_ids"]
    whole = [*tokenizer(f"{prompt}\n\n{response}")["input_ids"], tokenizer.eos_token_id]
    cut = next((i for i, (a, b) in enumerate(zip(head, whole, strict=False)) if a != b), len(head))
    with torch.no_grad():
        logps = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logps[i - 1, whole[i]]) for i in range(cut, len(whole)))


@pytest.fixture(scope="module")
def frame(road):
    return score_pairs(str(road / "dpo"), road / "data").set_index("id")


def test_every_number_equals_a_plain_forward(road, frame):
    tokenizer = AutoTokenizer.from_pretrained(road / "tiny")
    models = {
        kind: PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(road / "tiny", dtype=torch.float32), road / run
        ).double()
        for kind, run in (("policy", "dpo"), ("ref", "sft"))
    }
    pairs = {p["id"]: p for p in open_pairs(road / "data", "test").to_pylist() if p["p_chosen"] != 0.5}
    assert set(frame.index) == set(pairs)
    for pair_id, pair in list(pairs.items())[:12]:
        for kind, model in models.items():
            for side in ("chosen", "rejected"):
                truth = oracle(model, tokenizer, pair["prompt"][0]["content"], pair[side][0]["content"])
                assert frame.loc[pair_id, f"{kind}_{side}"] == pytest.approx(truth, abs=2e-4)
    assert (frame["policy_chosen"] != frame["ref_chosen"]).any()
    assert set(frame["beta"]) == {0.3}


def test_the_number_of_the_report_is_that_of_the_pairs(road, frame):
    run("evalkit", "score", "--policy", "dpo", "--data", "data", "--out", "scores", cwd=road)
    delta = (frame["policy_chosen"] - frame["ref_chosen"]) - (frame["policy_rejected"] - frame["ref_rejected"])
    report = build_report(road / "scores")
    assert report["accuracy"]["value"] == pytest.approx(float(((delta > 0) + 0.5 * (delta == 0)).mean()))
    assert report["margin"]["mean"] == pytest.approx(0.3 * float(delta.mean()), rel=1e-5)
    trained = json.loads((road / "dpo" / "summary.json").read_text())
    assert report["accuracy"]["value"] == pytest.approx(trained["eval_rewards/accuracies"])


def test_ties_are_counted_not_scored(road):
    tied = sum(p["p_chosen"] == 0.5 for s in ("train", "test") for p in open_pairs(road / "data", s).to_pylist())
    split = next(
        s for s in ("train", "test") if any(p["p_chosen"] == 0.5 for p in open_pairs(road / "data", s).to_pylist())
    )
    run("evalkit", "score", "--policy", "dpo", "--data", "data", "--split", split, "--out", "tied", cwd=road)
    record = json.loads((road / "tied" / "scores.json").read_text())
    assert tied == 1
    assert record["dropped"] == {"tie": 1}
    assert record["read"] == record["scored"] + 1


def test_a_checkpoint_scores_like_its_run(road, frame):
    last = max((road / "dpo").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    scored = score_pairs(str(last), road / "data").set_index("id")
    assert set(scored["reference"]) == {"sft"}
    assert set(scored["beta"]) == {0.3}
    assert np.allclose(scored["ref_chosen"], frame["ref_chosen"].loc[scored.index], atol=1e-9)


def copied(road: Path, tmp_path: Path, name: str) -> Path:
    return Path(shutil.copytree(road / name, tmp_path / name))


def test_a_reference_that_has_changed_is_refused(road, tmp_path):
    moved = tmp_path / "all"
    shutil.copytree(road, moved)
    file = moved / "dpo" / "run.yaml"
    file.write_text(file.read_text().replace(str(road), str(moved)))
    weights = moved / "sft" / "adapter_model.safetensors"
    save_file({k: v * 1.01 for k, v in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match="has changed since"):
        score_pairs(str(moved / "dpo"), road / "data")


def test_missing_weights_are_never_invented(road, tmp_path):
    adapter = copied(road, tmp_path, "dpo")
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(dict(list(weights.items())[1:]), adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="1 adapter weights are missing"):
        score_pairs(str(adapter), road / "data")
    model = copied(road, tmp_path, "tiny")
    weights = load_file(model / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "layers.1.mlp.up" not in k}, model / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match="1 weights are missing"):
        score_pairs(str(model), road / "data", reference="none")


def test_a_reference_that_is_too_short_is_refused(road):
    shape = ("--vocab-size", 300, "--hidden", 32, "--layers", 2, "--heads", 2, "--max-positions", 16)
    run("prefkit", "train", "tiny-model", "--data.path", "data", "--out", "short", *shape, cwd=road)
    with pytest.raises(UserError, match="16 positions"):
        score_pairs(str(road / "dpo"), road / "data", reference=str(road / "short"))


def test_answers_go_on_where_they_were_stopped(road, tmp_path):
    prompts = distinct_prompts(open_pairs(road / "data", "test"), 6)
    settings = Settings(max_new_tokens=8)
    write_answers(str(road / "sft"), prompts, tmp_path / "whole.jsonl", settings)
    whole = (tmp_path / "whole.jsonl").read_text()
    for model, done in ((road / "sft", 2), (road / "dpo", 0)):  # another model's answers are not taken up
        known = {"model": str(road / "sft"), "name": None, "settings": vars(settings)}
        wanted = json.dumps(known | {"weights": weights_digest(str(model))}, sort_keys=True)
        lines = whole.splitlines()
        torn = "\n".join([wanted, *lines[:2], lines[2][:20]]).encode() + b"\xe2\x82"  # within a character
        (tmp_path / ".part.jsonl.partial").write_bytes(torn)
        asked: list[int] = []
        write_answers(str(road / "sft"), prompts, tmp_path / "part.jsonl", settings, progress=asked.append)
        assert (tmp_path / "part.jsonl").read_text() == whole
        assert asked == [done, *[1] * (6 - done)]
        (tmp_path / "part.jsonl").unlink()
