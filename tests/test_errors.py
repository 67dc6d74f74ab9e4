"""Foreign errors in one line."""

import pytest

from hrt.errors import first_line, reason


def test_reason_is_one_short_line():
    text = reason(ValueError("a\n  b\n" + "c" * 1000))
    assert text.startswith("ValueError: a b c") and len(text) < 400 and "\n" not in text
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt"


@pytest.mark.parametrize("message, line", [("\n one\ntwo", " one"), ("", "ValueError")])
def test_first_line(message, line):
    assert first_line(ValueError(message)) == line
