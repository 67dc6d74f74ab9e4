"""The penalty is the nuclear norm, its gradient the subgradient; thresholding is the proximal operator."""

import pytest
import torch
from torch import nn

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.hlinear import HLinear
from hrt.training.rank_penalty import proximal_step, rank_penalty, second_moments

from helpers import random_hmatrix


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def linear(m: int, n: int) -> nn.Linear:
    layer = nn.Linear(n, m).double()
    layer.weight.data = randn(m, n)
    return layer


def moment(n: int) -> torch.Tensor:
    x = randn(3 * n, n, seed=5) * torch.logspace(0, -3, n, dtype=torch.float64)
    return x.T @ x / len(x)


def nuclear(w: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
    """By the definition, through a full SVD."""
    if c is not None:
        values, vectors = torch.linalg.eigh(c)
        w = w @ (vectors * values.clamp_min(0).sqrt())  # another square root of C: the singular values are the same
    return torch.linalg.svdvals(w).sum()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("m, n", [(20, 12), (12, 20), (1, 7)])
def test_dense_layer(m: int, n: int, weighted: bool) -> None:
    layer, c = linear(m, n), moment(n) if weighted else None
    net = nn.Sequential(layer)
    penalty = rank_penalty(net, second_moments={} if c is None else {"0": c})
    assert penalty.item() == pytest.approx(float(nuclear(layer.weight.detach(), c)), rel=1e-8)
    penalty.backward()
    w = layer.weight.detach().clone().requires_grad_()
    nuclear(w, c).backward()
    assert layer.weight.grad is not None and w.grad is not None
    assert torch.allclose(layer.weight.grad, w.grad, rtol=1e-5, atol=1e-7 * float(w.grad.norm()))


@pytest.mark.parametrize("weighted", [False, True])
def test_leaves_of_an_h_matrix(weighted: bool) -> None:
    h = random_hmatrix(4, 24, 24, max_rank=4, ordered=True)
    layer = HLinear(h, dtype=torch.float64)
    net = nn.Sequential(layer)
    c = moment(24) if weighted else None
    ordered = None if c is None else c[h.col_order.long()][:, h.col_order.long()]
    expected = sum(
        (e.rows + e.cols)
        * nuclear(e.to_dense(), None if ordered is None else ordered[e.col : e.col + e.cols][:, e.col : e.col + e.cols])
        for e in layer.to_hmatrix(torch.float64).leaves
    )
    penalty = rank_penalty(net, second_moments={} if c is None else {"0": c})
    assert penalty.item() == pytest.approx(float(expected) / 48, rel=1e-7)
    parameters = tuple(layer.parameters())
    slope = torch.autograd.grad(penalty, parameters)
    step = 1e-6
    for k, (p, g) in enumerate(zip(parameters, slope, strict=True)):
        way = randn(*p.shape, seed=k) * (p.detach() != 0)
        values = []
        for sign in (1, -1):
            p.data.add_(sign * step * way)
            values.append(rank_penalty(net, second_moments={} if c is None else {"0": c}).item())
            p.data.sub_(sign * step * way)
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(float((g * way).sum()), rel=1e-4, abs=1e-6)


def test_factors_that_lost_rank_have_finite_gradients() -> None:
    u, vt = randn(10, 4), randn(4, 9)
    u[:, 2], u[:, 3] = u[:, 0], 0
    layer = HLinear(HMatrix((10, 9), (Leaf(0, 10, 0, 9, u=u, vt=vt),)), dtype=torch.float64)
    rank_penalty(nn.Sequential(layer)).backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in layer.parameters() if p.grad is not None)


def test_blocks_of_a_partition_and_a_sketch() -> None:
    layer = linear(16, 16)
    quarters = [Leaf(r, 8, c, 8, dense=torch.zeros(8, 8)) for r in (0, 8) for c in (0, 8)]
    penalty = rank_penalty(nn.Sequential(layer), partitions={"0": HMatrix((16, 16), tuple(quarters))})
    w = layer.weight.detach()
    expected = sum(float(nuclear(w[r : r + 8, c : c + 8])) * 16 for r in (0, 8) for c in (0, 8)) / 32
    assert penalty.item() == pytest.approx(expected, rel=1e-8)
    layer.weight.data = randn(16, 3) @ randn(3, 16, seed=1)  # of rank 3: a sketch of 5 sees all of it
    net = nn.Sequential(layer)
    assert rank_penalty(net, sketch=5).item() == pytest.approx(rank_penalty(net).item(), rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_thresholding(weighted: bool) -> None:
    layer, c = linear(12, 9), moment(9) if weighted else None
    w = layer.weight.detach().clone()
    root = torch.eye(9, dtype=torch.float64) if c is None else torch.linalg.cholesky(c)
    before = torch.linalg.svdvals(w @ root)
    threshold = float(before[4])
    ranks = proximal_step(nn.Sequential(layer), threshold * (1 + 1e-9), second_moments={} if c is None else {"0": c})
    after = torch.linalg.svdvals(layer.weight.detach() @ root)
    assert ranks == {"0": 4}
    assert torch.allclose(after, (before - threshold).clamp_min(0), atol=1e-6 * float(before[0]))


def test_thresholding_of_factors() -> None:
    layer = HLinear(HMatrix((14, 11), (Leaf(0, 14, 0, 11, u=randn(14, 5), vt=randn(5, 11)),)), dtype=torch.float64)
    before = torch.linalg.svdvals(layer.to_hmatrix(torch.float64).to_dense())
    proximal_step(nn.Sequential(layer), float(before[3]))
    after = torch.linalg.svdvals(layer.to_hmatrix(torch.float64).to_dense())
    assert torch.allclose(after, (before - before[3]).clamp_min(0), atol=1e-10 * float(before[0]))


def test_second_moments_are_those_of_the_inputs() -> None:
    first, second = linear(6, 4), HLinear(random_hmatrix(1, 3, 6), dtype=torch.float64)
    net, x = nn.Sequential(first, nn.Tanh(), second), randn(50, 4)
    found = second_moments(net, x)
    y = torch.tanh(first(x)).detach()
    assert torch.allclose(found["0"], x.T @ x / 50)
    assert torch.allclose(found["2"], y.T @ y / 50)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"second_moments": {"0": torch.eye(5)}}, "second moment"),
        ({"second_moments": {"1": torch.eye(4)}}, "name of a linear layer"),
        ({"second_moments": {"0": torch.full((4, 4), torch.nan)}}, "not finite"),
        ({"partitions": {"0": HMatrix.from_dense(torch.zeros(4, 4))}}, "partition"),
        *(({"sketch": sketch}, "sketch") for sketch in (0, -1, 2.5)),
    ],
)
def test_what_does_not_fit_is_refused(options, words: str) -> None:
    with pytest.raises(InputError, match=words):
        rank_penalty(nn.Sequential(linear(5, 4)), **options)


@pytest.mark.parametrize("threshold", [-1.0, torch.inf])
def test_senseless_thresholds_are_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="threshold"):
        proximal_step(nn.Sequential(linear(5, 4)), threshold)
