"""What a run says, once whatever the number of processes."""

from __future__ import annotations

import os


def is_main() -> bool:
    """Whether this process writes and prints."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """Print once, whatever the number of processes."""
    if is_main():
        print(text, flush=True)
