"""Jitter: every subject is called so often, and the figures are in order."""

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
    assert len(lines(figures)) == 1 + len(figures)


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
