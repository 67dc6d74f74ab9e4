"""The Burgers workload: exact solution, derivatives, Gauss-Newton direction and the committed checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.integrate import quad
from typer.testing import CliRunner

from hrt.perf.networks import burgers
from hrt.perf.networks.pinn_training import one_thread

# --- exact solution


def test_cole_hopf_initial_and_boundary_values() -> None:
    x, t = np.linspace(-1.0, 1.0, 41), np.linspace(0.0, 1.0, 21)
    np.testing.assert_allclose(burgers.cole_hopf(x, 0.0), -np.sin(np.pi * x), atol=1e-14)
    np.testing.assert_allclose(burgers.cole_hopf(np.array([[-1.0], [1.0]]), t), np.zeros((2, 21)), atol=1e-12)


@pytest.mark.parametrize("nu", [burgers.NU, 0.1])
def test_cole_hopf_satisfies_the_equation_by_finite_differences(nu: float) -> None:
    # fourth-order central differences, away from t = 0 and across the layer at x = 0
    x, t = np.meshgrid(np.linspace(-0.9, 0.9, 37), np.linspace(0.1, 0.9, 9))
    h = 2e-4
    u = {k: burgers.cole_hopf(x + k * h, t, nu) for k in (-2, -1, 0, 1, 2)}
    later = {k: burgers.cole_hopf(x, t + k * h, nu) for k in (-2, -1, 1, 2)}
    u_x = (u[-2] - 8.0 * u[-1] + 8.0 * u[1] - u[2]) / (12.0 * h)
    u_xx = (-u[-2] + 16.0 * u[-1] - 30.0 * u[0] + 16.0 * u[1] - u[2]) / (12.0 * h * h)
    u_t = (later[-2] - 8.0 * later[-1] + 8.0 * later[1] - later[2]) / (12.0 * h)
    residual = u_t + u[0] * u_x - nu * u_xx
    assert np.abs(u_x).max() > (100.0 if nu == burgers.NU else 1.0)  # the steep layer is among the points
    assert np.abs(residual).max() < 1e-5 * np.abs(u_x).max()


@pytest.mark.parametrize(("x", "t"), [(0.003, 0.5), (0.3, 0.25), (-0.7, 1.0), (0.95, 0.6)])
def test_cole_hopf_against_adaptive_quadrature(x: float, t: float) -> None:
    nu = burgers.NU
    scan = np.linspace(x - 2.0, x + 2.0, 40_001)
    exponent = -np.cos(np.pi * scan) / (2.0 * np.pi * nu) - (x - scan) ** 2 / (4.0 * nu * t)
    shift = exponent.max()

    def mass(y: float) -> float:
        return math.exp(-math.cos(math.pi * y) / (2.0 * math.pi * nu) - (x - y) ** 2 / (4.0 * nu * t) - shift)

    peaks = np.linspace(x - 1.9, x + 1.9, 40)  # forces subdivision: the mass lies in narrow peaks
    options = {"points": peaks, "limit": 400, "epsabs": 1e-13, "epsrel": 1e-12}
    above, _ = quad(lambda y: -math.sin(math.pi * y) * mass(y), x - 2.0, x + 2.0, **options)
    below, _ = quad(mass, x - 2.0, x + 2.0, **options)
    assert burgers.cole_hopf(x, t) == pytest.approx(above / below, abs=1e-9)


def test_cole_hopf_steepest_slope_is_the_published_one() -> None:
    # |u_x(0, t)| at its maximum, pi t = 1.6037, is 152.00516 (Basdevant et al. 1986, analytical)
    h, t = 1e-5, 1.6037 / math.pi
    assert -burgers.cole_hopf(h, t) / h == pytest.approx(152.00516, rel=1e-5)


def test_cole_hopf_has_converged_broadcasts_and_does_not_overflow() -> None:
    x, t = np.linspace(-1.0, 1.0, 51)[:, None], np.linspace(0.0, 1.0, 7)
    u = burgers.cole_hopf(x, t)
    assert u.shape == (51, 7)
    assert u.dtype == np.float64
    np.testing.assert_allclose(u, burgers.cole_hopf(x, t, nodes=96), atol=1e-12)
    thin = burgers.cole_hopf(x, t, nu=1e-4)  # exp(1 / (2 pi nu)) is e^1591
    assert np.isfinite(thin).all()
    assert np.abs(thin).max() <= 1.0


# --- network and derivatives


def test_network_has_the_documented_shape_and_seed() -> None:
    network = burgers.burgers_network(seed=1)
    shapes = [tuple(p.shape) for p in network.parameters() if p.ndim == 2]
    assert shapes == [(128, 2), *[(128, 128)] * 3, (1, 128)]
    same, other = burgers.burgers_network(seed=1), burgers.burgers_network(seed=2)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))
    assert not torch.equal(network.layers[0].weight, other.layers[0].weight)
    assert network(torch.zeros(0, 2)).shape == (0, 1)


def test_sample_covers_domain_layer_and_edges() -> None:
    rows = burgers.sample(4000, torch.Generator().manual_seed(0))
    interior, edge = rows[:4000], rows[4000:]
    assert edge.shape == (500, 4) and (edge[:, 2] == 1).all() and (interior[:, 2:] == 0).all()
    assert interior[:, 0].abs().max() <= 1.0
    assert 0.0 <= interior[:, 1].min() <= interior[:, 1].max() <= 1.0
    assert (interior[:, 0].abs() < 0.02).double().mean() > 0.1  # uniform points would give 0.02
    initial, boundary = edge[0::2], edge[1::2]
    assert (initial[:, 1] == 0.0).all()
    assert set(boundary[:, 0].tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(initial[:, 3], -torch.sin(math.pi * initial[:, 0]))
    assert (boundary[:, 3] == 0.0).all()


def test_residuals_are_the_equation_inside_and_the_weighted_values_on_the_edge() -> None:
    # zero weights: u = 0, so the equation and the boundary hold and only the initial condition is missed
    network = burgers.burgers_network(width=4, depth=2).double()
    for parameter in network.parameters():
        parameter.data.zero_()
    rows = burgers.sample(64, torch.Generator().manual_seed(1))
    with torch.no_grad():
        r = burgers.residuals(network, rows)
    assert (r[:64] == 0.0).all()
    loss = burgers.DATA_WEIGHT * rows[64:, 3].square().mean()
    torch.testing.assert_close(r.square().sum() / 64, loss)


# --- checkpoint


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    network = burgers.burgers_network(seed=4).double()
    path = tmp_path / "new" / "burgers.safetensors"
    error = burgers.save_checkpoint(network, path, {"seed": "4"})
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    loaded = burgers.load_burgers(path)
    assert not loaded.training
    assert burgers.relative_error(loaded) == error
    for a, b in zip(loaded.parameters(), network.parameters(), strict=True):
        assert torch.equal(a, b.float())


def test_missing_checkpoint_says_how_to_train(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"networks\.burgers train --out"):
        burgers.load_burgers(tmp_path / "none.safetensors")


def test_committed_checkpoint_is_as_accurate_as_it_says() -> None:
    with safe_open(burgers.CHECKPOINT, framework="pt") as file:
        metadata = file.metadata()
    assert set(metadata) == {"seed", "nu", "epochs", "relative_l2_error", "torch", "command"}
    assert float(metadata["nu"]) == burgers.NU
    assert int(metadata["epochs"]) == burgers.ADAM_STEPS + burgers.NEWTON_STEPS
    network = burgers.load_burgers()
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())
    measured = burgers.relative_error(network)
    assert measured == pytest.approx(float(metadata["relative_l2_error"]), rel=0.1)
    assert measured <= burgers.TARGET_ERROR
    result = CliRunner().invoke(burgers.app, ["check"])
    assert result.exit_code == 0 and f"{measured:.3e}" in result.output


def test_check_fails_on_an_untrained_network(tmp_path: Path) -> None:
    path = tmp_path / "untrained.safetensors"
    burgers.save_checkpoint(burgers.burgers_network(), path, {})
    result = CliRunner().invoke(burgers.app, ["check", str(path)])
    assert result.exit_code == 1 and "relative L2 error" in result.output


def test_train_writes_a_checkpoint_with_the_command_that_made_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(burgers, "ADAM_STEPS", 100)
    monkeypatch.setattr(burgers, "NEWTON_STEPS", 0)
    monkeypatch.setattr(burgers, "BATCH", 16)
    path = tmp_path / "trained.safetensors"
    with one_thread():
        assert CliRunner().invoke(burgers.app, ["train", "--out", str(path), "--seed", "3"]).exit_code == 0
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["epochs"] == "100" and "train --seed 3" in file.metadata()["command"]
    assert burgers.relative_error(burgers.load_burgers(path)) < 1


def test_members_of_an_ensemble_differ_and_stand_side_by_side() -> None:
    with one_thread():
        net, x = burgers.train_ensemble(2, adam=1, newton=1), burgers.burgers_points(5, 0)
    answers = net(x)
    assert answers.shape == (5, 2) and answers.dtype == torch.float32 and not net.training
    assert torch.equal(answers[:, 1:], net.members[1](x)) and not torch.equal(answers[:, 0], answers[:, 1])
    with one_thread():
        again = burgers.train_ensemble(2, adam=1, newton=1)
    assert torch.equal(answers, again(x))
