"""The commands that only read what was scored: report, diff, gate, verify. None of them needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from evalkit.terminal import say
from prefkit.errors import UserError

Mode = Literal["implicit", "normalised", "sum", "mean", "norm"]


def report(
    scores: Path,
    *others: Path,
    out: Path,
    mode: Mode | None = None,
    where: str | None = None,
    sections: Path | None = None,
    data: Path | None = None,
    pairs: int = 500,
) -> None:
    """Turn scores into one number with its interval: one printed line, and report.html, .md, .json, pairs.parquet.

    Parameters
    ----------
    scores
        Folder or file written by `evalkit score`.
    others
        Scores of other policies on the same data, each compared with the first.
    out
        Folder for the report.
    mode
        What a reward is: implicit, normalised by length, or without reference sum, mean or norm.
    where
        Only pairs for which this SQL condition over columns of scores.parquet, reward_chosen, reward_rejected, margin
        and hit is true.
    sections
        YAML of weighted sections, such as recipes/sections/rewardbench.yaml.
    data
        The data set that was scored, for the texts in report.html; found beside the scores if it lies there.
    pairs
        How many pairs report.html shows, 2000 at most.
    """
    from evalkit.files import check_folder
    from evalkit.findings import section_notes
    from evalkit.lines import headline, verdict_line
    from evalkit.page import page
    from evalkit.report import build_report, load_all, pair_table
    from evalkit.report_files import FILES, write_report
    from evalkit.scores import scores_path
    from evalkit.shown import MOST_PAIRS, find_data, pairs_of

    check_folder(out, "report.json", FILES, "reward_chosen")
    if not 0 <= pairs <= MOST_PAIRS:
        raise UserError(f"--pairs {pairs}", fix=f"give 0 to {MOST_PAIRS}")
    loaded = load_all([scores, *others], mode, where)
    built = build_report(*loaded, sections=sections)
    if built["run"] is None:
        say("note: no scores.json beside the scores, so what was dropped is not known")
    file = scores_path(scores)
    for note in section_notes(built["sections"]) if built["sections"] else ():
        say(f"note: {note}")
    found = find_data(loaded[0], file.resolve().parent, data)
    html = page(built, pairs_of(loaded[0], loaded[1:], pairs, file, found))
    write_report(built, pair_table(*loaded), out, html)
    _note_places(out, [scores_path(s) for s in (scores, *others)], found)
    for r in (built, *built["others"]):
        say((f"{r['policy']}: " if others else "") + headline(r))
    for found in built["comparisons"]:
        say(verdict_line(found))
    say(f"wrote {out / 'report.html'}, report.md and report.json")


def diff(
    first: Path,
    second: Path,
    *,
    n: Annotated[int, Parameter(name=["-n", "--number"])] = 5,
    mode: Mode | None = None,
    where: str | None = None,
    out: Path | None = None,
) -> None:
    """Say whether the second policy is better than the first on the pairs both scored, and on which pairs they part.

    Parameters
    ----------
    first
        Scores or report of the policy to compare with.
    second
        Scores or report of the policy in question.
    n
        How many of the pairs that changed are printed, largest first.
    mode
        What a reward is, for scores: see `evalkit report`.
    where
        Only pairs for which this SQL condition is true, for scores.
    out
        Folder for diff.json and changed.parquet.
    """
    from evalkit.diff import changed_pairs, compare, write_diff
    from evalkit.files import check_folder
    from evalkit.lines import verdict_line
    from evalkit.sides import side
    from prefkit.wording import counted

    if out is not None:
        check_folder(out, "diff.json")
    a, b = side(first, mode, where), side(second, mode, where)
    found = compare(a, b)
    changed = changed_pairs(a, b)
    say(verdict_line(found))
    counts, shown = found["accuracy"], changed.slice(0, max(n, 0)).to_pylist()
    more = "; the largest changes:" if shown else ""
    say(f"{counted(counts['won'], 'pair')} won, {counts['lost']} lost of {found['n']}{more}")
    for pair in shown:
        say(f"  {pair['id']}  {pair['margin_first']:+.3f} → {pair['margin_second']:+.3f}  {pair['subset'] or ''}")
    if out is not None:
        write_diff(found, changed, out)
        say(f"wrote {out / 'diff.json'} and {out / 'changed.parquet'}")


def gate(
    report: Path,
    *,
    min_accuracy: float | None = None,
    no_worse_than: Path | None = None,
    allow_missing: float = 0.0,
    max_displacement: float | None = None,
    allow_trained: float = 0.0,
    allow_outcome: bool = False,
) -> int:
    """Hold a report to a threshold or to another report: exit 0 if all hold, 1 if one does not.

    Parameters
    ----------
    report
        report.json, or the folder it is in; each policy in it must pass.
    min_accuracy
        The lower end of the accuracy's 95 % interval must reach this: the value alone could be luck.
    no_worse_than
        Another report or scores; a policy that is significantly worse on the shared pairs fails, each taken alone.
    allow_missing
        For no-worse-than: largest share of either side's pairs that may be missing from the other.
    max_displacement
        Largest share of pairs whose chosen response became less likely than under the reference.
    allow_trained
        Largest share of the evaluated prompts that may be among the policy's training prompts.
    allow_outcome
        Let pass a report whose --where looks at what the policy made of the pairs.
    """
    from evalkit.gate import check

    checks = check(report, min_accuracy, no_worse_than, max_displacement, allow_missing, allow_trained, allow_outcome)
    for c in checks:
        say(f"{'ok  ' if c.passed else 'FAIL'} {c.text}")
    return 0 if all(c.passed for c in checks) else 1


def verify(
    report: Path, *, scores: list[Path] | None = None, data: Path | None = None, runs: Path | None = None
) -> int:
    """Re-check a number from dump to report, by digests and by computing it again; exit 1 if it does not hold.

    Parameters
    ----------
    report
        report.json, or the folder it is in.
    scores
        Where its scores lie, one for each policy in order; where they lay when the report was made by default.
    data
        The data set; looked for by name beside the scores by default.
    runs
        Folder that holds the policies and references by their names; beside the scores or the data by default.
    """
    from evalkit.recompute import NUMBER
    from evalkit.verify import check_chain

    links = list(check_chain(report, scores, data, runs))
    for link in links:
        say(f"{link.state:<9} {link.name}: {link.text}")
    broken = sum(link.state == "broken" for link in links)
    unknown = sum(link.state == "unknown" for link in links)
    say(f"{len(links) - broken - unknown} links hold, {broken} broken, {unknown} could not be checked")
    counted = any(link.name == NUMBER and link.state != "unknown" for link in links)
    if not counted:
        say("the number itself is not checked: it needs the scores")
    return 1 if broken or not counted else 0


def _note_places(out: Path, scores: list[Path], data: Path | None) -> None:
    """Where the inputs lay, for `evalkit verify`; paths are of this machine and no part of the report."""
    note = {"scores": [str(p.resolve()) for p in scores], "data": str(data.resolve()) if data else None}
    (out / "_run.log").write_text(json.dumps(note, ensure_ascii=False) + "\n", encoding="utf-8")
