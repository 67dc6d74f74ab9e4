"""A DeepONet that learns the logarithmic operator, trained here in seconds from a fixed seed.

    (K f)(y) = int_0^1 log|x - y| f(x) dx   ~   sum_k branch_k(f(x_1), ..., f(x_m)) trunk_k(y) + bias

The branch sees f on m midpoints, the trunk one place y; data are smooth random f and K applied on the same grid.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from hrt.perf.networks.operators import log_kernel, midpoint_grid, smooth_inputs
from hrt.perf.networks.pinn_training import adam

SENSORS, WIDTH, MODES = 128, 192, 96
STEPS, FUNCTIONS, BATCH = 1500, 4096, 128


class DeepONet(nn.Module):
    """Branch (m -> WIDTH -> WIDTH -> MODES, tanh) times trunk (1 -> WIDTH -> WIDTH -> MODES, tanh), summed."""

    def __init__(self, sensors: int = SENSORS) -> None:
        super().__init__()
        self.branch, self.trunk = (_mlp(n, WIDTH, WIDTH, MODES) for n in (sensors, 1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, f: Tensor, y: Tensor) -> Tensor:
        """(K f)(y), shape (batch, 1), for one place y (batch, 1) per function f (batch, m)."""
        return (self.branch(f) * self.trunk(y)).sum(-1, keepdim=True) + self.bias

    def on_grid(self, f: Tensor, y: Tensor) -> Tensor:
        """(K f)(y), shape (batch, places), for all places y (places, 1) of every function: cheaper to train."""
        return self.branch(f) @ self.trunk(y).T + self.bias


def train_deeponet(seed: int = 0, steps: int = STEPS) -> tuple[DeepONet, float]:
    """The float32 network in evaluation mode, and its relative L2 error on 256 unseen functions."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DeepONet()
    f, u = _data(FUNCTIONS, seed)
    y = torch.from_numpy(midpoint_grid(SENSORS)[:, None]).float()

    def loss(step: int) -> Tensor:
        rows = torch.randint(FUNCTIONS, (BATCH,), generator=generator)
        return (net.on_grid(f[rows], y) - u[rows]).square().mean()

    adam(net, loss, steps, (2e-3, 0.0), lambda step, value: None)
    unseen, expected = _data(256, seed + 1)
    with torch.no_grad():
        error = float((net.on_grid(unseen, y) - expected).norm() / expected.norm())
    return net.eval(), error


def deeponet_inputs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Functions (count, SENSORS) on the midpoint grid and a place (count, 1), uniform in (0, 1), for each; float32."""
    places = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(smooth_inputs(SENSORS, count, seed=seed)).float(), places


def _data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    f = smooth_inputs(SENSORS, count, seed=seed)
    return torch.from_numpy(f).float(), torch.from_numpy(f @ log_kernel(SENSORS).T).float()


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n, m in pairwise(widths):
        layers += [nn.Linear(n, m), nn.Tanh()]
    return nn.Sequential(*layers[:-1])
