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

from sybil import Document, Example, Region, Sybil
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


def kind(block: Region) -> str:
    """What becomes of a block: "excused", "file", "python", "sh" or "text"."""
    language, title = block.lexemes["language"], block.lexemes["title"]
    if title and EXCUSE.fullmatch(title):
        return "excused"
    if title:
        assert FILE_NAME.fullmatch(title), f"title {title!r}: expected a file's name or 'Not run here: REASON'"
        return "file"
    assert language in ("python", "sh", "text"), f"{language!r} is neither run, written to a file, nor excused"
    return language


def parse(page: Path, count: Count, dry: bool = False) -> Document:
    """The page's blocks, each with what runs it and counts it; `dry`: with what counts it alone."""
    blocks, python = RawFencedCodeBlockLexer(info_pattern=INFO), PythonEvaluator()

    def run(example: Example) -> None:
        title, source = example.region.lexemes["title"], example.region.lexemes["source"]
        match kind(example.region):
            case "excused":
                count.excused.append(title.partition(": ")[2])
            case "file":
                count.files += 1
                if not dry:
                    Path(title).write_text(source, "utf-8")
            case "python":
                count.blocks += 1
                if not dry:
                    python(example)
            case "sh":
                count.blocks += 1
                for line in shell_lines(source):
                    count.lines += 1
                    if not dry:
                        run_line(line)

    def parser(document: Document) -> Any:
        for region in blocks(document):
            region.parsed, region.evaluator = region.lexemes["source"], run
            yield region

    return Sybil([parser]).parse(page)


def shell_lines(source: str) -> list[str]:
    """Its commands."""
    return [line for line in source.replace("\\\n", " ").splitlines() if line.partition("#")[0].strip()]


def run_line(line: str) -> None:
    """Run a command as bash does, with this environment's programs first."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "HRT_CHECKOUT": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", line], env=environment, capture_output=True, text=True, timeout=LINE_LIMIT_S, check=False
    )
    assert done.returncode == 0, f"$ {line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"


def run_page(page: Path, dry: bool = False) -> Count:
    """Run all blocks of a page in this folder; `dry`: count what would be run."""
    count = Count()
    for example in parse(page, count, dry).examples():
        example.evaluate()
    return count


if __name__ == "__main__":
    counts = {page.relative_to(ROOT): run_page(page, dry=True) for page in PAGES}
    for page, count in counts.items():
        if count != Count():
            print(f"{page}: {count}")
    blocks, lines, files = (sum(getattr(c, name) for c in counts.values()) for name in ("blocks", "lines", "files"))
    excused = sum(len(c.excused) for c in counts.values())
    print(f"in all: {Count(blocks, lines, files)}, {excused} blocks not run, each with its reason")
