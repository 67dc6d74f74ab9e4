"""The Burgers network, compressed, and what torch.func says of it: u, u_x, u_t and u_xx in float64, with the distance
that arithmetic in float32 may keep from them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.func import hessian, jacfwd, vmap

import hrt
from hrt.perf.networks.burgers import burgers_points, load_burgers

from helpers import densified, noise

DERIVATIVES = ["d0", "d1", "d0d0"]
OUTPUTS = ["u", "u_x", "u_t", "u_xx"]
ULPS = 4  # that a runtime's tanh errs by, where the roundings of `noise` are half of one


@dataclass(frozen=True)
class Case:
    """x: float32 (rows, 2).  expected: float64 (rows, 1) of every output.  limits: what each may differ by (L2)."""

    x: Tensor
    expected: Sequence[Tensor]
    limits: Sequence[float]

    def check(self, found: Sequence[np.ndarray]) -> list[float]:
        """The relative differences of outputs, each within its limit."""
        differences = []
        for name, y, e, limit in zip(OUTPUTS, found, self.expected, self.limits, strict=True):
            assert y.shape == tuple(e.shape) and y.dtype == np.float32, name
            difference = float((torch.from_numpy(y.astype(np.float64)) - e).norm())
            assert difference <= limit, f"{name} is {difference:.2g} off. Expected at most {limit:.2g}."
            differences.append(difference / float(e.norm()))
        return differences


@cache
def compressed() -> hrt.CompressedModel:
    return hrt.compress(load_burgers(), inputs=burgers_points(4000, 1), tol=1e-3, progress=False)


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """The network in float64 with biases away from zero."""
    network, generator = network.double(), torch.Generator().manual_seed(6)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return network


def by_torch_func(f: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """u, u_x, u_t, u_xx, float64 (rows, 1), of f: (rows, 2) to (rows, 1)."""
    one = lambda z: f(z[None])[0, 0]  # noqa: E731
    x = x.double()
    first, second = vmap(jacfwd(one))(x), vmap(hessian(one))(x)
    columns = [vmap(one)(x), first[:, 0], first[:, 1], second[:, 0, 0]]
    return [y.detach()[:, None] for y in columns]


@cache
def case(rows: int) -> Case:
    """The compressed network at `rows` points that it has not seen."""
    x, model = burgers_points(rows, 77), compressed()
    program = densified(model.program)
    draws = 12 if rows < 100 else 3  # norms over many rows hardly vary
    limits = [ULPS * moved for moved in noise(model.differentiated(DERIVATIVES).program, [x], draws)]
    return Case(x, by_torch_func(lambda z: program.run([z])[0], x), limits)
