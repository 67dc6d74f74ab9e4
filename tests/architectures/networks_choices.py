"""Networks that choose, compare or weigh: attention, experts, splines, graphs, tables, extremes and angles."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.checked import Family
from zoo_pinns import Apply, mlp

CHOICES = Family("choices")


def between(first: nn.Module, function, last: nn.Module) -> nn.Module:
    return nn.Sequential(first, Apply(function), last)


@CHOICES.add([(6,)], fast=True)
def classifier() -> nn.Module:
    return nn.Sequential(mlp(6, 32, 32, 5), nn.Softmax(-1))


@CHOICES.add([(2,)], derivatives=("d0",))
def log_sum_exp_output() -> nn.Module:
    return nn.Sequential(mlp(2, 24, 24, 4), Apply(lambda x: torch.logsumexp(x, -1, keepdim=True)))


@CHOICES.add([(7, 8)])
class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.all, self.out, self.ff = nn.Linear(8, 24), nn.Linear(8, 8), mlp(8, 32, 8)

    def forward(self, x: Tensor) -> Tensor:
        heads = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in self.all(x).chunk(3, -1))
        x = x + self.out(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.ff(F.layer_norm(x, (8,)))


@CHOICES.add([(16, 3)])
class Transolver(nn.Module):
    """Points are weighed into a few slices, which attend to each other, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.slices, self.out = mlp(3, 16, 16), nn.Linear(16, 4), mlp(16, 16, 1)
        self.all = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        weights = self.slices(h).softmax(-1)
        tokens = torch.einsum("bns,bnc->bsc", weights, h) / (weights.sum(1)[..., None] + 1e-5)
        tokens = F.scaled_dot_product_attention(*self.all(tokens).chunk(3, -1))
        return self.out(h + torch.einsum("bns,bsc->bnc", weights, tokens))


@CHOICES.add([(9, 2), (5, 3)])
class CrossAttention(nn.Module):
    """Queries at points attend to an input function, without softmax over pairs (GNOT)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.both, self.out = mlp(2, 16, 16), mlp(3, 16, 32), mlp(16, 16, 1)

    def forward(self, points: Tensor, function: Tensor) -> Tensor:
        query, (key, value) = self.query(points).softmax(-1), self.both(function).chunk(2, -1)
        key = key.softmax(-1)
        scale = 1 / (query * key.sum(1, keepdim=True)).sum(-1, keepdim=True)
        return self.out(query + scale * (query @ (key.transpose(1, 2) @ value)))


@CHOICES.add([(4,)])
class DenseExperts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(mlp(4, 24, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return (torch.stack([e(x) for e in self.experts], -1) * self.gate(x).softmax(-1)[:, None]).sum(-1)


@CHOICES.add([(4,)], tol=3e-2)
class TopTwoExperts(DenseExperts):
    def forward(self, x: Tensor) -> Tensor:
        best, places = self.gate(x).topk(2, dim=-1)
        answers = torch.stack([e(x) for e in self.experts], 1)
        chosen = answers.gather(1, places[..., None].expand(-1, -1, 2))
        return (best.softmax(-1)[..., None] * chosen).sum(1)


class Graph(nn.Module):
    """Messages along the edges of a ring of twelve nodes, with some chords."""

    def __init__(self) -> None:
        super().__init__()
        nodes = torch.arange(12)
        self.register_buffer("send", torch.cat([nodes, nodes, nodes[::3]]))
        self.register_buffer("receive", torch.cat([nodes.roll(1), nodes.roll(-1), nodes.roll(5)[::3]]))
        self.message, self.update = mlp(8, 16, 16), mlp(20, 16, 4)

    def messages(self, x: Tensor) -> Tensor:
        return self.message(torch.cat([x[:, self.send], x[:, self.receive]], -1))


@CHOICES.add([(12, 4)])
class GraphIndexAdd(Graph):
    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(x.shape[0], 12, 16, dtype=x.dtype).index_add(1, self.receive, self.messages(x))
        return x + self.update(torch.cat([x, total], -1))


@CHOICES.add([(12, 4)])
class GraphScatterAdd(Graph):
    def forward(self, x: Tensor) -> Tensor:
        m = self.messages(x)
        total = x.new_zeros(x.shape[0], 12, 16).scatter_add(1, self.receive[None, :, None].expand_as(m), m)
        return x + self.update(torch.cat([x, total], -1))


@CHOICES.add([(12, 4)])
class GraphSparse(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", (torch.eye(12).roll(1, 0) + torch.eye(12).roll(-1, 0)).to_sparse())
        self.first, self.second = mlp(4, 16, 16), mlp(16, 16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).transpose(0, 1)
        return self.second(torch.sparse.mm(self.adjacency, h.flatten(1)).view(h.shape).transpose(0, 1).tanh())


@CHOICES.add([(16, 3)])
class PointNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.each, self.all = mlp(3, 24, 24), mlp(24, 24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(self.each(x).max(1)[0])


class SplineLayer(nn.Module):
    """efficient-KAN: cubic B-splines by the recursion of de Boor, whose first step compares."""

    def __init__(self, n: int, m: int, grid: int = 5, order: int = 3):
        super().__init__()
        self.order = order
        knots = torch.arange(-order, grid + order + 1) * (2 / grid) - 1
        self.register_buffer("knots", knots.expand(n, -1).contiguous())
        self.base, self.spline = nn.Linear(n, m, bias=False), nn.Linear(n * (grid + order), m, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        t, g = x.unsqueeze(-1), self.knots
        bases = ((t >= g[:, :-1]) & (t < g[:, 1:])).to(x.dtype)
        for k in range(1, self.order + 1):
            left = (t - g[:, : -(k + 1)]) / (g[:, k:-1] - g[:, : -(k + 1)]) * bases[..., :-1]
            bases = left + (g[:, k + 1 :] - t) / (g[:, k + 1 :] - g[:, 1:-k]) * bases[..., 1:]
        return self.base(F.silu(x)) + self.spline(bases.flatten(1))


@CHOICES.add([(2,)])
def efficient_kan() -> nn.Module:
    return nn.Sequential(SplineLayer(2, 8), SplineLayer(8, 1))


class ChebyshevLayer(nn.Module):
    def __init__(self, n: int, m: int, degree: int = 4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, m, degree + 1) / (n * (degree + 1)))
        self.register_buffer("degrees", torch.arange(0.0, degree + 1))

    def forward(self, x: Tensor) -> Tensor:
        angle = torch.acos(torch.tanh(x))[..., None] * self.degrees
        return torch.einsum("bid,iod->bo", angle.cos(), self.weight)


@CHOICES.add([(2,)], derivatives=("d0",))
def chebyshev_kan() -> nn.Module:
    return nn.Sequential(ChebyshevLayer(2, 8), ChebyshevLayer(8, 1))


@CHOICES.add([(3,)])
class RadialBasis(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.centres, self.out = nn.Parameter(torch.rand(30, 3)), nn.Linear(30, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.exp(-(torch.cdist(x, self.centres) ** 2)))


@CHOICES.add([(2,)])
class TableLookup(nn.Module):
    """Linear interpolation in a table, then a network."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("knots", torch.linspace(-0.01, 1.01, 9))
        self.register_buffer("values", torch.linspace(-0.01, 1.01, 9).mul(6).sin())
        self.net = mlp(4, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        k = torch.searchsorted(self.knots, x.contiguous()) - 1
        t = (x - self.knots[k]) / (self.knots[k + 1] - self.knots[k])
        return self.net(torch.cat([x, self.values[k] * (1 - t) + self.values[k + 1] * t], 1))


@CHOICES.add([(3, 4)], tol=3e-2)
class SpeciesPotential(nn.Module):
    """A one-hot of whole numbers beside distances."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.net = nn.Embedding(5, 6), mlp(9, 24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(torch.cat([self.table((x[..., 0] * 4).round().long()), x[..., 1:]], -1)).sum(1)


@CHOICES.add([(2,)])
def periodic() -> nn.Module:
    return between(nn.Linear(2, 16), lambda x: torch.sin(6.28 * torch.remainder(x, 1.0)), nn.Linear(16, 1))


@CHOICES.add([(2,)])
def angles() -> nn.Module:
    return between(nn.Linear(2, 16), lambda x: torch.atan2(x, 1.5 + x.roll(1, 1)) + torch.tan(x / 4), nn.Linear(16, 1))


@CHOICES.add([(2,)], derivatives=("d0", "d1d1"))
def sinc_net() -> nn.Module:
    return between(nn.Linear(2, 24), lambda x: torch.sinc(2 * x), nn.Linear(24, 1))


PIECES = {
    "piecewise": lambda x: torch.where(x > 0.1, torch.sin(3 * x), 0.1 * x),
    "standard_deviation": lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 0.1),
    "products": lambda x: torch.cat([x[:, :4].prod(1, keepdim=True), x], 1)[:, :16],
    "largest": lambda x: x - x.amax(1, keepdim=True) + 0.5 * x.amin(1, keepdim=True),
    "monotone": lambda x: F.softplus(x).cumsum(1),
    "decades": lambda x: torch.log10(x.abs() + 0.1) + torch.log2(x.abs() + 1),
    "soft_shrink": nn.Softshrink(0.2),
    "hard_shrink": nn.Hardshrink(0.2),
    "threshold": nn.Threshold(0.1, -0.3),
    "random_slopes": nn.RReLU(),
    "root_mean_square": nn.RMSNorm(16),
    "rounded": lambda x: 0.2 * torch.round(5 * x) + x.sign() * 0.1,
}
for key, function in PIECES.items():
    tol = 5e-2 if key == "rounded" else 1e-2
    make = lambda f=function: between(mlp(2, 24, 16), f, mlp(16, 24, 1))  # noqa: E731
    CHOICES.add([(2,)], name=key, tol=tol)(make)


@CHOICES.add([(4,), (3,)])
class BilinearNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair, self.out = nn.Bilinear(4, 3, 16), mlp(16, 16, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.out(torch.tanh(self.pair(x, y)))


@CHOICES.add([(3,)])
def powers_of_ten() -> nn.Module:
    return nn.Sequential(Apply(lambda x: torch.log10(x + 0.1)), mlp(3, 24, 24, 2), Apply(lambda x: 10**x))


@CHOICES.add([(1,)], derivatives=("d0",))
def wave_packet() -> nn.Module:
    return between(nn.Linear(1, 16), lambda x: torch.cos(math.tau * x) * torch.exp2(-x * x), nn.Linear(16, 1))
