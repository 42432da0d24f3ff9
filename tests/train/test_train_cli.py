"""The command line: YAML and flags are one configuration, mistakes are one line and exit code 2."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from train_toys import save_model

from prefkit.cli import run as run_cli
from prefkit.cli import train as app
from prefkit.errors import UserError
from train.check import check
from train.config import DpoRun, ModelConfig
from train.folder import LOCK, only_run
from train.losses import find_loss
from train.models.locate import _is_whole
from train.trainer import training_arguments
from train.trainer_keys import OWNED, coerce_trainer

ROOT = Path(__file__).parents[2]


def cli(*argv):
    command = [sys.executable, "-m", "train", *map(str, argv)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # tiny matrices on a busy machine
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=300)


def parsed(monkeypatch, *argv):
    """The checked run that a command line means."""
    seen = []
    monkeypatch.setattr("train.cli.check_places", lambda run, out: None)
    monkeypatch.setattr("train.dpo.train_dpo", lambda run, out: seen.append(run))
    assert run_cli(app, ["dpo", *argv]) == 0
    return seen[0]


REQUIRED = ["--model.path", "m", "--data.path", "d", "--out", "o"]


@pytest.mark.parametrize(("rank", "end"), [(None, ["logged", "torn down"]), ("0", ["logged"])])
def test_one_of_several_processes_ends_without_tearing_the_interpreter_down(rank, end):
    """A thread of gloo that wants the interpreter meanwhile aborts the process, once in hundreds of runs."""
    code = """
import atexit
from train.__main__ import leave
class Kept:
    def __del__(self, write=print):
        write("torn down")
kept = Kept()
atexit.register(print, "logged")
print("said", end=" ")
leave(3)
"""
    env = {k: v for k, v in os.environ.items() if k != "RANK"} | ({"RANK": rank} if rank else {})
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert done.stdout.removeprefix("said ").splitlines() == end


def test_flags_and_yaml_are_one_configuration(monkeypatch, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {path: m, four_bit: true}\ndata: {path: d, max_tokens: 300}\nlora: {targets: [q_proj, v_proj], r: 4}\n"
        "dpo: {beta: 0.3, loss: ipo}\ntrainer: {learning_rate: 5e-4, max_grad_norm: 0.3, bf16: true}\nseed: 3\n"
    )
    run = parsed(monkeypatch, "--config", str(file), "--out", "o", "--dpo.beta", "0.2", "--trainer.max-steps", "7")
    assert run.model == ModelConfig(path="m", four_bit=True)
    assert (run.data.max_tokens, run.lora.targets, run.lora.r, run.seed) == (300, ("q_proj", "v_proj"), 4, 3)
    assert (run.dpo.beta, run.dpo.loss) == (0.2, "ipo"), "flags win, the rest of the section stays"
    assert run.trainer["max_steps"] == "7"
    assert run.trainer["max_grad_norm"] == "0.3", "a flag adds to the file's trainer section"
    args = training_arguments(run.trainer, tmp_path, 0, 7)
    assert (args.learning_rate, args.max_grad_norm, args.bf16) == (5e-4, 0.3, True)


@pytest.mark.parametrize(
    "flags",
    [["q_proj,v_proj"], ["q_proj", "v_proj"], ["q_proj", "--lora.targets", "v_proj"], ["q_proj, v_proj"]],
    ids=" ".join,
)
def test_lora_targets_as_people_write_them(monkeypatch, tmp_path, flags):
    run = parsed(monkeypatch, *REQUIRED, "--lora.targets", *flags, "--lora.r", "4")
    assert (run.lora.targets, run.lora.r) == (("q_proj", "v_proj"), 4)
    (tmp_path / "run.yaml").write_text(f"lora: {{targets: {json.dumps(' '.join(f for f in flags if f[0] != '-'))}}}")
    assert parsed(monkeypatch, *REQUIRED, "--config", str(tmp_path / "run.yaml")).lora.targets == ("q_proj", "v_proj")


def test_what_is_read_from_source_is_what_is_loaded():
    import dataclasses

    from transformers import TrainingArguments

    from train.declared import fields_of, keys_of
    from train.losses import LOSSES

    fields = fields_of("transformers.training_args", "TrainingArguments")
    assert list(fields) == [f.name for f in dataclasses.fields(TrainingArguments)]
    assert (fields["learning_rate"], fields["save_total_limit"]) == ("float", "int | None")
    assert keys_of("train.losses", "LOSSES") == tuple(LOSSES)


def test_trainer_values_have_the_declared_type(tmp_path):
    values = {
        "learning_rate": "5e-4",
        "max_grad_norm": "1",
        "save_total_limit": "2",
        "gradient_checkpointing": "true",
        "lr_scheduler_kwargs": '{"num_cycles": 2}',
        "report_to": "none",
        "optim": "adamw_torch",
    }
    args = training_arguments(values | {"use_cpu": "true", "ddp_find_unused_parameters": "true"}, tmp_path, 0, 5)
    assert (args.use_cpu, args.ddp_find_unused_parameters) == (True, True)
    assert args.learning_rate == 5e-4
    assert args.max_grad_norm == 1.0
    assert args.save_total_limit == 2
    assert args.gradient_checkpointing is True
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}
    for wrong in ({"learning_rate": "fast"}, {"save_total_limit": "2.5"}, {"gradient_checkpointing": "maybe"}):
        with pytest.raises(UserError, match="it must be"):
            training_arguments(values | wrong, tmp_path, 0, 5)
    with pytest.raises(UserError, match="did you mean 'learning_rate'"):
        training_arguments({"learning_rat": "1"}, tmp_path, 0, 5)
    with pytest.raises(UserError, match=r"trainer: .*linnear"):
        training_arguments({"lr_scheduler_type": "linnear"}, tmp_path, 0, 5)


def test_every_owned_key_exists_and_is_refused():
    from transformers import TrainingArguments

    known = {f for f in TrainingArguments.__dataclass_fields__}
    assert set(OWNED) - {"group_by_length"} <= known, "group_by_length is the name of older versions"
    for key in OWNED:
        with pytest.raises(UserError, match="not yours to set"):
            check(DpoRun(model=ModelConfig(path="m"), data=type(DpoRun().data)(path="d"), trainer={key: "1"}))


@pytest.mark.parametrize(
    ("epochs", "said"), [("inf", "at most 100,000"), ("1e12", "at most 100,000"), ("0", "above 0")]
)
def test_epochs_are_such_that_their_steps_can_be_planned(epochs, said):
    with pytest.raises(UserError, match=said):
        check(
            DpoRun(
                model=ModelConfig(path="m"), data=type(DpoRun().data)(path="d"), trainer={"num_train_epochs": epochs}
            )
        )


def test_coerce_needs_no_torch():
    code = "import sys, train.cli, train.config; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert coerce_trainer({}) == {}


OWN_MISTAKES = {
    "unknown key": (["--dpo.betta", "0.2"], "--dpo.beta"),
    "unknown section": (["--dop.beta", "0.2"], "--dpo.beta"),
    "wrong type": (["--dpo.beta", "high"], "it must be a number"),
    "wrong choice": (["--data.too-long", "cut"], "truncate_prompt"),
    "owned key": (["--trainer.per-device-train-batch-size", "4"], "set dpo.pairs_per_step"),
    "dataloader key": (["--trainer.dataloader-num-workers", "4"], "not yours to set"),
    "smoothing": (["--dpo.label-smoothing", "0.5"], "0 ≤ ε < 0.5"),
    "beta": (["--dpo.beta", "0"], "above 0"),
    "no end": (["--dpo.beta", "inf"], "dpo.beta is inf: it must be above 0 and finite"),
    "rate": (["--trainer.learning-rate=-1"], "trainer.learning_rate is -1.0: it must be a finite number, 0 or above"),
    "fraction": (["--dpo.pairs-per-step", "1.5"], "--dpo.pairs-per-step is '1.5': it must be a whole number"),
    "limit": (["--data.limit=-5"], "data.limit is -5: it must be above 0"),
    "seed": (["--seed=-1"], "seed is -1: give a whole number from 0"),
    "alpha": (["--lora.alpha", "0"], "lora.alpha is 0: it must be above 0"),
    "budget": (["--dpo.tokens-per-forward=-5"], "dpo.tokens_per_forward is -5"),
    "sharding": (["--trainer.fsdp", "full_shard"], "every process holds a whole model"),
    "counting tokens": (["--trainer.include-num-input-tokens-seen", "true"], "summary.json counts tokens"),
    "4-bit in full": (["--model.four-bit", "--lora.no-enabled"], "keep lora.enabled"),
    "trainer key": (
        ["--trainer.learning-rte", "1"],
        "unknown trainer key 'learning_rte': did you mean 'learning_rate'?",
    ),
    "trainer value": (["--trainer.learning-rate", "fast"], "trainer.learning_rate is 'fast': it must be a number"),
    "loss": (["--dpo.loss", "sigmod"], "unknown loss 'sigmod': did you mean 'sigmoid'?"),
    "loss file": (["--dpo.loss", "./gone.py:loss"], "loss file not found"),
    "no such data": ([], "no such data set (d)"),
    "no config file": (["--config", "gone.yaml"], "configuration file not found"),
}


FILE_MISTAKES = {
    "dpo: {pairs_per_step: 1.5}": "'1.5' (run.yaml): it must be a whole number",
    "trainer: {1: 2}": "1 is no name of a section or key (run.yaml)",
    "trainer: {learning-rate: 1e-3, learning_rate: 2e-3}": "trainer.learning_rate is given twice (run.yaml)",
}


@pytest.mark.parametrize("text", FILE_MISTAKES)
def test_mistakes_in_a_file(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(text)
    assert run_cli(app, ["dpo", *REQUIRED, "--config", "run.yaml"]) == 2
    assert FILE_MISTAKES[text] in capsys.readouterr().err


def test_a_whole_number_may_have_a_point(monkeypatch):
    assert parsed(monkeypatch, *REQUIRED, "--dpo.pairs-per-step", "8.0").dpo.pairs_per_step == 8


@pytest.mark.parametrize(
    ("text", "said"),
    [("def loss(x, b, e: return", "is no Python: "), ("import nonsense_9", "fails: ModuleNotFoundError")],
)
def test_a_loss_file_that_is_broken_is_one_line(tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=f"the loss file {said}"):
        find_loss(f"{tmp_path}/mine.py:loss")


def test_two_runs_cannot_write_into_one_folder(tmp_path):
    out = tmp_path / "run"
    with only_run(out):
        with pytest.raises(UserError, match="another run is writing there"), only_run(out):
            pass
        assert out.is_dir()
    assert not out.exists()  # nothing was written
    with only_run(out):
        (out / "kept").touch()
    assert (out / "kept").exists()
    (out / LOCK).write_text("somebody else's")
    with pytest.raises(UserError, match="is not empty and holds no run"), only_run(out):
        pass
    assert {p.name for p in out.iterdir()} == {"kept", LOCK}  # nothing of theirs is touched


def test_a_lock_that_is_gone_hides_no_error(tmp_path):
    def fail() -> None:
        (tmp_path / "run" / LOCK).unlink()
        raise UserError("the true reason")

    with pytest.raises(UserError, match="the true reason"), only_run(tmp_path / "run"):
        fail()


IMPOSSIBLE = {
    "--out m --layers 0": "layers is 0: it must be above 0",
    "--out m --hidden 130": "hidden 130 does not divide into 4 heads",
    "--out m --vocab-size 100": "vocab_size is 100",
    "--out .": "the output folder is not empty",
}


@pytest.mark.parametrize("flags", IMPOSSIBLE)
def test_an_impossible_tiny_model_is_refused_before_libraries_load(flags):
    start = time.monotonic()
    assert_one_line(cli("tiny-model", "--data.path", "d", *flags.split()), IMPOSSIBLE[flags])
    assert time.monotonic() - start < 5, "a second when the machine is idle"


@pytest.mark.parametrize("name", OWN_MISTAKES)
def test_own_mistakes_are_found_before_any_library_loads(name):
    flags, hint = OWN_MISTAKES[name]
    start = time.monotonic()
    done = cli("dpo", *REQUIRED, *flags)
    assert time.monotonic() - start < 5, "a second when the machine is idle"
    assert_one_line(done, hint)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--lr 1e-4", "unknown option --lr: did you mean --trainer.lr or --lora?"),
        ("--beta 0.2", "unknown option --beta: did you mean --dpo.beta?"),
        ("--trainer.lr 1e-4", "unknown trainer key 'lr': did you mean 'learning_rate' or 'local_rank'?"),
        ("--trainer.epochs 2", "unknown trainer key 'epochs': did you mean 'num_train_epochs'?"),
        ("--trainer.foo 2", "unknown trainer key 'foo': give a field of transformers.TrainingArguments"),
        (
            "--model.four-bit true",
            "--model.four-bit takes no value, 'true' is given: write --model.four-bit or --model.no-four-bit",
        ),
        ("--lora.enabled=maybe", "--lora.enabled is 'maybe': it must be true or false"),
        ("--lora.targets", "lora.targets is empty: name modules, e.g. q_proj v_proj, or all-linear"),
        ("--dpo.beta", "--dpo.beta has no value: write --dpo.beta VALUE"),
        ("--dpo.beta x", "--dpo.beta is 'x': it must be a number"),
        ("extra", "nothing takes 'extra': options begin with --, see --help"),
        ("--trainer 3", "--trainer is '3': write --trainer.NAME VALUE for each"),
        ("--trainer.learning-rate.x 3", "--trainer.learning-rate.x is too deep: write --trainer.learning-rate VALUE"),
        ("--trainer.lr-scheduler-kwargs x", "trainer.lr_scheduler_kwargs is 'x': it must be {NAME: VALUE, …}"),
        ("--trainer.lr-scheduler-kwargs {a", "trainer.lr_scheduler_kwargs is '{a': it must be {NAME: VALUE, …}"),
        ("--trainer.max-grad-norm none", "trainer.max_grad_norm is 'none': it must be a number"),
    ],
)
def test_command_lines_as_people_mistake_them(flags, said, capsys):
    assert run_cli(app, ["dpo", *REQUIRED, *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")


def assert_one_line(done, hint):
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert hint in done.stderr, done.stderr


@pytest.mark.parametrize(
    "flags",
    [
        ["--trainer.seed", "1"],
        ["--trainer.learning-rte", "1"],
        ["--dpo.loss", "sigmod"],
        ["--model.path", "./gone", "--data.split", "train"],
        ["--data.path", "gone"],
        ["--data.split", "trian"],
        ["--data.eval-split", "tset"],
        ["--data.template", "qeustion"],
        ["--out", "taken"],
        ["--out", "finished"],
    ],
    ids=" ".join,
)
def test_checks_take_less_than_a_second_of_work(flags, model_path, data, tmp_path):
    for name in ("taken/thesis.tex", "finished/run.yaml", "finished/summary.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    flags = [str(tmp_path / x) if (tmp_path / x).is_dir() else x for x in flags]
    good = {"--model.path": str(model_path), "--data.path": str(data), "--out": "o"}
    argv = [x for pair in (good | dict(zip(flags[::2], flags[1::2], strict=True))).items() for x in pair]
    code = (
        "import time, sys; t = time.process_time(); from prefkit.cli import run, train\n"
        f"code = run(train, ['dpo', *{argv!r}])\n"
        "assert code == 2 and 'torch' not in sys.modules; sys.exit(time.process_time() - t > 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, capture_output=True).returncode == 0


def test_yaml_mistakes(tmp_path):
    for text, hint in (
        ("dpo: {betta: 1}", "did you mean --dpo.beta"),
        ("dpo: {beta: 0.1, beta: 0.3}", "line 1: beta comes twice"),
        ("? [a, b]\n: 1", "not YAML"),
        ("dop: {beta: 1}", "unknown section 'dop': did you mean 'dpo'?"),
        ("trainer: {learning_rte: 1}", "did you mean 'learning_rate'"),
        ("dpo: [1", "not YAML"),
        ("- 1", "sections with keys"),
        ("command: sft", "does not configure dpo"),
    ):
        (tmp_path / "x.yaml").write_text(text)
        assert_one_line(cli("dpo", *REQUIRED, "--config", tmp_path / "x.yaml"), hint)


def world_mistakes(model, data, tmp_path):
    """name -> (flags over a good command line, words of the message)."""
    torn = tmp_path / "torn"
    shutil.copytree(model, torn)
    (torn / "model.safetensors").unlink()
    orphan = tmp_path / "orphan"
    orphan.mkdir()
    adapter = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "gone"), "task_type": "CAUSAL_LM"}
    (orphan / "adapter_config.json").write_text(json.dumps(adapter))
    shutil.copy(model / "tokenizer.json", orphan)
    shutil.copy(model / "tokenizer_config.json", orphan)
    mute = save_model(tmp_path / "mute")
    settings = json.loads((mute / "tokenizer_config.json").read_text())
    (mute / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in settings.items() if k != "eos_token"}))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    return {
        "no such data": (["--data.path", tmp_path / "gone"], "no such data set"),
        "no such model": (["--model.path", tmp_path / "gone"], "model folder not found"),
        "a model's name misspelt": (["--model.path", tmp_path / "orfan"], f"did you mean {tmp_path / 'orphan'}?"),
        "unreachable hub": (["--model.path", "nobody/no-such-model-here"], "nobody/no-such-model-here"),
        "no weights": (["--model.path", torn], "no *.safetensors weights"),
        "adapter without base": (["--model.path", orphan], "the adapter's base cannot be loaded"),
        "dead LoRA target": (["--lora.targets", "fc_in"], "'fc_in' matches no module"),
        "no EOS": (["--model.path", mute], "no EOS token"),
        "nothing fits": (["--data.max-tokens", "3"], "no pair is left"),
        "unknown split": (["--data.split", "trian"], "did you mean 'train'"),
        "unknown evaluation split": (
            ["--data.eval-split", "tset"],
            "unknown evaluation split 'tset': did you mean 'test'",
        ),
        "unknown trainer key": (["--trainer.learning-rte", "1"], "did you mean 'learning_rate'"),
        "unknown optimizer": (["--trainer.optim", "adamm"], "adamm is not a valid OptimizerNames"),
        "unknown loss": (["--dpo.loss", "sigmod"], "did you mean 'sigmoid'"),
        "taken folder": (["--out", tmp_path / "full"], "not empty and holds no run"),
    }


def test_mistakes_in_the_world_are_one_line_and_leave_nothing(model_path, data, tmp_path):
    """In this process, for speed; the next test runs one of them through the real command."""
    import contextlib
    import io

    for name, (flags, hint) in world_mistakes(model_path, data, tmp_path).items():
        out = tmp_path / f"run {name}"
        argv = {"--model.path": model_path, "--data.path": data, "--out": out}
        argv |= dict(zip(flags[::2], flags[1::2], strict=True))
        errors = io.StringIO()
        start = time.monotonic()
        with contextlib.redirect_stderr(errors):
            code = run_cli(app, ["dpo", *(str(x) for pair in argv.items() for x in pair)])
        assert code == 2, name
        assert time.monotonic() - start < 20, f"{name} waited"
        lines = [x for x in errors.getvalue().splitlines() if x.startswith("error:")]
        assert len(lines) == 1
        assert hint in lines[0], (name, lines)
        assert not (out / "summary.json").exists()
        assert not (out / "run.yaml").exists(), name


def test_a_mistake_through_the_real_command(model_path, data, tmp_path):
    done = cli(
        "dpo", "--model.path", model_path, "--data.path", data, "--out", tmp_path / "x", "--lora.targets", "fc_in"
    )
    assert_one_line(done, "choose from")


class Hub(BaseHTTPRequestHandler):
    """A hub that knows one gated model and nothing else, as the real one says so."""

    def do_GET(self):
        status, reason = (403, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        self.send_response(status)
        self.send_header("X-Error-Code", reason)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("me/gated", "the model is gated (me/gated): accept its terms"),
        ("me/absent", "no such model on the hub (me/absent)"),
    ],
)
def test_what_the_hub_refuses_is_one_line(name, hint, data, tmp_path):
    hub = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    env = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(tmp_path / "hf")}
    argv = ["-m", "train", "dpo", "--model.path", name, "--data.path", str(data), "--out", str(tmp_path / "x")]
    done = subprocess.run([sys.executable, *argv], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    hub.shutdown()
    assert_one_line(done, hint)
    assert not (tmp_path / "x").exists()


def test_the_road_in_commands(data, tmp_path):
    """tiny-model, sft, dpo as a user types them; the last in a process of its own."""
    small = ["--vocab-size", "300", "--hidden", "32", "--layers", "1", "--heads", "2"]
    full = ["--lora.no-enabled", "--trainer.learning-rate", "1e-2"]
    for argv in (
        ["tiny-model", "--data.path", data, "--out", tmp_path / "m", *small],
        ["sft", "--model.path", tmp_path / "m", "--data.path", data, "--out", tmp_path / "s", *full],
    ):
        assert run_cli(app, list(map(str, argv))) == 0
    done = cli("dpo", "--model.path", tmp_path / "s", "--data.path", data, "--out", tmp_path / "d")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "nothing but our own lines"
    config = yaml.safe_load((tmp_path / "d" / "run.yaml").read_text())
    assert config["model"]["path"] == str(tmp_path / "s")
    assert config["command"] == "dpo"
    summary = json.loads((tmp_path / "d" / "summary.json").read_text())
    assert summary["data"]["train"]["pairs"] == 80


def test_recipes_are_valid():
    for file in sorted((ROOT / "recipes").glob("*.yaml")):
        command = yaml.safe_load(file.read_text()).get("command", file.stem.rpartition("_")[2])
        done = cli(command, "--config", file, *REQUIRED, "--trainer.seed", "1")  # stops at the owned key
        assert_one_line(done, "trainer.seed is not yours to set")


def test_a_download_that_was_cut_is_not_taken_for_whole(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert not _is_whole(tmp_path)
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    assert _is_whole(tmp_path)
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert not _is_whole(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").write_bytes(b"")
    assert _is_whole(tmp_path)
