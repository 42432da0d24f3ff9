"""Composition root of `evalkit`: every command is an import string, so `--help` loads no library."""

from __future__ import annotations

import sys

from cyclopts import App, Parameter

from prefkit.cli import run_to_end
from prefkit.command_line import whole_numbers

app = App(
    name="evalkit",
    config=whole_numbers,
    default_parameter=Parameter(negative_iterable=()),
    help="Held-out accuracy of implicit rewards, reports, and blind comparison.",
    suppress_keyboard_interrupt=False,
)
app.command("evalkit.commands:score", help="Score held-out pairs with a policy and its reference.")
app.command("evalkit.report_commands:report", help="Turn scores into one number with its interval, and a report.")
app.command("evalkit.report_commands:diff", help="Say whether one policy is better than another on the same pairs.")
app.command("evalkit.report_commands:gate", help="Hold a report to a threshold or to another (exit 1 if it fails).")
app.command("evalkit.report_commands:verify", help="Re-check a number from dump to report (exit 1 if it fails).")
app.command("evalkit.commands:generate", help="Answer held-out prompts with a model.")
app.command("evalkit.side_by_side.command:side_by_side", name="side-by-side", help="Compare two models blind.")


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run_to_end(app))


if __name__ == "__main__":
    main()
