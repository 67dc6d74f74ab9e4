"""Training a PINN of one output u(x, t): a forward Taylor pass through its layers, Adam, and Gauss-Newton in the space
of residuals. An equation is its residuals and how its points are drawn (`perf/burgers.py`, `perf/allen_cahn.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from hrt.hmatrix.hmatrix import Leaf
from hrt.matrix_compression.hlinear import HLinear

# What numbers are multiplied by, streams [4, N, in], and their products [4, N, out]; None: a bias, added to the value.
Tap = tuple[torch.Tensor | None, torch.Tensor]
Residuals = Callable[..., torch.Tensor]  # (network, batch[, taps]) -> (k,), their squares summing to the loss
Sample = Callable[[int, torch.Generator], Any]  # (count, generator) -> a batch


def through(layers: Iterable[nn.Module], streams: torch.Tensor, taps: list[Tap] | None = None) -> torch.Tensor:
    """What linear layers (nn.Linear, HLinear) and tanh in turn make of a value and its derivatives.

    With a = tanh(z), s = 1 - a^2 (z, z_x, z_t, z_xx) becomes (a, s z_x, s z_t, s (z_xx - 2 a z_x^2)).

    Takes streams (4, N, features): a value, its derivatives by x and t, its second one by x; returns the
    same of the single output, (4, N). One entry per tensor of `numbers` is appended to `taps`, in their order.
    """
    for module in layers:
        if isinstance(module, (nn.Linear, HLinear)):
            products = _products(module, streams, taps)
            if taps is not None and module.bias is not None:
                taps.append((None, products))
            bias = products.new_zeros(()) if module.bias is None else module.bias
            streams = torch.stack((products[0] + bias, *products[1:]))  # [4, N, out]
        else:
            z, z_x, z_t, z_xx = streams
            a = torch.tanh(z)
            s = 1.0 - a * a
            streams = torch.stack((a, s * z_x, s * z_t, s * (z_xx - 2.0 * a * z_x * z_x)))
    return streams[..., 0]


def _products(layer: nn.Linear | HLinear, streams: torch.Tensor, taps: list[Tap] | None) -> torch.Tensor:
    """[4, N, in] times the layer's matrix, [4, N, out]: that of an HLinear leaf by leaf where somebody taps it."""

    def times(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
        found = x @ matrix.mT
        if taps is not None:
            taps.append((x, found))
        return found

    if isinstance(layer, nn.Linear):
        return times(streams, layer.weight)
    if taps is None:
        return layer.affine(streams, None)
    x = streams if layer.col_order is None else streams[..., layer.col_order]
    y = streams.new_zeros(*streams.shape[:-1], layer.out_features)
    for leaf in layer.leaves:
        part = x[..., leaf.col : leaf.col + leaf.cols]
        for matrix in _matrices(leaf):
            part = times(part, matrix)
        if leaf.rank != 0:
            y = y + F.pad(part, (leaf.row, layer.out_features - leaf.row - leaf.rows))
    return y if layer.row_order is None else y[..., layer.row_order.argsort()]


def _matrices(leaf: Leaf) -> list[torch.Tensor]:
    """What a leaf multiplies by, first things first; nothing where its rank is 0."""
    found = [leaf.dense] if leaf.is_dense else [leaf.vt, leaf.u]
    return [m for m in found if m is not None and m.numel()]


def layers_of(network: nn.Module) -> list[nn.Linear | HLinear]:
    """The linear layers, in the order of network.modules()."""
    return [m for m in network.modules() if isinstance(m, (nn.Linear, HLinear))]


def _numbers_of(layer: nn.Linear | HLinear) -> list[torch.Tensor]:
    own = [layer.weight] if isinstance(layer, nn.Linear) else [m for e in layer.leaves for m in _matrices(e)]
    return own if layer.bias is None else [*own, layer.bias]


def numbers(network: nn.Module) -> list[torch.Tensor]:
    """What Gauss-Newton moves, copied: of every layer its weight, or the factors (V^T, U) and dense blocks of its
    leaves, and then its bias. Layers act in the order of network.modules().
    """
    return [tensor.detach().clone() for layer in layers_of(network) for tensor in _numbers_of(layer)]


@torch.no_grad()
def assign(network: nn.Module, tensors: Sequence[torch.Tensor]) -> None:
    """Write what `numbers` reads."""
    left = iter(tensors)
    for layer in layers_of(network):
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(next(left))
        else:
            for number, leaf in enumerate(layer.leaves):
                layer.assign(number, *[next(left) for _ in _matrices(leaf)][::-1])
        if layer.bias is not None:
            layer.bias.copy_(next(left))


def glorot(network: nn.Module, seed: int) -> None:
    """Glorot-normal weights that depend on the seed alone, zero biases, in place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        if parameter.ndim == 2:
            nn.init.xavier_normal_(parameter, generator=generator)
        else:
            nn.init.zeros_(parameter)


def carried(
    direction: Sequence[torch.Tensor], before: Sequence[nn.Linear | HLinear], network: nn.Module
) -> list[torch.Tensor]:
    """A direction on the layers `before` as one on those that took their places in `network`.

    To what it does to a layer's matrix, D, comes the closest that small changes of the factors do:
    dU = D V (V^T V)^-1 and dV^T = U^+ (D - dU V^T), leaf by leaf (the tangent space of matrices of a rank: Koch and
    Lubich, SIAM J. Matrix Anal. Appl. 29, 2007).
    """
    left, found = iter(direction), []
    for old, new in zip(before, layers_of(network), strict=True):
        own = [next(left) for _ in _numbers_of(old)]
        bias = [own.pop()] if old.bias is not None else []
        if old is new:
            found += [*own, *bias]
            continue
        d = _change(old, own)
        if isinstance(new, nn.Linear):
            found += [d, *bias]
            continue
        d = d if new.row_order is None else d[new.row_order]
        d = d if new.col_order is None else d[:, new.col_order]
        for leaf in new.leaves:
            block = d[leaf.row : leaf.row + leaf.rows, leaf.col : leaf.col + leaf.cols]
            if leaf.u is None or leaf.vt is None:
                found.append(block)
            elif leaf.rank:
                u, vt = leaf.u.detach(), leaf.vt.detach()
                along = block @ torch.linalg.pinv(vt)
                found += [torch.linalg.pinv(u, rtol=1e-6) @ (block - along @ vt), along]
        found += bias
    return found


def _change(layer: nn.Linear | HLinear, direction: Sequence[torch.Tensor]) -> torch.Tensor:
    """What a direction on its numbers does to a layer's matrix (m, n)."""
    if isinstance(layer, nn.Linear):
        return direction[0]
    left = iter(direction)
    found = direction[0].new_zeros(layer.out_features, layer.in_features)
    for leaf in layer.leaves:
        at = slice(leaf.row, leaf.row + leaf.rows), slice(leaf.col, leaf.col + leaf.cols)
        if leaf.u is None or leaf.vt is None:
            found[at] = next(left)
        elif leaf.rank:
            along, across = next(left), next(left)
            found[at] = across @ leaf.vt.detach() + leaf.u.detach() @ along
    found = found if layer.row_order is None else found[layer.row_order.argsort()]
    return found if layer.col_order is None else found[:, layer.col_order.argsort()]


def newton_direction(
    residuals: Residuals,
    network: nn.Module,
    batch: Any,
    previous: list[torch.Tensor],
    damping: float,
    momentum: float = 0.9,
) -> tuple[list[torch.Tensor], float]:
    """Direction p that minimises |J p - r|^2 + damping |p - momentum previous|^2, and the loss |r|^2.

    Gauss-Newton in the space of the residuals r, where the system is small: with q = momentum previous,
    p = q + J^T (J J^T + damping)^-1 (r - J q). (Momentum: Goldshlager, Abrahamsen and Lin, J. Comput.
    Phys. 516, 2024.) The Jacobian J is never formed. Matrix by matrix a residual's gradient is the sum over
    streams of outer products delta_s a_s^T, so J J^T is a sum of elementwise products of Gram matrices.
    Directions are lists of one tensor per entry of `numbers`. `residuals` must tap every layer.
    """
    taps: list[Tap] = []
    r = residuals(network, batch, taps)
    deltas = torch.autograd.grad(r.sum(), [products for _, products in taps])  # [4, N, out] each
    tapped = [(None if a is None else a.detach(), delta) for (a, _), delta in zip(taps, deltas, strict=True)]
    r = r.detach()
    old = [momentum * tensor for tensor in previous]
    kernel, moved = torch.zeros(len(r), len(r), dtype=r.dtype), torch.zeros_like(r)
    for (a, delta), kept in zip(tapped, old, strict=True):
        if a is None:
            kernel += delta[0] @ delta[0].T
            moved += delta[0] @ kept
            continue
        moved += ((a @ kept.mT) * delta).sum(dim=(0, 2))
        for s, q in itertools.combinations_with_replacement(range(4), 2):
            product = (a[s] @ a[q].T) * (delta[s] @ delta[q].T)
            kernel += product if s == q else product + product.T
    kernel.diagonal().add_(damping)
    solution = torch.cholesky_solve((r - moved)[:, None], torch.linalg.cholesky(kernel))[:, 0]
    direction: list[torch.Tensor] = []
    for (a, delta), kept in zip(tapped, old, strict=True):
        scaled = delta * solution[:, None]
        direction.append(kept + (scaled[0].sum(dim=0) if a is None else scaled.flatten(0, 1).T @ a.flatten(0, 1)))
    return direction, r.square().sum().item()


class Newton:
    """Gauss-Newton's steps on one network; damping follows the lengths that were accepted. Layers may be exchanged
    between steps: momentum is carried over to those that took their places.
    """

    def __init__(self, residuals: Residuals, network: nn.Module) -> None:
        self.residuals, self.network, self.damping = residuals, network, 1e-2
        self.layers = layers_of(network)
        self.direction = [torch.zeros_like(tensor) for tensor in numbers(network)]

    def step(self, batch: Any, left: float = 1.0) -> float:
        """One step in place, halved until it lowers the loss of the batch; the loss before it.

        left: the share of the steps that is still to come; over the last quarter the longest step shrinks to 0.1.
        """
        layers, longest = layers_of(self.network), min(1.0, max(0.1, 4.0 * left))
        if any(new is not old for new, old in zip(layers, self.layers, strict=True)):
            self.direction, self.layers = carried(self.direction, self.layers, self.network), layers
        self.direction, before = newton_direction(self.residuals, self.network, batch, self.direction, self.damping)
        start, length = numbers(self.network), longest
        while True:
            moved = [origin - length * slope for origin, slope in zip(start, self.direction, strict=True)]
            assign(self.network, moved)
            with torch.no_grad():
                if length < 1e-3 or self.residuals(self.network, batch).square().sum().item() < before:
                    break
            length /= 2.0
        self.damping *= 1.0 / 1.5 if length == longest else 3.0 if length < longest / 4.0 else 1.0
        self.damping = min(max(self.damping, 1e-9), 1.0)
        return before


def fit(
    residuals: Residuals,
    sample: Sample,
    network: nn.Module,
    seed: int,
    adam_steps: int,
    newton_steps: int,
    batch: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Adam, then Gauss-Newton, in place, a fresh batch for every step; `seed` is that of the batches.

    Adam's learning rate falls from 1e-3 to 1e-4 along a cosine. After every step on_step(steps so far, loss before the
    step) is called; it may exchange layers. On one thread equal arguments and networks give equal weights.
    """
    generator = torch.Generator().manual_seed(seed)
    adam = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(adam_steps, 1), eta_min=1e-4)
    for step in range(1, adam_steps + 1):
        adam.zero_grad()
        loss = residuals(network, sample(batch, generator)).square().sum()
        loss.backward()
        adam.step()
        schedule.step()
        on_step(step, loss.item())

    def told(step: int, before: float) -> None:
        on_step(adam_steps + step, before)

    gauss_newton(residuals, sample, network, newton_steps, batch, generator, told)


def gauss_newton(
    residuals: Residuals,
    sample: Sample,
    network: nn.Module,
    steps: int,
    batch: int,
    generator: torch.Generator,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Gauss-Newton in place, a fresh batch for every step. on_step(steps so far, loss before the step) follows each."""
    newton = Newton(residuals, network)
    for step in range(1, steps + 1):
        on_step(step, newton.step(sample(batch, generator), 1.0 - step / steps))
