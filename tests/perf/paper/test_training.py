"""The training experiments: their residuals are those of `perf/burgers.py`, for dense layers and for H-matrices."""

import json
import math

import pytest
import torch

import hrt
from hrt.perf.networks.burgers import burgers_network, residuals, sample
from hrt.perf.paper.training import burgers_points, burgers_residual, main

COUNT = 64


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_residual_of_a_row_is_that_of_training() -> None:
    net, rows = burgers_network(width=12).double(), burgers_points(COUNT, draws())
    found = torch.cat([burgers_residual(net, row) for row in rows]) / math.sqrt(len(rows))
    expected = residuals(net, sample(COUNT, draws()))
    scale = math.sqrt(COUNT / len(rows))  # both are means, over inside rows and over all
    assert torch.allclose(found, scale * expected, rtol=1e-10, atol=1e-13)


def test_residuals_with_h_layers_are_those_of_the_same_dense_network() -> None:
    net = burgers_network(width=40).double()
    batch = sample(COUNT, draws(1))
    expected = residuals(net, batch)
    net.layers[2] = hrt.HLinear.from_linear(net.layers[2], tol=1e-12 + 1e-7)  # type: ignore[arg-type]
    assert float((residuals(net, batch) - expected).detach().norm() / expected.detach().norm()) < 1e-4


def residuals_sum(net: torch.nn.Module, batch) -> float:
    return residuals(net, batch).detach().square().sum().item()


def test_command_writes_what_it_prints(tmp_path, capsys: pytest.CaptureFixture, monkeypatch) -> None:
    monkeypatch.setattr("hrt.perf.paper.penalty.ADAM", 20)
    path = tmp_path / "penalty.json"
    small = ["--steps", "5", "--width", "12", "--batch", "32"]
    arguments = ["penalty", *small, "--weights", "0.001", "--thresholds", "0.01"]
    assert main([*arguments, "--json", str(path)]) == 0
    figures = json.loads(path.read_text())["figures"]
    assert [f["name"] for f in figures] == ["neither", "penalty 0.001", "proximal 0.01"]
    shown = capsys.readouterr().out
    assert all(f"{f['nbytes']:,}" in shown for f in figures)
