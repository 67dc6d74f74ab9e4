"""The Taylor pass through layers of every kind, and Gauss-Newton on a problem whose answer is known."""

import copy

import pytest
import torch
from torch import nn

import hrt
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.perf.networks import burgers
from hrt.perf.networks.allen_cahn import ALLEN_CAHN
from hrt.perf.networks.burgers import BURGERS
from hrt.perf.networks.pinn_training import Course, Newton, assign, carried, fit, newton_direction, one_thread
from hrt.perf.networks.taylor_pass import jets, layers_of, numbers, through

from helpers import random_hmatrix
from pinn import shaken


def layers(width=24, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))


def streams(rows=9):
    return torch.randn(4, rows, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_hierarchical_layers_give_what_their_dense_weights_give():
    net = layers().double()
    h = hrt.HLinear.from_linear(net[2], tol=0.3)  # type: ignore[arg-type]
    dense = layers().double()
    dense[2].weight.data = h.to_hmatrix(torch.float64).to_dense()
    net[2] = h
    torch.testing.assert_close(through(net, streams()), through(dense, streams()), rtol=1e-12, atol=1e-13)


def test_taps_are_what_dense_layers_see_and_give():
    net, taps = layers().double(), []
    through(net, streams(), taps=taps)
    shapes = [(None if a is None else a.shape[-1], b.shape[-1]) for a, b in taps]
    assert shapes == [(2, 24), (None, 24), (24, 24), (None, 24), (24, 1), (None, 1)]
    torch.testing.assert_close(taps[2][1], taps[2][0] @ net[2].weight.T)


def residuals(net, batch, taps=None):
    """Value and derivatives of a network against those of a linear function: met exactly in one step by one layer."""
    start, aim = batch
    values = through(net, start, taps=taps)[..., 0]
    return (values[0] - aim) / len(aim) ** 0.5


def test_one_step_without_damping_solves_a_linear_problem():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 1)).double()
    start = streams(12)
    aim = start[0] @ torch.tensor([0.7, -0.4], dtype=torch.float64) + 0.2
    nothing = [torch.zeros_like(p) for p in net.parameters()]
    direction, before = newton_direction(residuals, net, (start, aim), nothing, 1e-14)
    with torch.no_grad():
        for p, d in zip(net.parameters(), direction, strict=True):
            p -= d
    after = residuals(net, (start, aim)).square().sum().item()
    assert before > 0.1 and after < 1e-16


def hierarchical(width=24):
    """A layer of it in blocks, in an order of its own."""
    net = layers(width).double()
    matrix = random_hmatrix(3, width, width, ordered=True)
    net[2] = hrt.HLinear(matrix, net[2].bias, dtype=torch.float64)
    return net


def test_taps_of_a_hierarchical_layer_leave_its_product_as_it_is():
    net, taps = hierarchical(), []
    found = through(net, streams(), taps=taps)
    torch.testing.assert_close(found, through(net, streams()), rtol=1e-12, atol=1e-12)
    assert len(taps) == len(list(numbers(net)))


def test_a_direction_on_factors_is_that_of_their_jacobian():
    """Against the normal equations of a Jacobian by torch.func, number by number."""
    net, start = hierarchical(9), streams(20)
    aim = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at = [t.detach().clone() for t in numbers(net)]
    previous = [torch.randn(t.shape, generator=torch.Generator().manual_seed(k)).double() for k, t in enumerate(at)]
    found, loss = newton_direction(residuals, net, (start, aim), previous, 1e-3, momentum=0.5)
    flat = torch.cat([t.reshape(-1) for t in at])

    def of(vector):
        parts = [p.view(t.shape) for p, t in zip(vector.split([t.numel() for t in at]), at, strict=True)]
        assign(net, parts)
        return residuals(net, (start, aim)).detach()

    r = of(flat)
    h = 1e-6
    j = torch.stack([(of(flat + h * e) - of(flat - h * e)) / (2 * h) for e in torch.eye(len(flat)).double()], dim=1)
    q = 0.5 * torch.cat([t.reshape(-1) for t in previous])
    expected = q + torch.linalg.solve(j.T @ j + 1e-3 * torch.eye(len(flat)).double(), j.T @ (r - j @ q))
    assert loss == pytest.approx(float(r.square().sum()), rel=1e-12)
    # central differences: h^2 of the third derivative and eps / h of the value, over the damping
    torch.testing.assert_close(torch.cat([t.reshape(-1) for t in found]), expected, rtol=1e-4, atol=1e-4)


def test_what_is_read_is_written_back():
    net, other = hierarchical(), hierarchical()
    assign(other, [t.detach() + 1 for t in numbers(net)])
    assert all(torch.equal(a + 1, b) for a, b in zip(numbers(net), numbers(other), strict=True))


@pytest.mark.parametrize("start", [layers, hierarchical])
def test_gauss_newton_lowers_the_loss_of_fresh_batches(start):
    net, generator = start().double(), torch.Generator().manual_seed(3)
    newton = Newton(residuals, net)
    losses = []
    for step in range(15):
        x = torch.randn(4, 64, 2, generator=generator, dtype=torch.float64)
        losses.append(newton.step((x, torch.sin(x[0].sum(dim=1))), 1 - step / 15))
    assert losses[-1] < 1e-2 * losses[0]


@pytest.mark.parametrize("start", [layers, hierarchical])
def test_a_direction_that_is_carried_moves_a_full_matrix_as_before(start):
    """To a leaf of full rank every change of the matrix is within reach."""
    net, after = start().double(), layers().double()
    weight = torch.randn(24, 24, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(5))
    u, s, vt = torch.linalg.svd(weight[order])
    after[2] = hrt.HLinear(
        HMatrix((24, 24), (Leaf(0, 24, 0, 24, u=u * s, vt=vt),), order), net[2].bias, dtype=torch.float64
    )
    direction = [torch.randn(t.shape, generator=torch.Generator().manual_seed(9)).double() for t in numbers(net)]
    found = carried(direction, layers_of(net), after)
    assert [t.shape for t in found] == [t.shape for t in numbers(after)]

    def matrix(network, change, h):
        moved = [a.detach() + h * d for a, d in zip(numbers(network), change, strict=True)]
        other = start().double() if network is net else after
        assign(other, moved)
        layer = other[2]
        return layer.weight.detach() if isinstance(layer, nn.Linear) else layer.to_hmatrix(torch.float64).to_dense()

    h = 1e-6
    wanted = (matrix(net, direction, h) - matrix(net, direction, -h)) / (2 * h)
    origin = [t.detach().clone() for t in numbers(after)]
    forward = matrix(after, found, h)
    assign(after, origin)
    backward = matrix(after, found, -h)
    torch.testing.assert_close((forward - backward) / (2 * h), wanted, rtol=1e-6, atol=1e-6)
    assert torch.equal(found[0], direction[0]) and torch.equal(found[-1], direction[-1])


def test_newton_carries_its_momentum_where_layers_are_exchanged_between_steps():
    net, x = layers().double(), torch.randn(4, 64, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    batch, newton = (x, torch.sin(x[0].sum(dim=1))), Newton(residuals, net)
    for _ in range(4):
        newton.step(batch)
    momentum, old = newton.direction, layers_of(net)
    net[2] = hrt.HLinear.from_linear(net[2], tol=1e-2)
    momentum = carried(momentum, old, net)
    twin = copy.deepcopy(net)
    expected, _ = newton_direction(residuals, twin, batch, momentum, newton.damping)
    without, _ = newton_direction(residuals, twin, batch, [0 * m for m in momentum], newton.damping)
    newton.step(batch)
    assert not torch.allclose(expected[0], without[0], rtol=1e-2)
    torch.testing.assert_close(newton.direction, expected, rtol=1e-9, atol=1e-12)


def test_derivatives_of_any_inputs_and_outputs_are_those_of_autograd():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        x = torch.rand(5, 3).double()
    found = jets(net, x, (0, 2))
    first, second = torch.func.vmap(torch.func.jacrev(net))(x), torch.func.vmap(torch.func.hessian(net))(x)
    expected = torch.cat((net(x)[None], first.permute(2, 0, 1), torch.stack([second[..., k, k] for k in (0, 2)])))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("equation", [BURGERS, ALLEN_CAHN], ids=lambda e: e.name)
class TestEquations:
    def draws(self, seed=0):
        return torch.Generator().manual_seed(seed)

    def test_the_operator_is_the_residual_inside_but_for_its_weight(self, equation):
        net, rows = shaken(equation.network(12, 3, 1)), equation.rows(32, self.draws())[:32]
        weight = torch.exp(-5 * rows[:, 1]) if equation is ALLEN_CAHN else 1
        operator = weight * equation.operator(net, rows[:, :2])[:, 0]
        torch.testing.assert_close(operator, equation.residuals(net, rows), rtol=1e-9, atol=1e-10)

    def test_residuals_are_defined_for_h_layers_and_row_by_row_under_vmap(self, equation):
        net, rows = equation.network(24, 3, 1), equation.rows(16, self.draws())
        expected = equation.residuals(net, rows).detach()
        net.layers[2] = hrt.HLinear.from_linear(net.layers[2], tol=1e-6)
        found = torch.func.vmap(lambda row: equation.residuals(net, row[None])[0])(rows)
        assert float((found - expected).detach().norm()) < 1e-3 * float(expected.norm())

    def test_the_error_of_the_solution_is_zero_and_of_nothing_one(self, equation):
        points, exact = equation.exact()
        assert points.shape == (len(exact), 2) and exact.dtype == torch.float64
        assert equation.error(lambda p: exact[:, None]) == 0
        assert equation.error(lambda p: torch.zeros(len(p), 1)) == pytest.approx(1)

    def test_training_is_deterministic_and_lowers_the_loss_of_unseen_points(self, equation):
        told, networks = [], []
        with one_thread():
            for _ in range(2):
                networks.append(equation.network(64, 3, 3))
                fit(equation, networks[-1], Course(4, 6, 96, 3), lambda *step: told.append(step))
        assert told[:10] == told[10:] and [step for step, _ in told[:10]] == list(range(1, 11))
        assert all(torch.equal(a, b) for a, b in zip(*(n.parameters() for n in networks), strict=True))
        rows = equation.rows(256, self.draws(11))
        trained, fresh = (
            equation.residuals(n, rows).detach().square().sum() for n in (networks[0], equation.network(64, 3, 3))
        )
        assert trained < 0.8 * fresh


def test_a_direction_on_a_pinn_solves_the_damped_least_squares_problem():
    network, rows = shaken(burgers.burgers_network(7, 3, 5)), burgers.sample(40, torch.Generator().manual_seed(8))
    parameters, generator = list(network.parameters()), torch.Generator().manual_seed(9)
    previous = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    direction, loss = newton_direction(burgers.residuals, network, rows, previous, 1e-2, 0.7)
    r = burgers.residuals(network, rows)
    gradients = [torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True) for entry in r]
    jacobian = torch.stack([torch.cat([g.ravel() for g in row]) for row in gradients])
    old = 0.7 * torch.cat([tensor.ravel() for tensor in previous])
    normal = jacobian.T @ jacobian + 1e-2 * torch.eye(len(old), dtype=torch.float64)
    expected = torch.linalg.solve(normal, jacobian.T @ r.detach() + 1e-2 * old)
    torch.testing.assert_close(torch.cat([d.ravel() for d in direction]), expected, rtol=1e-6, atol=1e-7)
    assert loss == pytest.approx(r.square().sum().item())
