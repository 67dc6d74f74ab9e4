"""Code blocks of README and docs, found by Sybil and run as a reader would: a page from top to bottom, in one folder.

python        run; all Python blocks of a page share their names
sh            every line run by bash; lines that end in a backslash go on
any language with title="NAME.EXT"          written to that file, for the blocks below
any language with title="Not run here: WHY"  skipped; the reader sees why
text          what something prints; not run
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sybil import Document, Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
INFO = re.compile(r'(?P<language>[\w+]*)(?: title="(?P<title>[^"\n]*)")?(?P<rest>[^\n]*)\n')
FILE_NAME, EXCUSE = re.compile(r"[\w.-]+\.\w+"), re.compile(r"Not run here: \w.{7,}")
LINE_LIMIT_S = 300


@dataclass
class Count:
    """What was done with the blocks of a page."""

    blocks: int = 0
    lines: int = 0  # of shell
    files: int = 0
    excused: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.blocks} blocks and {self.lines} shell lines run, {self.files} files written"
        return f"{text}, {len(self.excused)} not run: {self.excused}" if self.excused else text


def parse(page: Path, count: Count) -> Document:
    """The page's blocks, each with what runs it."""
    blocks, python = RawFencedCodeBlockLexer(info_pattern=INFO), PythonEvaluator()

    def run(example: Example) -> None:
        lexemes = example.region.lexemes
        language, title, source = lexemes["language"], lexemes["title"], lexemes["source"]
        if title and EXCUSE.fullmatch(title):
            count.excused.append(title.partition(": ")[2])
        elif title:
            assert FILE_NAME.fullmatch(title), f"title {title!r}: expected a file's name or 'Not run here: REASON'"
            Path(title).write_text(source, "utf-8")
            count.files += 1
        elif language == "python":
            python(example)
            count.blocks += 1
        elif language == "sh":
            count.lines += sum(run_line(line) for line in shell_lines(source))
            count.blocks += 1
        else:
            assert language == "text", f"line {example.line}: language {language!r} is neither run, written nor excused"

    def parser(document: Document) -> Any:
        for region in blocks(document):
            region.parsed, region.evaluator = region.lexemes["source"], run
            yield region

    return Sybil([parser]).parse(page)


def shell_lines(source: str) -> list[str]:
    """Its commands."""
    return [line for line in source.replace("\\\n", " ").splitlines() if line.partition("#")[0].strip()]


def run_line(line: str) -> int:
    """Run a command as bash does, with this environment's programs first."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "HRT_CHECKOUT": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=LINE_LIMIT_S, check=False
    )
    assert done.returncode == 0, f"$ {line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return 1


def run_page(page: Path) -> Count:
    """Run all blocks of a page in this folder."""
    count = Count()
    for example in parse(page, count).examples():
        example.evaluate()
    return count
