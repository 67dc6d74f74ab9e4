"""The first half of the zoo: how its networks are written down, activations, PINNs, residuals and branches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def network(linear: int, *shapes: tuple[int, ...], parts: Callable[[], dict[str, object]]) -> Callable:
    """Register a module from its `forward` and what it holds: modules, parameters, numbers; tensors become buffers."""

    def register(forward: Callable) -> Callable[[], nn.Module]:
        def __init__(self):
            nn.Module.__init__(self)
            for name, part in parts().items():
                self.register_buffer(name, part) if type(part) is Tensor else setattr(self, name, part)

        members = {"__init__": __init__, "forward": forward, "__doc__": forward.__doc__}
        return entry(linear, *shapes)(type(forward.__name__, (nn.Module,), members))

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


@network(
    3,
    (2,),
    parts=lambda: {
        "layers": nn.ModuleList([nn.Linear(2, 12), nn.Linear(12, 12), nn.Linear(12, 1)]),
        "a": nn.ParameterList([torch.rand(12) for _ in range(2)]),
        "b": nn.ParameterList([torch.rand(12) for _ in range(2)]),
    },
)
def LearnedSlope(self, x):
    """x (b + sigmoid(a x) (1 - b)), the slopes a and b learned per unit."""
    for layer, a, b in zip(self.layers[:-1], self.a, self.b, strict=True):
        z = layer(x)
        x = z * (b + torch.sigmoid(a * z) * (1 - b))
    return self.layers[-1](x)


@network(
    3,
    (2,),
    parts=lambda: {
        "layers": nn.ModuleList([nn.Linear(2, 12), nn.Linear(12, 12), nn.Linear(12, 1)]),
        "a": nn.ParameterList([torch.tensor([0.1]), torch.tensor(0.12)]),
        "n": 10,
    },
)
def AdaptiveTanh(self, x):
    """DeepXDE's layer-wise locally adaptive activation, tanh(n a x)."""
    for layer, a in zip(self.layers[:-1], self.a, strict=True):
        x = torch.tanh(self.n * a * layer(x))
    return self.layers[-1](x)


# --- inputs and outputs


@network(3, (2,), parts=lambda: {"B": torch.randn(2, 8), "net": mlp(16, 16, 1, activation=nn.SiLU)})
def FourierFeatures(self, x):
    """A fixed random projection, sines and cosines of it."""
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


@network(3, (2,), parts=lambda: {"net": mlp(3, 16, 16, 2)})
def Periodic(self, inputs):
    """Exactly periodic in x, by hand-picked columns."""
    x, t = inputs[:, 0], inputs[:, 1]
    return self.net(torch.stack([torch.cos(math.pi * x), torch.sin(math.pi * x), t], dim=1))


@network(3, (2,), parts=lambda: {"net": mlp(2, 16, 16, 1)})
def HardBoundary(self, inputs):
    """x (1 - x) t net(x, t) + sin(pi x): boundary and initial conditions hold by construction."""
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


@network(2, (2,), parts=lambda: {"net": mlp(2, 8, 1)})
def NoGradNormalization(self, x, scale: float = 2.0, shift: Tensor | None = None):
    """Statistics under no_grad and a detach, as in training scripts."""
    with torch.no_grad():
        z = scale * x - 1
    z = z if shift is None else z + shift
    return self.net(z.detach().clone().contiguous())


@network(2, (2,), parts=lambda: {"net": mlp(3, 12, 3)})
def AssignedColumns(self, x):
    """Writes into a copy of its input and adds in place."""
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


@network(3, (3,), parts=lambda: {"first": nn.Linear(3, 13), "second": nn.Linear(16, 16), "third": nn.Linear(19, 1)})
def SkipConcat(self, x):
    """DeepSDF-like: the input joins again half-way."""
    h = F.softplus(self.first(x), beta=10)
    h = F.softplus(self.second(torch.cat([h, x], 1)))
    return self.third(torch.concat((h, x), dim=-1))


@network(
    5,
    (2,),
    parts=lambda: {
        "u": nn.Linear(2, 12),
        "v": nn.Linear(2, 12),
        "hidden": nn.ModuleList([nn.Linear(2, 12), nn.Linear(12, 12)]),
        "out": nn.Linear(12, 1),
    },
)
def ModifiedMLP(self, x):
    """Wang's gated network: every hidden layer blends two encodings U and V of the input."""
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


@network(
    4,
    (4,),
    parts=lambda: {
        "stem": nn.Linear(4, 12),
        "wide": nn.Linear(12, 12),
        "left": nn.Linear(5, 4),
        "right": nn.Linear(7, 4),
    },
)
def Branches(self, x):
    """split, chunk, unbind and stack."""
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


@network(3, (1,), (1,), (2,), parts=lambda: {"net": mlp(4, 12, 12, 1)})
def ManyInputs(self, *xs):
    """forward(*xs)."""
    return self.net(torch.cat(xs, dim=1))


@network(3, (2,), (2,), (1,), parts=lambda: {"net": mlp(3, 12, 12, 1)})
def FirstAndRest(self, x, *parameters, bias: float = 0.25):
    """forward(x, *parameters), and an argument that has a default."""
    first, second = parameters
    return self.net(torch.cat((x * first, second), dim=1)) + bias


@network(2, (2,), (3,), parts=lambda: {"net": mlp(2, 12, 1)})
def UnusedInput(self, x, unused):
    """An argument that the network no longer reads."""
    return self.net(x)
