"""Whole runs: where they start, what they change, what they log, how they go on, on one process and on two."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from train_toys import make_pairs, metrics, reply, save_model, user, write_data
from transformers import MixtralConfig, MixtralForCausalLM

from prefkit.errors import UserError
from prefkit.shards import open_pairs
from train.callbacks import RunLog
from train.check import check
from train.config import DataConfig, DpoConfig, DpoRun, LoraConfig, ModelConfig, SftConfig, SftRun
from train.core.batch import collate
from train.core.encode import Limits
from train.core.logprobs import PairPolicy, response_logps
from train.core.rewards import hits
from train.core.rows import build_rows, pair_texts
from train.data.dataset import load_rows
from train.dpo import load_start, train_dpo
from train.folder import LOCK, is_whole
from train.models.load import load_model, load_tokenizer
from train.models.policies import describe_policy, load_policy, reference_context
from train.run import _lora_of
from train.sft import train_sft
from train.tiny_model import write_tiny_model
from train.trainer import StepTrainer
from train.weights import load_weights, save_policy

ROOT = Path(__file__).parents[2]
SIDES = ("chosen", "rejected")
FAST = {"learning_rate": "5e-3", "logging_steps": "1", "save_strategy": "no", "warmup_steps": "0"}


def dpo_run(model, data, *, lora=None, four_bit=False, dtype=None, trainer=(), **dpo):
    return check(
        DpoRun(
            ModelConfig(path=str(model), four_bit=four_bit, dtype=dtype),
            DataConfig(path=str(data)),
            lora or LoraConfig(r=4, alpha=8, dropout=0.3),
            DpoConfig(**{"pairs_per_step": 8, **dpo}),
            {**FAST, **dict(trainer)},
        )
    )


def sft_run(model, data, *, lora=None, four_bit=False, trainer=()):
    return check(
        SftRun(
            ModelConfig(path=str(model), four_bit=four_bit),
            DataConfig(path=str(data)),
            lora or LoraConfig(r=4, alpha=8, dropout=0.1),
            SftConfig(examples_per_step=8),
            {**FAST, **dict(trainer)},
        )
    )


@pytest.fixture(scope="module", params=[False, True], ids=["fp32", "nf4"])
def sft(request, model_path, data, tmp_path_factory):
    """An SFT adapter, on a plain and on a 4-bit base."""
    out = tmp_path_factory.mktemp("sft") / "run"
    train_sft(sft_run(model_path, data, four_bit=request.param, trainer={"learning_rate": "2e-2"}), out)
    return out, request.param


def rows_of(data, tokenizer, template):
    return build_rows(pair_texts(open_pairs(data, "test")), tokenizer, template, Limits()).rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has the backward that is refused here")
def test_flex_attention_is_refused_where_it_has_no_backward(model_path, data, tmp_path):
    run = dpo_run(model_path, data)
    with pytest.raises(UserError, match="no backward on this device"):
        train_dpo(replace(run, model=replace(run.model, attn="flex")), tmp_path / "run")


def test_sft_learns(sft):
    losses = metrics(sft[0])
    assert losses[-1] < losses[0] - 0.5


def test_dpo_starts_at_and_refers_to_the_sft_model(sft, data, tmp_path):
    """Step 0: rewards exactly 0, loss ln 2, and the policy's log-probabilities are the SFT model's."""
    path, four_bit = sft
    loaded = load_policy(describe_policy(str(path)))
    rows = rows_of(data, loaded.policy.tokenizer, loaded.policy.template)
    model, kind, frozen = load_start(dpo_run(path, data, four_bit=four_bit))
    assert kind == "adapter:reference"
    batch = collate(rows[:4])
    with torch.no_grad():
        policy = PairPolicy(model)(batch).logps_N
        with reference_context(model, kind, frozen) as reference:
            ref = PairPolicy(reference)(batch).logps_N
        sft_logps = PairPolicy(loaded.model)(batch).logps_N
    assert torch.equal(policy, ref)
    assert torch.equal(policy, sft_logps), "not the base: the SFT model"
    with torch.no_grad(), loaded.model.disable_adapter():
        assert (PairPolicy(loaded.model)(batch).logps_N - policy).abs().max() > 0.5, "SFT moved the model at all"
    train_dpo(dpo_run(path, data, four_bit=four_bit, trainer={"max_steps": "3"}), tmp_path / "dpo")
    out = tmp_path / "dpo"
    assert metrics(out)[0] == pytest.approx(math.log(2), abs=1e-7)
    for key, value in {
        "rewards/chosen": 0.0,
        "rewards/rejected": 0.0,
        "rewards/margins": 0.0,
        "rewards/accuracies": 0.5,
    }.items():
        assert metrics(out, key)[0] == value
    assert metrics(out)[-1] < math.log(2)


def test_a_dpo_run_is_one_adapter_that_remembers_its_reference(sft, data, tmp_path):
    path, four_bit = sft
    train_dpo(dpo_run(path, data, four_bit=four_bit), tmp_path / "dpo")
    assert sorted(p.name for p in (tmp_path / "dpo").glob("**/*.safetensors")) == ["adapter_model.safetensors"]
    before, after = load_policy(describe_policy(str(path))), load_policy(describe_policy(str(tmp_path / "dpo")))
    assert after.policy.kind == "adapter:reference"
    rows = rows_of(data, after.policy.tokenizer, after.policy.template)
    wanted = response_logps(before.model, rows, 2000)
    with reference_context(after.model, after.policy.kind) as reference:
        got = response_logps(reference, rows, 2000)
    for a, b in zip(wanted, got, strict=True):
        assert np.array_equal(a.logps_R, b.logps_R)
    policy = response_logps(after.model, rows, 2000)
    margins = [
        0.1 * ((p.logps_R[w] - r.logps_R[w]) - (p.logps_R[x] - r.logps_R[x]))
        for row, p, r in zip(rows, policy, got, strict=True)
        for w, x in row.pairs
    ]
    summary = json.loads((tmp_path / "dpo" / "summary.json").read_text())
    assert summary["eval_rewards/margins"] == pytest.approx(np.mean(margins), abs=1e-6)
    assert summary["eval_rewards/accuracies"] == pytest.approx(hits(np.array(margins)).mean())


def test_only_the_trained_adapter_changes(sft, data, tmp_path, monkeypatch):
    path, four_bit = sft
    seen = {}

    def remember(run):
        seen["model"], *rest = load_start(run)
        seen["before"] = {k: v.clone() for k, v in seen["model"].state_dict().items()}
        return seen["model"], *rest

    monkeypatch.setattr("train.dpo.load_start", remember)
    train_dpo(dpo_run(path, data, four_bit=four_bit), tmp_path / "dpo")
    after = seen["model"].state_dict()
    changed = {k for k, v in after.items() if not torch.equal(v, seen["before"][k])}
    assert changed
    assert all(".default." in k for k in changed)
    assert any(".reference." in k for k in after)
    assert all(p.dtype == torch.float32 for n, p in seen["model"].named_parameters() if "lora_" in n)


def test_plain_base_starts_at_zero_with_its_adapter_off(model_path, data, tmp_path):
    train_dpo(dpo_run(model_path, data), tmp_path / "run")
    assert metrics(tmp_path / "run")[0] == pytest.approx(math.log(2), abs=1e-7)
    assert metrics(tmp_path / "run", "rewards/margins")[0] == 0.0
    assert metrics(tmp_path / "run", "eval_rewards/accuracies")[-1] > 0.5
    assert load_policy(describe_policy(str(tmp_path / "run"))).policy.kind == "adapter_off"


def test_full_fine_tuning_keeps_a_frozen_copy(model_path, data, tmp_path):
    run = dpo_run(model_path, data, lora=LoraConfig(enabled=False), trainer={"learning_rate": "1e-3"})
    train_dpo(run, tmp_path / "run")
    assert metrics(tmp_path / "run")[0] == pytest.approx(math.log(2), abs=1e-7)
    assert metrics(tmp_path / "run")[-1] < 0.69
    loaded = load_policy(describe_policy(str(tmp_path / "run")))
    assert loaded.policy.kind == "model"
    start = load_model(str(model_path))
    assert all(torch.equal(a, b) for a, b in zip(loaded.frozen.parameters(), start.parameters(), strict=True))


def test_rows_that_carry_their_reference_need_no_other(model_path, data, tmp_path, monkeypatch):
    """No rank without rows makes a forward that no other joins, and full fine-tuning keeps no frozen copy."""
    seen = []
    monkeypatch.setattr("train.dpo.fit", lambda session, model, objective, *rest: seen.append(objective))
    run = dpo_run(model_path, data, lora=LoraConfig(enabled=False), reference="cached")
    train_dpo(run, tmp_path / "run")
    assert seen[0].frozen is None
    assert seen[0].reference_logps(None, collate([])).shape == (0,)


def test_reference_none_uses_the_policy_alone(model_path, data, tmp_path):
    train_dpo(dpo_run(model_path, data, reference="none", trainer={"max_steps": "2"}), tmp_path / "run")
    reward, logp = (metrics(tmp_path / "run", k)[0] for k in ("rewards/chosen", "logps/chosen"))
    assert reward == pytest.approx(0.1 * logp)


def test_bfloat16_base_starts_at_zero(model_path, data, tmp_path):
    train_dpo(dpo_run(model_path, data, dtype="bfloat16", trainer={"max_steps": "3"}), tmp_path / "run")
    assert metrics(tmp_path / "run", "rewards/margins")[0] == 0.0


@pytest.mark.parametrize("variant", [{"tokens_per_forward": 60}, {"tokens_per_forward": 100_000}], ids=str)
def test_micro_batches_do_not_change_the_result(variant, model_path, data, tmp_path):
    base = dpo_run(model_path, data)
    train_dpo(base, tmp_path / "a")
    train_dpo(replace(base, dpo=replace(base.dpo, **variant)), tmp_path / "b")
    for key in ("loss", "rewards/margins", "grad_norm"):
        assert metrics(tmp_path / "a", key) == pytest.approx(metrics(tmp_path / "b", key), abs=2e-5)


def test_a_run_repeats_itself(model_path, data, tmp_path):
    for name in ("a", "b"):
        train_dpo(dpo_run(model_path, data), tmp_path / name)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_a_checkpoint_with_a_cut_file_is_not_whole(model_path, data, tmp_path):
    """As a kill or a full disk leaves it; the run then goes on from the one before."""
    train_dpo(dpo_run(model_path, data, trainer={"save_strategy": "steps", "save_steps": "4"}), tmp_path / "run")
    whole = tmp_path / "run" / "checkpoint-8"
    assert is_whole(whole)
    for name in ("adapter_model.safetensors", "trainer_state.json", "optimizer.pt", "scheduler.pt"):
        for size in (None, 0, 100, (whole / name).stat().st_size - 9):
            cut = shutil.copytree(whole, tmp_path / "cut" / "checkpoint-8")
            if size is None:
                (cut / name).unlink()
            else:
                os.truncate(cut / name, size)
            assert not is_whole(cut), (name, size)
            shutil.rmtree(cut)


@pytest.mark.parametrize("logged", [1, 3], ids="logged every {}".format)
def test_resume_is_the_same_as_never_stopping(logged, model_path, data, tmp_path, capsys):
    """From a checkpoint between two logs too; one that is not whole is left, and that is said."""
    saved = {"save_strategy": "steps", "save_steps": "4", "logging_steps": str(logged)}
    run = dpo_run(model_path, data, trainer=saved)
    train_dpo(run, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    cut = tmp_path / "cut"
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "checkpoint-10")
    (cut / "checkpoint-8" / "trainer_state.json").unlink()
    train_dpo(run, cut)
    assert f"note: {cut / 'checkpoint-8'} is not whole" in capsys.readouterr().out
    assert metrics(cut) == metrics(tmp_path / "whole")
    whole, again = (json.loads((p / "summary.json").read_text())["train_loss"] for p in (tmp_path / "whole", cut))
    assert whole == pytest.approx(again, abs=1e-12)
    a, b = (load_file(p / "adapter_model.safetensors") for p in (cut, tmp_path / "whole"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_folder_that_holds_something_else_is_left_alone(model_path, data, tmp_path):
    run, out = dpo_run(model_path, data, trainer={"max_steps": "1"}), tmp_path / "run"
    train_dpo(run, out)
    with pytest.raises(UserError, match="this run is finished"):
        train_dpo(run, out)
    (out / "summary.json").unlink()
    with pytest.raises(UserError, match=r"holds another run: dpo\.beta was 0\.\d+, is 0\.2 "):
        train_dpo(replace(run, dpo=replace(run.dpo, beta=0.2)), out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not empty and holds no run"):
        train_dpo(run, tmp_path / "other")


def test_every_epoch_can_end_in_evaluation_and_a_checkpoint(model_path, data, tmp_path):
    each = {"num_train_epochs": "2", "eval_strategy": "epoch", "save_strategy": "epoch"}
    train_dpo(dpo_run(model_path, data, trainer=each), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-20"]
    assert len(metrics(tmp_path / "run", "eval_loss")) == 2
    assert metrics(tmp_path / "run", "epoch")[-1] == 2.0


def test_metrics_are_means_over_pairs_not_over_steps(model_path, tmp_path):
    """Uneven steps: 3 pairs, then 1; the window's means weigh every pair alike."""
    data = write_data(tmp_path / "data", {"train": [*make_pairs(1, 3), *make_pairs(1, 1, seed=4)]})
    base = dpo_run(model_path, data, pairs_per_step=3, trainer={"learning_rate": "0"})
    base = replace(base, data=replace(base.data, order="file"))
    train_dpo(base, tmp_path / "each")
    train_dpo(replace(base, trainer={**base.trainer, "logging_steps": "2"}), tmp_path / "both")
    for key in ("logps/chosen", "logps/rejected", "rewards/accuracies"):
        first, second = metrics(tmp_path / "each", key)
        assert metrics(tmp_path / "both", key) == [pytest.approx((3 * first + second) / 4)]


def test_what_is_left_and_what_no_step_reaches_is_said(model_path, data, tmp_path, capsys):
    train_dpo(dpo_run(model_path, data, trainer={"max_steps": "1"}), tmp_path / "run")
    out = capsys.readouterr().out
    assert "train: 80 of 80 pairs; dropped: none" in out
    assert "1 step over 4 of 40 rows" in out


def test_the_last_steps_are_logged_however_few(model_path, data, tmp_path, capsys):
    """10 steps, of which every fourth is printed: the last line holds the mean of the two after the eighth."""
    run = dpo_run(model_path, data)
    train_dpo(run, tmp_path / "each")
    capsys.readouterr()
    train_dpo(replace(run, trainer={**run.trainer, "logging_steps": "4"}), tmp_path / "some")
    each, some = metrics(tmp_path / "each"), metrics(tmp_path / "some")
    assert some == pytest.approx([np.mean(each[:4]), np.mean(each[4:8]), np.mean(each[8:10])], abs=1e-6)
    steps = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step 10/10")]
    assert ["eval loss" in line for line in steps] == [False, True]
    train_dpo(replace(run, trainer={**run.trainer, "logging_strategy": "no"}), tmp_path / "none")
    assert metrics(tmp_path / "none") == []


def test_a_loss_that_is_not_finite_stops_and_names_its_pairs(model_path, data, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def bad(x, beta, s):\n    y = x.margins(beta) * 1.0\n    y[1] = float('nan')\n    return y\n")
    with pytest.raises(UserError, match=r"loss of 1 pairs is not finite at step 1"):
        train_dpo(dpo_run(model_path, data, loss=f"{mine}:bad"), tmp_path / "run")
    recorded = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    known = open_pairs(data, "train")["id"].to_pylist()
    assert len(recorded["ids"]) == 1
    assert recorded["ids"][0] in known
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return x.margins(beta).mean()", r"the loss gives shape \[\], not one number for each of 8 pairs"),
        ("x.margins(beta)", "the loss gives NoneType, not one number for each of 8 pairs"),
    ],
)
def test_a_loss_that_gives_no_number_a_pair_is_refused(model_path, data, tmp_path, body, said):
    (tmp_path / "mine.py").write_text(f"def bad(x, beta, s):\n    {body}\n")
    with pytest.raises(UserError, match=said):
        train_dpo(dpo_run(model_path, data, loss=f"{tmp_path / 'mine.py'}:bad"), tmp_path / "run")


def test_a_run_does_not_go_on_with_another_loss_of_that_name(model_path, data, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def own(x, beta, s):\n    return -x.margins(beta)\n")
    run = dpo_run(model_path, data, loss=f"{mine}:own", trainer={"max_steps": "1"})
    train_dpo(run, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    mine.write_text("def own(x, beta, s):\n    return x.margins(beta)\n")
    with pytest.raises(UserError, match="holds another run: loss has changed"):
        train_dpo(run, tmp_path / "run")


@pytest.mark.parametrize(
    "trainer", [{"lr_scheduler_type": "warmup_stable_decay"}, {"report_to": "nope"}, {"optim": "lomo"}]
)
def test_what_only_transformers_can_refuse_is_one_line(model_path, data, tmp_path, trainer):
    with pytest.raises(UserError, match=r"^trainer: .*: change this value of --trainer$"):
        train_dpo(dpo_run(model_path, data, trainer=trainer), tmp_path / "run")


def test_a_model_whose_experts_are_fused_goes_on(tmp_path):
    """transformers stores each expert under a name of its own."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MixtralConfig(vocab_size=60, num_key_value_heads=2, num_local_experts=4, **sizes)
    one, other = (MixtralForCausalLM(config).eval() for _ in range(2))
    save_policy(one, None, tmp_path / "model")
    ids = torch.arange(12)[None]
    assert not torch.allclose(one(ids).logits, other(ids).logits)
    load_weights(other, tmp_path / "model")
    assert torch.equal(one(ids).logits, other(ids).logits)


def test_weights_that_are_not_finite_are_not_saved(model_path, data, tmp_path):
    """The last step's loss is 0, its gradient 0 · ∞."""
    mine = tmp_path / "mine.py"
    mine.write_text("def bad(x, beta, s):\n    return (x.margins(beta) * 0).sqrt()\n")
    with pytest.raises(UserError, match="weights are not finite after step 1"):
        train_dpo(dpo_run(model_path, data, loss=f"{mine}:bad", trainer={"max_steps": "1"}), tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert not (tmp_path / "run" / "summary.json").exists()


def test_processes_stop_together_where_a_loss_is_not_finite(model_path, data, tmp_path):
    """Without torchrun, which would end the one that waits: both end by themselves, and name the other's pair too."""
    mine = tmp_path / "mine.py"
    mine.write_text(
        "import os\n\ndef bad(x, beta, s):\n    y = x.margins(beta) * 1.0\n"
        "    return y.index_fill(0, y.new_zeros(1).long(), float('nan')) if os.environ['RANK'] == '1' else y\n"
    )
    with socket.socket() as free:
        free.bind(("localhost", 0))
        env = os.environ | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", "train", "dpo", "--model.path", str(model_path), "--data.path", str(data)]
    command += ["--dpo.loss", f"{mine}:bad", "--dpo.tokens-per-forward", "90", "--out", str(tmp_path / "run")]
    ranks = [
        subprocess.Popen(
            command, cwd=ROOT, env=env | {"RANK": r, "LOCAL_RANK": r, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE
        )
        for r in "01"
    ]
    said = [p.communicate(timeout=120)[1].decode().splitlines()[-1] for p in ranks]
    assert [p.returncode for p in ranks] == [2, 2], said
    recorded = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert recorded["step"] == 1
    assert 0 < len(recorded["ids"]) < 32
    assert said[0] == said[1]
    assert f"the loss of {len(recorded['ids'])} pairs is not finite at step 1: {recorded['ids'][0]}" in said[0]


def test_run_yaml_replays_the_run(model_path, data, tmp_path):
    """Numbers in it are numbers."""
    train_dpo(dpo_run(model_path, data, trainer={"save_total_limit": "2"}), tmp_path / "a")
    command = [
        sys.executable,
        "-m",
        "train",
        "dpo",
        "--config",
        str(tmp_path / "a" / "run.yaml"),
        "--out",
        str(tmp_path / "b"),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rows are packed" in done.stdout
    assert metrics(tmp_path / "a") == pytest.approx(metrics(tmp_path / "b"), abs=1e-6)
    a, b = (yaml.safe_load((tmp_path / n / "run.yaml").read_text()) for n in ("a", "b"))
    assert a == b
    values = {
        "learning_rate": 5e-3,
        "logging_steps": 1,
        "warmup_steps": 0,
        "save_strategy": "no",
        "save_total_limit": 2,
    }
    assert {k: a["trainer"][k] for k in values} == values
    assert not [v for v in a["trainer"].values() if isinstance(v, str) and v.replace(".", "").isdigit()]


def test_two_processes_do_what_one_does(model_path, data, tmp_path):
    """gloo DDP on uneven work: prompts with three pairs, steps of 8, micro-batches of 90 tokens."""
    run = dpo_run(model_path, data, tokens_per_forward=90)
    train_dpo(run, tmp_path / "one")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port=0",
        "--rdzv-backend=c10d",
    ]
    command += ["--rdzv-endpoint=localhost:0", "-m", "train", "dpo", "--config", str(tmp_path / "one" / "run.yaml")]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "two")], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("rows are packed") == 1, "printed once"
    for key in (
        "loss",
        "grad_norm",
        "rewards/margins",
        "rewards/accuracies",
        "logps/chosen",
        "eval_loss",
        "eval_rewards/margins",
    ):
        assert metrics(tmp_path / "one", key) == pytest.approx(metrics(tmp_path / "two", key), abs=2e-5), key
    a, b = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("one", "two"))
    assert max(float((a[k] - b[k]).norm() / a[k].norm()) for k in a) < 1e-3


def test_ctrl_c_leaves_a_checkpoint_to_go_on_from(model_path, data, tmp_path):
    run = dpo_run(model_path, data, pairs_per_step=2)
    train_dpo(run, tmp_path / "whole")
    command = [sys.executable, "-m", "train", "dpo", "--config", str(tmp_path / "whole" / "run.yaml")]
    command += ["--out", str(tmp_path / "cut")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as going:
        while not going.stdout.readline().startswith("step  3/"):
            assert going.poll() is None
        going.send_signal(signal.SIGINT)
        _, err = going.communicate(timeout=120)
    assert going.returncode == 130
    assert err.strip().splitlines()[-1] == "interrupted: run the same command again to go on"
    (checkpoint,) = (tmp_path / "cut").glob("checkpoint-*")
    assert int(checkpoint.name.rpartition("-")[2]) >= 3
    with pytest.raises(UserError, match="this run is not finished"):
        load_policy(describe_policy(str(tmp_path / "cut")))
    done = subprocess.run([*command], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert f"from {checkpoint}" in done.stdout
    assert metrics(tmp_path / "cut") == pytest.approx(metrics(tmp_path / "whole"), abs=1e-6)


def test_ctrl_c_after_the_last_step_loses_nothing(model_path, data, tmp_path, monkeypatch):
    """In the last evaluation no step follows that could leave a checkpoint: the run is finished instead."""
    evaluate = StepTrainer.evaluate
    asked = []

    def interrupted(self, *args, **kwargs):
        if not asked:
            asked.append(os.kill(os.getpid(), signal.SIGINT))
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(StepTrainer, "evaluate", interrupted)
    train_dpo(dpo_run(model_path, data, trainer={"max_steps": "2", "eval_strategy": "epoch"}), tmp_path / "run")
    assert asked
    assert (tmp_path / "run" / "summary.json").is_file()


def test_sft_takes_conversations_and_counts_what_it_cannot_use(model_path, tmp_path):
    lines = [{"messages": [*user(f"hop {n} malt?"), *reply(f"good beer {n}")]} for n in range(6)]
    lines.append({"messages": [*user("old?"), *reply("new"), *user("why?"), *reply("yeast is good")]})
    bad = [
        {"messages": [*user("half \ud800?"), *reply("a")]},
        {"messages": user("no answer?")},
        {"prompt": "x"},
        {"messages": [*user("a"), {"role": "assistant"}]},
    ]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in [*lines, *bad]) + "{broken\n")
    base = sft_run(model_path, path, trainer={"num_train_epochs": "2"})
    train_sft(replace(base, data=replace(base.data, template="dialogue")), tmp_path / "run")
    counts = json.loads((tmp_path / "run" / "summary.json").read_text())["data"]["train"]
    assert (counts["pairs"], counts["responses"]) == (7, 7)
    assert counts["dropped"] == {"no messages that end with the assistant's": 4, "half a character": 1}
    losses = metrics(tmp_path / "run")
    assert losses[-1] < losses[0]
    with pytest.raises(UserError, match="a file has no splits"):
        train_sft(replace(base, data=replace(base.data, eval_split="validation")), tmp_path / "other")
    with pytest.raises(UserError, match="a file of conversations has no pairs"):
        train_dpo(dpo_run(model_path, path), tmp_path / "dpo")


@pytest.mark.parametrize("kind", ["sft", "dpo"])
def test_entropy_and_token_accuracy_are_means_over_tokens(kind, model_path, data, tmp_path):
    """The evaluation's numbers against plain forwards over every response that is evaluated."""
    run = sft_run(model_path, data) if kind == "sft" else dpo_run(model_path, data)
    (train_sft if kind == "sft" else train_dpo)(
        replace(run, trainer={**run.trainer, "max_steps": "2"}), tmp_path / "run"
    )
    loaded = load_policy(describe_policy(str(tmp_path / "run")))
    entropy, hits_, tokens = 0.0, 0.0, 0
    for row in load_rows(
        data,
        "test",
        None,
        "examples" if kind == "sft" else "pairs",
        loaded.policy.tokenizer,
        loaded.policy.template,
        Limits(1024),
    ).rows:
        for i, response in enumerate(row.response_ids):
            uses = sum(i in pair for pair in row.pairs) if kind == "dpo" else 1
            ids = torch.tensor(np.concatenate([row.prompt_ids, response]))[None].long()
            with torch.no_grad():
                logps = loaded.model(ids).logits[0, len(row.prompt_ids) - 1 : -1].double().log_softmax(-1)
            entropy -= uses * float((logps.exp() * logps).sum())
            hits_ += uses * float((logps.argmax(1) == ids[0, len(row.prompt_ids) :]).sum())
            tokens += uses * len(response)
    assert metrics(tmp_path / "run", "eval_entropy")[-1] == pytest.approx(entropy / tokens, rel=1e-5)
    assert metrics(tmp_path / "run", "eval_mean_token_accuracy")[-1] == pytest.approx(hits_ / tokens, abs=1e-3)


def test_gradient_checkpointing_changes_nothing(model_path, data, tmp_path):
    train_dpo(dpo_run(model_path, data, trainer={"max_steps": "4"}), tmp_path / "a")
    checkpointed = {"max_steps": "4", "gradient_checkpointing": "true"}
    train_dpo(dpo_run(model_path, data, trainer=checkpointed), tmp_path / "b")
    assert metrics(tmp_path / "a") == pytest.approx(metrics(tmp_path / "b"), abs=1e-6)


def test_tiny_model_is_deterministic_and_usable(data, tmp_path):
    for name in ("a", "b"):
        write_tiny_model(data, tmp_path / name, 300, 32, 1, 2, 256, 0)
    a, b = (load_file(tmp_path / n / "model.safetensors") for n in ("a", "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()
    tokenizer = load_tokenizer(str(tmp_path / "a"))
    ids = tokenizer("good hop")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "good hop"
    load_model(str(tmp_path / "a"))


def test_dpo_speaks_the_template_of_its_sft_run(model_path, data, tmp_path, capsys):
    run = sft_run(model_path, data, trainer={"max_steps": "1"})
    train_sft(replace(run, data=replace(run.data, template="plain")), tmp_path / "sft")
    train_dpo(dpo_run(tmp_path / "sft", data, trainer={"max_steps": "1"}), tmp_path / "dpo")
    assert load_policy(describe_policy(str(tmp_path / "dpo"))).policy.template.source == "{prompt}\n\n{response}"
    train_dpo(dpo_run(tmp_path / "sft", data, four_bit=True, trainer={"max_steps": "1"}), tmp_path / "other")
    assert "was trained on a plain base" in capsys.readouterr().out


def test_ties_are_dropped_and_counted(model_path, tmp_path):
    pairs = make_pairs(4, 2)
    pairs[3]["p_chosen"], pairs[5]["p_chosen"] = 0.5, 0.9
    data = write_data(tmp_path / "data", {"train": pairs})
    train_dpo(dpo_run(model_path, data, trainer={"max_steps": "1"}), tmp_path / "run")
    counts = json.loads((tmp_path / "run" / "summary.json").read_text())["data"]["train"]
    assert (counts["pairs"], counts["dropped"]) == (7, {"tie": 1})
    dropped = json.loads((tmp_path / "run" / "dropped.json").read_text())
    assert dropped == {"train": {"tie": [pairs[3]["id"]]}}


def test_what_does_not_fit_the_model_is_said(data, tmp_path):
    small = save_model(tmp_path / "small", vocab_size=100)
    with pytest.raises(UserError, match="the model knows 100"):
        train_dpo(dpo_run(small, data), tmp_path / "b")


def test_nf4_computes_in_bfloat16_where_asked(model_path, data, tmp_path):
    run = dpo_run(model_path, data, four_bit=True, dtype="bfloat16", trainer={"max_steps": "3"})
    train_dpo(run, tmp_path / "run")
    assert metrics(tmp_path / "run", "rewards/margins")[0] == 0.0
    model = load_policy(describe_policy(str(tmp_path / "run"))).model
    kinds = {type(m).__name__: m for m in model.modules()}
    assert kinds["Linear4bit"].compute_dtype == torch.bfloat16
    assert kinds["Linear4bit"].weight.quant_type == "nf4"
    assert kinds["Linear4bit"].weight.quant_state.nested, "double quantisation"
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16, "no blanket upcast"


def test_no_more_tokens_than_the_model_has_positions_for(data, tmp_path, monkeypatch, capsys):
    """Asked for more: refused before a text is tokenised. Not asked: its context, and what is longer is counted."""
    short = save_model(tmp_path / "short", max_position_embeddings=40)
    run = dpo_run(short, data, trainer={"max_steps": "1"})
    train_dpo(run, tmp_path / "a")
    assert "limit: 40 tokens for prompt and response together" in capsys.readouterr().out
    tokenizer = load_tokenizer(str(short))
    long = 0
    for pair in open_pairs(data, "train").to_pylist():
        texts = (f"Question: {pair['prompt'][0]['content']}\n\nAnswer: {pair[s][0]['content']}" for s in SIDES)
        long += any(len(tokenizer(t)["input_ids"]) + 1 > 40 for t in texts)  # and its end token
    counts = json.loads((tmp_path / "a" / "summary.json").read_text())["data"]["train"]
    assert 0 < long < 80
    assert (counts["pairs"], sum(counts["dropped"].values())) == (80 - long, long)
    assert yaml.safe_load((tmp_path / "a" / "run.yaml").read_text())["data"]["max_tokens"] == 40
    monkeypatch.setattr("train.run.load_rows", lambda *args: pytest.fail("tokenised"))
    with pytest.raises(UserError, match=r"max_tokens is 1024, the model has 40 positions.*set --data.max-tokens 40"):
        train_dpo(replace(run, data=replace(run.data, max_tokens=1024)), tmp_path / "b")


def test_only_the_usual_evaluation_split_may_be_absent(model_path, tmp_path, capsys):
    data = write_data(tmp_path / "data", {"train": make_pairs(4, 1)})
    run = dpo_run(model_path, data, trainer={"max_steps": "1"})
    train_dpo(run, tmp_path / "a")
    assert "no split 'test': no evaluation" in capsys.readouterr().out
    train_dpo(replace(run, data=replace(run.data, eval_split="")), tmp_path / "b")
    with pytest.raises(UserError, match="unknown evaluation split 'validation': known: train"):
        train_dpo(replace(run, data=replace(run.data, eval_split="validation")), tmp_path / "c")


def test_evaluation_on_the_training_split_takes_nothing_from_training(model_path, data, tmp_path):
    run = dpo_run(model_path, data)
    run = replace(run, data=replace(run.data, eval_split="train", eval_limit=6))
    train_dpo(run, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == 10, "80 pairs, 8 a step"
    assert summary["data"]["train"]["pairs"] == 80
    assert math.isfinite(summary["eval_loss"])


def test_packing_is_decided_by_the_longest_row_evaluation_included(tmp_path, capsys):
    """Rotary frequencies of this model change at 60 tokens, which only a pair of the evaluation split has."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 60}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **factors}
    model = save_model(tmp_path / "model", rope_parameters=rope, max_position_embeddings=240)
    short = {"prompt": user("hop?"), "chosen": reply("good"), "rejected": reply("bad")}
    long = short | {"chosen": reply("malt " * 60)}
    splits = {name: [pair | {"id": name}] for name, pair in (("train", short), ("test", long))}
    train_sft(sft_run(model, write_data(tmp_path / "data", splits)), tmp_path / "run")
    assert "rows are not packed: rotary frequencies that depend on length" in capsys.readouterr().out


def test_missing_things_are_user_errors(model_path, data, tmp_path):
    run = dpo_run(model_path, data)
    train_dpo(replace(run, trainer={**run.trainer, "max_steps": "1"}), tmp_path / "run")
    config = tmp_path / "run" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(model_path), str(tmp_path / "gone")))
    with pytest.raises(UserError, match="the adapter's base cannot be loaded"):
        load_policy(describe_policy(str(tmp_path / "run")))
    with pytest.raises(UserError, match="this is an adapter, not a model"):
        load_model(str(tmp_path / "run"))
    with pytest.raises(UserError, match="matches no module"):
        train_dpo(replace(run, lora=LoraConfig(targets=("q_proj", "fc_in"))), tmp_path / "x")
    assert not (tmp_path / "x" / "run.yaml").exists()
    pickled = save_model(tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickles"):
        load_model(str(pickled))
    save_file({"x": torch.zeros(1)}, pickled / "model.safetensors")


def test_weights_can_be_read_by_those_who_may_read_the_run(model_path, data, tmp_path):
    """safetensors makes files for their owner alone, whatever the umask."""
    run = sft_run(model_path, data)
    train_sft(replace(run, trainer={**run.trainer, "max_steps": "1"}), tmp_path / "run")
    modes = {p.stat().st_mode & 0o777 for p in (tmp_path / "run").iterdir() if p.is_file() and p.name != "_run.log"}
    (tmp_path / "new").write_text("")
    assert modes == {(tmp_path / "new").stat().st_mode & 0o777}


def test_a_run_that_took_no_step_does_not_keep_its_folder(model_path, data, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise UserError("too late")

    run = dpo_run(model_path, data, beta=0.3, trainer={"max_steps": "1"})
    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "train", refuse)
        with pytest.raises(UserError, match="too late"):
            train_dpo(run, tmp_path / "run")
    train_dpo(dpo_run(model_path, data, beta=0.2, trainer={"max_steps": "1"}), tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())["dpo"]["beta"] == 0.2


def test_run_yaml_has_the_shape_of_the_adapter_that_is_continued(model_path, data, tmp_path, capsys):
    own = LoraConfig(r=3, alpha=6, targets=("q_proj", "v_proj"))
    train_sft(sft_run(model_path, data, lora=own, trainer={"max_steps": "1"}), tmp_path / "sft")
    capsys.readouterr()
    asked = LoraConfig(r=2)
    train_dpo(dpo_run(tmp_path / "sft", data, lora=asked, trainer={"max_steps": "1"}), tmp_path / "dpo")
    assert "an adapter that is continued keeps its own shape" in capsys.readouterr().out
    kept = yaml.safe_load((tmp_path / "dpo" / "run.yaml").read_text())["lora"]
    assert (kept["r"], kept["alpha"], sorted(kept["targets"])) == (3, 6, ["q_proj", "v_proj"])


def test_the_printed_speed_is_of_training_alone(tmp_path, monkeypatch):
    now = 0.0
    monkeypatch.setattr("train.callbacks.time.monotonic", lambda: now)
    args = SimpleNamespace(eval_strategy="steps", save_strategy="no", logging_strategy="steps")
    state = SimpleNamespace(is_world_process_zero=True, global_step=0, max_steps=9, epoch=0.0)
    control = SimpleNamespace(should_log=False, should_save=False, should_evaluate=False)
    log = RunLog(tmp_path, "pairs", 80, [])
    log.on_train_begin(args, state, control)
    for event, took in ((log.on_step_end, 10), (log.on_evaluate, 100), (log.on_step_end, 10)):
        now += took
        state.global_step += 1
        event(args, state, control)
    log.on_log(args, state, control, logs={"loss": 1.0, "epoch": 0.5})
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["pairs_per_second"] == 0.5 * 80 / 20


def test_what_an_earlier_try_left_is_not_said_of_this_run(model_path, data, tmp_path):
    out = tmp_path / "run"
    run = dpo_run(model_path, data, trainer={"max_steps": "1"})
    train_dpo(run, out)
    for name in ("summary.json", "metrics.jsonl"):
        (out / name).unlink()
    for name in ("dropped.json", "nonfinite.json"):
        (out / name).write_text("{}")
    train_dpo(run, out)
    assert not {"dropped.json", "nonfinite.json", LOCK} & {p.name for p in out.iterdir()}


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({"peft_type": "IA3"}, LoraConfig()),
        ({"peft_type": "LORA", "target_modules": ["v", "q"]}, LoraConfig(r=8, alpha=8, targets=("q", "v"))),
        ({"peft_type": "LORA", "target_modules": None, "target_parameters": ["experts"]}, LoraConfig(r=8, alpha=8)),
        ({"peft_type": "LORA", "target_modules": r"layers\.\d{1,2}\.q_proj"}, LoraConfig(r=8, alpha=8)),
    ],
)
def test_what_run_yaml_says_of_an_adapter_that_is_continued_may_be_given_again(tmp_path, capsys, adapter, told):
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter | {"base_model_name_or_path": "base"}))
    run = SftRun(ModelConfig(path=str(tmp_path)), lora=LoraConfig(r=4))
    assert _lora_of(run) == told == replace(told)  # reads back as it was written
    assert "keeps its own shape" in capsys.readouterr().out
    assert _lora_of(replace(run, lora=told)) == told
    assert not capsys.readouterr().out
