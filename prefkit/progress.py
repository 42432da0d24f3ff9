"""One progress bar for everything that runs long: on a terminal only, and gone when done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[..., None]]:
    """Yields a function that is told how many more are done, and how many rows that were where one is many; shows rate
    and time left on stderr.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    speed = TaskProgressColumn(text_format="", text_format_no_percentage="", show_speed=True)
    rate = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, speed, TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task, seen, started = bar.add_task(label, total=total, rate=""), 0, time.monotonic()

        def advance(n: int, rows: int = 0) -> None:
            nonlocal seen
            seen += rows
            if seen:
                bar.update(task, rate=f"{seen / max(time.monotonic() - started, 1e-9):,.0f} rows/s")
            bar.advance(task, n)

        yield advance
