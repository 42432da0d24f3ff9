"""The caches: the same numbers with and without, keyed by what matters and nothing else, safe when damaged or shared."""

import json
import math
import os
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file, save_file
from test_runs import dpo_run
from train_toys import make_model, make_pairs, make_tokenizer, metrics, save_model, user, write_data

from prefkit.cli import app, run
from prefkit.errors import UserError
from prefkit.schema import pair_id
from prefkit.shards import open_pairs
from train.config import LoraConfig
from train.core.encode import Limits, Template
from train.core.logprobs import collect_logps, response_logps, separate_logps
from train.core.rows import Row, Rows, SequenceLogp, build_rows, pair_texts
from train.data import cache as caches
from train.data.cache import LogpCache, cached_rows
from train.data.cached_files import entries
from train.data.dataset import load_rows
from train.dpo import _with_logps, train_dpo
from train.models.load import load_model, load_tokenizer
from train.models.locate import weights_digest
from train.models.sharing import decide_sharing

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFKIT_CACHE", str(tmp_path / "cache"))


def some_rows(seed=0, count=5):
    rng = np.random.default_rng(seed)

    def ids(n):
        return rng.integers(3, 300, n).astype(np.int32)

    return [Row(ids(rng.integers(1, 20)), tuple(ids(rng.integers(1, 15)) for _ in range(3))) for _ in range(count)]


def misses(out: str) -> int:
    (line,) = [x for x in out.splitlines() if x.startswith("reference of this process")]
    return int(line.split()[-2])


def test_cached_and_online_references_give_the_same_run(model_path, data, tmp_path):
    for reference in ("online", "cached"):
        train_dpo(dpo_run(model_path, data, reference=reference), tmp_path / reference)
    for key in ("loss", "rewards/chosen", "rewards/margins", "grad_norm", "eval_rewards/margins"):
        online, cached = (metrics(tmp_path / r, key) for r in ("online", "cached"))
        assert cached == pytest.approx(online, abs=2e-5), key
    assert metrics(tmp_path / "cached")[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("reference", ["online", "cached"])
def test_under_autocast_the_reference_is_computed_as_the_policy_is(model_path, data, tmp_path, reference):
    """fp32 weights, bf16 arithmetic: at step 0 they are one model, but for the rounding of other batches."""
    full = LoraConfig(enabled=False)
    train_dpo(dpo_run(model_path, data, lora=full, reference="online"), tmp_path / "fp32")
    run = dpo_run(model_path, data, lora=full, reference=reference, trainer={"bf16": "true", "max_steps": "2"})
    train_dpo(run, tmp_path / "run")
    assert metrics(tmp_path / "run")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics(tmp_path / "run", "rewards/margins")[0] == pytest.approx(0, abs=2e-5)
    assert metrics(tmp_path / "run")[1] == pytest.approx(metrics(tmp_path / "fp32")[1], abs=0.02)


def test_what_accelerate_launch_asks_for_holds_for_the_reference_too(model_path, data, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = dpo_run(model_path, data, reference="cached", dtype="float32", trainer={"max_steps": "1"})
    train_dpo(run, tmp_path / "run")
    assert metrics(tmp_path / "run")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert yaml.safe_load((tmp_path / "run/run.yaml").read_text())["trainer"]["bf16"] is True


def test_what_is_kept_of_a_model_by_length_does_not_depend_on_what_lay_beside_it(data, tmp_path):
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "original_max_position_embeddings": 30}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, **factors}
    model = save_model(tmp_path / "longrope", rope_parameters=rope, max_position_embeddings=120)
    pairs = make_pairs(12, 2)
    pairs[0]["prompt"] = user("the hop " * 8 + "?")
    pairs[0]["id"] = pair_id(*(pairs[0][k] for k in ("prompt", "chosen", "rejected")))
    mixed = write_data(tmp_path / "mixed", {"train": pairs})
    train_dpo(dpo_run(model, mixed, reference="cached", trainer={"max_steps": "1"}), tmp_path / "run")
    loaded, tokenizer = load_model(str(model)), load_tokenizer(str(model))
    rows = build_rows(pair_texts(open_pairs(mixed, "train")), tokenizer, Template.of(None, tokenizer), Limits()).rows
    assert decide_sharing(loaded, rows).alone
    cache = LogpCache(weights_digest(str(model)), "float32", False, str(model))
    kept = collect_logps(rows, lambda missing: pytest.fail("not in the cache") if missing else (), cache)
    for one, other in zip(kept, separate_logps(loaded, rows), strict=True):
        assert one.logps_R == pytest.approx(other.logps_R, abs=1e-5)


def test_nothing_but_data_and_weights_decides_what_is_computed_again(model_path, data, tmp_path, capsys):
    base = dpo_run(model_path, data, reference="cached", trainer={"max_steps": "1"})
    variants = {
        "first": (base, True),
        "rate": (replace(base, trainer={**base.trainer, "learning_rate": "1e-3"}), False),
        "beta": (replace(base, dpo=replace(base.dpo, beta=0.5, loss="hinge")), False),
        "seed": (replace(base, seed=7), False),
        "memory": (replace(base, dpo=replace(base.dpo, tokens_per_forward=77)), False),
        "template": (replace(base, data=replace(base.data, template="plain")), True),
        "dtype": (replace(base, model=replace(base.model, dtype="bfloat16")), True),
        "nf4": (replace(base, model=replace(base.model, four_bit=True)), True),
    }
    for name, (variant, computed) in variants.items():
        train_dpo(variant, tmp_path / name)
        assert (misses(capsys.readouterr().out) > 0) == computed, name


def test_the_same_weights_elsewhere_are_the_same_and_others_in_place_are_not(data, tmp_path, capsys):
    for name in ("here", "there"):
        save_model(tmp_path / name)
    runs = {n: dpo_run(tmp_path / n, data, reference="cached", trainer={"max_steps": "1"}) for n in ("here", "there")}
    train_dpo(runs["here"], tmp_path / "a")
    assert misses(capsys.readouterr().out)
    train_dpo(runs["there"], tmp_path / "b")
    assert not misses(capsys.readouterr().out)
    weights = load_file(tmp_path / "here/model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, tmp_path / "here/model.safetensors", {"format": "pt"})
    train_dpo(runs["here"], tmp_path / "c")
    assert misses(capsys.readouterr().out)


def test_more_pairs_cost_only_themselves(model_path, tmp_path, capsys):
    pairs = make_pairs(6, 2)
    for name, kept in (("small", pairs[:8]), ("large", pairs)):
        data = write_data(tmp_path / name, {"train": kept})
        train_dpo(dpo_run(model_path, data, reference="cached", trainer={"max_steps": "1"}), tmp_path / f"{name}-run")
    small, large = (
        int(x.split()[-2]) for x in capsys.readouterr().out.splitlines() if x.startswith("reference of this process")
    )
    assert (small, large) == (16, 8)


def test_a_sft_adapter_is_its_own_reference_in_the_cache(model_path, data, tmp_path):
    from test_runs import sft_run

    from train.sft import train_sft

    train_sft(sft_run(model_path, data), tmp_path / "sft")
    train_dpo(dpo_run(tmp_path / "sft", data, reference="cached"), tmp_path / "dpo")
    assert metrics(tmp_path / "dpo")[0] == pytest.approx(math.log(2), abs=1e-6)


def test_interrupted_filling_goes_on_where_it_stopped():
    model, rows = make_model(), some_rows()
    cache = LogpCache("w", "float32", False, "m")
    done = []

    def stop(n):
        done.append(n)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        response_logps(model, rows, 60, cache=cache, progress=stop)
    again = LogpCache("w", "float32", False, "m")
    finished = []
    scored = response_logps(model, rows, 60, cache=again, progress=finished.append)
    assert sum(finished) == again.misses == 15 - sum(done)
    for a, b in zip(scored, response_logps(model, rows, 60), strict=True):
        assert a.logps_R == pytest.approx(b.logps_R, abs=1e-5)
        assert [len(t) for t in a.token_logps] == b.counts_R.tolist()


def test_what_is_not_finite_is_never_kept():
    cache = LogpCache("w", "float32", False, "m")
    cache.add(
        {b"k": SequenceLogp(math.nan, np.zeros(1, np.float32)), b"l": SequenceLogp(-2.0, -np.ones(2, np.float32))}
    )
    assert set(cache.get([b"k", b"l"])) == {b"l"}
    cache.add({b"m": SequenceLogp(-3.0, -np.ones(2, np.float32))})
    assert not cache.get([b"m"]), "a sum that is not that of its tokens is damaged"


def test_a_cache_that_other_processes_did_not_fill_is_told():
    rows = [replace(r, pairs=((0, 1),), pair_ids=("a",)) for r in some_rows() if len(r.response_ids) > 1]
    with pytest.raises(UserError, match=r"not in the cache of this process \(a\).*share PREFKIT_CACHE"):
        _with_logps(rows, LogpCache("empty", "float32", False, "m"))


def test_a_reference_that_is_not_finite_names_its_pair(data, tmp_path):
    save_model(tmp_path / "model")
    weights = load_file(tmp_path / "model/model.safetensors")
    weights["model.norm.weight"][:] = float("nan")
    save_file(weights, tmp_path / "model/model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="log-probabilities of the reference are not finite"):
        train_dpo(dpo_run(tmp_path / "model", data, reference="cached"), tmp_path / "run")


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_damaged_files_are_made_again_or_refused(damage, tmp_path):
    built = Rows(
        [replace(r, pairs=((0, 1),), pair_ids=("p",), truncated=(False,) * 3) for r in some_rows()], {"x": ["q"]}, 6
    )
    asked = []

    def build():
        asked.append(1)
        return built

    cached_rows("k", "rows", build)
    (path,) = (tmp_path / "cache/tokens").iterdir()
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(built.rows[0].response_ids[0].tobytes())] ^= 1
    path.write_bytes({"cut": whole[: len(whole) // 2], "flip": flipped, "empty": b""}[damage])
    again = cached_rows("k", "rows", build)
    assert len(asked) == 2
    third = cached_rows("k", "rows", build)
    assert len(asked) == 2
    assert (third.dropped, third.read) == (again.dropped, again.read) == ({"x": ["q"]}, 6)
    for a, b in zip(third.rows, built.rows, strict=True):
        assert (a.pairs, a.pair_ids, a.truncated) == (b.pairs, b.pair_ids, b.truncated)
        assert all(np.array_equal(x, y) for x, y in zip(a.response_ids, b.response_ids, strict=True))
        assert np.array_equal(a.prompt_ids, b.prompt_ids)

    cache = LogpCache("w", "float32", False, "m")
    cache.path.write_bytes(b"rubbish " * 500)
    with pytest.raises(UserError, match=r"damaged.*delete this file"):
        LogpCache("w", "float32", False, "m")


def test_damage_inside_a_cache_of_log_probabilities_is_computed_again_or_told(tmp_path):
    scored = {i.to_bytes(16, "big"): SequenceLogp(-2.0 * 500, np.full(500, -2.0, np.float32)) for i in range(300)}
    cache = LogpCache("w", "float32", False, "m")
    cache.add(scored)
    with closing(sqlite3.connect(cache.path)) as db, db:
        db.execute("UPDATE logps SET tokens = substr(tokens, 1, 7) WHERE key = ?", [bytes(16)])
    assert len(cache.get(scored)) == 299
    data = bytearray(cache.path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 60_000] = b"\xff" * 60_000
    cache.path.write_bytes(data)
    for damaged in (lambda: cache.get(scored), lambda: cache.add(scored)):
        with pytest.raises(UserError, match=r"damaged.*delete this file"):
            damaged()


def test_two_processes_fill_one_cache_at_once(tmp_path):
    program = """
import numpy as np, sys
from train.core.rows import SequenceLogp
from train.data.cache import LogpCache
cache = LogpCache("w", "float32", False, "m")
for i in range(200):
    cache.add({f"{sys.argv[1]}-{i}".encode(): SequenceLogp(-3.0 * i, np.full(3, -i, np.float32)),
               f"both-{i}".encode(): SequenceLogp(-3.0 * i, np.full(3, -i, np.float32))})
"""
    running = [subprocess.Popen([sys.executable, "-c", program, n], cwd=ROOT, env=os.environ) for n in "ab"]
    assert [p.wait() for p in running] == [0, 0]
    names = [f"{n}-{i}".encode() for n in ("a", "b", "both") for i in range(200)]
    found = LogpCache("w", "float32", False, "m").get(names)
    assert len(found) == 600
    assert all(f.total == -3.0 * int(k.rpartition(b"-")[2]) for k, f in found.items())


def test_a_cache_that_another_process_is_making_is_waited_for():
    """SQLite gives up at once, whatever its timeout, on a change of the journal while another writes."""
    path = LogpCache("w", "float32", False, "m").path
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    done = threading.Timer(0.5, other.execute, ["COMMIT"])
    done.start()
    cache = LogpCache("w", "float32", False, "m")
    done.join()
    other.close()
    cache.add({b"k": SequenceLogp(-2.0, -np.ones(2, np.float32))})
    assert set(cache.get([b"k"])) == {b"k"}


def test_token_ids_are_keyed_by_tokenizer_template_and_limits(data):
    tokenizer, calls = make_tokenizer(), []
    real = caches._write_rows

    def count(path, about, rows):
        calls.append(path)
        real(path, about, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caches, "_write_rows", count)
        for t, template, limits, kind, limit in [
            (tokenizer, "question", Limits(), "pairs", None),
            (make_tokenizer(), "question", Limits(), "pairs", None),  # the same tokenizer made again
            (make_tokenizer(310), "question", Limits(), "pairs", None),
            (tokenizer, "plain", Limits(), "pairs", None),
            (tokenizer, "question", Limits(60), "pairs", None),
            (tokenizer, "question", Limits(), "examples", None),
            (tokenizer, "question", Limits(), "pairs", 7),
        ]:
            load_rows(data, "train", limit, kind, t, Template.of(template, t), limits)
    assert len(calls) == 6


def test_the_cache_is_listed_and_pruned(model_path, data, tmp_path, capsys):
    train_dpo(dpo_run(model_path, data, reference="cached", trainer={"max_steps": "1"}), tmp_path / "run")
    capsys.readouterr()
    assert run(app, ["cache"]) == 0
    listed = capsys.readouterr().out
    assert "responses under" in listed
    assert "toy train as pairs" in listed
    assert f"{len(entries())} files" in listed
    assert run(app, ["cache", "--prune"]) == 0
    assert "removed 0 files" in capsys.readouterr().out, "all were just used"
    assert run(app, ["cache", "--prune", "--days=-1"]) == 2
    assert entries(), "days to come are refused"
    assert run(app, ["cache", "--prune", "--days", "0"]) == 0
    assert not entries()
    assert not list((tmp_path / "cache").glob("*/*"))


def test_two_ranks_share_the_work_of_a_cached_reference(model_path, data, tmp_path):
    train_dpo(dpo_run(model_path, data, reference="cached"), tmp_path / "one")
    run(app, ["cache", "--prune", "--days", "0"])
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "-m", "train", "dpo", "--config", str(tmp_path / "one/run.yaml")]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "two")],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    for key in ("loss", "rewards/margins", "eval_rewards/margins"):
        assert metrics(tmp_path / "one", key) == pytest.approx(metrics(tmp_path / "two", key), abs=2e-5), key
    summary = json.loads((tmp_path / "two/summary.json").read_text())
    assert 0 < misses(done.stdout) < summary["data"]["train"]["responses"], "each its part"
