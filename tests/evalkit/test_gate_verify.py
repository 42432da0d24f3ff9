"""Checks that say no: a gate for continuous integration, and the chain from a number back to its data."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scored_pairs import random_scores, with_margins, write

from evalkit.gate import check
from evalkit.report import build_report, load_all, pair_table
from evalkit.report_commands import report as report_command
from evalkit.report_files import write_report
from evalkit.scored import load
from evalkit.scores import sha256
from evalkit.verify import check_chain
from prefkit import convert_dataset, open_pairs
from prefkit.errors import UserError
from prefkit.shards import read_manifest
from train.models.locate import weights_digest


def reported(scored, out):
    write_report(build_report(scored), pair_table(scored), out)
    return out


def right(n, of):
    return with_margins([1.0] * n + [-1.0] * (of - n))


def test_the_lower_end_of_the_interval_must_reach_what_is_demanded(tmp_path):
    folder = reported(right(70, 100), tmp_path)
    low = json.loads((folder / "report.json").read_text())["accuracy"]["low"]
    assert 0.55 < low < 0.65
    assert [c.passed for c in check(folder, 0.55, None, None)] == [True]
    assert [c.passed for c in check(folder / "report.json", 0.65, None, None)] == [False]  # .70 itself would pass


def test_significantly_worse_fails_and_not_distinguishable_passes(tmp_path):
    good, bad, near = (reported(right(n, 100), tmp_path / f"{n}") for n in (80, 50, 78))
    assert [c.passed for c in check(bad, None, good, None)] == [False]
    assert [c.passed for c in check(good, None, bad, None)] == [True]
    (close,) = check(near, None, good, None)
    assert close.passed
    assert "not distinguishable" in close.text


def test_a_comparison_on_few_shared_pairs_does_not_pass(tmp_path):
    table = random_scores(300, 100)
    one = table.set_column(0, "id", [["shared", *(f"other {i}" for i in range(299))]])
    two = table.set_column(0, "id", [["shared", *(f"{i}" for i in range(299))]])
    a, b = reported(load(one), tmp_path / "a"), reported(load(two), tmp_path / "b")
    (found,) = check(b, None, a, None)
    assert not found.passed
    for text in ("on 1 pair of 1 group", "299 more pairs are its own alone", "99.7%", "not known to be the same"):
        assert text in found.text
    assert "more are missing than --allow-missing 0" in found.text
    assert [c.passed for c in check(b, None, a, None, allow_missing=0.997)] == [True]
    assert [c.passed for c in check(b, None, a, None, allow_missing=0.99)] == [False]
    part = reported(load(one.slice(100)), tmp_path / "part")
    assert [c.passed for c in check(part, None, a, None)] == [False]
    assert [c.passed for c in check(a, None, part, None)] == [False]
    assert [c.passed for c in check(part, None, a, None, allow_missing=1 / 3)] == [True]
    with pytest.raises(UserError, match="--allow-missing 2 is no share"):
        check(a, None, part, None, allow_missing=2)
    with pytest.raises(UserError, match="--allow-trained -1 is no share"):
        check(a, None, part, None, allow_trained=-1)


def test_displacement_is_held_to_its_limit(tmp_path):
    folder = reported(load(random_scores(200, 60)), tmp_path)
    share = json.loads((folder / "report.json").read_text())["displacement"]["chosen_fell"]["value"]
    assert [c.passed for c in check(folder, None, None, share)] == [True]
    assert [c.passed for c in check(folder, None, None, share - 0.01)] == [False]


def test_each_policy_of_a_report_must_pass(tmp_path):
    both = [right(90, 100), right(40, 100)]
    write_report(build_report(*both), pair_table(*both), tmp_path)
    assert [c.passed for c in check(tmp_path, 0.5, None, None)] == [True, False]
    (tmp_path / "pairs.parquet").write_bytes(b"")
    with pytest.raises(UserError, match="not the pairs"):
        check(tmp_path, None, tmp_path, None)


def test_bystanders_do_not_weaken_a_gate(tmp_path):
    """Of 300 pairs 8 won and 20 lost is a mid-p of .025, whoever else stands in the report."""
    base = np.repeat([1.0, -1.0], [220, 80])
    worse, other = base.copy(), base.copy()
    worse[:20], worse[220:228] = -1.0, 1.0
    other[100:110], other[290:] = -1.0, 1.0
    main = reported(with_margins(base), tmp_path / "main")
    all_five = [with_margins(m, policy=[f"p{i}"] * 300) for i, m in enumerate([worse, other, other, other, other])]
    write_report(build_report(*all_five), pair_table(*load_all(all_five, None, None)), tmp_path / "five")
    assert [c.passed for c in check(tmp_path / "five", None, main, None)] == [False, True, True, True, True]


def test_pairs_trained_on_or_chosen_by_their_outcome_pass_no_gate(tmp_path):
    table = random_scores(90, 30)
    seen = write(table, tmp_path / "seen", overlap={"run_data": "beer", "prompts": 20, "exact": 3, "near": 4})
    folder = reported(load(seen), tmp_path / "out")
    why, met = check(folder, 0.1, None, None)
    assert (why.passed, met.passed) == (False, True)
    assert "7 of 20 evaluated prompts were trained on" in why.text
    assert [c.passed for c in check(folder, 0.1, None, None, allow_trained=0.35)] == [True]
    assert [c.passed for c in check(folder, 0.1, None, None, allow_trained=0.3)] == [False, True]
    picked = reported(load(table, where="margin > 0.1"), tmp_path / "picked")
    assert [c.passed for c in check(picked, 0.8, None, None)] == [False, True]
    assert [c.passed for c in check(picked, 0.8, None, None, allow_outcome=True)] == [True]
    part = reported(load(table, where="n_chosen > n_rejected"), tmp_path / "part")
    assert [c.passed for c in check(part, 0.1, None, None)] == [True]


def test_a_gate_without_a_demand_or_with_no_share_is_refused(tmp_path):
    folder = reported(right(5, 9), tmp_path)
    with pytest.raises(UserError, match="nothing is demanded"):
        check(folder, None, None, None)
    with pytest.raises(UserError, match="is no share"):
        check(folder, 60.0, None, None)


@pytest.fixture
def chain(tmp_path):
    """Data, scores of it and a report, each where the command leaves them."""
    with (tmp_path / "pairs.jsonl").open("w") as f:
        for n in range(40):
            f.write(json.dumps({"prompt": f"How is number {n}?", "chosen": f"Well, {n}.", "rejected": "No."}) + "\n")
    convert_dataset(tmp_path / "pairs.jsonl", tmp_path / "data", source="pairs", splits="test=1")
    ids = open_pairs(tmp_path / "data", "test")["id"].to_pylist()
    table = random_scores(len(ids), len(ids), seed=1)
    table = table.set_column(0, "id", [ids])
    digest = read_manifest(tmp_path / "data").digest
    for name, digests in (("dpo", {"data": digest, "model": "a"}), ("sft", {"data": digest})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.yaml").write_text(json.dumps({"digests": digests}))
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    models = {
        "policy_digest": weights_digest(str(tmp_path / "dpo")),
        "reference_digest": weights_digest(str(tmp_path / "sft")),
    }
    write(
        table,
        tmp_path / "scores",
        data="data",
        manifest=digest,
        run={"digests": {"data": digest, "model": "a"}},
        dropped={"too_long": 2},
        overlap={"run_data": "data", "prompts": 40, "exact": 3, "near": 1},
        **models,
    )
    other = random_scores(len(ids), len(ids), seed=2, policy=["sft"] * len(ids)).set_column(0, "id", [ids])
    digests = {f"{role}_digest": models["reference_digest"] for role in ("policy", "reference")}
    write(other, tmp_path / "other", data="data", manifest=digest, run={"digests": {"data": digest}}, **digests)
    report_command(tmp_path / "scores", tmp_path / "other", out=tmp_path / "report")
    return tmp_path


def states(folder):
    return {link.name: link.state for link in check_chain(folder / "report", None, None, None)}


def test_an_unbroken_chain_holds(chain):
    found = states(chain)
    assert set(found.values()) == {"ok"}
    assert set(found) == {
        "report ← pairs.parquet",
        "report ← report.md",
        "report ← report.html",
        "report ← scores of dpo",
        "report ← scores of sft",
        "number ← scores",
        "pairs.parquet ← scores",
        *(f"scores of {name} ← {what}" for name in ("dpo", "sft") for what in ("policy", "reference", "pairs")),
        *(f"policy {name} ← run" for name in ("dpo", "sft")),
        *(f"run {name} ← shards" for name in ("dpo", "sft")),
        "scores ← shards",
        "shards",
        "shards ← pairs.jsonl",
    }


def test_a_chain_over_two_policies_of_one_name_holds(chain):
    """Two checkpoints are both called `dpo`: the report names each by what differs, and so does the check."""
    pairs = pq.read_table(chain / "other" / "scores.parquet")
    record = json.loads((chain / "other" / "scores.json").read_text())
    at = pairs.schema.get_field_index("policy")
    twin = pairs.set_column(at, "policy", [["dpo"] * pairs.num_rows])
    write(twin, chain / "twin", **{k: record[k] for k in ("data", "manifest", "run")}, policy_digest="b" * 64)
    report_command(chain / "scores", chain / "twin", out=chain / "both")
    found = [(link.name, link.state) for link in check_chain(chain / "both", None, None, None)]
    assert ("number ← scores", "ok") in found
    assert ("pairs.parquet ← scores", "ok") in found
    assert "report ← scores of dpo (bbbbbbbbbbbb)" in dict(found)
    (first,) = check(chain / "both", None, chain / "scores", None, 0, 0.1)[1:]
    assert "dpo (bbbbbbbbbbbb)" in first.text


def edit(*keys, to):
    """A report.json in which one entry says something else."""

    def damage(folder):
        file = folder / "report" / "report.json"
        report = at = json.loads(file.read_text())
        for key in keys[:-1]:
            at = at[key]
        assert at[keys[-1]] != to
        at[keys[-1]] = to
        file.write_text(json.dumps(report))

    return damage


def edit_text(name, old, new):
    def damage(folder):
        file = folder / "report" / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))

    return damage


def edit_pairs(folder):
    """pairs.parquet with one pair turned right, and report.json with its new digest."""
    file, report = folder / "report" / "pairs.parquet", folder / "report" / "report.json"
    rows = pq.read_table(file).to_pylist()
    next(r for r in rows if r["hit"] == 0)["hit"] = 1.0
    pq.write_table(pa.Table.from_pylist(rows), file)
    whole = json.loads(report.read_text())
    report.write_text(json.dumps(whole | {"files": whole["files"] | {"pairs.parquet": sha256(file)}}))


def forge_markdown(folder):
    """report.md that says more than report.json, which has its new digest."""
    edit_text("report.md", "accuracy 0.", "accuracy 0.9")(folder)
    file = folder / "report" / "report.json"
    report = json.loads(file.read_text())
    report["files"]["report.md"] = sha256(folder / "report" / "report.md")
    file.write_text(json.dumps(report))


def leave_out_a_policy(folder):
    file = folder / "report" / "report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"others": [], "comparisons": []}))


def edit_record(folder):
    file = folder / "scores" / "scores.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"dropped": {}}))


def change_scores(folder):
    file = folder / "scores" / "scores.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(1), file)


def append(path, more):
    with path.open("ab") as f:
        f.write(more)


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (edit("accuracy", "value", to=0.99), "number ← scores"),
        (edit("policy", to="better"), "number ← scores"),
        (edit("n", to=400), "number ← scores"),
        (edit("run", "dropped", to={}), "number ← scores"),
        (edit("run", "read", to=1), "number ← scores"),
        (edit("run", "overlap", "exact", to=0), "number ← scores"),
        (edit("comparisons", 0, "verdict", to="better"), "number ← scores"),
        (edit("comparisons", 0, "accuracy", "p", to=0.001), "number ← scores"),
        (edit("others", 0, "policy", to="better"), "number ← scores"),
        (edit("others", to=[]), "number ← scores"),
        (edit_record, "number ← scores"),
        (edit_pairs, "pairs.parquet ← scores"),
        (leave_out_a_policy, "pairs.parquet ← scores"),
        (edit_text("report.md", "accuracy", "precision"), "report ← report.md"),
        (forge_markdown, "report ← report.md"),
        (edit_text("report.html", "accuracy", "precision"), "report ← report.html"),
        (lambda d: (d / "report" / "pairs.parquet").unlink(), "report ← pairs.parquet"),
        (change_scores, "report ← scores of dpo"),
        (lambda d: append(d / "report" / "pairs.parquet", b"x"), "report ← pairs.parquet"),
        (lambda d: append(next((d / "data" / "test").glob("*.arrow")), b"x"), "shards"),
        (lambda d: append(d / "pairs.jsonl", b"\n"), "shards ← pairs.jsonl"),
        (lambda d: append(d / "dpo" / "model.safetensors", b"x"), "scores of dpo ← policy"),
        (lambda d: append(d / "sft" / "model.safetensors", b"x"), "scores of dpo ← reference"),
        (lambda d: (d / "dpo" / "run.yaml").write_text('{"digests": {"data": "x"}}'), "policy dpo ← run"),
    ],
)
def test_each_broken_link_is_named(chain, damage, name):
    damage(chain)
    assert states(chain)[name] == "broken"


def test_another_data_set_in_its_place_is_found_out(chain):
    shutil.rmtree(chain / "data")
    lines = (chain / "pairs.jsonl").read_text().splitlines()
    (chain / "fewer.jsonl").write_text("\n".join(lines[:30]))
    convert_dataset(chain / "fewer.jsonl", chain / "data", source="pairs", splits="test=1")
    found = states(chain)
    assert found["scores ← shards"] == "broken"
    assert found["scores of dpo ← pairs"] == "broken"


def test_what_is_gone_is_unknown_not_fine(chain):
    shutil.rmtree(chain / "dpo")
    (chain / "pairs.jsonl").unlink()
    found = states(chain)
    assert [n for n, s in found.items() if s == "unknown"] == [
        "scores of dpo ← policy", "policy dpo ← run", "shards ← pairs.jsonl",
    ]  # fmt: skip
    (chain / "report" / "_run.log").unlink()
    assert states(chain)["report ← scores of dpo"] == "unknown"
    both = [chain / "scores", chain / "other"]
    given = {link.name: link.state for link in check_chain(chain / "report", both, None, None)}
    assert given["number ← scores"] == "ok"
    shutil.rmtree(chain / "scores")
    shutil.rmtree(chain / "data")
    found = states(chain)
    assert found["report ← scores of dpo"] == found["number ← scores"] == "unknown"


def test_a_folder_of_scores_named_like_its_policy_is_no_model(chain):
    """`evalkit score --policy A --policy B --out DIR` makes DIR/A and DIR/B."""
    (chain / "scores").rename(chain / "moved")
    (chain / "all").mkdir()
    (chain / "moved").rename(chain / "all" / "dpo")
    both = [chain / "all" / "dpo", chain / "other"]
    given = list(check_chain(chain / "report", both, chain / "data", None))
    assert {link.state for link in given} == {"ok"}


def test_models_are_found_where_they_scored_and_under_the_folder_given(chain):
    elsewhere = chain / "elsewhere"
    elsewhere.mkdir()
    (chain / "dpo").rename(elsewhere / "dpo")
    assert states(chain)["scores of dpo ← policy"] == "unknown"
    found = {link.name: link.state for link in check_chain(chain / "report", None, None, elsewhere)}
    assert (found["scores of dpo ← policy"], found["scores of dpo ← reference"]) == ("ok", "unknown")
    record = json.loads((chain / "scores" / "scores.json").read_text())
    (chain / "scores" / "scores.json").write_text(json.dumps(record | {"policy_path": str(elsewhere / "dpo")}))
    assert states(chain)["scores of dpo ← policy"] == "ok"


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 1}'])
def test_what_is_no_report_is_refused(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match="report again"):
        list(check_chain(tmp_path, None, None, None))
    with pytest.raises(UserError, match="there is no report"):
        list(check_chain(tmp_path / "absent.json", None, None, None))


@pytest.mark.parametrize("where", ["hit = 1", "to_json(pairs)->>'hit' = '1.0'", "COLUMNS('^(n_chosen|margin)$') > 0"])
def test_a_condition_on_the_outcome_is_seen_however_it_is_put(tmp_path, where):
    scored = load(write(right(18, 40).table, tmp_path / "s"), None, where)
    assert scored.on_outcome
    (first, *_) = check(reported(scored, tmp_path / "r"), 0.5, None, None)
    assert not first.passed
    assert not load(write(right(18, 40).table, tmp_path / "t"), None, "n_chosen > 0").on_outcome


def test_a_gate_says_what_it_could_not_check(tmp_path):
    (found,) = check(reported(right(70, 100), tmp_path), 0.5, None, None)
    assert found.text.endswith("note: overlap with training data was not checked")


def test_places_that_are_not_there_are_mistakes(tmp_path):
    folder = reported(right(70, 100), tmp_path)
    for given in ({"scores": [tmp_path / "gone"]}, {"runs": tmp_path / "gone"}):
        with pytest.raises(UserError, match="no such file or folder"):
            list(check_chain(folder, **{"scores": None, "data": None, "runs": None} | given))
    with pytest.raises(UserError, match="2 scores are given, the report is of 1"):
        list(check_chain(folder, [folder, folder], None, None))


def test_a_report_that_lacks_something_is_refused(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"schema_version": 6}))
    with pytest.raises(UserError, match=r"report\.json is not whole"):
        check(tmp_path, 0.5, None, None)


def test_a_torn_log_is_only_a_hint(tmp_path):
    folder = reported(right(70, 100), tmp_path)
    for text in ("[]\n", '{"scores": ["/x'):
        (folder / "_run.log").write_text(text)
        assert list(check_chain(folder, None, None, None))
