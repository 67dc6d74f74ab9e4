"""HLinear is the matrix it was made from, differentiable to any order, and survives saving, compiling and casting."""

import pytest
import torch
from torch.func import functional_call

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import STORAGE, HMatrix, Leaf
from hrt.matrix_compression.hlinear import HLinear, merged

from helpers import random_hmatrix, rounding_bound

MIXED = tuple(STORAGE.values())
SHAPES = [(37, 53), (1, 9), (64, 64), (5, 1)]


def rows(n: int, batch: int = 7, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(batch, n, generator=torch.Generator().manual_seed(n), dtype=dtype)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("m, n", SHAPES)
def test_it_is_the_matrix(m: int, n: int, seed: int) -> None:
    h, bias, x = random_hmatrix(seed, m, n, storages=MIXED), rows(m, 1)[0], rows(n)
    layer = HLinear(h, bias, dtype=torch.float64)
    bound = rounding_bound(x, h, torch.finfo(torch.float64).eps, bias)
    assert ((layer(x) - (x @ h.to_dense().T + bias)).abs() <= bound).all()
    assert torch.equal(layer.to_hmatrix(torch.float64).to_dense(), merged(h).to_dense())


@pytest.mark.parametrize("ordered", [False, True])
def test_leading_dimensions_and_empty_batches(ordered: bool) -> None:
    layer = HLinear(random_hmatrix(1, 12, 20, ordered=ordered), dtype=torch.float64)
    x = rows(20, 6)
    assert torch.allclose(layer(x.reshape(2, 3, 20)), layer(x).reshape(2, 3, 12), rtol=1e-13, atol=1e-13)
    assert layer(x[:0]).shape == (0, 12)
    assert layer(x[0]).shape == (12,)


@pytest.mark.parametrize("seed", [2, 3, 4])
def test_gradients_of_first_and_second_order(seed: int) -> None:
    layer = HLinear(random_hmatrix(seed, 11, 13, max_rank=3), rows(11, 1)[0], dtype=torch.float64)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x = rows(13, 3).requires_grad_()

    def function(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.tanh(functional_call(layer, dict(zip(names, values, strict=True)), (x,)))

    assert torch.autograd.gradcheck(function, (x, *parameters))
    assert torch.autograd.gradgradcheck(function, (x, *parameters))


def test_padding_never_moves() -> None:
    h = random_hmatrix(9, 60, 60, depth=4)
    layer = HLinear(h, dtype=torch.float64)
    stored = sum(t.numel() for leaf in merged(h).leaves for t in leaf.tensors)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        layer(rows(60)).square().sum().backward()
        optimizer.step()
    numbers = torch.cat([p.detach().reshape(-1) for p in (*layer.first, *layer.second)])
    assert len(numbers) > stored  # there is padding
    assert int(numbers.count_nonzero()) <= stored


def test_state_dict_round_trip_and_another_partition() -> None:
    h = random_hmatrix(6, 20, 28, ordered=True)
    one, two = HLinear(h, rows(20, 1)[0]), HLinear(h, torch.zeros(20))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(rows(28).float()), two(rows(28).float()))
    other = HLinear(HMatrix.from_dense(torch.zeros(20, 28)), torch.zeros(20))
    with pytest.raises(InputError, match="partition"):
        other.load_state_dict(one.state_dict())


def test_assign_writes_the_leaves() -> None:
    h, g = random_hmatrix(7, 40, 40, ordered=True), torch.Generator().manual_seed(0)
    layer = HLinear(h, dtype=torch.float64)
    for number, leaf in enumerate(layer.leaves):
        layer.assign(number, *(torch.randn(t.shape, generator=g, dtype=torch.float64) for t in leaf.tensors))
    x = rows(40)
    expected = x @ layer.to_hmatrix(torch.float64).to_dense().T
    assert torch.allclose(layer(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("ordered", [False, True])
def test_compiles_into_one_graph(ordered: bool) -> None:
    layer = HLinear(random_hmatrix(3, 16, 24, ordered=ordered), dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(rows(24)), layer(rows(24)))


def test_from_dense_keeps_the_bound_and_from_linear_checks_the_partition() -> None:
    t = torch.linspace(0, 1, 64, dtype=torch.float64)
    w = 1 / (1 + (t[:, None] - t[None]).abs())
    layer = HLinear.from_dense(w, tol=1e-4)
    assert layer.to_hmatrix().error(w) <= 1e-4
    plain = torch.nn.Linear(64, 64)
    assert HLinear.from_linear(plain, partition=layer.to_hmatrix()).bias is not plain.bias
    with pytest.raises(InputError, match="64"):
        HLinear.from_linear(torch.nn.Linear(32, 64), partition=layer.to_hmatrix())
    with pytest.raises(InputError, match="bias"):
        HLinear(layer.to_hmatrix(), torch.zeros(3))
    with pytest.raises(InputError, match="Expected an HMatrix"):
        HLinear(w)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="64"):
        layer(torch.zeros(2, 63))


def test_zero_matrix_has_zero_derivatives() -> None:
    h = HMatrix((4, 6), (Leaf(0, 4, 0, 6, u=torch.zeros(4, 0), vt=torch.zeros(0, 6)),))
    layer, x = HLinear(h, torch.ones(4), dtype=torch.float64), rows(6).requires_grad_()
    (slope,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(layer(x), torch.ones(7, 4, dtype=torch.float64))
    assert not slope.any()
