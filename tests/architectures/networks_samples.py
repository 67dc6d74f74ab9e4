"""Networks that know no batch: one graph, one set of points, a function and the places where it is asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from architectures.checked import Family
from zoo_pinns import mlp

SAMPLES = Family("samples")
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 2, 4]])


def each(net: nn.Module, x: Any) -> Tensor:
    """A network's answers to samples, one by one."""
    samples = zip(*x, strict=True) if isinstance(x, tuple) else ((v,) for v in x)
    return torch.stack([net(*sample) for sample in samples])


def each_with_function(net: nn.Module, x: tuple[Tensor, Tensor]) -> Tensor:
    """The same, the first input as a batch of one."""
    return torch.cat([net([function[None], points]) for function, points in zip(*x, strict=True)])


POINTS = torch.rand(12, 2, generator=torch.Generator().manual_seed(0))


@SAMPLES.add(lambda rows, generator: (torch.rand(rows, 10, generator=generator), POINTS.expand(rows, 12, 2)))
class FirstSamplesPoints(nn.Module):
    """Points come with every sample, and those of the first are used: all samples have the same."""

    def __init__(self):
        super().__init__()
        self.branch, self.trunk = mlp(10, 24, 12), mlp(2, 24, 12)

    def forward(self, function: Tensor, points: Tensor) -> Tensor:
        return torch.einsum("bi,ni->bn", self.branch(function), self.trunk(points[0]))


@SAMPLES.add([(10,), (12, 2)], call=each_with_function, fast=True)
class CartesianList(nn.Module):
    """Functions (batch, ...) and points (points, 2) in a list, the same for all: every sample may bring its own."""

    def __init__(self):
        super().__init__()
        self.branch, self.trunk = mlp(10, 24, 12), mlp(2, 24, 12)

    def forward(self, inputs: list[Tensor]) -> Tensor:
        function, points = inputs
        if points.ndim != 2:
            raise ValueError("points have two axes")
        return self.branch(function) @ self.trunk(points).T


@SAMPLES.add([(6, 4), (8, 3)], call=each)
class MeshNetwork(nn.Module):
    """Nodes (nodes, 4) and edges (edges, 3) of one fixed mesh: encoders, two rounds of messages, a decoder."""

    def __init__(self):
        super().__init__()
        self.nodes, self.edges = mlp(4, 16, 16), mlp(3, 16, 16)
        self.messages = nn.ModuleList(nn.Sequential(mlp(48, 16, 16), nn.LayerNorm(16)) for _ in range(2))
        self.updates = nn.ModuleList(nn.Sequential(mlp(32, 16, 16), nn.LayerNorm(16)) for _ in range(2))
        self.decoder = mlp(16, 16, 2)
        self.register_buffer("places", EDGES)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        if nodes.ndim != 2:
            raise ValueError("one mesh at a time")
        x, e = self.nodes(nodes), self.edges(edges)
        source, target = self.places
        for message, update in zip(self.messages, self.updates, strict=True):
            e = e + message(torch.cat([e, x[source], x[target]], dim=1))
            total = torch.zeros_like(x).index_add(0, target, e)
            x = x + update(torch.cat([total, x], dim=1))
        return self.decoder(x)


@SAMPLES.add(
    lambda rows, generator: (
        torch.rand(rows, 6, 4, generator=generator),
        torch.randint(0, 6, (rows, 2, 9), generator=generator),
    ),
    call=each,
)
class EdgesAsInput(nn.Module):
    """Every sample is a graph with edges of its own: whole numbers (2, edges)."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 24), nn.Linear(24, 16)
        self.last = nn.Linear(16, 2)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            h = torch.tanh(layer(x))
            if h.ndim != 2:
                raise ValueError("one graph at a time")
            x = h + h.new_zeros(len(h), h.shape[1]).index_add(0, edges[1], h[edges[0]])
        return self.last(x)


@SAMPLES.add([(6, 4)], call=each)
class SparseAdjacency(nn.Module):
    """Neighbours by a sparse matrix, which is made as it is needed."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 24), nn.Linear(24, 2)
        self.register_buffer("weights", torch.zeros(6, 6).index_put((EDGES[1], EDGES[0]), torch.tensor(1.0)))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.sparse.mm(self.weights.to_sparse(), torch.tanh(self.first(x))))
