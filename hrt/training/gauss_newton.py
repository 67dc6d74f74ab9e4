"""Gauss-Newton with damping and momentum for small networks: the system is solved in the space of the residuals.

The direction p minimises |J p - r|^2 + damping |p - q|^2 with q = momentum * previous direction:

    p = q + J^T (J J^T + damping)^-1 (r - J q)

(Levenberg 1944, Marquardt 1963; momentum: Goldshlager, Abrahamsen and Lin, J. Comput. Phys. 516, 2024). J has one row
per residual and one column per number that is trained; of factors there are few, which is what makes this cheap.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev, vmap

RowResiduals = Callable[..., Tensor]  # (parameters, *one row of every tensor) -> (k,)
MOMENTUM = 0.9
LEAST, MOST = 1e-9, 1.0  # damping, for residuals whose squares add up to a mean
SHORTEST = 1e-3  # of a step; below it the step is taken whatever it does


@dataclass(frozen=True, eq=False)
class Term:
    """Residuals of independent rows, times `weight`. function: by torch.func, of one row of each of `rows` (N, ...)."""

    function: RowResiduals
    rows: tuple[Tensor, ...]
    weight: float = 1.0

    def residuals(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """(N k,)."""
        in_dims = (None, *(0 for _ in self.rows))
        return self.weight * vmap(self.function, in_dims=in_dims)(parameters, *self.rows).reshape(-1)

    def jacobian(self, parameters: Mapping[str, Tensor], moving: Collection[str]) -> tuple[Tensor, Tensor]:
        """Residuals (N k,) and their derivatives (N k, P) by the parameters in `moving`, side by side in order."""
        fixed = {name: p for name, p in parameters.items() if name not in moving}
        parameters = {name: p for name, p in parameters.items() if name in moving}

        def twice(values: Mapping[str, Tensor], *row: Tensor) -> tuple[Tensor, Tensor]:
            residuals = self.function({**fixed, **values}, *row)
            return residuals, residuals

        in_dims = (None, *(0 for _ in self.rows))
        derivatives, residuals = vmap(jacrev(twice, has_aux=True), in_dims=in_dims)(parameters, *self.rows)
        count = residuals.numel()
        jacobian = torch.cat([derivatives[name].reshape(count, -1) for name in parameters], dim=1)
        return self.weight * residuals.reshape(-1), self.weight * jacobian


def direction(j: Tensor, r: Tensor, q: Tensor, damping: float) -> Tensor:
    """p (P,) of the module's docstring. j: (N, P).  r: (N,).  q: (P,). Solved in the smaller of both spaces."""
    if j.shape[0] <= j.shape[1]:
        kernel = j @ j.T
        kernel.diagonal().add_(damping)
        return q + j.T @ torch.cholesky_solve((r - j @ q)[:, None], torch.linalg.cholesky(kernel))[:, 0]
    kernel = j.T @ j
    kernel.diagonal().add_(damping)
    return q + torch.cholesky_solve((j.T @ (r - j @ q))[:, None], torch.linalg.cholesky(kernel))[:, 0]


class GaussNewton:
    """Steps on parameters that are views of one vector. damping: follows the lengths that were accepted."""

    def __init__(self, shapes: Mapping[str, torch.Size], start: Tensor):
        """shapes: of every parameter.  start: (P,) their numbers, copied."""
        self.shapes, self.numbers = dict(shapes), start.detach().clone()
        self.previous = torch.zeros_like(self.numbers)
        self.damping = 1e-2

    def parameters(self, numbers: Tensor | None = None) -> dict[str, Tensor]:
        """The parameters by name, views of `numbers`, by default of the current ones."""
        numbers = self.numbers if numbers is None else numbers
        parts = numbers.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def moving(self, free: Tensor | None) -> Tensor:
        """The numbers of all parameters of which at least one may move, (P,) bool."""
        if free is None:
            return torch.ones_like(self.numbers, dtype=torch.bool)
        return torch.cat([part.any().expand(part.numel()) for part in self.parameters(free).values()])

    def step(self, terms: Sequence[Term], free: Tensor | None = None, longest: float = 1.0) -> float:
        """One step, halved from `longest` until it lowers the sum of squares, which is returned. free: (P,) bool."""
        moving = self.moving(free)
        names = [name for name, part in self.parameters(moving).items() if bool(part.any())]
        pairs = [term.jacobian(self.parameters(), names) for term in terms]
        r, j = (torch.cat(parts).detach() for parts in zip(*pairs, strict=True))
        before = float(r.square().sum())
        if not math.isfinite(before):
            return before
        where = moving if free is None else free
        p = torch.zeros_like(self.numbers)
        p[where] = direction(j[:, where[moving]], r, MOMENTUM * self.previous[where], self.damping)
        start, length = self.numbers, longest
        with torch.no_grad():
            while True:
                trial = self.parameters(start - length * p)
                after = sum(float(term.residuals(trial).square().sum()) for term in terms)
                if after < before or (length < SHORTEST and math.isfinite(after)):
                    break
                if length < SHORTEST**3:
                    return before
                length /= 2
        self.numbers, self.previous = start - length * p, p
        self.damping *= 1 / 1.5 if length == longest else 3.0 if length < longest / 4 else 1.0
        self.damping: float = min(max(self.damping, LEAST), MOST)
        return before
