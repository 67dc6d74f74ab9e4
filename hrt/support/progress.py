"""One progress bar for long work, on stderr, silent when it is not wanted; nobody watches: silent, or plain lines."""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TextIO

from hrt.support.random_state import unmoved_random

LINE_S = 2.0
Advance = Callable[[str, float], None]  # what is being done now, and the share of the whole that is behind it


def silent(text: str, done: float) -> None:
    """An `Advance` that says nothing."""


def part(advance: Advance, low: float, high: float) -> Advance:
    """An `Advance` for a piece of the work that takes it from share `low` to share `high`."""
    return lambda text, done: advance(text, low + (high - low) * min(max(done, 0.0), 1.0))


@contextmanager
def track(title: str, enabled: bool, piped: bool = False) -> Iterator[Advance]:
    """Yields `advance(text, done)`, `done` from 0 to 1. Where stderr is no terminal nothing is written, or with `piped`
    plain lines: for work of minutes, which people log.
    """
    if enabled and piped and sys.stderr is not None and not sys.stderr.isatty():
        yield _lines(title, sys.stderr)
        return
    if not enabled or sys.stderr is None or not sys.stderr.isatty():
        yield silent
        return
    with unmoved_random():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    title_column, left, what = (
        TextColumn(text, markup=False) for text in ("{task.fields[title]}", "left", "{task.description}")
    )
    columns = title_column, BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), left, what
    with Progress(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=600) as bar:
        task = bar.add_task("start", title=title, total=1.0)

        def advance(text: str, done: float) -> None:
            """Never backwards: some searches turn out longer than expected."""
            bar.update(task, description=text, completed=max(done, bar.tasks[task].completed))

        yield advance


def _lines(title: str, stream: TextIO) -> Advance:
    """An `Advance` that writes a line for every piece of work, not more often than once in `LINE_S` seconds."""
    start, last = monotonic(), -math.inf

    def advance(text: str, done: float) -> None:
        nonlocal last
        if monotonic() - last >= LINE_S:
            last = monotonic()
            print(f"{title}: {done:4.0%} after {last - start:.0f} s: {text}", file=stream, flush=True)

    return advance
