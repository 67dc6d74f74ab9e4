"""The batch is an axis: wherever an author holds it, the program gives what the network gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hrt.capture.torch_export import capture

from random_layouts import BATCH, Draw


@settings(deadline=None, max_examples=25)
@given(st.data(), st.lists(st.integers(1, 4), max_size=3), st.integers(1, 8))
def test_steps_in_any_layout(data: st.DataObject, shape: list[int], count: int) -> None:
    draw = Draw(data, tuple(shape))
    for _ in range(count):
        draw.step()
    net = draw.finish()
    x = draw.numbers(BATCH, *shape)
    (y,) = capture(net, [x[:2]]).run([x])
    expected = net(x)
    assert y.shape == expected.shape, draw.words
    assert float((y - expected).abs().max()) <= 1e-12 * max(1.0, float(expected.abs().max())), draw.words


class Side(nn.Module):
    """Calls a function on itself and its input."""

    def __init__(self, function: Callable):
        super().__init__()
        self.m, self.t, self.function = nn.Linear(3, 4), nn.Linear(2, 4), function
        self.points = nn.Parameter(torch.rand(5, 2))

    def forward(self, x):
        return self.function(self, x)


def twins(m: Side, x: Tensor) -> Tensor:
    n, y = x.shape[0], torch.tanh(m.m(torch.cat([x, x.square(), x.sin()])))
    return y[:n] * y[n : 2 * n] - y[2 * n :]


def uneven(m: Side, x: Tensor) -> Tensor:
    one, two = m.m(torch.cat([x, x.square(), x.sin()])).split([x.shape[0], 2 * x.shape[0]])
    return one - two.tanh().reshape(2, -1, 4).sum(0)


# One network called once on several batches, or on every pair of a sample and a fixed point.
SIDE_BY_SIDE: dict[str, Callable] = {
    "slices": twins,
    "split": uneven,
    "repeat": lambda m, x: m.m(x.repeat(3, 1)).tanh().view(3, -1, 4).sum(0),
    "repeat_interleave": lambda m, x: m.m(x.repeat_interleave(3, 0)).tanh().view(-1, 3, 4).sum(1),
    "points_inside": lambda m, x: (
        (m.m(x).repeat_interleave(5, dim=0) * m.t(m.points.repeat(x.shape[0], 1)).tanh()).sum(-1).reshape(-1, 5)
    ),
    "points_outside": lambda m, x: (
        (m.m(x).repeat(5, 1) * m.t(m.points.repeat_interleave(x.shape[0], 0)).tanh()).sum(-1).reshape(5, -1).T
    ),
    "points_expanded": lambda m, x: (
        m.m(x)[:, None].expand(-1, 5, -1).reshape(-1, 4)
        * m.t(m.points[None].expand(x.shape[0], -1, -1).reshape(-1, 2)).tanh()
    ).reshape(-1, 20),
}


@pytest.mark.parametrize("name", SIDE_BY_SIDE)
def test_batches_side_by_side(name: str) -> None:
    torch.manual_seed(0)
    net = Side(SIDE_BY_SIDE[name])
    program = capture(net, [torch.zeros(2, 3)])
    x = torch.rand(7, 3, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(program.run([x])[0], net.double()(x), rtol=1e-12, atol=1e-14)


def test_matrices_of_a_stack_are_weights_of_their_own() -> None:
    weights, vectors = nn.Parameter(torch.rand(3, 4, 5)), nn.Parameter(torch.rand(3, 5, 1))
    net = nn.Module()
    net.weights, net.vectors = weights, vectors
    net.forward = lambda x: (torch.tanh(x @ net.weights) @ net.vectors)[..., 0].T
    program = capture(net, [torch.zeros(2, 3, 4)[:, 0]])
    assert list(program.weights) == ["weights"]  # every matrix sees the same rows: one matrix below the other
    net.forward = lambda x: torch.tanh(x.transpose(0, 1) @ net.weights).transpose(0, 1)
    program = capture(net, [torch.zeros(2, 3, 4)])
    assert list(program.weights) == ["weights.0", "weights.1", "weights.2"]
    for k, name in enumerate(program.weights):
        assert torch.equal(program.constants[name], weights[k].T.double().detach())
    assert [n.op for n in program.nodes] == ["slice", "linear"] * 3 + ["concat", "tanh"]
    net.forward = lambda x: (x.transpose(0, 1) @ net.weights @ net.vectors)[..., 0].T
    assert "vectors" not in " ".join(capture(net, [torch.zeros(2, 3, 4)]).weights)  # vectors have no rank to lower
