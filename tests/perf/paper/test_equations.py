"""Both equations through one interface: their residuals against those of the modules they come from."""

import math

import pytest
import torch

import hrt
from hrt.perf.networks import burgers
from hrt.perf.paper import allen_cahn
from hrt.perf.paper.equations import EQUATIONS
from hrt.perf.paper.training import burgers_residual

BURGERS, ALLEN_CAHN = EQUATIONS


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def test_burgers_residuals_are_those_of_training():
    net, rows = BURGERS.network(12, 3, 0), BURGERS.rows(64, draws())
    row_by_row = torch.cat([burgers_residual(net, row) for row in rows])
    torch.testing.assert_close(BURGERS.residuals(net, rows), row_by_row, rtol=1e-10, atol=1e-12)
    loss = burgers.residuals(net, burgers.sample(64, draws())).square().sum()
    mean = BURGERS.residuals(net, rows).square().mean()
    torch.testing.assert_close(mean * len(rows) / 64, loss)


def test_allen_cahn_residuals_are_those_of_training():
    net, rows = ALLEN_CAHN.network(12, 3, 0), ALLEN_CAHN.rows(64, draws())
    loss = allen_cahn.residuals(net, rows).square().sum()
    torch.testing.assert_close(ALLEN_CAHN.residuals(net, rows).square().mean(), loss)


@pytest.mark.parametrize("equation", EQUATIONS, ids=lambda e: e.name)
class TestEach:
    def test_the_operator_is_the_residual_inside_but_for_its_weight(self, equation):
        net, rows = equation.network(12, 3, 1), equation.rows(32, draws())[:32]
        found = equation.operator(net, rows[:, :2])[:, 0]
        if equation is ALLEN_CAHN:
            found = found * torch.exp(-allen_cahn.FADING * rows[:, 1])
        torch.testing.assert_close(found, equation.residuals(net, rows), rtol=1e-10, atol=1e-11)

    def test_residuals_are_defined_for_h_layers_and_row_by_row_under_vmap(self, equation):
        net, rows = equation.network(24, 3, 1), equation.rows(16, draws())
        expected = equation.residuals(net, rows).detach()
        net.layers[2] = hrt.HLinear.from_linear(net.layers[2], tol=1e-6)
        found = torch.func.vmap(lambda row: equation.residuals(net, row[None])[0])(rows)
        assert float((found - expected).detach().norm()) < 1e-3 * float(expected.norm())

    def test_the_error_of_the_solution_is_zero_and_of_nothing_one(self, equation):
        points, exact = equation.exact()
        assert points.shape == (len(exact), 2) and exact.dtype == torch.float64
        assert equation.error(lambda p: exact[:, None]) == 0
        assert equation.error(lambda p: torch.zeros(len(p), 1)) == pytest.approx(1)
        assert equation.error(lambda p: exact[:, None] + 1e-3 * exact.norm() / math.sqrt(len(exact))) == pytest.approx(
            1e-3
        )

    def test_inputs_are_uniform_and_of_their_seed(self, equation):
        x = equation.inputs(4000, 3)
        assert torch.equal(x, equation.inputs(4000, 3)) and not torch.equal(x, equation.inputs(4000, 4))
        assert x[:, 0].abs().max() <= 1 and 0 <= x[:, 1].min() <= x[:, 1].max() <= 1
        assert torch.allclose(x.mean(0), torch.tensor([0.0, 0.5], dtype=x.dtype), atol=0.05)

    def test_networks_depend_on_their_seed(self, equation):
        a, b, c = (equation.network(8, 2, seed) for seed in (0, 0, 1))
        p = equation.inputs(5, 0)
        assert torch.equal(a(p), b(p)) and not torch.equal(a(p), c(p)) and a(p).dtype == torch.float64
