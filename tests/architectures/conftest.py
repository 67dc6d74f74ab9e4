"""One new process for all networks of a file, and the file's table at its end (`pytest -s` shows it)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from architectures.checked import FreshProcess, report


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FreshProcess]:
    process = FreshProcess(tmp_path_factory.mktemp("architectures"))
    yield process
    print("", *report(process.lines), sep="\n")
    process.compare()
