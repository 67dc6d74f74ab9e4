"""The README: short, true, and its script prints what it says."""

import re
from pathlib import Path

import pytest

from doc_blocks import ROOT, Count, parse

README = (ROOT / "README.md").read_text("utf-8")
NUMBER = re.compile(r"-?\d[\d,.]*(?:e-?\d+)?")
MOST_LINES, MOST_WORDS, MOST_CODE, MOST_BYTES = 150, 1963, 16, 150_000


def figures(text: str) -> list[float]:
    return [float(number.rstrip(".,").replace(",", "")) for number in NUMBER.findall(text)]


def test_it_is_short_and_pictures_are_small() -> None:
    assert len(README.splitlines()) <= MOST_LINES
    assert len(README.split()) < MOST_WORDS
    pictures = [path for path in (ROOT / "docs/pictures").iterdir() if path.suffix in (".png", ".svg")]
    assert pictures and all(path.stat().st_size <= MOST_BYTES for path in pictures)


def test_the_script_prints_what_the_readme_says(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    script, output = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL).groups()
    page = tmp_path / "script.md"
    page.write_text(f"```python\n{script}```\n", "utf-8")
    for example in parse(page, Count()).examples():
        example.evaluate()
    printed = capsys.readouterr().out
    without_backends = re.compile(r"(?<=in float32) \([a-z, ]+\)")  # which of them are installed
    printed, expected = (without_backends.sub("", text) for text in (printed, output))
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", expected)
    error, stored, ratio, middle, slope = (
        float(re.search(pattern, printed)[1])
        for pattern in (
            r"at most (\S+) on new",
            r"stored: (\d+)",
            r"(\S+)x smaller",
            r"0.5\) = ([^,]+)",
            r"'\(1\) = ([^,]+)",
        )
    )
    assert error <= 1e-2
    assert stored * ratio == pytest.approx(17_412, rel=0.01) and ratio > 20
    assert abs(middle - 1) < 0.02 and abs(slope + 3.1416) < 0.05  # tol, and what the training leaves


def test_the_table_of_results_is_that_of_the_page_of_results() -> None:
    page = (ROOT / "docs/results/harness.md").read_text("utf-8")
    measured = [line for line in page.splitlines() if "| 1e-3 |" in line]
    table = README[README.index("| network | smaller") :].partition("\n\n")[0].splitlines()[2:]
    assert len(measured) == len(table)
    for shown, full in zip(table, measured, strict=True):
        for cell, other in zip(shown.split("|")[2:5], full.split("|")[3:6], strict=True):
            ratio, rank, of = figures(cell)
            assert ratio == figures(other)[0]
            assert f"{rank:.0f} of {of:.0f}" in other
            assert ("**" in cell) == (rank > 1)  # a loss
            assert ("tied" in cell) == (rank == 1 and "with" in other)
