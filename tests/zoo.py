"""Small networks as scientists write them: what capture has to understand. Weights are seeded, nothing is trained."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class Entry:
    """A network: how to make it, the shape of one sample of each input, how many linear nodes its Program must have."""

    name: str
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    linear: int

    def build(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The same network on every call, in its own type or in `dtype`."""
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the old weight_norm is what old checkpoints hold
            warnings.filterwarnings("ignore", "Initializing zero-element tensors", UserWarning)
            torch.manual_seed(7)
            net = self.make()
        return net if dtype is None else net.to(dtype)

    def inputs(self, batch: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """Samples in (0, 1), as coordinates are."""
        generator = torch.Generator().manual_seed(11 + batch)
        return tuple(torch.rand(batch, *s, generator=generator, dtype=torch.float64).to(dtype) for s in self.shapes)


ZOO: dict[str, Entry] = {}


def entry(linear: int, *shapes: tuple[int, ...], name: str | None = None) -> Callable:
    """Register a class or a function without arguments that makes a network."""

    def register(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        key = name or make.__name__.lstrip("_")
        if key in ZOO:
            raise ValueError(f"two networks are called {key}")
        ZOO[key] = Entry(key, make, shapes, linear)
        return make

    return register


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), activation()]
    return nn.Sequential(*layers[:-1])


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# --- plain networks and activations

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "relu": nn.ReLU,
    "relu_in_place": lambda: nn.ReLU(inplace=True),
    "relu6": nn.ReLU6,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "softplus_beta": lambda: nn.Softplus(beta=2.5, threshold=30),
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "elu": nn.ELU,
    "elu_alpha": lambda: nn.ELU(alpha=0.3),
    "celu": lambda: nn.CELU(0.7),
    "selu": nn.SELU,
    "mish": nn.Mish,
    "prelu": nn.PReLU,
    "prelu_per_unit": lambda: nn.PReLU(16),
    "softsign": nn.Softsign,
    "logsigmoid": nn.LogSigmoid,
    "tanhshrink": nn.Tanhshrink,
    "hardtanh": lambda: nn.Hardtanh(-0.3, 0.4),
    "hardsigmoid": nn.Hardsigmoid,
    "hardswish": nn.Hardswish,
    "softsign_by_hand": lambda: Apply(lambda x: x / (1 + torch.abs(x))),
    "square": lambda: Apply(torch.square),
    "cube": lambda: Apply(lambda x: x**3),
    "gaussian": lambda: Apply(lambda x: torch.exp(-0.5 * x * x)),
    "multiquadric": lambda: Apply(lambda x: torch.sqrt(1 + x**2)),
    "inverse_multiquadric": lambda: Apply(lambda x: torch.rsqrt(1 + x.square())),
    "sinh_cosh": lambda: Apply(lambda x: torch.sinh(x) / torch.cosh(x) + 1 / torch.cosh(x)),
    "log_square": lambda: Apply(lambda x: torch.log(1 + x * x) + torch.log1p(x.pow(2)) + torch.expm1(-x.abs())),
    "erf_atan": lambda: Apply(lambda x: torch.erf(x) - 0.25 * torch.atan(-x)),
    "clamped": lambda: Apply(lambda x: x.clamp(-0.2, 0.3) + x.clamp(min=0.1) + torch.clamp_max(x, 0.2)),
    "max_min": lambda: Apply(lambda x: torch.maximum(x, 0.1 * x) - torch.minimum(x, torch.tanh(x))),
    "reciprocal": lambda: Apply(lambda x: torch.reciprocal(2 + x.sin()) + 1.0 / (3 - x.cos())),
    "two_to_the": lambda: Apply(lambda x: 2.0**x + torch.pow(x.abs() + 0.1, 1.5)),
    "rsub": lambda: Apply(lambda x: 1 - x + torch.rsub(x, 2.0, alpha=3)),
    "wavelet": lambda: Apply(lambda x: torch.cos(1.75 * x) * torch.exp(-(x**2) / 2)),
}
for _name, _activation in ACTIVATIONS.items():
    entry(3, (3,), name=f"mlp_{_name}")(lambda activation=_activation: mlp(3, 16, 16, 2, activation=activation))


@entry(5, (4,))
class Nested(nn.Module):
    """Sequentials in Sequentials, one module used twice."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.body = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.Tanh()), self.shared, nn.Identity(), self.shared)
        self.heads = nn.ModuleList([nn.Linear(8, 2), nn.Linear(8, 2)])

    def forward(self, x):
        h = self.body(x)
        return sum(head(h) for head in self.heads)


class Sine(nn.Module):
    """A SIREN layer."""

    def __init__(self, n: int, m: int, omega: float, first: bool = False):
        super().__init__()
        self.omega = omega
        self.linear = nn.Linear(n, m)
        bound = 1 / n if first else math.sqrt(6 / n) / omega
        nn.init.uniform_(self.linear.weight, -bound, bound)

    def forward(self, x):
        return torch.sin(self.omega * self.linear(x))


@entry(4, (2,))
def siren():
    return nn.Sequential(Sine(2, 24, 30.0, first=True), Sine(24, 24, 30.0), Sine(24, 24, 30.0), nn.Linear(24, 3))


@entry(3, (2,))
class LearnedSlope(nn.Module):
    """x (b + sigmoid(a x) (1 - b)), the slopes a and b learned per unit."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 12), nn.Linear(12, 12), nn.Linear(12, 1)])
        self.a = nn.ParameterList([torch.rand(12) for _ in range(2)])
        self.b = nn.ParameterList([torch.rand(12) for _ in range(2)])

    def forward(self, x):
        for layer, a, b in zip(self.layers[:-1], self.a, self.b, strict=True):
            z = layer(x)
            x = z * (b + torch.sigmoid(a * z) * (1 - b))
        return self.layers[-1](x)


@entry(3, (2,))
class AdaptiveTanh(nn.Module):
    """DeepXDE's layer-wise locally adaptive activation, tanh(n a x)."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 12), nn.Linear(12, 12), nn.Linear(12, 1)])
        self.a = nn.ParameterList([torch.tensor([0.1]), torch.tensor(0.12)])
        self.n = 10

    def forward(self, x):
        for layer, a in zip(self.layers[:-1], self.a, strict=True):
            x = torch.tanh(self.n * a * layer(x))
        return self.layers[-1](x)


# --- inputs and outputs


@entry(3, (2,))
class FourierFeatures(nn.Module):
    """A fixed random projection, sines and cosines of it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("B", torch.randn(2, 8))
        self.net = mlp(16, 16, 1, activation=nn.SiLU)

    def forward(self, x):
        projected = 2 * torch.pi * x @ self.B
        return self.net(torch.cat([torch.sin(projected), torch.cos(projected)], dim=-1))


@entry(2, (2,))
class PlainTensorFeatures(nn.Module):
    """The same with frequencies that are no registered buffer, on every coordinate."""

    def __init__(self):
        super().__init__()
        self.frequencies = 2.0 ** torch.arange(3)
        self.net = mlp(12, 16, 1)

    def forward(self, x):
        angles = (x[:, :, None] * self.frequencies.to(x)).flatten(1)
        return self.net(torch.cat((angles.sin(), angles.cos()), 1))


@entry(3, (2,))
class Periodic(nn.Module):
    """Exactly periodic in x, by hand-picked columns."""

    def __init__(self):
        super().__init__()
        self.net = mlp(3, 16, 16, 2)

    def forward(self, inputs):
        x, t = inputs[:, 0], inputs[:, 1]
        return self.net(torch.stack([torch.cos(math.pi * x), torch.sin(math.pi * x), t], dim=1))


@entry(3, (2,))
class HardBoundary(nn.Module):
    """x (1 - x) t net(x, t) + sin(pi x): boundary and initial conditions hold by construction."""

    def __init__(self):
        super().__init__()
        self.net = mlp(2, 16, 16, 1)

    def forward(self, inputs):
        x, t = inputs[:, 0:1], inputs[:, 1:2]
        return x * (1 - x) * t * self.net(inputs) + torch.sin(torch.pi * x)


@entry(3, (2,))
class NormalizedBoundary(nn.Module):
    """Input and output normalisation by buffers around a hard boundary condition, columns taken by a list."""

    def __init__(self):
        super().__init__()
        self.net = mlp(2, 16, 16, 3, activation=nn.GELU)
        self.register_buffer("mean", torch.tensor([0.3, 0.6]))
        self.register_buffer("std", torch.tensor([0.5, 1.5]))
        self.register_buffer("low", torch.tensor([-1.0, 0.0, 2.0]))
        self.register_buffer("high", torch.tensor([1.0, 3.0, 5.0]), persistent=False)

    def forward(self, x):
        y = self.net((x - self.mean) / self.std)
        y = self.low + (self.high - self.low) * (y + 1) / 2
        return y[:, [2, 0]] * (1 - torch.exp(-x[:, :1])) + y[..., -2].unsqueeze(-1)


@entry(2, (2,))
class NoGradNormalization(nn.Module):
    """Statistics under no_grad and a detach, as in training scripts."""

    def __init__(self):
        super().__init__()
        self.net = mlp(2, 8, 1)

    def forward(self, x, scale: float = 2.0, shift: Tensor | None = None):
        with torch.no_grad():
            z = scale * x - 1
        z = z if shift is None else z + shift
        return self.net(z.detach().clone().contiguous())


@entry(2, (2,))
class AssignedColumns(nn.Module):
    """Writes into a copy of its input and adds in place."""

    def __init__(self):
        super().__init__()
        self.net = mlp(3, 12, 3)

    def forward(self, x):
        z = torch.zeros(x.shape[0], 3, dtype=x.dtype)
        z[:, 0] = x[:, 1] ** 2
        z[:, 1:] = torch.sin(x)
        h = self.net(z)
        h += z
        h[:, 1:2] *= 2
        return h.mul_(0.5)


# --- residuals, gates, branches


class ResidualBlock(nn.Module):
    def __init__(self, n: int):
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(n, n), nn.Linear(n, n), nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        return x + self.scale * self.second(torch.tanh(self.first(torch.tanh(x))))


@entry(6, (3,))
def residual():
    return nn.Sequential(nn.Linear(3, 12), ResidualBlock(12), ResidualBlock(12), nn.Linear(12, 2))


@entry(3, (3,))
class SkipConcat(nn.Module):
    """DeepSDF-like: the input joins again half-way."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 13), nn.Linear(16, 16), nn.Linear(19, 1)

    def forward(self, x):
        h = F.softplus(self.first(x), beta=10)
        h = F.softplus(self.second(torch.cat([h, x], 1)))
        return self.third(torch.concat((h, x), dim=-1))


@entry(5, (2,))
class ModifiedMLP(nn.Module):
    """Wang's gated network: every hidden layer blends two encodings U and V of the input."""

    def __init__(self):
        super().__init__()
        self.u, self.v = nn.Linear(2, 12), nn.Linear(2, 12)
        self.hidden = nn.ModuleList([nn.Linear(2, 12), nn.Linear(12, 12)])
        self.out = nn.Linear(12, 1)

    def forward(self, x):
        u, v = torch.tanh(self.u(x)), torch.tanh(self.v(x))
        h = x
        for layer in self.hidden:
            z = torch.tanh(layer(h))
            h = z * u + (1 - z) * v
        return self.out(h)


@entry(8, (2,))
class PirateNet(nn.Module):
    """Wang's adaptive residual blocks, random weight factorisation W = exp(s) V, Fourier features."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.randn(2, 6))
        self.u, self.v, self.out = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 1, bias=False)
        self.factors = nn.ParameterList([torch.randn(12, 12) / 4 for _ in range(4)])
        self.scales = nn.ParameterList([0.1 * torch.randn(12) for _ in range(4)])
        self.alphas = nn.ParameterList([torch.tensor(0.2), torch.tensor(0.4)])

    def dense(self, k, x):
        return F.linear(x, torch.exp(self.scales[k])[:, None] * self.factors[k])

    def forward(self, x):
        y = x @ self.kernel
        h = torch.cat([y.cos(), y.sin()], -1)
        u, v = torch.tanh(self.u(h)), torch.tanh(self.v(h))
        for k, alpha in enumerate(self.alphas):
            f = torch.tanh(self.dense(2 * k, h))
            z = f * u + (1 - f) * v
            h = alpha * torch.tanh(self.dense(2 * k + 1, z)) + (1 - alpha) * h
        return self.out(h)


@entry(4, (4,))
class Branches(nn.Module):
    """split, chunk, unbind and stack."""

    def __init__(self):
        super().__init__()
        self.stem, self.wide, self.left, self.right = (
            nn.Linear(4, 12),
            nn.Linear(12, 12),
            nn.Linear(5, 4),
            nn.Linear(7, 4),
        )

    def forward(self, x):
        h = torch.relu(self.stem(x))
        a, b = torch.split(h, [5, 7], dim=-1)
        value, gate = self.wide(h).chunk(2, dim=1)
        p, q, r = (value * torch.sigmoid(gate)).reshape(-1, 3, 2).unbind(1)
        heads = torch.stack((self.left(a), self.right(b)), dim=-1)
        first, *_ = h.split(5, 1)
        return heads.mean(-1) + torch.cat([p * q, r], dim=1) + first[:, ::2].sum(1, keepdim=True)


@entry(4, (3,))
class Outputs(nn.Module):
    """Several heads, returned as a tuple."""

    def __init__(self):
        super().__init__()
        self.trunk = mlp(3, 10, 10)
        self.velocity, self.pressure = nn.Linear(10, 2), nn.Linear(10, 1)

    def forward(self, x):
        h = torch.tanh(self.trunk(x))
        return self.velocity(h), self.pressure(h).squeeze(-1)


@entry(4, (3,))
class DictOutputs(Outputs):
    """The same as a dictionary, the input passed through."""

    def forward(self, x):
        velocity, pressure = super().forward(x)
        return {"u": velocity, "p": pressure, "x": x}


@entry(3, (1,), (1,), (2,))
class ManyInputs(nn.Module):
    """forward(*xs)."""

    def __init__(self):
        super().__init__()
        self.net = mlp(4, 12, 12, 1)

    def forward(self, *xs):
        return self.net(torch.cat(xs, dim=1))


@entry(3, (2,), (2,), (1,))
class FirstAndRest(nn.Module):
    """forward(x, *parameters), and an argument that has a default."""

    def __init__(self):
        super().__init__()
        self.net = mlp(3, 12, 12, 1)

    def forward(self, x, *parameters, bias: float = 0.25):
        first, second = parameters
        return self.net(torch.cat((x * first, second), dim=1)) + bias


@entry(2, (2,), (3,))
class UnusedInput(nn.Module):
    """An argument that the network no longer reads."""

    def __init__(self):
        super().__init__()
        self.net = mlp(2, 12, 1)

    def forward(self, x, unused):
        return self.net(x)


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


@entry(3, (10,))
class PODDeepONet(nn.Module):
    """A branch network over fixed modes, plus their mean."""

    def __init__(self):
        super().__init__()
        self.branch = mlp(10, 16, 8)
        self.register_buffer("modes", torch.randn(30, 8))
        self.register_buffer("mean", torch.randn(30))

    def forward(self, f):
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


@entry(3, (3,))
class ParameterProducts(nn.Module):
    """x @ W + b with plain parameters, F.linear with a scaled weight, addmm, a vector of weights."""

    def __init__(self):
        super().__init__()
        self.W, self.b = nn.Parameter(torch.randn(3, 10)), nn.Parameter(torch.randn(10))
        self.V, self.c = nn.Parameter(torch.randn(6, 10)), nn.Parameter(torch.randn(1))
        self.w = nn.Parameter(torch.randn(6))

    def forward(self, x):
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


@entry(4, (3,))
class Ensemble(nn.Module):
    """Members stacked along a first axis, evaluated by one einsum; mean and spread come out."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.first, self.second = nn.Parameter(torch.randn(4, 8, 6)), nn.Parameter(torch.randn(6))
        self.mix, self.readout = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(2, 4, 6))

    def forward(self, x):
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


@entry(2, (4,))
class RMSNormalized(nn.Module):
    """Composite operators: root mean square norm, hstack, narrow, addcmul, movedim, outer differences."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(4, 6), nn.Linear(12, 6), nn.RMSNorm(6, eps=1e-6)
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x):
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


@entry(3, (5, 3))
class SetNetwork(nn.Module):
    """One network over every point of a sample, pooled; pair products by matmul of values."""

    def __init__(self):
        super().__init__()
        self.points, self.out = mlp(3, 8, 4), nn.Linear(20, 2)

    def forward(self, x):
        h = self.points(x)
        gram = torch.matmul(h.transpose(-1, -2), h)
        pooled = torch.bmm(gram, h.permute(0, 2, 1)).reshape(x.shape[0], -1)
        return self.out(pooled)


@entry(4, (4, 6))
class GridMixing(nn.Module):
    """Constant matrices from the left, from both sides, with leading axes."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(6, 3))
        self.heads, self.out = nn.Parameter(torch.randn(2, 3, 3) / 3), nn.Linear(30, 7)
        self.laplacian = nn.Parameter(torch.randn(7, 7) / 7)

    def forward(self, x):
        h = torch.tanh(self.left @ x @ self.right)
        h = torch.matmul(h[:, None], self.heads)
        return torch.einsum("ni,mn->mi", self.laplacian, self.laplacian) @ self.out(h.flatten(1)).unsqueeze(-1)


@entry(2, (3, 4))
class Shapes(nn.Module):
    """Every way to flatten and to bring back."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x):
        h = torch.sin(self.first(x.view(x.shape[0], -1)))
        h = h.reshape(-1, 12).unflatten(1, (3, 4)).permute(0, 2, 1).flatten(1)
        h = self.second(h).view(-1, 2, 6).swapaxes(1, 2).reshape(h.size(0), 12)
        return h.unsqueeze(1).expand(-1, 2, -1).sum(dim=1) + h[:, None].squeeze(1).view_as(h)


@entry(2, (2,))
class MaterializedConstants(nn.Module):
    """Constants that are repeated over the batch by hand."""

    def __init__(self):
        super().__init__()
        self.token, self.code = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(1, 2))
        self.first, self.second = nn.Linear(14, 8), nn.Linear(8, 1)

    def forward(self, x):
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
        return (
            self.second(torch.tanh(self.first(h))) + torch.full_like(x[:, :1], 2.0) + torch.zeros_like(x).sum(1, True)
        )


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


@entry(3, (2,))
class CastInside(nn.Module):
    """Computes its features in double, whatever comes in."""

    def __init__(self):
        super().__init__()
        self.net = mlp(2, 16, 16, 1)

    def forward(self, x):
        return self.net(torch.sin(x.to(torch.float64)).type_as(x)).to(x.dtype)


@entry(3, (3,))
class Steps(nn.Module):
    """Switched features: signs and Heaviside's function of coordinates, beside the coordinates."""

    def __init__(self):
        super().__init__()
        self.net = mlp(6, 12, 12, 1)

    def forward(self, x):
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


# What a slow backend is tried on in every run; `make test-all` tries it on the rest.
SOME_OF_THE_ZOO = [
    pytest.param(name, marks=() if k % 4 == 0 else pytest.mark.slow) for k, name in enumerate(sorted(ZOO))
]
