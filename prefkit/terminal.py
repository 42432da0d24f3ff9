"""What commands print, and where: results to stdout, warnings to stderr, never a colour or an emoji of their own."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from prefkit.ledgers import ledger_lines
from prefkit.shards import NO_PAIR, Manifest
from prefkit.wording import counted, counts_text

STDOUT = Console(markup=False, highlight=False, soft_wrap=True, emoji=False)
STDERR = Console(stderr=True, markup=False, highlight=False, soft_wrap=True, emoji=False)


def print_ledgers(manifest: Manifest) -> None:
    """Both ledgers of every source, what lay beside the records, the splits; warnings aside."""
    for line in ledger_lines(manifest.sources):
        STDOUT.print(line)
    if manifest.repairs:
        STDOUT.print(f"  repairs     {counts_text(manifest.repairs)}")
    if manifest.links:
        STDOUT.print(f"  links       {counts_text(manifest.links)}")
    for name, counts in manifest.tables.items():
        STDOUT.print(f"  {name:<11} {counts_text(counts)}")
    sizes = {name: (counted(c["rows"], "pair"), counted(c["groups"], "group")) for name, c in manifest.splits.items()}
    STDOUT.print(f"  splits      {', '.join(f'{name} {rows} in {groups}' for name, (rows, groups) in sizes.items())}")
    for warning in manifest.warnings:
        if warning != NO_PAIR:  # an error of the command's own says so
            STDERR.print(f"warning: {warning}")


def print_pair(pair: dict[str, Any]) -> None:
    """A pair under a rule with its names."""
    strength = "" if pair["margin"] is None else f"  margin {pair['margin']:.3f}"
    STDOUT.rule(f"{pair['id']}  {pair['source_id'] or pair['source']}{strength}", align="left", style="")
    for name in ("prompt", "chosen", "rejected"):
        for message in pair[name]:
            STDOUT.print(f"── {name} · {message['role']}\n{message['content']}\n")
