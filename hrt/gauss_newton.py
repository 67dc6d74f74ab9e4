"""Gauss-Newton with damping and momentum for small networks: the system is solved in the space of the residuals.

The direction p minimises |J p - r|^2 + damping |p - q|^2 with q = momentum * previous direction:

    p = q + J^T (J J^T + damping)^-1 (r - J q)

(Levenberg 1944, Marquardt 1963; momentum: Goldshlager, Abrahamsen and Lin, J. Comput. Phys. 516, 2024). J has one row
per residual and one column per number that is trained; of factors there are few, which is what makes this cheap.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jacrev, vmap

Parameters = dict[str, Tensor]
RowResiduals = Callable[[Mapping[str, Tensor], Tensor], Tensor]  # parameters, one row -> (k,)

MOMENTUM = 0.9
LEAST, MOST = 1e-9, 1.0  # damping, relative to the mean square of a row of J
SHORTEST = 1e-3  # of a step; below it the step is taken whatever it does


def jacobian(function: RowResiduals, parameters: Parameters, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Residuals (N k,) of all rows (N, ...) and their derivatives (N k, P) by the parameters, side by side."""

    def both(values: Mapping[str, Tensor], row: Tensor) -> tuple[Tensor, Tensor]:
        found = function(values, row)
        return found, found

    derivatives, residuals = vmap(jacrev(both, has_aux=True), in_dims=(None, 0))(parameters, rows)
    count = residuals.numel()
    return residuals.reshape(-1).detach(), torch.cat(
        [derivatives[k].reshape(count, -1) for k in parameters], dim=1
    ).detach()


def direction(j: Tensor, r: Tensor, kept: Tensor, damping: float) -> Tensor:
    """p (P,) of the module's docstring. j: (N, P).  r: (N,).  kept: q (P,). Solved in the smaller of both spaces."""
    if j.shape[0] <= j.shape[1]:
        kernel = j @ j.T
        kernel.diagonal().add_(damping)
        return kept + j.T @ torch.cholesky_solve((r - j @ kept)[:, None], torch.linalg.cholesky(kernel))[:, 0]
    kernel = j.T @ j
    kernel.diagonal().add_(damping)
    return kept + torch.cholesky_solve((j.T @ (r - j @ kept))[:, None], torch.linalg.cholesky(kernel))[:, 0]


@dataclass
class GaussNewton:
    """The optimizer's state: the damping, which follows the lengths that were accepted, and the last direction."""

    damping: float = 1e-2
    previous: Tensor | None = None

    def step(self, function: RowResiduals, parameters: Parameters, rows: Tensor, longest: float = 1.0) -> float:
        """One step on `rows`, in place; halved from `longest` until it lowers the sum of squares. The sum before it."""
        r, j = jacobian(function, parameters, rows)
        before = float(r.square().sum())
        kept = torch.zeros_like(j[0]) if self.previous is None else MOMENTUM * self.previous
        self.previous = direction(j, r, kept, self.damping)
        parts = self.previous.split([p.numel() for p in parameters.values()])
        start = {k: p.detach().clone() for k, p in parameters.items()}
        length, evaluate = longest, vmap(function, in_dims=(None, 0))
        with torch.no_grad():
            while True:
                for (name, p), part in zip(parameters.items(), parts, strict=True):
                    p.copy_(start[name] - length * part.view_as(p))
                after = float(evaluate(parameters, rows).square().sum())
                if after < before or (length < SHORTEST and math.isfinite(after)) or length < 1e-9:
                    break
                length /= 2
        self.damping *= 1 / 1.5 if length == longest else 3.0 if length < longest / 4 else 1.0
        self.damping = min(max(self.damping, LEAST), MOST)
        return before
