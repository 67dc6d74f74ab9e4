"""Benchmarks that judge the engine: ladders of tolerances, the confidence limit, what nested bases would take."""

import pytest
import torch
from torch import nn

from hrt.perf.studies import coverage, monotone, nested


def run(monkeypatch, capsys, measured):
    monkeypatch.setattr(monotone, "CASES", {"case": lambda: measured.__getitem__})
    code = monotone.main(["--case", "case", "--tol", *map(str, measured)])
    return code, capsys.readouterr().out


def test_a_ladder_that_falls_passes(monkeypatch, capsys):
    code, out = run(monkeypatch, capsys, {1e-3: (100, 9e-4), 1e-2: (60, 9e-3), 1e-1: (60, 5e-2)})
    assert code == 0 and "Every ladder falls" in out


@pytest.mark.parametrize(
    "measured, word",
    [
        ({1e-3: (100, 9e-4), 1e-2: (102, 9e-3)}, "MORE BYTES"),
        ({1e-3: (100, 9e-4), 1e-2: (90, 9e-3), 1e-1: (95, 9e-2)}, "MORE BYTES"),
        ({1e-3: (100, 2e-3)}, "ABOVE TOL"),
        ({1e-3: (100, float("nan"))}, "ABOVE TOL"),
    ],
)
def test_a_broken_promise_is_named_and_fails(monkeypatch, capsys, measured, word):
    code, out = run(monkeypatch, capsys, measured)
    assert code == 1 and word.split()[0] in out and "1 promises broken" in out


def test_a_networks_bytes_and_error_are_what_it_serves():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    x = torch.rand(600, 2)
    nbytes, error = monotone.network(net, x[:400], x[400:])(1e-2)
    assert nbytes < 4 * sum(p.numel() for p in net.parameters()) and 0 < error <= 2e-2


def test_nested_bytes_of_a_separable_kernel():
    """Every rank is 1: 4 dense blocks of 16, 2 x 4 leaf bases of 16, 2 x 2 transfers of 1 x 2, 2 + 4 couplings."""
    x = torch.linspace(1, 2, 64, dtype=torch.float64)
    assert nested.nested_bytes(x[:, None] * x[None], 1e-6, 2) == 4 * (4 * 16**2 + 2 * 64 + 2 * 4 + 6)


def test_the_table_of_limits(capsys):
    """A network of heavy tails: of 60 draws a few may exceed the 99 % limit."""
    coverage.main(["--networks", "1", "--draws", "60", "--fresh", "5000"])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("│       0 │"))
    exceeded, ratio = (float(cell.strip(" %")) for cell in row.split("│")[3:5])
    assert exceeded <= 10 and 1 <= ratio < 3
