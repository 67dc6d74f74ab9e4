"""What README and docs name is there: files of the repository, modules that are run, options of commands."""

import ast
import importlib.util
import re
from itertools import chain

import pytest
import typer

from hrt.cli.main import app

from doc_blocks import PAGES, ROOT

TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text("utf-8") for page in PAGES}
INLINE, SHELL = re.compile(r"`([^`\n]+)`"), re.compile(r"^```sh[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"(?<![\w/.~-])(?:hrt|tests|perf|export|kernels|docs|examples|perf/results)/[\w/-]+\.[a-z]+\b")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
GONE = {"hrt/fewer_leaves.py"}  # named as history


def codes(text: str) -> list[str]:
    """What stands in backticks, and the lines of shell."""
    return [*INLINE.findall(text), *chain.from_iterable(block.splitlines() for block in SHELL.findall(text))]


@pytest.mark.parametrize("page", TEXTS)
def test_files_modules_targets_and_options_exist(page: str) -> None:
    parts = codes(TEXTS[page])
    files = set(chain.from_iterable(FILE.findall(part) for part in parts)) - GONE
    assert not [name for name in files if not (ROOT / name).exists()]
    modules = {name for part in parts for name in re.findall(r"python3? -m (hrt[\w.]*)", part)}
    assert not [name for name in modules if importlib.util.find_spec(name) is None]
    targets = {name for part in parts for name in re.findall(r"^make ([a-z-]+)$", part)}
    assert targets <= TARGETS
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for name, rest in (match for part in parts for match in re.findall(r"^hrt ([a-z][a-z-]*)((?: .*)?)$", part)):
        known = {option for p in commands[name].params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
        assert not [option for option in re.findall(r"(?<= )--[a-z-]+", rest.partition(" #")[0]) if option not in known]


def test_messages_on_the_page_of_errors_are_those_of_the_code() -> None:
    paths = chain.from_iterable((ROOT / name).rglob("*.py") for name in ("hrt", "kernels", "export"))
    literals = (node.value for path in paths for node in ast.walk(ast.parse(path.read_text("utf-8"))) if is_text(node))
    code = "\n".join(literals)
    messages = re.findall(r"(?<!\*)\*([^*|]+)\*(?!\*)", TEXTS["docs/reference/errors.md"])
    assert len(messages) > 10
    assert not [message for message in messages if message not in code]


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
