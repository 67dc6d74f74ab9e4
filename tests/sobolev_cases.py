"""Networks and exact derivatives that tests of derivatives under a tolerance share."""

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from derivative_reference import reference


def seeded(make, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def rows(count: int, seed: int, width: int = 2) -> Tensor:
    return torch.rand(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(net: nn.Module, x: Tensor, names: Sequence[str]) -> list[Tensor]:
    """Value and derivatives in float64, of the module itself."""
    double = copy.deepcopy(net).double()
    f = lambda z: (double(z[None])[0],)  # noqa: E731
    return [double(x).detach(), *(reference(f, x, name)[0].detach() for name in names)]


def relative(found, expected: Tensor) -> float:
    difference = torch.as_tensor(np.asarray(found), dtype=torch.float64) - expected
    return float(difference.norm() / expected.norm()) if bool(expected.any()) else float(difference.norm())
