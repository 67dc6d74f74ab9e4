"""Jitter: every subject is called so often, and the figures are in order."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hrt.perf.realtime import jitter as module
from hrt.perf.realtime.command import main
from hrt.perf.realtime.jitter import jitter, lines
from hrt.runtime.backends import on_cpu

from helpers import random_hmatrix
from models import linear_model


@pytest.mark.usefixtures("native")
def test_every_subject_is_timed_from_python_and_from_c(monkeypatch):
    monkeypatch.setattr(module, "TURN", 50)
    figures = jitter(linear_model(random_hmatrix(0, 3, 2, depth=1)), 100)
    names = [f.subject for f in figures]
    assert names[-3:] == ["empty, C", "hrt, native, C", "dense, native, C"]
    assert len(names) == 4 + 2 * len([n for n in on_cpu() if n != "torch"])
    for f in figures:
        assert f.calls == 100 and 0 < f.p50 <= f.p999 <= f.p9999 <= f.max
        counted = sys.platform == "linux" and f.subject.endswith("native, C")
        assert f.allocations == (0 if counted else None)
    assert len(lines(figures)) == 1 + len(figures)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="linked as gcc does on Linux")
def test_allocations_are_counted(tmp_path):
    text = (Path(module.__file__).parent / "jitter.c").read_text()
    before = "#include <stdint.h>\ntypedef int call;\nstatic void run_rows(const call *c, int a, int b, void *w);\n"
    after = "void *volatile taken;\nstatic void run_rows(const call *c, int a, int b, void *w) { taken = malloc(8); }\n"
    (tmp_path / "a.c").write_text(before + text + after)
    command = ["gcc", "-w", "-shared", "-fPIC", *module.COUNTED, "a.c", "-o", "a.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    timed = module.InC(ctypes.CDLL(str(tmp_path / "a.so")), np.zeros((1, 8)), np.zeros(8), (), (), True)
    assert timed(5).min() >= 0 and timed.allocations() == 5
    assert timed(5, empty=True).shape == (5,) and timed.allocations() == 5


def test_without_a_compiler_the_others_are_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HRT_NATIVE", "off")
    linear_model(random_hmatrix(0, 3, 2, depth=1)).save(tmp_path / "net.hrt")
    assert main([str(tmp_path / "net.hrt"), "--jitter", "20"]) == 0
    printed = capsys.readouterr().out
    assert "empty, Python" in printed and "native" not in printed and "Scheduling" in printed


def test_quantiles_are_in_microseconds(monkeypatch):
    calls = iter(np.arange(10_000) * 1000)
    monkeypatch.setattr(module, "subjects_of", lambda model: {"a": lambda n: np.array([next(calls) for _ in range(n)])})
    monkeypatch.setattr(module, "WARM", 0)
    monkeypatch.setattr(module, "TURN", 10_000)
    (f,) = jitter(linear_model(random_hmatrix(0, 3, 2, depth=1)), 10_000)
    assert f.p50 == pytest.approx(4999.5) and f.max == pytest.approx(9999) and f.p999 == pytest.approx(9989, abs=1)
