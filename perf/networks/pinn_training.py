"""Training a PINN: Adam, then Gauss-Newton in the space of residuals, whatever the equation."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hrt.matrix_compression.hlinear import HLinear
from hrt.perf.networks.taylor_pass import Tap, layer_numbers, layers_of, leaf_matrices, numbers

Residuals = Callable[..., Tensor]  # (network, rows[, taps]) -> (n,)
OnStep = Callable[[int, float], None]  # (steps so far, loss before the step)


@dataclass(frozen=True, eq=False)
class Equation:
    """An equation in x and t: what trains a network on it, and what its answers are judged by.

    network: (width, depth, seed) -> untrained float64 module with `layers`.  rows: (count, generator) -> `count` points
    inside, then those on the edge.  residuals: their squares' sum over `count` is the loss.  operator: the equation
    alone for `hrt.ntk`.  exact: points (m, 2) and the solution there (m,).
    """

    name: str
    network: Callable[[int, int, int], nn.Module]
    rows: Callable[[int, torch.Generator], Tensor]
    residuals: Residuals
    operator: Callable[[Any, Tensor], Tensor]
    exact: Callable[[], tuple[Tensor, Tensor]]

    def error(self, answer: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> float:
        """Relative L2 error of points (m, 2) of `dtype` -> (m, 1) against the solution, over the whole domain."""
        points, exact = self.exact()
        with torch.no_grad():
            values = answer(points.to(dtype))[:, 0].double()
        return float((values - exact).norm() / exact.norm())


@dataclass(frozen=True)
class Course:
    """How a network is trained. adam, newton: steps.  batch: points inside.  rates: Adam's first and last."""

    adam: int
    newton: int
    batch: int
    seed: int = 0
    rates: tuple[float, float] = (1e-3, 1e-4)


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread meanwhile: the order of sums, and with it trained weights, depends on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def adam(
    network: nn.Module, loss: Callable[[int], Tensor], steps: int, rates: tuple[float, float], on_step: OnStep
) -> None:
    """`steps` of Adam on loss(step), in place, from the first of `rates` to the last one along a cosine."""
    optimizer = torch.optim.Adam(network.parameters(), lr=rates[0])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1), eta_min=rates[1])
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        value = loss(step)
        value.backward()
        optimizer.step()
        schedule.step()
        on_step(step, value.item())


def fit(
    equation: Equation,
    network: nn.Module,
    course: Course,
    on_step: OnStep = lambda step, loss: None,
    penalty: Callable[[int], Tensor | float] = lambda step: 0.0,
) -> None:
    """Adam, then Gauss-Newton, in place, on a fresh batch for every step; the same on one thread for equal arguments.

    on_step is called after every step and may exchange layers. penalty(step) is added to the loss of Adam.
    Gauss-Newton stands where L-BFGS is usual because it gets further: on one core 4 minutes of L-BFGS left Burgers'
    relative error at 4e-2 at best, 1 minute of this at 6e-4.
    """
    generator = torch.Generator().manual_seed(course.seed)

    def residuals(net: nn.Module, rows: Tensor, taps: list[Tap] | None = None) -> Tensor:
        return equation.residuals(net, rows, taps) / math.sqrt(course.batch)

    def loss(step: int) -> Tensor:
        return residuals(network, equation.rows(course.batch, generator)).square().sum() + penalty(step)

    adam(network, loss, course.adam, course.rates, on_step)
    newton = Newton(residuals, network)
    for step in range(1, course.newton + 1):
        rows = equation.rows(course.batch, generator)
        on_step(course.adam + step, newton.step(rows, 1.0 - step / course.newton))


@torch.no_grad()
def assign(network: nn.Module, tensors: Sequence[Tensor]) -> None:
    """Write what `numbers` reads."""
    left = iter(tensors)
    for layer in layers_of(network):
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(next(left))
        else:
            for number, leaf in enumerate(layer.leaves):
                layer.assign(number, *[next(left) for _ in leaf_matrices(leaf)][::-1])
        if layer.bias is not None:
            layer.bias.copy_(next(left))


def carried(direction: Sequence[Tensor], before: Sequence[nn.Linear | HLinear], network: nn.Module) -> list[Tensor]:
    """A direction on the layers `before` as one on those that took their places in `network`.

    The closest to its change D of a layer's matrix, leaf by leaf: dU = D V (V^T V)^-1, dV^T = U^+ (D - dU V^T) (Koch
    and Lubich, SIAM J. Matrix Anal. Appl. 29, 2007).
    """
    left, result = iter(direction), []
    for old, new in zip(before, layers_of(network), strict=True):
        change = [next(left) for _ in layer_numbers(old)]
        bias = [change.pop()] if old.bias is not None else []
        if old is new:
            result += [*change, *bias]
            continue
        d = _matrix_change(old, change)
        if isinstance(new, nn.Linear):
            result += [d, *bias]
            continue
        d = d if new.row_order is None else d[new.row_order]
        d = d if new.col_order is None else d[:, new.col_order]
        for leaf in new.leaves:
            block = d[leaf.row : leaf.row + leaf.rows, leaf.col : leaf.col + leaf.cols]
            if leaf.u is None or leaf.vt is None:
                result.append(block)
            elif leaf.rank:
                u, vt = leaf.u.detach(), leaf.vt.detach()
                along = block @ torch.linalg.pinv(vt)
                result += [torch.linalg.pinv(u, rtol=1e-6) @ (block - along @ vt), along]
        result += bias
    return result


def _matrix_change(layer: nn.Linear | HLinear, direction: Sequence[Tensor]) -> Tensor:
    """What a direction on its numbers does to a layer's matrix (m, n)."""
    if isinstance(layer, nn.Linear):
        return direction[0]
    left = iter(direction)
    change = direction[0].new_zeros(layer.out_features, layer.in_features)
    for leaf in layer.leaves:
        at = slice(leaf.row, leaf.row + leaf.rows), slice(leaf.col, leaf.col + leaf.cols)
        if leaf.u is None or leaf.vt is None:
            change[at] = next(left)
        elif leaf.rank:
            along, across = next(left), next(left)
            change[at] = across @ leaf.vt.detach() + leaf.u.detach() @ along
    change = change if layer.row_order is None else change[layer.row_order.argsort()]
    return change if layer.col_order is None else change[:, layer.col_order.argsort()]


def newton_direction(
    residuals: Residuals,
    network: nn.Module,
    batch: Any,
    previous: Sequence[Tensor],
    damping: float,
    momentum: float = 0.9,
) -> tuple[list[Tensor], float]:
    """Direction p that minimises |J p - r|^2 + damping |p - momentum previous|^2, and the loss |r|^2.

    With q = momentum previous, p = q + J^T (J J^T + damping)^-1 (r - J q) (Goldshlager, Abrahamsen and Lin, J. Comput.
    Phys. 516, 2024). J is never formed: a residual's gradient by a matrix is the sum over streams of outer products
    delta_s a_s^T, so that J J^T is a sum of elementwise products of Gram matrices. `residuals` must tap every layer.
    """
    taps: list[Tap] = []
    r = residuals(network, batch, taps)
    deltas = torch.autograd.grad(r.sum(), [products for _, products in taps])  # [S, N, out] each
    tapped = [(None if a is None else a.detach(), delta) for (a, _), delta in zip(taps, deltas, strict=True)]
    r = r.detach()
    start = [momentum * tensor for tensor in previous]
    kernel, moved = torch.zeros(len(r), len(r), dtype=r.dtype), torch.zeros_like(r)
    for (a, delta), q in zip(tapped, start, strict=True):
        if a is None:
            kernel += delta[0] @ delta[0].T
            moved += delta[0] @ q
            continue
        moved += ((a @ q.mT) * delta).sum(dim=(0, 2))
        for i, j in itertools.combinations_with_replacement(range(len(delta)), 2):
            product = (a[i] @ a[j].T) * (delta[i] @ delta[j].T)
            kernel += product if i == j else product + product.T
    kernel.diagonal().add_(damping)
    solution = torch.cholesky_solve((r - moved)[:, None], torch.linalg.cholesky(kernel))[:, 0]
    direction: list[Tensor] = []
    for (a, delta), q in zip(tapped, start, strict=True):
        scaled = delta * solution[:, None]
        direction.append(q + (scaled[0].sum(dim=0) if a is None else scaled.flatten(0, 1).T @ a.flatten(0, 1)))
    return direction, r.square().sum().item()


class Newton:
    """Gauss-Newton's steps on one network, whose layers may be exchanged between steps: momentum is carried over."""

    def __init__(self, residuals: Residuals, network: nn.Module) -> None:
        self.residuals, self.network, self.damping = residuals, network, 1e-2
        self.layers = layers_of(network)
        self.direction = [torch.zeros_like(tensor) for tensor in numbers(network)]

    def step(self, batch: Any, left: float = 1.0) -> float:
        """One step in place, halved until it lowers the loss of the batch; the loss before it.

        left: the share of steps to come. Over the last quarter the longest step shrinks to 0.1: it averages the noise.
        """
        layers, longest = layers_of(self.network), min(1.0, max(0.1, 4.0 * left))
        if any(new is not old for new, old in zip(layers, self.layers, strict=True)):
            self.direction, self.layers = carried(self.direction, self.layers, self.network), layers
        self.direction, before = newton_direction(self.residuals, self.network, batch, self.direction, self.damping)
        start, length = [tensor.detach().clone() for tensor in numbers(self.network)], longest
        while True:
            moved = [origin - length * slope for origin, slope in zip(start, self.direction, strict=True)]
            assign(self.network, moved)
            with torch.no_grad():
                if length < 1e-3 or self.residuals(self.network, batch).square().sum().item() < before:
                    break
            length /= 2.0
        self.damping *= 1.0 / 1.5 if length == longest else 3.0 if length < longest / 4.0 else 1.0
        self.damping: float = min(max(self.damping, 1e-9), 1.0)
        return before
