"""Scores in, one number out: accuracy with its interval, beside the baselines that could explain it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from evalkit.metrics import share_won, summary
from evalkit.scores import read_record, read_scores, scores_path, sha256
from train.core.rewards import PairRewards, hits, pair_rewards

SCHEMA_VERSION = 1


def build_report(scores: str | Path | pa.Table) -> dict:
    """The report of one policy's scores (a folder, a file or a table) as plain data, versioned by `schema_version`.

    Raises `UserError` where `read_scores` does.
    """
    table = scores if isinstance(scores, pa.Table) else read_scores(scores)
    column = {name: table[name].to_numpy() for name in table.column_names}
    group_N, beta = column["group_id"], float(column["beta"][0])
    referenced = table["ref_chosen"].null_count == 0
    rewards = table_rewards(table)

    baselines = {"longer_wins": column["chars_chosen"] - column["chars_rejected"]}
    baselines["reference_free"] = column["policy_chosen"] - column["policy_rejected"]
    if referenced:
        baselines["reference_only"] = column["ref_chosen"] - column["ref_rejected"]
    return {
        "schema_version": SCHEMA_VERSION,
        "policy": table["policy"][0].as_py(),
        "reference": table["reference"][0].as_py(),
        "beta": beta,
        "n": table.num_rows,
        "n_groups": len(np.unique(group_N)),
        "truncated": int(np.sum(column["truncated"])),
        "accuracy": share_won(rewards.margins, group_N).as_dict(),
        "baselines": {name: share_won(diff_N, group_N).as_dict() for name, diff_N in baselines.items()},
        "margin": summary(rewards.margins),
        "rewards": {"chosen": summary(rewards.chosen), "rejected": summary(rewards.rejected)},
        "scores_sha256": None if isinstance(scores, pa.Table) else sha256(scores_path(scores)),
        "run": None if isinstance(scores, pa.Table) else read_record(scores_path(scores)),
    }


def table_rewards(table: pa.Table) -> PairRewards:
    """Rewards of scored pairs; without a reference they are β times the policy's own log-probabilities."""
    referenced = table["ref_chosen"].null_count == 0
    policy_chosen_N, policy_rejected_N = (table[f"policy_{side}"].to_numpy() for side in ("chosen", "rejected"))
    ref_chosen_N, ref_rejected_N = (
        table[f"ref_{side}"].to_numpy() if referenced else 0.0 for side in ("chosen", "rejected")
    )
    return pair_rewards(policy_chosen_N, policy_rejected_N, ref_chosen_N, ref_rejected_N, table["beta"][0].as_py())


def pair_table(table: pa.Table) -> pa.Table:
    """What the report says of each pair: rewards, margin, how it counts, and its rank from most wrong (1) to surest."""
    rewards = table_rewards(table)
    rank_N = np.empty(table.num_rows, np.int64)
    rank_N[np.argsort(rewards.margins, kind="stable")] = np.arange(1, table.num_rows + 1)
    columns = {"reward_chosen": rewards.chosen, "reward_rejected": rewards.rejected, "margin": rewards.margins}
    columns |= {"hit": hits(rewards.margins), "rank": rank_N}
    kept = table.select(["id", "group_id", "source", "subset"])
    for name, values in columns.items():
        kept = kept.append_column(name, pa.array(values))
    return kept


def headline(report: dict) -> str:
    """The one printed line."""
    a, longer = report["accuracy"], report["baselines"]["longer_wins"]
    line = (
        f"accuracy {_interval(a)} on {report['n']} pairs of {report['n_groups']} groups"
        f" · longer wins {_interval(longer)}"
        f" · mean margin {report['margin']['mean']:+.4f} at β {report['beta']:g}"
    )
    return line + (f" · ties {a['tie_rate']:.1%}" if a["tie_rate"] else "")


LABELS = {
    "accuracy": "implicit-reward accuracy",
    "longer_wins": "longer answer wins",
    "reference_only": "reference alone (log π_ref)",
    "reference_free": "policy alone (log π)",
}


def to_markdown(report: dict) -> str:
    """report.md: the number, what could explain it, and where it comes from."""
    rows = [("accuracy", report["accuracy"]), *report["baselines"].items()]
    lines = [
        f"# {_cell(report['policy'])} against {_cell(report['reference'] or 'no reference')}",
        "",
        headline(report),
        "",
        "| | value | 95 % interval | strict | ties |",
        "|---|---|---|---|---|",
    ]
    for name, p in rows:
        lines.append(
            f"| {LABELS[name]} | {_interval(p).replace(' ', ' | ', 1)} | {p['strict']:.3f} | {p['tie_rate']:.1%} |"
        )
    m = report["margin"]
    lines += [
        "",
        "A tie counts one half; `strict` counts it as wrong, as most tools do. The interval is "
        f"{report['accuracy']['method']}: {report['n']} pairs of {report['n_groups']} groups weigh as much as "
        f"{report['accuracy']['n_effective']:.0f} independent pairs.",
        "",
        f"Margin β·Δ at β {report['beta']:g}: mean {m['mean']:+.4f}, sd {m['sd']:.4f}, "
        f"quartiles {m['q25']:+.4f} / {m['median']:+.4f} / {m['q75']:+.4f}. Truncated pairs: {report['truncated']}.",
    ]
    if run := report["run"]:
        dropped = ", ".join(f"{reason} {n}" for reason, n in sorted(run["dropped"].items())) or "none"
        lines += ["", f"Pairs read {run['read']}, scored {run['scored']}, dropped: {dropped}."]
        lines += [
            "",
            f"Data `{run['data']}` split `{run['split']}`, boundary of the first pair: `{_cell(run['boundary'])}`.",
        ]
    return "\n".join(lines) + "\n"


def _interval(p: dict) -> str:
    return f"{p['value']:.3f} [{p['low']:.3f}, {p['high']:.3f}]"


def _cell(text: str) -> str:
    """Names come from outside: they stay in their line and outside the table's syntax."""
    return " ".join(text.split()).replace("|", "\\|")


def write_report(report: dict, pairs: pa.Table, out: Path) -> None:
    """Write pairs.parquet, report.md and, last, report.json, each under a temporary name and renamed."""
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(pairs, out / ".pairs.parquet.tmp", compression="zstd")
    (out / ".pairs.parquet.tmp").replace(out / "pairs.parquet")
    contents = {
        "report.md": to_markdown(report),
        "report.json": json.dumps(report, indent=1, ensure_ascii=False, sort_keys=True) + "\n",
    }
    for name, text in contents.items():
        temporary = out / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out / name)
