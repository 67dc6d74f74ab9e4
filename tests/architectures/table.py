"""Checks every architecture and writes the table: python tests/architectures/table.py FILE [FAMILY ...]

Networks of packages that are not installed are named. $PYTHONPATH may hold them. Status 1 where one breaks a promise.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from hrt.export.other_runtimes import web  # noqa: E402

from architectures.checked import HEADER, Family, FreshProcess  # noqa: E402
from architectures.networks_wheels import torchvision_stands_in  # noqa: E402

PROCESSES = 2
BROKEN, LONGEST = "FAILED", 200  # characters of a reason
PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "neuraloperator", "nvidia-physicsnemo")


def families() -> Iterator[Family]:
    """Of every module networks_<family>.py, in the order of their names."""
    for path in sorted(HERE.glob("networks_*.py")):
        module = import_module(f"architectures.{path.stem}")
        yield from [v for v in vars(module).values() if isinstance(v, Family)]


def family_lines(name: str) -> list[str]:
    """The lines of one family. A network that breaks a promise has a line that says which, and the rest goes on."""
    (family,) = (f for f in families() if f.name == name)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        process = FreshProcess(Path(folder))
        for architecture in family.members.values():
            try:
                architecture.build()
            except ImportError as error:
                lines.append(f"| {architecture.name} | not tried: {error} | | | | |")
                continue
            try:
                line = process.check(replace(architecture, fast=False))
                assert "DFT" not in line.operators, "a graph that needs a Fourier transform"
                lines.append(str(line))
            except Exception as error:
                lines.append(broken(architecture.name, error))
        try:
            process.compare()
        except Exception as error:
            lines.append(broken(f"files of {name} in a new process", error))
    return lines


def broken(name: str, error: Exception) -> str:
    """A line that says what went wrong."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"| {name} | {BROKEN}: {text.replace('|', '/')[:LONGEST]} | | | | |"


def table(names: set[str]) -> Iterator[str]:
    yield HEADER
    chosen = [f.name for f in families() if not names or f.name in names]
    with ProcessPoolExecutor(PROCESSES) as pool:
        for lines in pool.map(family_lines, chosen):
            yield from lines


def page(names: list[str]) -> Iterator[str]:
    """The table, with what it was made by."""
    yield "# Architectures, compressed and run elsewhere\n"
    yield (
        "Every network is compressed on 256 rows and must keep its tolerance on 256 fresh ones, its derivatives too, "
        "answer the same bit for bit in a new process, and agree with `predict` in the runtimes named, in which no "
        "graph needs a Fourier transform. The networks are small and not trained, so that ratios say little about "
        "yours. In reach: the share of the bytes that are weights which the planner may compress.\n"
    )
    yield f"Written by `python {' '.join(['tests/architectures/table.py', 'FILE', *names])}` on {datetime.now(UTC):%F}"
    yield f"with {', '.join(versions())}.\n"
    yield from table(set(names))


def versions() -> Iterator[str]:
    yield f"Python {sys.version.split()[0]}"
    for package in PACKAGES:
        try:
            yield f"{package} {metadata.version(package)}"
        except metadata.PackageNotFoundError:
            yield f"no {package}"
    yield f"{web.PACKAGE} {web.VERSION}" if web.installed(web.home()) else f"no {web.PACKAGE}"
    if torchvision_stands_in():
        yield "an empty module for torchvision, which cannot be imported here"


if __name__ == "__main__":
    lines = []
    for line in page(sys.argv[2:]):
        print(line, flush=True)
        lines.append(line)
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n")
    sys.exit(any(f"| {BROKEN}:" in line for line in lines))
