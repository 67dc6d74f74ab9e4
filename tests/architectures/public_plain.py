"""Small versions of the plain networks among the public ones, by name: what makes a network, and rows of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from zoo_pinns import Apply, mlp

Made = tuple[nn.Module, Any]
PLAIN: dict[str, Callable[[], Made]] = {}
rand, seq, L = torch.rand, nn.Sequential, nn.Linear


class Net(nn.Module):
    """A forward and its parts; tensors become parameters."""

    def __init__(self, forward: Callable[..., Any], **parts: Any):
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if type(part) is Tensor else part)

    def forward(self, *x: Any) -> Any:
        return self.function(self, *x)


def add(name: str, shape: Any, make: Callable[[], nn.Module]) -> None:
    """shape: of a batch of one input, a list of several, or a function that makes inputs."""
    if callable(shape):
        PLAIN[name] = lambda: (make(), shape())
    elif isinstance(shape, list):
        PLAIN[name] = lambda: (make(), tuple(rand(16, *s) for s in shape))
    else:
        PLAIN[name] = lambda: (make(), rand(16, *shape))


def add_activation(name: str, act: Callable[[], nn.Module]) -> None:
    add(f"activation {name}", (3,), lambda: mlp(3, 16, 2, activation=act))


def unet(conv: Any, pool: Any, up: Any) -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        a = s.e1(x)
        return s.out(torch.cat([s.up(s.e2(s.pool(a))), a], dim=1))

    e1, e2 = seq(conv(1, 4, 3, padding=1), nn.ReLU()), seq(conv(4, 8, 3, padding=1), nn.ReLU())
    return Net(forward, e1=e1, e2=e2, pool=pool(2), up=up(8, 4, 2, stride=2), out=conv(8, 1, 3, padding=1))


c1, c2 = nn.Conv1d, nn.Conv2d
add("Conv1d net", (2, 16), lambda: seq(c1(2, 4, 3, padding=1), nn.Tanh(), c1(4, 1, 3)))
add("Conv1d kernel 1 only", (2, 16), lambda: seq(c1(2, 8, 1), nn.Tanh(), c1(8, 1, 1)))
add("CNN 2d encoder regressor", (1, 8, 8), lambda: seq(c2(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), L(36, 2)))
add("CNN 2d flatten MLP head (most weights linear)", (1, 8, 8), lambda: seq(c2(1, 4, 3), nn.Flatten(), mlp(144, 16, 2)))
add("U-Net 1d", (1, 16), lambda: unet(c1, nn.MaxPool1d, nn.ConvTranspose1d))
add("U-Net 2d", (1, 8, 8), lambda: unet(c2, nn.MaxPool2d, nn.ConvTranspose2d))
add("conv autoencoder 2d", (1, 8, 8), lambda: seq(c2(1, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 1, 2, 2)))
add("pixel-wise MLP on images (channels last)", (8, 8, 3), lambda: mlp(3, 16, 2))


def spectral(dims: int) -> nn.Module:
    def forward(s: Any, x: Tensor) -> Tensor:
        for weight, skip in zip(s.weights, s.skips, strict=True):
            z = torch.fft.rfftn(x, dim=s.axes)
            cut = z[..., :4] if dims == 1 else z[:, :, :4, :4]
            y = torch.einsum("bixy,ioxy->boxy" if dims == 2 else "bix,iox->box", cut, torch.view_as_complex(weight))
            out = torch.zeros_like(z)
            out[(..., slice(0, 4))[-1:] if False else (slice(None),) * 2 + (slice(0, 4),) * dims] = y
            x = F.gelu(torch.fft.irfftn(out, s=x.shape[2:], dim=s.axes) + skip(x))
        return s.last(x)

    conv = c1 if dims == 1 else c2
    weights = nn.ParameterList(0.1 * rand(4, 4, *[4] * dims, 2) for _ in range(2))
    net = Net(forward, weights=weights, skips=nn.ModuleList(conv(4, 4, 1) for _ in range(2)), last=conv(4, 1, 1))
    net.axes = (-1,) if dims == 1 else (-2, -1)
    return net


add("FNO 1d plain rfft", (4, 16), lambda: spectral(1))
add("FNO 2d plain rfft2", (4, 8, 8), lambda: spectral(2))


def by_matrices(basis: Tensor) -> nn.Module:
    net = Net(lambda s, x: s.out(torch.tanh(torch.einsum("mn,bnc->bmc", s.basis, x) @ s.w)), w=rand(4, 8), out=L(8, 1))
    net.register_buffer("basis", basis)
    return net


add(
    "FNO 1d real DFT matrices",
    (16, 4),
    lambda: by_matrices(torch.cos(torch.outer(torch.arange(8.0), torch.arange(16.0)))),
)
add("wavelet/Chebyshev spectral conv by matrices", (16, 4), lambda: by_matrices(rand(8, 16)))
for cell, kind in (("LSTM", nn.LSTM), ("GRU", nn.GRU), ("RNN tanh", nn.RNN)):
    add(
        f"{cell} surrogate",
        (6, 3),
        lambda kind=kind: Net(lambda s, x: s.o(s.r(x)[0][:, -1]), r=kind(3, 8, 2, batch_first=True), o=L(8, 1)),
    )


def unrolled(s: Any, x: Tensor) -> Tensor:
    h = x.new_zeros(x.shape[0], 8)
    state = (h, h) if isinstance(s.c, nn.LSTMCell) else h
    for k in range(4):
        state = s.c(x[:, k], state)
    return s.o(state[0] if isinstance(state, tuple) else state)


add("LSTMCell unrolled", (4, 3), lambda: Net(unrolled, c=nn.LSTMCell(3, 8), o=L(8, 1)))
add("GRUCell unrolled", (4, 3), lambda: Net(unrolled, c=nn.GRUCell(3, 8), o=L(8, 1)))
add(
    "TCN causal dilated",
    (2, 16),
    lambda: seq(nn.ConstantPad1d((4, 0), 0.0), c1(2, 4, 3, dilation=2), nn.ReLU(), c1(4, 1, 1)),
)
add(
    "Transformer encoder layer (nn)",
    (5, 4),
    lambda: seq(L(4, 8), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), L(8, 1)),
)


def heads(s: Any, x: Tensor) -> list[Tensor]:
    return [v.reshape(-1, 5, 2, 4).transpose(1, 2) for v in s.qkv(x).chunk(3, dim=-1)]


def sdpa(s: Any, x: Tensor) -> Tensor:
    return s.o(F.scaled_dot_product_attention(*heads(s, x)).transpose(1, 2).flatten(2))


def written(s: Any, x: Tensor) -> Tensor:
    q, k, v = heads(s, x)
    return s.o((torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v).transpose(1, 2).flatten(2))


def galerkin(s: Any, x: Tensor) -> Tensor:
    q, k, v = heads(s, x)
    return s.o((q @ (k.transpose(-1, -2) @ v) / 5).transpose(1, 2).flatten(2))


for name, forward in (("SDPA block", sdpa), ("softmax written out", written), ("linear (Galerkin)", galerkin)):
    add(f"attention {name}", (5, 4), lambda forward=forward: Net(forward, qkv=L(4, 24), o=L(8, 1)))


def transolver(s: Any, x: Tensor) -> Tensor:
    w = torch.softmax(s.slice(x), dim=-1)
    token = torch.einsum("bng,bnc->bgc", w, s.v(x)) / (w.sum(1)[:, :, None] + 1e-5)
    return s.o(torch.einsum("bgc,bng->bnc", s.t(token), w))


add("Transolver physics attention", (12, 4), lambda: Net(transolver, slice=L(4, 3), v=L(4, 8), t=L(8, 8), o=L(8, 1)))


def gnot(s: Any, x: Tensor, f: Tensor) -> Tensor:
    q, k, v = torch.softmax(s.q(x), -1), torch.softmax(s.k(f), -1), s.v(f)
    return s.o(q + (q @ (k.transpose(-1, -2) @ v)) / (q @ k.sum(1)[:, :, None]))


add("GNOT cross attention", [(6, 2), (10, 3)], lambda: Net(gnot, q=L(2, 8), k=L(3, 8), v=L(3, 8), o=L(8, 1)))
add(
    "Perceiver/ViT patch embed",
    (1, 8, 8),
    lambda: Net(lambda s, x: s.o(s.p(x).flatten(2).transpose(1, 2).mean(1)), p=c2(1, 8, 4, 4), o=L(8, 1)),
)


def mixed(s: Any, x: Tensor) -> Tensor:
    x = x + s.tokens(x.transpose(1, 2)).transpose(1, 2)
    return s.channels(x).mean(dim=1)


add("MLP-Mixer", (6, 4), lambda: Net(mixed, tokens=mlp(6, 12, 6), channels=mlp(4, 16, 2)))
add("PointNet max pool", (8, 3), lambda: Net(lambda s, x: s.o(s.p(x).max(dim=1)[0]), p=mlp(3, 16, 16), o=L(16, 1)))
add("PointNet mean pool", (8, 3), lambda: Net(lambda s, x: s.o(s.p(x).mean(dim=1)), p=mlp(3, 16, 16), o=L(16, 1)))
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])


def graph(how: str) -> nn.Module:
    adjacency = torch.zeros(6, 6).index_put((EDGES[1], EDGES[0]), torch.ones(6))

    def forward(s: Any, x: Tensor) -> Tensor:
        h = torch.tanh(s.a(x))
        if how == "dense":
            return s.b(adjacency @ h)
        if how == "sparse":
            return s.b(torch.stack([torch.sparse.mm(adjacency.to_sparse(), v) for v in h]))
        message = h[:, EDGES[0]]
        if how == "add":
            return s.b(torch.zeros_like(h).index_add(1, EDGES[1], message))
        return s.b(torch.zeros_like(h).scatter_add(1, EDGES[1][None, :, None].expand_as(message), message))

    return Net(forward, a=L(4, 8), b=L(8, 2))


add("GNN fixed graph dense adjacency", (6, 4), lambda: graph("dense"))
add("GNN fixed graph index_add", (6, 4), lambda: graph("add"))
add("GNN fixed graph scatter_add", (6, 4), lambda: graph("scatter"))
add("GNN fixed graph sparse mm", (6, 4), lambda: graph("sparse"))


def messages(s: Any, x: Tensor, edges: Tensor) -> Tensor:
    """On one graph: nodes (nodes, features), edges (2, edges)."""
    h = torch.tanh(s.a(x))
    return s.b(h.new_zeros(len(x), 8).index_add(0, edges[1], h[edges[0]]))


add(
    "GNN edge_index input (int)",
    lambda: (rand(16, 6, 4), torch.randint(0, 6, (16, 2, 9))),
    lambda: Net(messages, a=L(4, 8), b=L(8, 2)),
)
whole = lambda *s: torch.randint(0, 4, (16, *s))  # noqa: E731
add(
    "embedding of integer input",
    lambda: (whole(1), rand(16, 2)),
    lambda: Net(lambda s, z, x: s.n(torch.cat([s.e(z)[:, 0], x], -1)), e=nn.Embedding(4, 8), n=mlp(10, 16, 1)),
)
add("embedding only int input", lambda: whole(3), lambda: seq(nn.Embedding(4, 8), nn.Flatten(), mlp(24, 16, 1)))
add(
    "one-hot species potential",
    lambda: torch.cat([whole(1).float(), rand(16, 2)], -1),
    lambda: Net(lambda s, x: s.n(torch.cat([F.one_hot(x[:, 0].long(), 4).to(x.dtype), x[:, 1:]], -1)), n=mlp(6, 16, 1)),
)
add(
    "dict input",
    lambda: {"x": rand(16, 3), "t": rand(16, 2)},
    lambda: Net(lambda s, b: s.n(torch.cat([b["x"], b["t"]], -1)), n=mlp(5, 16, 1)),
)
add("optional arguments, used one", (3,), lambda: Net(lambda s, x, t=None: s.n(x), n=mlp(3, 16, 1)))
add("data dependent shape x[x>0]", (3,), lambda: Net(lambda s, x: x[x > 0], n=L(3, 3)))
add("data dependent branch", (3,), lambda: Net(lambda s, x: s.n(x) if x.sum() > 0 else x, n=L(3, 3)))
add("torch.where piecewise", (3,), lambda: Net(lambda s, x: torch.where(x[:, :1] > 0.5, s.n(x), x), n=mlp(3, 16, 3)))


def table(s: Any, x: Tensor) -> Tensor:
    k = torch.searchsorted(s.grid, x.contiguous()).clamp(1, 8)
    low, high = s.grid[k - 1], s.grid[k]
    return s.values[k - 1] + (x - low) / (high - low) * (s.values[k] - s.values[k - 1])


add("interpolation/table lookup (searchsorted)", (1,), lambda: Net(table, grid=torch.linspace(0, 1, 9), values=rand(9)))
add(
    "grid_sample / hash-grid multires encoding",
    (2,),
    lambda: Net(
        lambda s, x: s.n(F.grid_sample(s.g, x[None, None], align_corners=True)[0, :, 0].T),
        g=rand(1, 4, 5, 5),
        n=L(4, 1),
    ),
)
add(
    "pairwise distances MLP potential",
    (4, 3),
    lambda: Net(
        lambda s, x: s.n((x[:, :, None] - x[:, None]).square().sum(-1).add(1e-6).sqrt().flatten(1)), n=mlp(16, 16, 1)
    ),
)
add(
    "symmetric matrix det/inverse output",
    (3, 3),
    lambda: Net(lambda s, x: torch.linalg.det(x @ x.transpose(1, 2) + torch.eye(3))[:, None] * s.n(x[:, 0]), n=L(3, 1)),
)
add("fixed-length batch-less input", (5,), lambda: mlp(5, 8, 1))
add("MLP tanh", (2,), lambda: mlp(2, 16, 16, 1))
add("SIREN", (2,), lambda: mlp(2, 16, 1, activation=lambda: Apply(lambda x: torch.sin(30 * x))))


def fourier(s: Any, x: Tensor) -> Tensor:
    return s.n(torch.cat([torch.sin(x @ s.B), torch.cos(x @ s.B)], -1))


add("Fourier features MLP", (2,), lambda: Net(fourier, B=rand(2, 8), n=mlp(16, 16, 1)))


def pirate(s: Any, x: Tensor) -> Tensor:
    h = s.embed(x)
    u, v = torch.tanh(s.u(h)), torch.tanh(s.v(h))
    f = torch.tanh(s.a(h))
    z = f * u + (1 - f) * v
    g = torch.tanh(s.b(z))
    return s.o(s.alpha * torch.tanh(s.c(g * u + (1 - g) * v)) + (1 - s.alpha) * h)


def pirate_net() -> nn.Module:
    return Net(pirate, embed=L(2, 8), u=L(8, 8), v=L(8, 8), a=L(8, 8), b=L(8, 8), c=L(8, 8), o=L(8, 1), alpha=rand(1))


add("PirateNet", (2,), pirate_net)
add(
    "modified MLP jaxpi RWF",
    (2,),
    lambda: Net(
        lambda s, x: F.linear(torch.tanh(F.linear(x, s.v * torch.exp(s.g)[:, None])), s.w),
        v=rand(8, 2),
        g=rand(8),
        w=rand(1, 8),
    ),
)
add(
    "MFN fourier",
    (2,),
    lambda: Net(
        lambda s, x: s.o(s.h(torch.sin(s.a(x))) * torch.sin(s.b(x))), a=L(2, 8), b=L(2, 8), h=L(8, 8), o=L(8, 1)
    ),
)


def gabor(s: Any, x: Tensor) -> Tensor:
    return torch.sin(s.a(x)) * torch.exp(-0.5 * (x[:, None] - s.mu).square().sum(-1) * s.gamma)


add(
    "MFN gabor",
    (2,),
    lambda: Net(
        lambda s, x: s.o(s.h(gabor(s, x)) * gabor(s, x)), a=L(2, 8), mu=rand(8, 2), gamma=rand(8), h=L(8, 8), o=L(8, 1)
    ),
)
add("GLU MLP", (2,), lambda: seq(L(2, 16), nn.GLU(), L(8, 1)))
add(
    "SwiGLU RMSNorm",
    (2,),
    lambda: Net(
        lambda s, x: s.d(F.silu(s.g(s.n(s.f(x)))) * s.u(s.f(x))),
        f=L(2, 8),
        n=nn.RMSNorm(8),
        g=L(8, 16),
        u=L(8, 16),
        d=L(16, 1),
    ),
)
residual = lambda n: Net(lambda s, x: s.o(s.f(x) + s.m(s.n(s.f(x)))), f=L(2, 8), n=n, m=mlp(8, 16, 8), o=L(8, 1))  # noqa: E731
add("ResNet MLP", (2,), lambda: residual(nn.Identity()))
add("ResNet MLP BatchNorm", (2,), lambda: residual(nn.BatchNorm1d(8)))
add("ResNet MLP LayerNorm", (2,), lambda: residual(nn.LayerNorm(8)))
add("ResNet MLP weight_norm", (2,), lambda: residual(parametrizations.weight_norm(L(8, 8))))
add(
    "adaptive tanh PINN",
    (2,),
    lambda: Net(lambda s, x: s.b(torch.tanh(10 * s.a * s.f(x))), f=L(2, 8), a=rand(1), b=L(8, 1)),
)
add("hard BC ansatz", (1,), lambda: Net(lambda s, x: x * (1 - x) * s.n(x) + torch.sin(math.pi * x), n=mlp(1, 8, 1)))
add(
    "buffers normalisation",
    (2,),
    lambda: Net(lambda s, x: s.n((x - s.m) / s.d), m=rand(2), d=rand(2) + 1, n=mlp(2, 8, 1)),
)
add("float64 MLP", (2,), lambda: mlp(2, 8, 1).double())
add("bfloat16 MLP", (2,), lambda: mlp(2, 8, 1).bfloat16())
add("float16 MLP", (2,), lambda: mlp(2, 8, 1).half())
add("tied weights AE", (8,), lambda: Net(lambda s, x: torch.tanh(s.e(x)) @ s.e.weight, e=L(8, 3)))
add("MLP autoencoder", (8,), lambda: mlp(8, 4, 8))
add("VAE (eval mean)", (8,), lambda: Net(lambda s, x: s.d(s.e(x).chunk(2, -1)[0]), e=mlp(8, 8, 6), d=mlp(3, 8, 8)))
