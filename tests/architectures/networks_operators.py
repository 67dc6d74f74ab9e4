"""Operator networks of branches and trunks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from architectures.checked import Family
from zoo_pinns import mlp

OPERATORS = Family("operators")


class DeepONet(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch, self.trunk = mlp(20, 32, 32), mlp(2, 32, 32)
        self.bias = nn.Parameter(torch.zeros(1))


@OPERATORS.add([(20,), (2,)], fast=True, derivatives=("d20",))
class DeepONetUnaligned(DeepONet):
    def forward(self, f: Tensor, x: Tensor) -> Tensor:
        return (self.branch(f) * self.trunk(x)).sum(dim=-1, keepdim=True) + self.bias


@OPERATORS.add([(20,), (8, 2)])
class DeepONetManyPoints(DeepONet):
    def forward(self, f: Tensor, x: Tensor) -> Tensor:
        return torch.einsum("bi,bni->bn", self.branch(f), self.trunk(x)) + self.bias


@OPERATORS.add([(20,)])
class DeepONetFixedGrid(DeepONet):
    def __init__(self):
        super().__init__()
        self.register_buffer("grid", torch.rand(16, 2))

    def forward(self, f: Tensor) -> Tensor:
        return torch.einsum("bi,ni->bn", self.branch(f), torch.tanh(self.trunk(self.grid))) + self.bias


@OPERATORS.add([(20,), (10,), (2,)])
class MIONet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.trunk = mlp(20, 32, 24), mlp(10, 32, 24), mlp(2, 32, 24)

    def forward(self, f: Tensor, g: Tensor, x: Tensor) -> Tensor:
        return (self.first(f) * self.second(g) * self.trunk(x)).sum(dim=-1, keepdim=True)


@OPERATORS.add([(20,)])
class PODDeepONet(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = mlp(20, 32, 8)
        self.register_buffer("modes", torch.randn(8, 40) / 8)
        self.register_buffer("mean", torch.randn(40))

    def forward(self, f: Tensor) -> Tensor:
        return self.branch(f) @ self.modes + self.mean


@OPERATORS.add([(20,), (2,)])
class HyperNetwork(nn.Module):
    """The branch gives the weights of the trunk."""

    def __init__(self):
        super().__init__()
        self.branch, self.last = mlp(20, 32, 2 * 12 + 12), nn.Linear(12, 1)

    def forward(self, f: Tensor, x: Tensor) -> Tensor:
        weights, bias = self.branch(f).split([24, 12], dim=1)
        h = torch.bmm(x[:, None], weights.reshape(-1, 2, 12))[:, 0] + bias
        return self.last(torch.tanh(h))
