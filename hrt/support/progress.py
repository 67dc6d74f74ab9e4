"""One progress bar for long work, on stderr, silent when it is not wanted or nobody watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str, float], None]  # what is being done now, and the share of the whole that is behind it


def silent(text: str, done: float) -> None:
    """An `Advance` that says nothing."""


def part(advance: Advance, low: float, high: float) -> Advance:
    """An `Advance` for a piece of the work that takes it from share `low` to share `high`."""
    return lambda text, done: advance(text, low + (high - low) * min(max(done, 0.0), 1.0))


@contextmanager
def track(title: str, enabled: bool) -> Iterator[Advance]:
    """Yields `advance(text, done)`, `done` from 0 to 1. Nothing is written where stderr is no terminal."""
    if not enabled or sys.stderr is None or not sys.stderr.isatty():
        yield silent
        return
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
