"""Every code block and every shell line of README and docs runs, or says to its reader why it does not here."""

import sys
from pathlib import Path

import pytest

from doc_blocks import PAGES, ROOT, Count, run_page

WITH_BLOCKS = [p for p in PAGES if "```" in p.read_text("utf-8")]


@pytest.mark.parametrize("page", [page.relative_to(ROOT).as_posix() for page in WITH_BLOCKS])
@pytest.mark.slow
def test_every_block_of_the_page_runs(page: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.delenv("HRT_NATIVE")  # a reader's commands compile C
    monkeypatch.setenv("HRT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # python finds modules where it is started
    before = set(sys.modules)
    count = run_page(ROOT / page)
    for name in set(sys.modules) - before:  # other pages write modules of the same names
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    with capsys.disabled():
        print(f"\n{page}: {count}")


def test_every_block_is_run_or_written_or_says_why_not() -> None:
    counts = [run_page(page, dry=True) for page in WITH_BLOCKS]
    assert sum(count.blocks for count in counts) > 60 and sum(count.lines for count in counts) > 30


@pytest.mark.parametrize(
    "text",
    [
        "```python\n1 / 0\n```\n",
        "```sh\ntrue\nfalse  # the second line\n```\n",
        "```\nno language\n```\n",
        "```c\nint main(void) { return 0; }\n```\n",
        '```python title="Not run here"\nx = 1\n```\n',
    ],
    ids=["raises", "fails", "no language", "neither run nor written", "no reason"],
)
def test_a_block_that_does_not_run_is_an_error(text: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises((AssertionError, ZeroDivisionError)):
        run_page(page)


def test_blocks_of_a_page_share_names_files_and_folder_and_are_counted(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        '```python title="made.py"\nvalue = 2\n```\n\n```python\nx = 20\n```\n\n```python\nprint(x + 1)\n```\n\n'
        '```sh\npython -c "import made; print(made.value)" \\\n  > two\ngrep 2 two  # what it prints\n```\n\n'
        '```text\n2\n```\n\n```sh title="Not run here: needs a GPU"\nnvidia-smi\n```\n'
    )
    assert run_page(page) == Count(blocks=3, lines=2, files=1, excused=["needs a GPU"])
