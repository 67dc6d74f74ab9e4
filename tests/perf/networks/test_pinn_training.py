"""The Taylor pass through layers of every kind, and Gauss-Newton on a problem whose answer is known."""

import copy

import pytest
import torch
from torch import nn

import hrt
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.perf.networks.pinn_training import (
    Newton,
    assign,
    carried,
    gauss_newton,
    layers_of,
    newton_direction,
    numbers,
    through,
)

from helpers import random_hmatrix


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
    through(net, streams(), taps)
    shapes = [(None if a is None else a.shape[-1], b.shape[-1]) for a, b in taps]
    assert shapes == [(2, 24), (None, 24), (24, 24), (None, 24), (24, 1), (None, 1)]
    torch.testing.assert_close(taps[2][1], taps[2][0] @ net[2].weight.T)


def residuals(net, batch, taps=None):
    """Value and derivatives of a network against those of a linear function: met exactly in one step by one layer."""
    start, aim = batch
    found = through(net, start, taps)
    return (found[0] - aim) / len(aim) ** 0.5


def test_one_step_without_damping_solves_a_linear_problem():
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


def test_gauss_newton_lowers_the_loss_of_fresh_batches_and_says_so():
    net, told = layers().double(), []

    def sample(count, generator):
        x = torch.randn(4, count, 2, generator=generator, dtype=torch.float64)
        return x, torch.sin(x[0].sum(dim=1))

    gauss_newton(
        residuals, sample, net, 15, 64, torch.Generator().manual_seed(3), lambda step, loss: told.append((step, loss))
    )
    assert [step for step, _ in told] == list(range(1, 16)) and told[-1][1] < 1e-2 * told[0][1]


def hierarchical():
    """A layer of it in blocks, in an order of its own."""
    net = layers().double()
    matrix = random_hmatrix(3, 24, 24, ordered=True)
    net[2] = hrt.HLinear(matrix, net[2].bias, dtype=torch.float64)
    return net


def test_taps_of_a_hierarchical_layer_leave_its_product_as_it_is():
    net, taps = hierarchical(), []
    found = through(net, streams(), taps)
    torch.testing.assert_close(found, through(net, streams()), rtol=1e-12, atol=1e-12)
    assert len(taps) == len(numbers(net))


def test_a_direction_on_factors_is_that_of_their_jacobian():
    """Against the normal equations of a Jacobian by torch.func, number by number."""
    net, start = hierarchical(), streams(20)
    aim = torch.randn(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    at = numbers(net)
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
    assign(other, [t + 1 for t in numbers(net)])
    assert all(torch.equal(a + 1, b) for a, b in zip(numbers(net), numbers(other), strict=True))


def test_gauss_newton_trains_a_hierarchical_network():
    net = hierarchical()

    def sample(count, generator):
        x = torch.randn(4, count, 2, generator=generator, dtype=torch.float64)
        return x, torch.sin(x[0].sum(dim=1))

    losses = []
    gauss_newton(residuals, sample, net, 15, 64, torch.Generator().manual_seed(3), lambda _, loss: losses.append(loss))
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
        moved = [a + h * d for a, d in zip(numbers(network), change, strict=True)]
        other = start().double() if network is net else after
        assign(other, moved)
        layer = other[2]
        return layer.weight.detach() if isinstance(layer, nn.Linear) else layer.to_hmatrix(torch.float64).to_dense()

    h = 1e-6
    wanted = (matrix(net, direction, h) - matrix(net, direction, -h)) / (2 * h)
    kept = numbers(after)
    forward = matrix(after, found, h)
    assign(after, kept)
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
