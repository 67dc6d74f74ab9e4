"""Small networks as scientists write them: what capture has to understand. Weights are seeded, nothing is trained.

`python tests/zoo.py` records what each is captured as: a change of a digest is a change of files that users have.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import zoo_images  # noqa: F401 (its networks join the others)
from torch import nn
from torch.nn.utils import parametrizations

from hrt.capture.torch_export import capture
from hrt.program.program import Program

from zoo_pinns import ACTIVATIONS, ZOO, Apply, Entry, entry, mlp, network

__all__ = ["ACTIVATIONS", "SOME_OF_THE_ZOO", "ZOO", "Apply", "Entry", "captured", "mlp"]

# --- operator networks


class DeepONet(nn.Module):
    """Branch and trunk, one location per function."""

    def __init__(self):
        super().__init__()
        self.branch, self.trunk = mlp(10, 16, 8), mlp(2, 16, 16, 8, activation=nn.SiLU)
        self.bias = nn.Parameter(torch.tensor([0.1]))


@entry(5, (10,), (2,))
class DeepONetSum(DeepONet):
    def forward(self, f, x):
        return torch.sum(self.branch(f) * self.trunk(x), -1, keepdim=True) + self.bias


@entry(5, (10,), (2,))
class DeepONetEinsum(DeepONet):
    def forward(self, f, x):
        return torch.einsum("bi,bi->b", self.branch(f), torch.tanh(self.trunk(x))) + self.bias


@entry(5, (10,), (6, 2))
class DeepONetManyPoints(DeepONet):
    """Several locations per function."""

    def forward(self, f, x):
        return torch.einsum("bi, bni -> bn", self.branch(f), self.trunk(x)) + self.bias


@entry(3, (10,))
class DeepONetGrid(DeepONet):
    """The trunk is evaluated on a fixed grid, and so is one more weight."""

    def __init__(self):
        super().__init__()
        self.register_buffer("grid", torch.rand(20, 2))

    def forward(self, f):
        return torch.einsum("bi,ni->bn", self.branch(f), torch.tanh(self.trunk(self.grid))) + self.bias


@entry(3, (10,))
class DeepONetGridMatmul(DeepONet):
    """The same as branch @ trunk.T, as DeepXDE's Cartesian product does, without and with several components."""

    def __init__(self):
        super().__init__()
        self.grid = nn.Parameter(torch.rand(20, 2), requires_grad=False)

    def forward(self, f):
        basis = self.trunk(self.grid)
        return (self.branch(f) @ basis.T + self.bias).view(f.shape[0], 4, 5)


@network(3, (10,), parts=lambda: {"branch": mlp(10, 16, 8), "modes": torch.randn(30, 8), "mean": torch.randn(30)})
def PODDeepONet(self, f):
    """A branch network over fixed modes, plus their mean."""
    return F.linear(self.branch(f), self.modes) / 8 + self.mean


# --- weights that are computed


@entry(3, (3,))
def weight_norm_old():
    return nn.Sequential(
        nn.utils.weight_norm(nn.Linear(3, 12)), nn.Tanh(), nn.utils.weight_norm(nn.Linear(12, 12)), nn.Linear(12, 1)
    )


@entry(3, (3,))
def weight_norm_parametrized():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(3, 12)),
        nn.SiLU(),
        parametrizations.weight_norm(nn.Linear(12, 12, bias=False)),
        nn.Linear(12, 1),
    )


@entry(3, (3,))
def spectral_norm():
    inner = parametrizations.spectral_norm(nn.Linear(12, 12))
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 12)), nn.Tanh(), inner, nn.Tanh(), nn.Linear(12, 1)).eval()


@network(
    3,
    (3,),
    parts=lambda: {
        "W": nn.Parameter(torch.randn(3, 10)),
        "b": nn.Parameter(torch.randn(10)),
        "V": nn.Parameter(torch.randn(6, 10)),
        "c": nn.Parameter(torch.randn(1)),
        "w": nn.Parameter(torch.randn(6)),
    },
)
def ParameterProducts(self, x):
    """x @ W + b with plain parameters, F.linear with a scaled weight, addmm, a vector of weights."""
    h = torch.tanh(x @ self.W + self.b)
    h = torch.sin(F.linear(h, self.V / math.sqrt(10), self.c.expand(6)))
    return h.matmul(self.w) + self.c


@entry(3, (5,))
class TiedWeights(nn.Module):
    """An autoencoder whose decoder is the transposed encoder, a parameter shared by two layers."""

    def __init__(self):
        super().__init__()
        self.encoder, self.again = nn.Linear(5, 5), nn.Linear(5, 5)
        self.again.weight = self.encoder.weight
        self.offset = nn.Parameter(torch.randn(5))

    def forward(self, x):
        h = torch.tanh(self.again(torch.tanh(self.encoder(x))))
        return torch.addmm(self.offset, h, self.encoder.weight)


@network(
    4,
    (3,),
    parts=lambda: {
        "stem": nn.Linear(3, 8),
        "first": nn.Parameter(torch.randn(4, 8, 6)),
        "second": nn.Parameter(torch.randn(6)),
        "mix": nn.Parameter(torch.randn(4, 4)),
        "readout": nn.Parameter(torch.randn(2, 4, 6)),
    },
)
def Ensemble(self, x):
    """Members stacked along a first axis, evaluated by one einsum; mean and spread come out."""
    h = torch.einsum("...i,eio->...eo", torch.tanh(self.stem(x)), self.first)  # a linear node of 24 rows
    h = torch.tanh(h + self.second)
    h = torch.einsum("beo,me->bmo", h, self.mix)
    return torch.einsum("bmo,kmo->bk", h, self.readout)


# --- normalisation, dropout


@entry(3, (4,))
def normalized():
    net = nn.Sequential(
        nn.Linear(4, 12),
        nn.LayerNorm(12),
        nn.GELU(),
        nn.Dropout(0.5),
        nn.Linear(12, 12),
        nn.BatchNorm1d(12),
        nn.AlphaDropout(0.1),
        nn.ReLU(),
        nn.LayerNorm(12, elementwise_affine=False),
        nn.BatchNorm1d(12, affine=False),
        nn.Linear(12, 2),
    )
    net(torch.rand(64, 4))  # running statistics that are not 0 and 1
    return net.train()


@network(
    2,
    (4,),
    parts=lambda: {
        "first": nn.Linear(4, 6),
        "second": nn.Linear(12, 6),
        "norm": nn.RMSNorm(6, eps=1e-6),
        "scale": nn.Parameter(torch.rand(6)),
    },
)
def RMSNormalized(self, x):
    """Composite operators: root mean square norm, hstack, narrow, addcmul, movedim, outer differences."""
    h = self.norm(self.first(x))
    h = self.second(torch.hstack([h, torch.addcmul(h, h, self.scale)]))
    pairs = h[:, :, None] - h.unsqueeze(1).movedim(1, 1)
    return pairs.narrow(1, 0, 2).square().mean(dim=(1, 2)).unsqueeze(1) + torch.outer(h[:, 0], self.scale)


# --- tokens, shapes


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.tokens, self.channels = mlp(tokens, 10, tokens, activation=nn.GELU), mlp(width, 14, width)

    def forward(self, x):
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


@entry(10, (6, 3))
def mixer():
    blocks = [nn.Linear(3, 8), MixerBlock(6, 8), MixerBlock(6, 8), Apply(lambda x: x.mean(dim=1)), nn.Linear(8, 2)]
    return nn.Sequential(*blocks)


@network(3, (5, 3), parts=lambda: {"points": mlp(3, 8, 4), "out": nn.Linear(20, 2)})
def SetNetwork(self, x):
    """One network over every point of a sample, pooled; pair products by matmul of values."""
    h = self.points(x)
    gram = torch.matmul(h.transpose(-1, -2), h)
    pooled = torch.bmm(gram, h.permute(0, 2, 1)).reshape(x.shape[0], -1)
    return self.out(pooled)


@network(
    5,
    (4, 6),
    parts=lambda: {
        "left": nn.Parameter(torch.randn(5, 4)),
        "right": nn.Parameter(torch.randn(6, 3)),
        "heads": nn.Parameter(torch.randn(2, 3, 3) / 3),
        "out": nn.Linear(30, 7),
        "laplacian": nn.Parameter(torch.randn(7, 7) / 7),
    },
)
def GridMixing(self, x):
    """Constant matrices from the left, from both sides, with leading axes."""
    h = torch.tanh(self.left @ x @ self.right)
    h = torch.matmul(h[:, None], self.heads)
    return torch.einsum("ni,mn->mi", self.laplacian, self.laplacian) @ self.out(h.flatten(1)).unsqueeze(-1)


@network(2, (3, 4), parts=lambda: {"first": nn.Linear(12, 12), "second": nn.Linear(12, 12)})
def Shapes(self, x):
    """Every way to flatten and to bring back."""
    h = torch.sin(self.first(x.view(x.shape[0], -1)))
    h = h.reshape(-1, 12).unflatten(1, (3, 4)).permute(0, 2, 1).flatten(1)
    h = self.second(h).view(-1, 2, 6).swapaxes(1, 2).reshape(h.size(0), 12)
    return h.unsqueeze(1).expand(-1, 2, -1).sum(dim=1) + h[:, None].squeeze(1).view_as(h)


@network(
    2,
    (2,),
    parts=lambda: {
        "token": nn.Parameter(torch.randn(3)),
        "code": nn.Parameter(torch.randn(1, 2)),
        "first": nn.Linear(14, 8),
        "second": nn.Linear(8, 1),
    },
)
def MaterializedConstants(self, x):
    """Constants that are repeated over the batch by hand."""
    n = x.shape[0]
    parts = [
        x,
        torch.ones_like(x[:, :1]),
        torch.zeros(n, 1, dtype=x.dtype),
        x.new_full((n, 1), 0.5),
        torch.full((n, 1), 0.75, dtype=x.dtype),
        self.token.expand(n, -1),
        self.code.repeat(n, 1),
        self.code.expand_as(x),
        x[:, :1].repeat(1, 2) * x.new_ones(2),
    ]
    h = torch.cat([*parts[:-1], parts[-1][:, :1]], dim=1)
    return self.second(torch.tanh(self.first(h))) + torch.full_like(x[:, :1], 2.0) + torch.zeros_like(x).sum(1, True)


# --- number types and odd layers


@entry(3, (2,))
def float64():
    return mlp(2, 16, 16, 1).double()


@entry(3, (2,))
def float16():
    return mlp(2, 16, 16, 1).half()


@entry(3, (2,))
def bfloat16():
    return mlp(2, 16, 16, 1, activation=nn.SiLU).bfloat16()


@network(3, (2,), parts=lambda: {"net": mlp(2, 16, 16, 1)})
def CastInside(self, x):
    """Computes its features in double, whatever comes in."""
    return self.net(torch.sin(x.to(torch.float64)).type_as(x)).to(x.dtype)


@network(3, (3,), parts=lambda: {"net": mlp(6, 12, 12, 1)})
def Steps(self, x):
    """Switched features: signs and Heaviside's function of coordinates, beside the coordinates."""
    side = torch.heaviside(x[:, :1] - 0.5, torch.zeros((), dtype=x.dtype))
    return self.net(torch.cat((x, torch.sign(x[:, 1:] - 0.25), side), dim=1))


@entry(1, (0,))
def no_features():
    return nn.Linear(0, 5)


@entry(2, (3,))
def no_outputs():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 0))


@entry(3, (1,))
def one_unit():
    return mlp(1, 1, 1, 1)


@cache
def captured(name: str) -> Program:
    """The program of a network of the zoo, captured once."""
    return capture(ZOO[name].build(), ZOO[name].inputs(2))


PROGRAMS = Path(__file__).with_name("zoo_programs.json")
TORCH = ".".join(torch.__version__.split(".")[:2])  # another torch gives its graphs other names


def digest(program: Program) -> str:
    """Of names, order, attributes and shapes; not of the numbers, which depend on how torch draws them."""
    constants = [[k, list(c.shape)] for k, c in program.constants.items()]
    return hashlib.sha256(json.dumps([program.to_header(), constants]).encode()).hexdigest()[:16]


# What a slow backend is tried on in every run; `make test-all` tries it on the rest.
SOME_OF_THE_ZOO = [
    pytest.param(name, marks=() if k % 4 == 0 else pytest.mark.slow) for k, name in enumerate(sorted(ZOO))
]


if __name__ == "__main__":
    record = {"torch": TORCH, "digests": {name: digest(captured(name)) for name in sorted(ZOO)}}
    PROGRAMS.write_text(json.dumps(record, indent=1) + "\n")
