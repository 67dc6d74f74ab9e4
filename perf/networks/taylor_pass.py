"""Networks of one kind, linear layers and tanh in turn, and their derivatives by one forward Taylor pass."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp

from hrt.hmatrix.hmatrix import Leaf
from hrt.matrix_compression.hlinear import HLinear

# What numbers are multiplied by, streams [S, N, in], and their products [S, N, out]; None: a bias, added to the value.
Tap = tuple[Tensor | None, Tensor]


class Pinn(nn.Module):
    """A float32 tanh multilayer perceptron of these widths, Glorot-normal by the seed. gain: of the first layer."""

    def __init__(self, widths: Sequence[int], seed: int = 0, gain: float = 1.0) -> None:
        super().__init__()
        generator, modules = torch.Generator().manual_seed(seed), []
        for fan_in, fan_out in pairwise(widths):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.xavier_normal_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)
            modules += [linear, nn.Tanh()]
        with torch.no_grad():
            modules[0].weight.mul_(gain)
        self.layers = nn.Sequential(*modules[:-1])

    def forward(self, points: Tensor) -> Tensor:
        return self.layers(points)


def by_jvp(u: Callable[[Tensor], Tensor], points: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """u, u_x, u_t, u_xx of any function of points (rows, 2), by forward over forward differentiation."""
    along_x, along_t = (torch.zeros_like(points) + points.new_tensor(axis) for axis in ((1.0, 0.0), (0.0, 1.0)))
    (value, u_x), (_, u_xx) = jvp(lambda p: jvp(u, (p,), (along_x,)), (points,), (along_x,))[:2]
    return value, u_x, jvp(u, (points,), (along_t,))[1], u_xx


def jets(layers: nn.Module, points: Tensor, second: Sequence[int] = (0,), taps: list[Tap] | None = None) -> Tensor:
    """The value of layers at points (N, d), every first derivative, and the second ones by the coordinates in `second`,
    (1 + d + len(second), N, outputs).
    """
    d = points.shape[1]
    streams = points.new_zeros(1 + d + len(second), *points.shape)
    streams[0] = points
    for k in range(d):
        streams[1 + k, :, k] = 1.0
    return through(layers, streams, second, taps)


def through(layers: nn.Module, streams: Tensor, second: Sequence[int] = (0,), taps: list[Tap] | None = None) -> Tensor:
    """What the layers (nn.Linear, HLinear, tanh) make of a value and its derivatives, ordered as `jets` orders them.

    With a = tanh(z) and s = 1 - a^2, (z, z_i, z_ii) becomes (a, s z_i, s (z_ii - 2 a z_i^2)). `taps` receives one entry
    for every tensor of `layer_numbers`, in their order.
    """
    chosen = list(second)
    for module in layers.children():
        if isinstance(module, (nn.Linear, HLinear)):
            streams = _products(module, streams, taps)
            if module.bias is not None:
                if taps is not None:
                    taps.append((None, streams))
                streams = torch.cat((streams[:1] + module.bias, streams[1:]))
        else:
            value, first, later = streams.split([1, len(streams) - 1 - len(chosen), len(chosen)])
            a = torch.tanh(value)
            s = 1.0 - a * a
            slopes = first[chosen]
            streams = torch.cat((a, s * first, s * (later - 2.0 * a * slopes * slopes)))
    return streams


def _products(layer: nn.Linear | HLinear, streams: Tensor, taps: list[Tap] | None) -> Tensor:
    """[S, N, in] times the layer's matrix, [S, N, out]: leaf by leaf where an HLinear is tapped."""

    def times(x: Tensor, matrix: Tensor) -> Tensor:
        product = x @ matrix.mT
        if taps is not None:
            taps.append((x, product))
        return product

    if isinstance(layer, nn.Linear):
        return times(streams, layer.weight)
    if taps is None:
        return layer.affine(streams, None)
    x = streams if layer.col_order is None else streams[..., layer.col_order]
    y = streams.new_zeros(*streams.shape[:-1], layer.out_features)
    for leaf in layer.leaves:
        part = x[..., leaf.col : leaf.col + leaf.cols]
        for matrix in leaf_matrices(leaf):
            part = times(part, matrix)
        if leaf.rank != 0:
            y = y + F.pad(part, (leaf.row, layer.out_features - leaf.row - leaf.rows))
    return y if layer.row_order is None else y[..., layer.row_order.argsort()]


def leaf_matrices(leaf: Leaf) -> list[Tensor]:
    """What a leaf multiplies by, first things first; nothing where its rank is 0."""
    matrices = [leaf.dense] if leaf.is_dense else [leaf.vt, leaf.u]
    return [m for m in matrices if m is not None and m.numel()]


def layer_numbers(layer: nn.Linear | HLinear) -> list[Tensor]:
    """A layer's weight, or the factors (V^T, U) and dense blocks of its leaves, and then its bias."""
    numbers = [layer.weight] if isinstance(layer, nn.Linear) else [m for e in layer.leaves for m in leaf_matrices(e)]
    return numbers if layer.bias is None else [*numbers, layer.bias]


def layers_of(network: nn.Module) -> list[nn.Linear | HLinear]:
    """The linear layers, in the order of network.modules()."""
    return [m for m in network.modules() if isinstance(m, (nn.Linear, HLinear))]


def numbers(network: nn.Module) -> Iterable[Tensor]:
    """The numbers of all layers, in turn."""
    return (tensor for layer in layers_of(network) for tensor in layer_numbers(layer))
