"""A folder to run the command line in, shared by its tests."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hrt.cli.main import main

from helpers import random_hmatrix
from models import linear_model

NETWORK = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 8), nn.Linear(3, 8)

    def forward(self, x, z):
        y = torch.tanh(self.a(x)) * self.b(z)
        return y, y.sum(-1, keepdim=True)

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 24), nn.Tanh(), nn.Linear(24, 1))

def broken():
    raise RuntimeError("the lab is closed")
"""


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A folder with net.py, a small artifact net.hrt and inputs, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("net.py").write_text(NETWORK)
    linear_model(random_hmatrix(0, 3, 2, depth=1)).save("net.hrt")
    np.save("x.npy", np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32))
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def contents(lab) -> Callable[[], dict[str, bytes]]:
    """Reads every file of the lab."""

    def read() -> dict[str, bytes]:
        files = [p for p in lab.rglob("*") if p.is_file() and p.suffix != ".pyc"]
        return {str(p.relative_to(lab)): p.read_bytes() for p in files}

    return read


@pytest.fixture
def mistake(contents, capsys) -> Callable[..., str]:
    """Runs a command line that must fail as a user's mistake and change nothing; returns its one line."""

    def check(*arguments: object) -> str:
        before = contents()
        capsys.readouterr()
        assert main([*map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("hrt: ") and err.count("\n") == 1 and err.endswith("\n"), err
        assert contents() == before
        return err

    return check
