"""Layers follow the tolerance while they are trained; a loss that is not finite costs nothing but the last epoch."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import hrt
from hrt.errors import InputError, ToleranceError, TrainingError
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.hlinear import HLinear
from hrt.training.dynamic import DynamicCompression, has_settled, with_room


def network(width: int = 48) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    ).double()


def points(count: int = 512) -> torch.Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1


def target(x: torch.Tensor) -> torch.Tensor:
    return torch.sin(3 * x[:, :1]) * x[:, 1:]


def train(net: nn.Module, dynamic: DynamicCompression, epochs: int, first: int = 0) -> list[float]:
    losses, x = [], points()
    assert dynamic.optimizer is not None
    for epoch in range(first, first + epochs):
        dynamic.optimizer.zero_grad()
        loss = (net(x) - target(x)).square().mean()
        loss.backward()
        dynamic.optimizer.step()
        dynamic.step(epoch, loss)
        losses.append(loss.item())
    return losses


def made(**options) -> tuple[nn.Sequential, DynamicCompression]:
    net = network()
    adam = torch.optim.Adam(net.parameters(), lr=5e-3)
    return net, DynamicCompression(net, points(), optimizer=adam, **{"first": 0, **options})


def test_trains_smaller_with_layers_that_change() -> None:
    net, dynamic = made(every=20, tol=0.05, finest=1e-3)
    losses = train(net, dynamic, 120)
    assert losses[-1] < 0.05 * losses[0]
    assert dynamic.ratio > 2
    assert isinstance(net[2], HLinear)
    assert [e.epoch for e in dynamic.log] == list(range(120))
    tols = [e.tol for e in dynamic.log]
    assert all(b <= a for a, b in pairwise(tols)) and tols[-1] < tols[0]
    assert len({e.ranks["2"] for e in dynamic.log}) > 1  # ranks followed
    assert all(e.error == 0 for e in dynamic.log if e.epoch % 20)
    live = {id(p) for p in net.parameters()}
    assert {id(p) for g in dynamic.optimizer.param_groups for p in g["params"]} == live  # type: ignore[union-attr]


def test_every_layer_is_within_the_tolerance_where_it_is_used() -> None:
    net, dynamic = made(tol=0.02)
    w, x = net[2].weight.detach().clone(), points(2000)
    seen = torch.tanh(net[0](x)).detach()
    dynamic.step(0, 1.0)
    change = net[2](seen) - seen @ w.T - net[2].bias
    assert float(change.detach().norm() / (seen @ w.T).norm()) <= 1.2 * 0.02  # of other points than it was measured on


def test_a_rising_schedule_is_refused() -> None:
    _, dynamic = made(schedule=lambda loss: 0.1 if loss > 0.5 else 0.2)
    dynamic.step(0, 1.0)
    with pytest.raises(InputError, match="does not rise"):
        dynamic.step(1, 0.1)
    with pytest.raises(InputError, match="finest"):
        made(tol=1e-3, finest=1e-2)
    _, dynamic = made(schedule=lambda loss: -1.0)
    with pytest.raises(ToleranceError):
        dynamic.step(0, 1.0)


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_restores_the_last_good_state(loss: float) -> None:
    net, dynamic = made(every=4)
    train(net, dynamic, 4)
    good = net(points()).detach()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(math.nan)
    with pytest.raises(TrainingError, match="after epoch 3"):
        dynamic.step(4, loss)
    assert torch.equal(net(points()), good)
    train(net, dynamic, 2, first=4)  # and goes on


def test_a_first_loss_that_is_not_finite_restores_the_start() -> None:
    net, dynamic = made(every=1)
    dynamic.adapt()
    assert isinstance(net[2], HLinear)
    with pytest.raises(TrainingError, match="the start"):
        dynamic.step(0, math.nan)
    assert isinstance(net[2], nn.Linear)


def test_room_changes_nothing_and_is_given_only_where_directions_end() -> None:
    g = torch.Generator().manual_seed(0)
    u, vt = torch.randn(30, 3, generator=g, dtype=torch.float64), torch.randn(3, 40, generator=g, dtype=torch.float64)
    w = u @ vt
    whole = HMatrix((30, 40), (Leaf(0, 30, 0, 40, u=u, vt=vt),))
    roomy = with_room(whole, w, None, 0)
    assert roomy.leaves[0].rank == 4
    assert torch.allclose(roomy.to_dense(), w, atol=1e-12)
    cut = HMatrix((30, 40), (Leaf(0, 30, 0, 40, u=u[:, :2], vt=vt[:2]),))
    assert with_room(cut, w, None, 0).leaves[0].rank == 2
    random = torch.randn(12, 12, generator=g, dtype=torch.float64)
    full = HMatrix((12, 12), (Leaf(0, 12, 0, 12, u=random, vt=torch.eye(12, dtype=torch.float64)),))
    assert with_room(full, random, None, 0).leaves[0].is_dense


def test_an_exchange_does_not_disturb_training() -> None:
    """Adam's moments go with the weights: without them the error rises many times within a few steps."""
    net, dynamic = made(every=1000, first=150, tol=1e-3, finest=1e-3)
    losses = train(net, dynamic, 161)
    assert isinstance(net[2], HLinear) and dynamic.ratio > 1.5
    assert max(losses[151:]) <= 1.2 * max(losses[140:151])


def test_layers_whose_ranks_still_fit_stay() -> None:
    net, dynamic = made(every=2, first=30, tol=3e-2, finest=3e-2)
    train(net, dynamic, 60)
    assert len({e.ratio for e in dynamic.log}) == 2  # dense, then one partition, at one tolerance
    assert sum(e.error > 0 for e in dynamic.log) == 1


def test_lbfgs_trains_on() -> None:
    """It kept the list of the parameters that were there before, and stood still."""
    net = network()
    lbfgs = torch.optim.LBFGS(net.parameters(), max_iter=4, line_search_fn="strong_wolfe")
    dynamic, x, losses = DynamicCompression(net, points(), optimizer=lbfgs, first=2, every=100, tol=1e-2), points(), []

    def closure() -> torch.Tensor:
        lbfgs.zero_grad()
        loss = (net(x) - target(x)).square().mean()
        loss.backward()
        return loss

    for epoch in range(8):
        losses.append(lbfgs.step(closure).item())  # type: ignore[arg-type, union-attr]
        assert dynamic.step(epoch, losses[-1]) == (epoch == 2)
    assert isinstance(net[2], HLinear) and all(b < a for a, b in pairwise(losses[3:]))


def test_an_optimizer_that_cannot_be_carried_is_refused_before_anything_changes() -> None:
    net = network()
    rprop = torch.optim.Rprop(net.parameters())
    dynamic = DynamicCompression(net, points(), optimizer=rprop, first=0)
    net(points()).sum().backward()
    rprop.step()
    with pytest.raises(InputError, match="Rprop"):
        dynamic.step(0, 1.0)
    assert isinstance(net[2], nn.Linear)


@pytest.mark.parametrize(
    "losses, settled",
    [
        ([1.0], False),
        ([1.0, 0.99, 0.98, 0.975], False),  # before anything is learnt
        ([1.0, 1.0, 1.0, 1e-1, 1e-2, 1e-3], False),  # learning
        ([1.0, 1e-1, 1e-3, 1e-3, 9e-4, 8e-4], True),
        ([1.0, 0.3, 0.3, 0.31, 0.29, 0.3], True),  # down to noise
        ([5.0, -3.0, -4.9, -5.0], True),  # an energy
        ([5.0, 1.0, -2.0, -5.0], False),
    ],
)
def test_the_loss_says_when(losses: list[float], settled: bool) -> None:
    assert has_settled(losses) is settled


def test_begins_when_the_loss_has_settled() -> None:
    net = network()
    dynamic = DynamicCompression(net, points(), every=2, tol=0.1)
    assert not any(dynamic.step(epoch, 10.0**-epoch) for epoch in range(5))
    assert [dynamic.step(epoch, 1e-4) for epoch in range(5, 12)].index(True) == 4  # 10 epochs, the best after 5
    assert isinstance(net[2], HLinear) and dynamic.first == 9


def test_without_an_optimizer_the_caller_is_told() -> None:
    net = network()
    dynamic = DynamicCompression(net, hrt.Box([-1, -1], [1, 1]), every=2, first=0)
    assert dynamic.step(0, 1.0)
    assert not dynamic.step(1, 1.0)


def test_bad_input() -> None:
    with pytest.raises(InputError, match="no linear layers"):
        DynamicCompression(nn.Sequential(nn.Tanh()), points())
    with pytest.raises(InputError, match="every"):
        DynamicCompression(network(), points(), every=0)


def test_directions_that_no_input_has_do_not_keep_a_layer_dense() -> None:
    """The weight has full rank; what two inputs make of 64 features has not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    watched = hrt.DynamicCompression(net, hrt.Box([-1.0, 0.0], [1.0, 1.0]), tol=3e-4, finest=3e-4)
    error = watched.adapt()
    assert isinstance(net[2], hrt.HLinear) and watched.ratio > 1.2
    assert error < 3 * 3e-4  # every one of three layers is within 3e-4


class TestLayersThatStay:
    def test_tied_weights_stay_tied_and_count_once(self) -> None:
        net = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(48, 48), nn.Tanh()))).double()
        net[4].weight = net[2].weight
        before = sum(p.numel() for p in net.parameters())
        watched = DynamicCompression(net, torch.rand(256, 48).double(), tol=0.3)
        assert watched.ratio == 1.0
        watched.adapt()
        assert net[4].weight is net[2].weight and isinstance(net[0], HLinear)
        held = sum(p.numel() for p in net.parameters())
        assert held * watched.ratio == pytest.approx(before, rel=0.02)  # parameters have some padding

    def test_a_module_in_two_places_stays(self) -> None:
        shared = nn.Linear(48, 48)
        net = nn.Sequential(nn.Linear(48, 48), shared, nn.Tanh(), shared).double()
        DynamicCompression(net, torch.rand(256, 48).double(), tol=0.3).adapt()
        assert net[1] is net[3] is shared and isinstance(net[0], HLinear)

    def test_what_is_frozen_stays(self) -> None:
        net = network()
        net[2].requires_grad_(False)
        DynamicCompression(net, points(), tol=0.3).adapt()
        assert isinstance(net[2], nn.Linear) and not net[2].weight.requires_grad
        with pytest.raises(InputError, match="no linear layers to follow"):
            DynamicCompression(net.requires_grad_(False), points())


def test_an_optimizer_without_a_layers_parameters_is_refused() -> None:
    net = network()
    with pytest.raises(InputError, match="does not hold the parameters of 2, 4"):
        DynamicCompression(net, points(), optimizer=torch.optim.Adam(net[0].parameters()))
