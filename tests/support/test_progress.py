"""Progress is for a person who watches, and for nobody else."""

import io
import re

import pytest

from hrt.support.progress import track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream, enabled", [(io.StringIO, True), (Terminal, False)])
def test_is_silent_where_nobody_watches_or_wants_it(stream, enabled, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream())
    with track("compress", enabled) as advance:
        advance("layer 1", 0.1)
    import sys

    assert sys.stderr.getvalue() == ""


def test_says_what_is_done_on_a_terminal_with_names_as_they_are(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with track("compress", True) as advance:
        advance("layer [bold]0[/bold]", 0.5)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "compress" in text and "layer [bold]0[/bold]" in text
    assert terminal.getvalue().rstrip().endswith("\x1b[2K")  # the line is wiped at the end


def test_an_error_passes_through(monkeypatch):
    monkeypatch.setattr("sys.stderr", Terminal())
    with pytest.raises(ValueError), track("compress", True) as advance:
        advance("layer 1", 0.1)
        raise ValueError


def test_works_without_stderr(monkeypatch):
    monkeypatch.setattr("sys.stderr", None)
    with track("compress", True) as advance:
        advance("layer 1", 0.1)


def test_writes_plain_lines_where_work_of_minutes_is_piped(monkeypatch):
    pipe, now = io.StringIO(), [0.0]
    monkeypatch.setattr("sys.stderr", pipe)
    monkeypatch.setattr("hrt.support.progress.monotonic", lambda: now[0])
    with track("perf", True, piped=True) as advance:
        for now[0], done in ((1.0, 0.25), (1.5, 0.3), (4.0, 0.5)):
            advance(f"svd [{done}]", done)
    assert pipe.getvalue() == "perf:  25% after 1 s: svd [0.25]\nperf:  50% after 4 s: svd [0.5]\n"
    with track("perf", False, piped=True) as advance:
        advance("svd", 0.9)
    assert "svd\n" not in pipe.getvalue()
