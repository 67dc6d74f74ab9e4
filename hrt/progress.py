"""One progress bar for long work, on stderr, silent when it is not wanted or nobody watches."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def track(title: str, enabled: bool) -> Iterator[Callable[[str], None]]:
    """Yields `advance(text)`: shows what is being done now and for how long the whole has been running.

    Nothing is written where stderr is no terminal, so that logs and pipes stay clean, and nothing stays behind.
    """
    if not enabled or sys.stderr is None or not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    title_column, what = (TextColumn(text, markup=False) for text in ("{task.fields[title]}", "{task.description}"))
    columns = SpinnerColumn(), title_column, TimeElapsedColumn(), what
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("start", title=title, total=None)
        yield lambda text: bar.update(task, description=text, advance=1)
