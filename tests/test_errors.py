"""Foreign errors in one line."""

import pytest

from hrt.errors import HrtError, first_line, printable, reason


def test_reason_is_one_short_line():
    text = reason(ValueError("a\n  b\n" + "c" * 1000))
    assert text.startswith("ValueError: a b c") and len(text) < 400 and "\n" not in text
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt"


@pytest.mark.parametrize("message, line", [("\n one\ntwo", " one"), ("", "ValueError")])
def test_first_line(message, line):
    assert first_line(ValueError(message)) == line


@pytest.mark.parametrize(
    "text, shown",
    [
        ("layers.0 é 雪", "layers.0 é 雪"),
        ("\x1b]0;x\x07", r"\x1b]0;x\x07"),
        ("\x9b2J\u202e\n\ud800", r"\x9b2J\u202e\n\ud800"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    assert str(HrtError(f"{text}\nnext")) == printable(text).replace(r"\n", "\n") + "\nnext"
