"""What optimizers remember of a weight goes with it into its factors; what cannot go is refused by name."""

import pytest
import torch
from torch import nn

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.hlinear import HLinear
from hrt.training.optimizer_state import check_optimizer, exchange, weights_of

CARRIED = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "AMSGrad": lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-3),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
}


def linear() -> tuple[nn.Linear, HLinear]:
    """A layer of rank 3 and the same one in factors, in two blocks, its rows in another order."""
    generator = torch.Generator().manual_seed(0)
    u, vt = torch.randn(12, 3, generator=generator), torch.randn(3, 10, generator=generator)
    order = torch.randperm(12, generator=generator)
    old = nn.Linear(10, 12)
    old.weight.data = torch.empty(12, 10).index_copy_(0, order, u @ vt)
    leaves = (Leaf(0, 8, 0, 10, u=u[:8], vt=vt), Leaf(8, 4, 0, 10, dense=u[8:] @ vt))
    new = HLinear(HMatrix((12, 10), leaves, order))
    new.bias = old.bias
    return old, new


def step(optimizer: torch.optim.Optimizer, layer: nn.Module) -> float:
    x = torch.randn(64, 10, generator=torch.Generator().manual_seed(1))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (layer(x) - x[:, :1]).square().mean()
        loss.backward()
        return loss

    return optimizer.step(closure).item()  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("name", CARRIED)
def test_an_exchange_does_not_disturb_training(name: str) -> None:
    old, new = linear()
    optimizer = CARRIED[name](old.parameters())
    for _ in range(40):
        before = step(optimizer, old)
    with torch.no_grad():  # the same function as now
        order, w = new.row_order, old.weight.double()[new.row_order]  # type: ignore[index]
        p, s, q = torch.linalg.svd(w[:8], full_matrices=False)
    leaves = (Leaf(0, 8, 0, 10, u=p * s, vt=q), Leaf(8, 4, 0, 10, dense=w[8:]))
    new = HLinear(HMatrix((12, 10), leaves, order))
    new.bias = old.bias
    exchange(optimizer, old, new)
    live = {id(p) for p in new.parameters()}
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == live
    assert set(map(id, optimizer.state)) <= live
    losses = [step(optimizer, new) for _ in range(10)]
    assert max(losses) <= 1.02 * before and losses[-1] < losses[0]


def test_first_moments_follow_the_chain_rule() -> None:
    old, new = linear()
    optimizer = torch.optim.SGD([*old.parameters()], lr=0.0, momentum=0.9)
    for _ in range(3):
        step(optimizer, old)
    buffer = optimizer.state[old.weight]["momentum_buffer"].clone()
    exchange(optimizer, old, new)
    # <M, dW> for a small change of the factors is <M_U, dU> + <M_V, dV>
    generator = torch.Generator().manual_seed(2)
    change = [torch.randn(p.shape, generator=generator) * (p != 0) for p in weights_of(new)]
    start = new.to_hmatrix(torch.float64).to_dense()
    expected = sum(
        float((optimizer.state[p]["momentum_buffer"] * d).sum()) for p, d in zip(weights_of(new), change, strict=True)
    )
    with torch.no_grad():
        for p, d in zip(weights_of(new), change, strict=True):
            p.add_(1e-3 * d)
    moved = (new.to_hmatrix(torch.float64).to_dense() - start) / 1e-3
    assert float((buffer.double() * moved).sum()) == pytest.approx(expected, rel=0.02)


def test_from_factors_to_the_same_factors_first_moments_stay() -> None:
    _, layer = linear()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0, momentum=0.9)
    for _ in range(3):
        step(optimizer, layer)
    before = [optimizer.state[p]["momentum_buffer"].clone() for p in weights_of(layer)]
    again = HLinear(layer.to_hmatrix())
    again.bias = layer.bias
    exchange(optimizer, layer, again)
    for p, expected in zip(weights_of(again), before, strict=True):
        assert torch.allclose(optimizer.state[p]["momentum_buffer"], expected, rtol=1e-4, atol=1e-6)


def test_second_moments_are_between_their_limits() -> None:
    old, _ = linear()
    p, s, q = torch.linalg.svd(old.weight.detach(), full_matrices=False)
    new = HLinear(HMatrix((12, 10), (Leaf(0, 12, 0, 10, u=p[:, :3] * s[:3], vt=q[:3]),)))
    new.bias = old.bias
    optimizer = torch.optim.RMSprop(old.parameters(), lr=0.0)
    step(optimizer, old)
    square = optimizer.state[old.weight]["square_avg"].clone()
    exchange(optimizer, old, new)
    for part, weight, by_rows in ((new.first[0], p[:, :3] * s[:3], square.mT), (new.second[0], q[:3].mT, square)):
        carried = optimizer.state[part]["square_avg"][0]
        carried = carried.mT if part is new.first[0] else carried
        low, high = by_rows @ weight.square(), (by_rows.sqrt() @ weight.abs()).square()
        assert bool((carried >= 0.999 * low).all() and (carried <= 1.001 * high).all())


def test_weights_and_biases_keep_their_groups() -> None:
    old, new = linear()
    optimizer = torch.optim.AdamW([{"params": [old.weight]}, {"params": [old.bias], "weight_decay": 0.0}])
    exchange(optimizer, old, new)
    weights, biases = (group["params"] for group in optimizer.param_groups)
    assert set(map(id, weights)) == set(map(id, weights_of(new))) and biases == [old.bias]


def test_lbfgs_goes_on_with_a_scheduler() -> None:
    old, new = linear()
    optimizer = torch.optim.LBFGS(old.parameters(), lr=0.5, history_size=7, max_iter=3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    step(optimizer, old)
    schedule.step()
    exchange(optimizer, old, new)
    first = step(optimizer, new)
    schedule.step()
    assert step(optimizer, new) < first
    assert optimizer.param_groups[0]["lr"] == 0.125 and optimizer.param_groups[0]["history_size"] == 7


def test_an_optimizer_that_cannot_be_carried_is_named() -> None:
    old, _ = linear()
    optimizer = torch.optim.Rprop(old.parameters())
    check_optimizer(optimizer, [old])
    step(optimizer, old)
    with pytest.raises(InputError, match="Found Rprop, whose 'prev'"):
        check_optimizer(optimizer, [old])
