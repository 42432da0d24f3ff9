"""Scoring real tiny runs: every number against a plain forward of the plain models, and what must not be scored."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from evalkit import build_report, score_pairs
from evalkit.cli import app
from evalkit.generate.base import Settings
from evalkit.generate.files import distinct_prompts, write_answers
from evalkit.inputs import open_data
from evalkit.markdown import to_markdown
from evalkit.models import Models, short_names
from evalkit.options import ScoreOptions
from evalkit.overlap import count_overlap, training_overlap
from evalkit.results import write_result
from evalkit.score import score
from prefkit import convert_dataset, open_pairs
from prefkit.cli import run as run_cli
from prefkit.errors import UserError
from prefkit.shards import read_manifest
from train.models.locate import weights_digest
from train.models.policies import load_policy
from train.models.sharing import Sharing

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


@pytest.mark.parametrize("limit", [0, -2])
def test_no_answers_are_asked_for_by_mistake(limit, road, tmp_path, capsys):
    argv = [
        "generate",
        "--model",
        road / "sft",
        "--data",
        road / "data",
        f"--limit={limit}",
        "--out",
        tmp_path / "a.jsonl",
    ]
    assert run_cli(app, [str(a) for a in argv]) == 2
    assert f"--limit {limit} leaves nothing" in capsys.readouterr().err
    assert not (tmp_path / "a.jsonl").exists()


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


def test_answers_are_asked_for_in_the_template_that_is_named(road, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("evalkit.generate.local.encode_prompt", lambda tok, template, p: asked.append(template) or [1])
    argv = ["generate", "--model", road / "dpo", "--data", road / "data", "--limit", 1, "--max-new-tokens", 1]
    for n, more in enumerate(([], ["--template", "question"])):
        assert run_cli(app, [str(x) for x in (*argv, "--out", tmp_path / f"{n}.jsonl", *more)]) == 0
    assert [t.source for t in asked] == ["{prompt}\n\n{response}", "Question: {prompt}\n\nAnswer: {response}"]
    assert run_cli(app, [str(x) for x in (*argv, "--out", tmp_path / "x", "--template", "qeustion")]) == 2


@pytest.mark.parametrize(
    "flags",
    [["--policy", "gone"], ["--reference", "gone"], ["--split", "tset"], ["--out", "taken"], ["--template", "plian"]],
    ids=" ".join,
)
def test_simple_mistakes_are_told_before_torch_is_loaded(road, flags, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "scores.json").touch()
    good = {"--policy": str(road / "dpo"), "--data": str(road / "data"), "--out": "new"} | {flags[0]: flags[1]}
    argv = [x for pair in good.items() for x in pair]
    code = (
        "import sys; from prefkit.cli import run; from evalkit.cli import app\n"
        f"code = run(app, ['score', *{argv!r}])\nsys.exit(code != 2 or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_known_needs_no_model(road, frame, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("evalkit.models.load_policy", refuse)
    again = score_pairs(str(road / "dpo"), road / "data").set_index("id")
    assert again.equals(frame)


def test_new_pairs_cost_only_themselves(road, tmp_path, monkeypatch):
    pairs = [
        {"prompt": f"Which {n}?", "chosen": f"It sails, number {n}.", "rejected": f"Ask again {n}."} for n in range(12)
    ]
    computed = []
    plain = Models.compute

    def counting(self, role, rows, *rest):
        computed.append((role, sum(len(r.response_ids) for r in rows)))
        return plain(self, role, rows, *rest)

    monkeypatch.setattr(Models, "compute", counting)
    for n in (2, 12):
        file = tmp_path / "more.jsonl"
        file.write_text("".join(json.dumps(p) + "\n" for p in pairs[:n]))
        scored = score_pairs(str(road / "dpo"), file)  # a file is converted on the way
        assert len(scored) == n
    assert computed == [("policy", 4), ("reference", 4), ("policy", 20), ("reference", 20)]


def test_records_that_are_no_pairs_are_told(road, tmp_path, capsys):
    file = tmp_path / "some.jsonl"
    sound = {"prompt": "Why?", "chosen": "Because.", "rejected": "No."}
    file.write_text(json.dumps(sound) + "\n" + json.dumps(sound | {"chosen": ""}) + "\n")
    lines: list[str] = []
    data = open_data(file, None, None, lines.append)
    assert data.name == "some.jsonl"
    assert open_pairs(data.folder, "test").num_rows == 1
    assert any("2 read = 1 used + 1 unused" in line for line in lines)
    assert any("1 empty_chosen" in line for line in lines)
    assert open_data(file, None, None, lines.append) == data
    file.write_text(json.dumps({"question": "Why?", "good": "So.", "bad": "No."}) + "\n")
    with pytest.raises(UserError, match="not one pair came out; its columns are question, good, bad"):
        open_data(file, None, None, lines.append)
    with pytest.raises(UserError, match="data that is to be converted"):
        open_data(road / "data", None, {"prompt": "question"}, lines.append)


def test_several_policies_in_one_call(road):
    policies = ("--policy", "dpo", "--policy", "sft")
    run("evalkit", "score", *policies, "--data", "data", "--out", "both", "--noise", cwd=road)
    for name, reference in (("dpo", "sft"), ("sft", "tiny")):
        record = json.loads((road / "both" / name / "scores.json").read_text())
        assert (record["policy"], record["reference"]) == (name, reference)
        assert 0 <= record["noise"]["p95"] <= record["noise"]["max"] < 1e-3
        assert record["noise"]["pairs"] > 0
        assert record["overlap"]["exact"] == record["overlap"]["near"] == 0
    shutil.rmtree(road / "both" / "sft")
    again = subprocess.run(
        [BIN / "evalkit", "score", *policies, "--data", "data", "--out", "both", "--noise"],
        cwd=road, capture_output=True, text=True,
    )  # fmt: skip
    assert "both/dpo/scores.parquet: there already" in again.stdout
    assert (road / "both" / "sft" / "scores.json").exists()
    alone = score_pairs([str(road / "dpo"), str(road / "sft")], road / "data")
    assert list(alone["policy"].unique()) == ["dpo", "sft"]
    done = subprocess.run(
        [BIN / "evalkit", "score", "--policy", "dpo", "--policy", road / "dpo", "--data", "data", "--out", "twice"],
        cwd=road, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "given twice" in done.stderr


def but_for_noise(run):
    """Each run measures its own, whose last digits are the machine's."""
    return run | {"noise": run["noise"] is None}


def test_a_frame_makes_the_report_that_files_make(road, tmp_path):
    """What was dropped, limited, trained on or undecided is said on both roads, of each of two policies."""
    policies = ("--policy", "dpo", "--policy", "sft", "--data", "data", "--limit", 12, "--noise", "--max-tokens", 60)
    run("evalkit", "score", *policies, "--split", "train", "--out", tmp_path / "out", cwd=road)
    made = build_report(tmp_path / "out" / "dpo", tmp_path / "out" / "sft")
    how = {"split": "train", "limit": 12, "noise": True, "max_tokens": 60}
    with pytest.warns(UserWarning, match="no held-out number") as said:
        frame = score_pairs([str(road / "dpo"), str(road / "sft")], road / "data", **how)
    found = build_report(frame)
    for one, other in zip((made, *made["others"]), (found, *found["others"]), strict=True):
        assert one["undecided"].pop("within_nats") == pytest.approx(other["undecided"].pop("within_nats"), rel=0.5)
        assert one["undecided"] == other["undecided"]
        assert but_for_noise(one["run"]) == but_for_noise(other["run"])
        for key in ("caveats", "truncated"):
            assert one[key] == other[key]
    assert made["comparisons"] == found["comparisons"]
    assert made["run"]["overlap"]["exact"] > 0
    trained = f"{made['run']['overlap']['exact']} of {made['run']['overlap']['prompts']} prompts were trained on"
    assert any(trained in c for c in found["caveats"])
    assert any(c.startswith("only the first 12 pairs of ") for c in found["caveats"])
    texts = [str(w.message) for w in said]
    assert any(t.startswith(f"dpo: {trained}") for t in texts)
    part = frame[frame["policy"] == "dpo"].sort_values("id")
    assert but_for_noise(build_report(part)["run"]) == but_for_noise(made["run"])
    lines: list[str] = []
    score_pairs(str(road / "dpo"), road / "data", say=lines.append, **how)
    assert any(line.startswith("overlap") for line in lines)


def test_the_rate_is_of_forwards_without_loading(road, tmp_path, monkeypatch):
    """Eight pairs whose models take three seconds to load are scored faster than eight in three seconds."""

    def slow(policy):
        time.sleep(3)
        return load_policy(policy)

    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path))
    monkeypatch.setattr("evalkit.models.load_policy", slow)
    lines: list[str] = []
    score(str(road / "dpo"), road / "data", ScoreOptions(limit=8), lines.append)
    (rate, _) = (float(m[1].replace(",", "")) for line in lines if (m := re.search(r" ([\d,.]+) pairs/s", line)))
    assert rate > 8 / 3
    assert "padding  0.0% of the tokens computed" in lines


def test_noise_that_cannot_be_measured_is_not_zero(road, monkeypatch, tmp_path):
    """A model whose numbers depend on the longest sequence beside it is always computed one response at a time."""
    lines: list[str] = []

    def noise_of(alone, **more):
        monkeypatch.setattr("evalkit.models.decide_sharing", lambda model, rows: Sharing(False, "", alone(model)))
        return score(str(road / "dpo"), road / "data", ScoreOptions(limit=8, noise=True, **more), lines.append)

    found = noise_of(lambda model: True)
    assert found.record["noise"] is None
    assert any(line.startswith("noise    not measured: each response is always") for line in lines)
    assert "**Noise.** not measured" in to_markdown(build_report(write_result(found, tmp_path)))
    apart = noise_of(lambda model: isinstance(model, PeftModel), reference=str(road / "tiny"))
    assert apart.record["noise"]["how"].endswith("the policy is always computed so, and its part not measured")
    assert "always" not in noise_of(lambda model: False).record["noise"]["how"]


def test_scores_under_other_weights_of_the_reference_or_another_template_are_not_the_same(road, tmp_path):
    """A reference folder and a template file may change behind their names."""
    reference, template = tmp_path / "ref", tmp_path / "t.jinja"
    shutil.copytree(road / "tiny", reference)
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    command = [
        BIN / "evalkit", "score", "--policy", "sft", "--policy", "dpo", "--reference", reference, "--template", template,
        "--data", "data", "--out", tmp_path / "out",
    ]  # fmt: skip
    run(*command[0:1], *command[1:], cwd=road)
    first = subprocess.run(command, cwd=road, capture_output=True, text=True)
    assert first.stdout.count("there already") == 2
    template.write_text(template.read_text().replace(": ", " - "))
    other = subprocess.run(command, cwd=road, capture_output=True, text=True)
    assert (other.returncode, "template differ" in other.stderr) == (2, True)
    template.write_text(template.read_text().replace(" - ", ": "))
    weights = load_file(reference / "model.safetensors")
    save_file({k: v * 1.5 for k, v in weights.items()}, reference / "model.safetensors", {"format": "pt"})
    other = subprocess.run(command, cwd=road, capture_output=True, text=True)
    assert (other.returncode, "reference_digest differ" in other.stderr) == (2, True)


def test_equal_names_are_told_apart(tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "final").mkdir(parents=True)
    assert short_names([str(tmp_path / "a/final"), str(tmp_path / "b/final")]) == ["a-final", "b-final"]


def test_what_was_trained_on_is_counted(road):
    lines: list[str] = []
    score(str(road / "dpo"), road / "data", ScoreOptions(split="train"), lines.append)
    prompts = len({json.dumps(p["prompt"]) for p in open_pairs(road / "data", "train").to_pylist()})
    counts = f"overlap  {prompts} of {prompts} prompts were trained on, 0 more nearly (data)"
    assert f"{counts}; not known: what tiny was trained on" in lines


def test_earlier_stages_of_a_policy_count_too(road, tmp_path):
    """SFT on what is evaluated, DPO on something else: the prompts were trained on."""
    for name in ("sft", "dpo", "tiny"):
        shutil.copytree(road / name, tmp_path / name)
    (tmp_path / "other.jsonl").write_text(json.dumps({"prompt": "Else?", "chosen": "Yes.", "rejected": "No."}) + "\n")
    convert_dataset(tmp_path / "other.jsonl", tmp_path / "other", source="pairs", splits="train=1")
    file = tmp_path / "dpo/run.yaml"
    run = yaml.safe_load(file.read_text())
    run["data"]["path"], run["model"]["path"] = str(tmp_path / "other"), str(tmp_path / "sft")
    run["digests"]["data"] = read_manifest(tmp_path / "other").digest
    file.write_text(yaml.safe_dump(run))
    evaluated = open_pairs(road / "data", "train")
    prompts = len({json.dumps(p["prompt"]) for p in evaluated.to_pylist()})
    found = training_overlap(str(tmp_path / "dpo"), evaluated)
    assert (found.exact, found.prompts, found.run_data) == (prompts, prompts, "other, data")
    shutil.rmtree(tmp_path / "other")
    found = training_overlap(str(tmp_path / "dpo"), evaluated)
    assert (found.exact, found.run_data) == (prompts, "data")
    assert found.unknown == f"{tmp_path / 'other'} is gone; what tiny was trained on"


def naive_jaccard(a: str, b: str) -> float:
    def grams(text):
        words = text.casefold().split()
        return {" ".join(words[i : i + 5]) for i in range(max(1, len(words) - 4))}

    return len(grams(a) & grams(b)) / len(grams(a) | grams(b))


@given(st.data())
@settings(deadline=None)
def test_near_prompts_are_those_of_naive_jaccard(data):
    word = st.sampled_from(["a", "b", "c", "D", "e"])
    texts = st.lists(st.lists(word, max_size=14).map(" ".join), max_size=8)
    evaluated, trained = set(data.draw(texts)), data.draw(texts)
    found = count_overlap({t: t for t in evaluated}, trained)
    exact = evaluated & set(trained)
    near = {e for e in evaluated - exact if any(naive_jaccard(e, t) >= 0.8 for t in trained)}
    assert (found.prompts, found.exact, found.near) == (len(evaluated), len(exact), len(near))


def test_a_template_that_the_policy_was_not_trained_with_is_told(road):
    lines: list[str] = []
    score(str(road / "dpo"), road / "data", ScoreOptions(limit=4, template="question"), lines.append)
    assert "warning: the template is not the one that the policy was trained with" in lines


def test_a_template_that_asks_for_the_date_is_told(road):
    lines: list[str] = []
    dated = "{{ strftime_now('%d %b') }} {% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    score(str(road / "dpo"), road / "data", ScoreOptions(limit=4, template=dated), lines.append)
    assert any(line.startswith("warning: the template asks for today's date") for line in lines)


def test_marks_of_another_template_are_told(road, tmp_path):
    pair = {"prompt": "Human: Why?\n\nAssistant:", "chosen": "So.", "rejected": "No."}
    (tmp_path / "marked.jsonl").write_text(json.dumps(pair) + "\n")
    lines: list[str] = []
    marked = open_data(tmp_path / "marked.jsonl", None, None, lines.append)
    score(str(road / "dpo"), marked, ScoreOptions(), lines.append)
    assert any("marks of a template already ('Human:' in 1, 'Assistant:' in 1 of 1)" in line for line in lines)


def test_a_killed_run_goes_on(road, tmp_path):
    """What a stopped run computed is in the cache: the next one computes the rest, and the numbers are the same."""
    home = {**os.environ, "PREFKIT_CACHE": str(tmp_path / "cache")}
    command = [BIN / "evalkit", "score", "--policy", "dpo", "--data", "data", "--tokens-per-batch", "40"]
    slow = tmp_path / "sitecustomize.py"
    slow.write_text(
        "import os, signal\n"
        "import train.data.cache as c\n"
        "plain, calls = c.LogpCache.add, []\n"
        "def add(self, scored):\n"
        "    plain(self, scored); calls.append(1)\n"
        "    if len(calls) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "c.LogpCache.add = add\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run([*command, "--out", tmp_path / "killed"], cwd=road, env=home | {"PYTHONPATH": path})
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    done = subprocess.run([*command, "--out", tmp_path / "done"], cwd=road, env=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    computed, known = map(
        int, re.search(r"forwards (\d+) responses.*?, (\d+) from the cache: dpo", done.stdout).groups()
    )
    assert known > 0
    assert computed > 0
    whole = pq.read_table(tmp_path / "done/scores.parquet").to_pandas().set_index("id")
    wanted = score_pairs(str(road / "dpo"), road / "data").set_index("id")
    assert np.allclose(whole["policy_chosen"], wanted["policy_chosen"].loc[whole.index], atol=1e-4)


def computed_by(folder: Path) -> dict[str, int]:
    """A sitecustomize.py that notes, for each process, how many responses it computes; read what it noted."""
    (folder / "sitecustomize.py").write_text(
        "import os\n"
        "import evalkit.models as m\n"
        "plain = m.Models.compute\n"
        "def compute(self, role, rows, *rest):\n"
        f"    with open({str(folder)!r} + f'/computed-{{os.getpid()}}', 'a') as f:\n"
        "        f.write(f'{sum(len(r.response_ids) for r in rows)}\\n')\n"
        "    return plain(self, role, rows, *rest)\n"
        "m.Models.compute = compute\n"
    )
    return {f.name: sum(map(int, f.read_text().split())) for f in folder.glob("computed-*")}


def same_as(road: Path, out: Path) -> None:
    got = pq.read_table(out / "scores.parquet").to_pandas().set_index("id")
    wanted = score_pairs(str(road / "dpo"), road / "data").set_index("id")
    assert list(got.index) == list(wanted.index)
    for name in ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected"):
        assert np.allclose(got[name], wanted[name], atol=1e-4)


def test_two_processes_share_the_work(road, tmp_path):
    env = {**os.environ, "PREFKIT_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(tmp_path), env.get("PYTHONPATH", "")])
    computed_by(tmp_path)
    command = [BIN / "torchrun", "--standalone", "--nproc-per-node", "2", "-m", "evalkit"]
    command += ["score", "--policy", "dpo", "--data", "data", "--out", tmp_path / "out"]
    done = subprocess.run(command, cwd=road, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("scores ") == 1
    same_as(road, tmp_path / "out")
    first, second = (n for n in computed_by(tmp_path).values() if n)
    asked, known = map(int, re.search(r"forwards (\d+) responses.*?, (\d+) from the cache: dpo", done.stdout).groups())
    assert first + second == 2 * asked, "policy and reference, each response once"
    assert min(first, second) > asked / 2
    assert known == 0


def test_a_ray_cluster_scores_the_same(road, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="ray is not installed")
    wanted = score_pairs(str(road / "dpo"), road / "data")
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Models, "compute", None)  # nothing in this process computes
    lines: list[str] = []
    try:
        got = score(str(road / "dpo"), road / "data", ScoreOptions(engine="ray"), lines.append).table.to_pandas()
    finally:
        ray.shutdown()
    told = [re.match(r"forwards (\d+) responses computed.*, 0 from the cache", line) for line in lines]
    assert [int(m.group(1)) > 0 for m in told if m] == [True, True], "policy and reference"
    for name in ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected"):
        assert np.allclose(got[name], wanted[name], atol=1e-4)


def test_a_reference_with_another_vocabulary_is_refused(road):
    shape = ("--vocab-size", 290, "--hidden", 32, "--layers", 2, "--heads", 2)
    run("prefkit", "train", "tiny-model", "--data.path", "data", "--out", "other", *shape, cwd=road)
    with pytest.raises(UserError, match="different vocabularies"):
        score_pairs(str(road / "dpo"), road / "data", reference=str(road / "other"))


def test_a_model_without_its_base_or_configuration_is_one_line(road, tmp_path):
    adapter = copied(road, tmp_path, "dpo")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/nowhere/base"}))
    with pytest.raises(UserError, match="adapter's base cannot be loaded"):
        score_pairs(str(adapter), road / "data")
    model = copied(road, tmp_path, "tiny")
    (model / "config.json").write_text('{"model_type": "no such thing"}')
    with pytest.raises(UserError, match="model"):
        score_pairs(str(model), road / "data", reference="none")


def test_a_base_that_is_not_the_runs_own_is_refused(road, tmp_path):
    """With the adapter off, its base computes: under the name of another model its numbers would be kept for that one."""
    adapter, other = copied(road, tmp_path, "sft"), copied(road, tmp_path, "tiny")
    weights = load_file(other / "model.safetensors")
    save_file({k: v * 1.01 for k, v in weights.items()}, other / "model.safetensors", {"format": "pt"})
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(other)}))
    with pytest.raises(UserError, match="has changed since"):
        score_pairs(str(adapter), road / "data")
    second = copied(road, tmp_path, "dpo")
    (second / "adapter_config.json").write_text(
        json.dumps(json.loads((second / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(other)})
    )
    with pytest.raises(UserError, match="is not that of the model it started from"):
        score_pairs(str(second), road / "data")


def test_what_no_process_could_compute_is_told(road, monkeypatch):
    monkeypatch.setattr(Models, "compute", lambda *args: iter(()))
    with pytest.raises(UserError, match=r"\d log-probabilities that other processes computed are not finite"):
        score_pairs(str(road / "dpo"), road / "data", template="{prompt} {response}", limit=2)
