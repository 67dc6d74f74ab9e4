"""Multilayer perceptrons, their activations, residuals, gates and normalisations."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from architectures.checked import Family
from zoo_pinns import Apply, mlp

PLAIN = Family("plain")


@PLAIN.add([(2,)], fast=True, derivatives=("d0",))
def mlp_tanh() -> nn.Module:
    return mlp(2, 32, 32, 1)


@PLAIN.add([(2,)], derivatives=("d0", "d0d1"))
def siren() -> nn.Module:
    net = mlp(2, 32, 32, 1, activation=lambda: Apply(lambda x: torch.sin(5 * x)))
    for layer in net[::2]:
        nn.init.uniform_(layer.weight, -math.sqrt(6 / layer.in_features) / 5, math.sqrt(6 / layer.in_features) / 5)
    return net


@PLAIN.add([(2,)], derivatives=("d1",))
class FourierFeatures(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(2, 16))
        self.net = mlp(32, 32, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        phase = x @ self.frequencies
        return self.net(torch.cat([torch.sin(phase), torch.cos(phase)], dim=-1))


@PLAIN.add([(2,)], derivatives=("d0",))
class ModifiedMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.u, self.v, self.first = nn.Linear(2, 32), nn.Linear(2, 32), nn.Linear(2, 32)
        self.hidden, self.last = nn.ModuleList(nn.Linear(32, 32) for _ in range(3)), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        u, v, h = torch.tanh(self.u(x)), torch.tanh(self.v(x)), torch.tanh(self.first(x))
        for layer in self.hidden:
            z = torch.tanh(layer(h))
            h = (1 - z) * u + z * v
        return self.last(h)


class Residual(nn.Module):
    def __init__(self, width: int, norm: nn.Module):
        super().__init__()
        self.norm, self.net = norm, mlp(width, width, width, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.net(self.norm(x))


def resnet(norm) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 24), *(Residual(24, norm()) for _ in range(3)), nn.Linear(24, 2))


@PLAIN.add([(4,)], derivatives=("d2",))
def resnet_mlp() -> nn.Module:
    return resnet(nn.Identity)


@PLAIN.add([(4,)])
def resnet_layer_norm() -> nn.Module:
    return resnet(lambda: nn.LayerNorm(24))


@PLAIN.add([(4,)])
def resnet_batch_norm() -> nn.Module:
    net = resnet(lambda: nn.BatchNorm1d(24))
    net(torch.rand(64, 4))
    return net


@PLAIN.add([(4,)])
class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(4, 24), nn.RMSNorm(24)
        self.gate, self.up, self.down = nn.Linear(24, 48), nn.Linear(24, 48), nn.Linear(48, 24)
        self.last = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        z = self.norm(h)
        return self.last(h + self.down(F.silu(self.gate(z)) * self.up(z)))


@PLAIN.add([(4,)])
def glu_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 48), nn.GLU(), nn.Linear(24, 48), nn.GLU(), nn.Linear(24, 2))


@PLAIN.add([(32,)])
def autoencoder() -> nn.Module:
    return nn.Sequential(mlp(32, 24, 4), nn.Tanh(), mlp(4, 24, 32))


@PLAIN.add([(16,)])
class TiedAutoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.bias = nn.Linear(16, 6), nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.T, self.bias)


@PLAIN.add([(8, 4)])
class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(4, 16), nn.Linear(16, 2)
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.tokens, self.channels = mlp(8, 16, 8, activation=nn.GELU), mlp(16, 32, 16, activation=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.tokens(self.norms[0](h).transpose(1, 2)).transpose(1, 2)
        h = h + self.channels(self.norms[1](h))
        return self.head(h.mean(dim=1))


@PLAIN.add([(12, 3)])
class MeanPooledPoints(nn.Module):
    def __init__(self):
        super().__init__()
        self.points, self.head = mlp(3, 24, 24, activation=nn.SiLU), mlp(24, 24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.points(x).mean(dim=1))


@PLAIN.add([(2,)], derivatives=("d0",))
class RungeKutta(nn.Module):
    """A neural ODE of four fixed steps."""

    def __init__(self):
        super().__init__()
        self.field = mlp(2, 24, 24, 2)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            k1 = self.field(x)
            k2 = self.field(x + 0.05 * k1)
            k3 = self.field(x + 0.05 * k2)
            x = x + 0.1 / 6 * (k1 + 4 * k2 + self.field(x + 0.1 * k3))
        return x
