"""More of the plain networks: operators, ensembles, KANs, activations, odd shapes. See public_plain.py."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from architectures.public_plain import L, Net, add, add_activation, rand, seq
from zoo_pinns import mlp

five = lambda: nn.ModuleList(mlp(2, 8, 1) for _ in range(5))  # noqa: E731


def spread(dim: int) -> Any:
    def forward(s: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.stack([m(x) for m in s.m], dim)
        return y.mean(dim), y.var(dim) if dim else y.std(dim)

    return forward


add("deep ensemble mean and std", (2,), lambda: Net(spread(0), m=five()))
add("ensemble stacked on dim 1, mean and var", (2,), lambda: Net(spread(1), m=five()))
add("ensemble by sum", (2,), lambda: Net(lambda s, x: sum(m(x) for m in s.m) / 5, m=five()))
add(
    "batched ensemble einsum",
    (2,),
    lambda: Net(
        lambda s, x: torch.einsum("bei,eio->beo", torch.tanh(torch.einsum("bi,eio->beo", x, s.a)), s.b),
        a=rand(5, 2, 8),
        b=rand(5, 8, 1),
    ),
)
pair = lambda: {"b": mlp(10, 16, 8), "t": mlp(2, 16, 8)}  # noqa: E731
add(
    "DeepONet unaligned two inputs",
    [(10,), (2,)],
    lambda: Net(lambda s, f, x: (s.b(f) * s.t(x)).sum(-1, keepdim=True), **pair()),
)
add(
    "DeepONet fixed trunk grid",
    (10,),
    lambda: Net(lambda s, f: torch.einsum("bi,ni->bn", s.b(f), s.t(s.grid)), grid=rand(12, 2), **pair()),
)
add(
    "DeepONet cartesian (trunk rows not batch)",
    lambda: (rand(16, 10), rand(12, 2).expand(16, 12, 2)),
    lambda: Net(lambda s, f, x: torch.einsum("bi,ni->bn", s.b(f), s.t(x[0])), **pair()),
)
add(
    "DeepONet query points per sample 3d",
    [(10,), (6, 2)],
    lambda: Net(lambda s, f, x: torch.einsum("bi,bni->bn", s.b(f), s.t(x)), **pair()),
)
add(
    "MIONet",
    [(10,), (10,), (2,)],
    lambda: Net(lambda s, f, g, x: (s.b(f) * s.c(g) * s.t(x)).sum(-1, keepdim=True), c=mlp(10, 16, 8), **pair()),
)
add(
    "POD-DeepONet",
    (10,),
    lambda: Net(lambda s, f: s.b(f) @ s.modes + s.mean, b=mlp(10, 16, 8), modes=rand(8, 20), mean=rand(20)),
)


def hyper(s: Any, f: Tensor, x: Tensor) -> Tensor:
    return s.o(torch.tanh(torch.bmm(x[:, None], s.h(f).view(-1, 2, 8))[:, 0]))


add("hypernetwork bmm", [(10,), (2,)], lambda: Net(hyper, h=mlp(10, 16, 16), o=L(8, 1)))


def experts(s: Any, x: Tensor) -> Tensor:
    return (torch.softmax(s.g(x), -1)[:, None] * torch.stack([m(x) for m in s.m], -1)).sum(-1)


def top2(s: Any, x: Tensor) -> Tensor:
    values, places = s.g(x).topk(2, dim=-1)
    gates = torch.zeros_like(s.g(x)).scatter(1, places, torch.softmax(values, -1))
    return (gates[:, None] * torch.stack([m(x) for m in s.m], -1)).sum(-1)


add("mixture of experts softmax", (2,), lambda: Net(experts, g=L(2, 5), m=five()))
add("mixture of experts top-2", (2,), lambda: Net(top2, g=L(2, 5), m=five()))


def rk4(s: Any, x: Tensor) -> Tensor:
    for _ in range(4):
        a = s.f(x)
        b = s.f(x + 0.05 * a)
        c = s.f(x + 0.05 * b)
        x = x + 0.1 / 6 * (a + 2 * b + 2 * c + s.f(x + 0.1 * c))
    return x


add("neural ODE RK4 x4 unrolled", (2,), lambda: Net(rk4, f=mlp(2, 16, 2)))
add(
    "RBF net cdist",
    (2,),
    lambda: Net(lambda s, x: s.o(torch.exp(-torch.cdist(x, s.c).square())), c=rand(16, 2), o=L(16, 1)),
)
add(
    "RBF net broadcast",
    (2,),
    lambda: Net(lambda s, x: s.o(torch.exp(-(x[:, None] - s.c).square().sum(-1))), c=rand(16, 2), o=L(16, 1)),
)
add("wavelet sinc net", (2,), lambda: Net(lambda s, x: s.o(torch.sinc(s.a(x))), a=L(2, 8), o=L(8, 1)))


def splines(s: Any, x: Tensor) -> Tensor:
    x, g = x[:, :, None], s.grid
    basis = ((x >= g[:-1]) & (x < g[1:])).to(x.dtype)
    for k in range(1, 4):
        left = (x - g[: -(k + 1)]) / (g[k:-1] - g[: -(k + 1)]) * basis[:, :, :-1]
        basis = left + (g[k + 1 :] - x) / (g[k + 1 :] - g[1:-k]) * basis[:, :, 1:]
    return F.linear(F.silu(x[:, :, 0]), s.w) + F.linear(basis.flatten(1), s.c)


add("efficient-KAN B-splines", (2,), lambda: Net(splines, grid=torch.linspace(-1, 2, 12), w=rand(4, 2), c=rand(4, 16)))
add(
    "Chebyshev KAN (acos)",
    (2,),
    lambda: Net(
        lambda s, x: torch.einsum("bid,iod->bo", (torch.tanh(x)[:, :, None].acos() * torch.arange(5)).cos(), s.c),
        c=rand(2, 4, 5),
    ),
)
add(
    "FastKAN RBF",
    (2,),
    lambda: Net(
        lambda s, x: s.o(torch.exp(-((x[..., None] - s.g) ** 2)).flatten(1)), g=torch.linspace(-1, 1, 8), o=L(16, 1)
    ),
)


def hnn(s: Any, x: Tensor) -> Tensor:
    g = torch.func.vmap(torch.func.grad(lambda z: s.n(z).squeeze(-1)))(x)
    return torch.stack([g[:, 1], -g[:, 0]], -1)


def forces(s: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(s.n(x).sum(), x)[0]


add("Hamiltonian NN (torch.func.grad inside)", (2,), lambda: Net(hnn, n=mlp(2, 16, 1)))
add("autograd.grad inside (forces from energy)", (2,), lambda: Net(forces, n=mlp(2, 16, 1)))
add(
    "input-convex net",
    (2,),
    lambda: Net(
        lambda s, x: F.linear(F.softplus(s.a(x)), F.softplus(s.w)) + s.b(x), a=L(2, 8), w=rand(1, 8), b=L(2, 1)
    ),
)
add("classifier with softmax output", (2,), lambda: seq(mlp(2, 16, 4), nn.Softmax(-1)))
add("logsumexp output", (2,), lambda: Net(lambda s, x: torch.logsumexp(s.n(x), -1, keepdim=True), n=mlp(2, 16, 4)))
add(
    "softmax written with exp and sum",
    (2,),
    lambda: Net(lambda s, x: s.n(x).exp() / s.n(x).exp().sum(-1, keepdim=True), n=mlp(2, 16, 4)),
)
add("log10 in, 10** out (emulators)", (2,), lambda: Net(lambda s, x: 10 ** s.n(torch.log10(x + 1)), n=mlp(2, 16, 1)))
add(
    "remainder and floor of inputs",
    (2,),
    lambda: Net(lambda s, x: s.n(torch.remainder(x, 0.3) + torch.floor(5 * x)), n=mlp(2, 16, 1)),
)
add(
    "atan2 and tan",
    (2,),
    lambda: Net(
        lambda s, x: s.n(torch.stack([torch.atan2(x[:, 0], x[:, 1] + 1), torch.tan(x[:, 0])], -1)), n=mlp(2, 16, 1)
    ),
)
add(
    "std over features",
    (4,),
    lambda: Net(lambda s, x: s.n((x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 0.1)), n=mlp(4, 16, 1)),
)
add(
    "monotone by cumsum of softplus",
    (2,),
    lambda: Net(lambda s, x: torch.cumsum(F.softplus(s.n(x)), -1), n=mlp(2, 16, 4)),
)
add("amax over features", (4,), lambda: Net(lambda s, x: s.n(x).amax(-1, keepdim=True), n=mlp(4, 16, 4)))
add("prod over features", (4,), lambda: Net(lambda s, x: s.n(x).prod(-1, keepdim=True), n=mlp(4, 16, 4)))
add("GroupNorm MLP", (4,), lambda: Net(lambda s, x: s.o(s.g(s.a(x))), a=L(4, 8), g=nn.GroupNorm(2, 8), o=L(8, 1)))
for act in (
    nn.ReLU6,
    nn.Hardswish,
    nn.Softsign,
    nn.Tanhshrink,
    nn.Hardsigmoid,
    nn.SELU,
    nn.LogSigmoid,
    nn.Softshrink,
    nn.RReLU,
):
    add_activation(act.__name__, act)
add_activation("Threshold", lambda: nn.Threshold(0.1, 0.0))
add("activation GLU", (3,), lambda: seq(L(3, 16), nn.GLU(), L(8, 2)))
add("Bilinear layer", [(3,), (2,)], lambda: Net(lambda s, x, y: s.b(x, y), b=nn.Bilinear(3, 2, 4)))
add(
    "nn.Unflatten and permute",
    (6,),
    lambda: Net(
        lambda s, x: s.o(s.u(s.a(x)).permute(0, 2, 1).flatten(1)), a=L(6, 8), u=nn.Unflatten(1, (2, 4)), o=L(8, 1)
    ),
)
add("torch.vmap inside", (2,), lambda: Net(lambda s, x: torch.vmap(lambda v: s.n(v))(x), n=mlp(2, 16, 1)))
add("spectral_norm", (2,), lambda: seq(parametrizations.spectral_norm(L(2, 8)), nn.Tanh(), L(8, 1)))
add("orthogonal parametrization", (8,), lambda: seq(parametrizations.orthogonal(L(8, 8)), nn.Tanh(), L(8, 1)))


@torch.no_grad()
def without_gradients(s: Any, x: Tensor) -> Tensor:
    return s.n(x)


add("no_grad decorated forward", (2,), lambda: Net(without_gradients, n=mlp(2, 16, 1)))
add(
    "complex weights",
    (4,),
    lambda: Net(lambda s, x: (x.to(torch.complex64) @ torch.view_as_complex(s.w)).abs(), w=rand(4, 6, 2)),
)
add("scalar output squeezed", (2,), lambda: Net(lambda s, x: s.n(x).squeeze(-1), n=mlp(2, 16, 1)))
add("scalar output squeeze() of all", (2,), lambda: Net(lambda s, x: s.n(x).squeeze(), n=mlp(2, 16, 1)))


def timed(s: Any, x: Tensor, t: Tensor) -> Tensor:
    phase = t.reshape(-1, 1) * torch.exp(-torch.arange(4.0))
    return s.n(torch.cat([x, phase.sin(), phase.cos()], -1))


def bare(s: Any, x: Tensor, t: Tensor) -> Tensor:
    phase = t[:, None] * torch.exp(-torch.arange(4.0))
    return s.n(torch.cat([x, phase.sin(), phase.cos()], -1))


add("diffusion/flow-matching net with sinusoidal time", [(2,), (1,)], lambda: Net(timed, n=mlp(10, 16, 2)))
add("diffusion net, time of shape (batch,)", lambda: (rand(16, 2), rand(16)), lambda: Net(bare, n=mlp(10, 16, 2)))
