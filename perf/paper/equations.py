"""Burgers' and Allen and Cahn's equations told alike: what trains a network on one, and what its answers are judged by.

Both are on x in [-1, 1], t in [0, 1]. Rows are what a residual takes of one point, in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hrt.perf.networks.burgers import DATA_WEIGHT, NU, burgers_network, cole_hopf, jet
from hrt.perf.networks.pinn_training import Tap
from hrt.perf.paper import allen_cahn
from hrt.perf.paper.ntk import burgers_residual
from hrt.perf.paper.training import EDGE_SHARE, burgers_points
from hrt.tangent_kernel.ntk import Residual

COLUMNS, TIMES = 256, 51  # of the grid that errors are measured on


@dataclass(frozen=True, eq=False)
class Equation:
    """name: in pictures.  network: (width, depth, seed) -> untrained float64 module with `layers`.

    rows: (count, generator) -> (n, k), n >= count, the first `count` inside the domain, columns x and t first.
    residuals: (network, rows[, taps]) -> (n,); the loss is the mean of their squares. Layers may be HLinear.
    operator: the equation for `hrt.tangent_kernel.ntk`, without weights.  exact: points (m, 2) and the solution there (m,).
    """

    name: str
    network: Callable[[int, int, int], nn.Module]
    rows: Callable[[int, torch.Generator], Tensor]
    residuals: Callable[..., Tensor]
    operator: Residual
    exact: Callable[[], tuple[Tensor, Tensor]]

    def error(self, answer: Callable[[Tensor], Tensor]) -> float:
        """Relative L2 error of points (m, 2) float64 -> (m, 1) against the solution, over the whole domain."""
        points, exact = self.exact()
        with torch.no_grad():
            found = answer(points)[:, 0].double()
        return float((found - exact).norm() / exact.norm())

    def inputs(self, count: int, seed: int) -> Tensor:
        """Points (count, 2) uniform over the domain."""
        unit = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return unit * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])


def burgers_rows(network: Any, rows: Tensor, taps: list[Tap] | None = None) -> Tensor:
    """Residuals (n,) of rows (x, t, is_edge, value) of `burgers_points`: the equation inside, the value on the edge."""
    u, u_x, u_t, u_xx = jet(network, rows[:, :2], taps)
    edge = (u - rows[:, 3]) * math.sqrt(DATA_WEIGHT * EDGE_SHARE)
    return torch.where(rows[:, 2] > 0, edge, u_t + u * u_x - NU * u_xx)


@cache
def burgers_exact() -> tuple[Tensor, Tensor]:
    """Cole and Hopf's solution on the grid."""
    x, t = np.meshgrid(np.linspace(-1, 1, COLUMNS), np.linspace(0, 1, TIMES))
    return torch.from_numpy(np.stack((x.ravel(), t.ravel()), axis=1)), torch.from_numpy(cole_hopf(x, t).ravel())


EQUATIONS = (
    Equation(
        name="Burgers",
        network=lambda width, depth, seed: burgers_network(width, depth, seed).double(),
        rows=burgers_points,
        residuals=burgers_rows,
        operator=burgers_residual,
        exact=burgers_exact,
    ),
    Equation(
        name="Allen-Cahn",
        network=lambda width, depth, seed: allen_cahn.allen_cahn_network(width, depth, seed).double(),
        rows=allen_cahn.sample,
        residuals=allen_cahn.weighted,
        operator=allen_cahn.allen_cahn_residual,
        exact=lambda: allen_cahn.on_grid(COLUMNS, TIMES),
    ),
)
