"""Our runs follow TRL 1.16 step by step on the same pairs, in prompt rows, where TRL computes every pair by itself."""

import json
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig as PeftLora
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from train_toys import make_pairs
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from train.check import check
from train.config import DataConfig, DpoConfig, DpoRun, LoraConfig, ModelConfig, SftConfig, SftRun
from train.core.rewards import implicit_reward
from train.dpo import train_dpo
from train.sft import train_sft

TARGETS = ("q_proj", "v_proj")
LR = "2e-2"  # where the loss falls by more than 0.2
STEPS = 50
SETTINGS = {"learning_rate": LR, "lr_scheduler_type": "linear", "warmup_steps": "0", "logging_steps": "1"}
LORA = LoraConfig(r=8, alpha=16, targets=TARGETS)


def ours_dpo(model_path, data, out, steps, **dpo):
    run = DpoRun(
        ModelConfig(path=str(model_path)),
        DataConfig(path=str(data), order="file", eval_split=""),
        LORA,
        DpoConfig(pairs_per_step=4, **dpo),
        {**SETTINGS, "save_strategy": "no", "max_steps": str(steps)},
    )
    train_dpo(check(run), out)
    return out


def flat(pairs):
    return [
        {
            "prompt": f"Question: {p['prompt'][0]['content']}\n\nAnswer:",
            "chosen": " " + p["chosen"][0]["content"],
            "rejected": " " + p["rejected"][0]["content"],
        }
        for p in pairs
    ]


def trl_args(kind, out, steps, **more):
    common = {
        "output_dir": str(out),
        "per_device_train_batch_size": 4,
        "max_steps": steps,
        "learning_rate": float(LR),
        "lr_scheduler_type": "linear",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
        "seed": 0,
    }
    return kind(**common, **more)


def run_trl(trainer_class, args, rows, model_path):
    set_seed(0)
    trainer = trainer_class(
        model=AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model_path),
        peft_config=PeftLora(r=8, lora_alpha=16, target_modules=list(TARGETS), task_type="CAUSAL_LM"),
    )
    trainer.train()
    return trainer


def run_trl_dpo(rows, model_path, out, steps, **more):
    from trl import DPOConfig as TrlConfig
    from trl import DPOTrainer

    return run_trl(DPOTrainer, trl_args(TrlConfig, out, steps, **more), rows, model_path)


@pytest.fixture(scope="module")
def theirs(model_path, tmp_path_factory):
    return run_trl_dpo(flat(make_pairs(40, 2)), model_path, tmp_path_factory.mktemp("trl"), STEPS, beta=0.1)


def differences(out, trainer, key="loss"):
    ours = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    peer = [x for x in trainer.state.log_history if "loss" in x]
    assert len(ours) == len(peer)
    return [abs(a[key] - float(b[key])) for a, b in zip(ours, peer, strict=True)]


def weights_off(out, trainer):
    ours, peer = load_file(out / "adapter_model.safetensors"), get_peft_model_state_dict(trainer.model)
    assert ours.keys() == peer.keys()
    return max(float((ours[k] - peer[k]).norm() / peer[k].norm()) for k in ours)


def test_fifty_steps_of_dpo_follow_trl(model_path, data, theirs, tmp_path):
    out = ours_dpo(model_path, data, tmp_path / "run", STEPS)
    losses = [float(x["loss"]) for x in theirs.state.log_history if "loss" in x]
    assert losses[0] - losses[-1] >= 0.2, "the comparison needs a loss that moves"
    assert max(differences(out, theirs)) <= 1e-4
    assert max(differences(out, theirs, "rewards/margins")) <= 1e-4
    assert max(differences(out, theirs, "logps/chosen")) <= 1e-3
    assert weights_off(out, theirs) <= 1e-3


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"beta": 0.11}, id="beta off by 10 %"),
        pytest.param({"swap": True}, id="chosen and rejected swapped"),
    ],
)
def test_the_comparison_notices_a_mistake(wrong, model_path, data, theirs, tmp_path, monkeypatch):
    if wrong.pop("swap", False):
        from train.dpo import DpoObjective

        right = DpoObjective.pair_logps
        swapped = staticmethod(lambda p, r, batch: right(p, r, replace(batch, pairs_P2=batch.pairs_P2.flip(1))))
        monkeypatch.setattr(DpoObjective, "pair_logps", swapped)
    out = ours_dpo(model_path, data, tmp_path / "run", STEPS, **wrong)
    assert max(differences(out, theirs)) > 1e-4
    assert weights_off(out, theirs) > 1e-3


@pytest.mark.parametrize("loss", ["ipo", "hinge"])
def test_other_losses_follow_trl(loss, model_path, data, tmp_path):
    trainer = run_trl_dpo(flat(make_pairs(40, 2)), model_path, tmp_path / "trl", 5, beta=0.1, loss_type=[loss])
    out = ours_dpo(model_path, data, tmp_path / "run", 5, loss=loss)
    scale = max(abs(float(x["loss"])) for x in trainer.state.log_history if "loss" in x)
    assert max(differences(out, trainer)) <= 1e-4 * max(1.0, scale)
    assert weights_off(out, trainer) <= 1e-3


def test_one_pair_per_row_follows_trl_too(model_path, data, theirs, tmp_path):
    run = DpoRun(
        ModelConfig(path=str(model_path)),
        DataConfig(path=str(data), order="file", eval_split="", one_pair_per_row=True),
        LORA,
        DpoConfig(pairs_per_step=4, tokens_per_forward=150),
        {**SETTINGS, "save_strategy": "no", "max_steps": str(STEPS)},
    )
    train_dpo(check(run), tmp_path / "run")
    assert max(differences(tmp_path / "run", theirs)) <= 1e-4


@pytest.mark.parametrize("loss_on", ["response", "all"])
def test_sft_follows_trl(loss_on, model_path, data, tmp_path):
    from trl import SFTConfig as TrlConfig
    from trl import SFTTrainer

    rows = [{"prompt": p["prompt"], "completion": p["chosen"]} for p in flat(make_pairs(40, 2))]
    args = trl_args(TrlConfig, tmp_path / "trl", STEPS, max_length=512, completion_only_loss=loss_on == "response")
    trainer = run_trl(SFTTrainer, args, rows, model_path)
    run = SftRun(
        ModelConfig(path=str(model_path)),
        DataConfig(path=str(data), order="file", eval_split=""),
        LORA,
        SftConfig(examples_per_step=4, loss_on=loss_on, tokens_per_forward=100),
        {**SETTINGS, "save_strategy": "no", "max_steps": str(STEPS)},
    )
    train_sft(check(run), tmp_path / "run")
    assert max(differences(tmp_path / "run", trainer)) <= 1e-4
    assert weights_off(tmp_path / "run", trainer) <= 1e-3


def test_reward_is_beta_times_log_ratio():
    assert implicit_reward(-10.0, -12.0, 0.1) == pytest.approx(0.2)
