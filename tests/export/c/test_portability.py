"""Generated C on every compiler and processor of tests/portability.py that there is here."""

import subprocess
import sys
from pathlib import Path

import pytest

from compiled import compiler
from portability import LIBRARY, TARGETS, Target, elf_facts, networks, outcome


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_every_network_passes(target: Target, tmp_path: Path) -> None:
    if reason := target.missing():
        pytest.skip(reason)
    for k, network in enumerate(networks()):
        folder = tmp_path / str(k)
        folder.mkdir()
        o = outcome(target, network, folder)
        assert o.passed, (network.name, o)
        calls = {name for name in o.calls if not name.startswith("__")}  # a compiler's own, such as ARM's division
        assert target.sanitized or calls <= LIBRARY, (network.name, o.calls)


@pytest.mark.skipif(sys.platform != "linux", reason="object files are ELF on Linux")
def test_elf_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text('int puts(const char *); int f(void) { return puts("x"); } int g;\n')
    subprocess.run([compiler("gcc"), "-O1", "-c", "a.c", "-o", "a.o"], cwd=tmp_path, check=True)
    code, calls = elf_facts((tmp_path / "a.o").read_bytes())
    assert 0 < code < 100
    assert "puts" in calls and "f" not in calls and "g" not in calls
