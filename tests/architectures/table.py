"""Checks every architecture and writes the table: python tests/architectures/table.py FILE [FAMILY ...]"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from architectures.checked import HEADER, Family, FreshProcess  # noqa: E402


def families() -> Iterator[Family]:
    """Of every module networks_<family>.py, in the order of their names."""
    for path in sorted(HERE.glob("networks_*.py")):
        module = import_module(f"architectures.{path.stem}")
        yield from (v for v in vars(module).values() if isinstance(v, Family))


def table(names: set[str]) -> Iterator[str]:
    yield HEADER
    for family in families():
        if names and family.name not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            process = FreshProcess(Path(folder))
            for architecture in family.members.values():
                yield str(process.check(architecture))
            process.compare()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("\n".join(table(set(sys.argv[2:]))) + "\n")
