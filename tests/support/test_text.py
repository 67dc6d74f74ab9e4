"""Nothing that a terminal obeys gets through."""

import pytest

from hrt.support.text import printable


@pytest.mark.parametrize("text", ["", "layers.0.weight", "снег 雪 κ(W) ≤ 1", "a b"])
def test_letters_of_any_script_stay(text):
    assert printable(text) == text


@pytest.mark.parametrize("control", ["\x1b", "\n", "\r", "\0", "\x9b", "\x7f", "\u202e", "\u2028", "\ud800"])
def test_controls_are_left_out(control):
    assert printable(f"a{control}b") == "ab"
