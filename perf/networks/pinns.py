"""Physics-informed networks of usual sizes, trained briefly by this module from a seed: Helmholtz and Navier-Stokes.

    Helmholtz      u_xx + u_yy + k^2 u = q on [-1, 1]^2, u = sin(pi x) sin(2 pi y), k = 1 (2 -> 4 x 256 -> 1)
    Navier-Stokes  incompressible, unsteady, in 2-D, nu = 0.1, the Taylor-Green vortex on [0, pi]^2 x [0, 1]
                   (3 -> 6 x 256 -> 3: u, v, p)

They see the equations and the values on the boundary. A few hundred steps leave them far from solved: what is measured
is what compression does to networks of this shape, whose weights are no longer those of their initialisation.
"""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

VISCOSITY = 0.1
CACHE = Path("build") / "pinns"
BATCH, LEARNING_RATE = 256, 2e-3


@dataclass(frozen=True)
class Problem:
    """widths: of the layers.  low, high: the box of the inputs.  second: inputs differentiated twice.

    residual(jets, points): the equations' residuals (N, equations); jets[0] is the value (N, outputs), then come the
    first derivatives by every input, then the second ones.  exact(points): values (N, outputs).  gain: of the first
    layer, so that oscillating solutions are found at all.  edge_weight: of the boundary's squared error in the loss.
    """

    widths: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    second: tuple[int, ...]
    residual: Callable[[Tensor, Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]
    steps: int
    gain: float = 1.0
    edge_weight: float = 10.0


def _helmholtz_exact(p: Tensor) -> Tensor:
    return (torch.sin(math.pi * p[:, 0]) * torch.sin(2 * math.pi * p[:, 1]))[:, None]


def _helmholtz(jets: Tensor, p: Tensor) -> Tensor:
    u, _, _, u_xx, u_yy = jets
    source = (1 - 5 * math.pi**2) * _helmholtz_exact(p)
    return (u_xx + u_yy + u - source) / (5 * math.pi**2)


def _vortex_exact(p: Tensor) -> Tensor:
    x, y, t = p.T
    decay = torch.exp(-2 * VISCOSITY * t)
    u, v = -torch.cos(x) * torch.sin(y) * decay, torch.sin(x) * torch.cos(y) * decay
    return torch.stack((u, v, -0.25 * (torch.cos(2 * x) + torch.cos(2 * y)) * decay**2), dim=1)


def _navier_stokes(jets: Tensor, p: Tensor) -> Tensor:
    value, dx, dy, dt, dxx, dyy = jets
    u, v = value[:, :1], value[:, 1:2]
    momentum = dt[:, :2] + u * dx[:, :2] + v * dy[:, :2] - VISCOSITY * (dxx + dyy)[:, :2]
    pressure = torch.stack((dx[:, 2], dy[:, 2]), dim=1)
    return torch.cat((momentum + pressure, dx[:, :1] + dy[:, 1:2]), dim=1)


PROBLEMS = {
    "helmholtz": Problem(
        (2, 256, 256, 256, 256, 1), (-1.0, -1.0), (1.0, 1.0), (0, 1), _helmholtz, _helmholtz_exact, 800, 8.0, 1.0
    ),
    "navier-stokes": Problem(
        (3, *[256] * 6, 3), (0.0, 0.0, 0.0), (math.pi, math.pi, 1.0), (0, 1), _navier_stokes, _vortex_exact, 300
    ),
}


class Pinn(nn.Module):
    """Plain tanh multilayer perceptron of the given widths; points (batch, inputs) to (batch, outputs)."""

    def __init__(self, widths: Sequence[int], seed: int = 0, gain: float = 1.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        layers: list[nn.Module] = []
        for n, m in pairwise(widths):
            layers += [nn.Linear(n, m), nn.Tanh()]
            nn.init.xavier_normal_(layers[-2].weight, generator=generator)  # type: ignore[arg-type]
            nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]
        with torch.no_grad():
            layers[0].weight.mul_(gain)  # type: ignore[operator]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, points: Tensor) -> Tensor:
        """Values at the points."""
        return self.layers(points)

    def jets(self, points: Tensor, second: Sequence[int]) -> Tensor:
        """(1 + inputs + len(second), N, outputs): value, first derivatives by every input, then the chosen second ones.

        One forward Taylor pass: a = tanh(z), s = 1 - a^2 turns (z, z_i, z_ii) into (a, s z_i, s (z_ii - 2 a z_i^2)).
        """
        d = points.shape[1]
        streams = points.new_zeros(1 + d + len(second), *points.shape)
        streams[0] = points
        for k in range(d):
            streams[1 + k, :, k] = 1.0
        rows = [1 + k for k in second]
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                products = streams @ layer.weight.T
                streams = torch.cat((products[:1] + layer.bias, products[1:]))
            else:
                a = torch.tanh(streams[:1])
                s = 1 - a * a
                streams = torch.cat((a, s * streams[1 : 1 + d], s * (streams[1 + d :] - 2 * a * streams[rows] ** 2)))
        return streams


def pinn_points(name: str, count: int, seed: int) -> Tensor:
    """Uniform points (count, inputs) of a problem's box, float32."""
    problem = PROBLEMS[name]
    low, high = torch.tensor(problem.low), torch.tensor(problem.high)
    return low + torch.rand(count, len(low), generator=torch.Generator().manual_seed(seed)) * (high - low)


def train_pinn(name: str, seed: int = 0, steps: int | None = None) -> Pinn:
    """The float32 network in evaluation mode. Equal arguments on one thread give equal weights."""
    problem = PROBLEMS[name]
    net = Pinn(problem.widths, seed, problem.gain)
    steps = problem.steps if steps is None else steps
    adam = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, max(steps, 1))
    for step in range(steps):
        inside, edge = (pinn_points(name, BATCH, seed + 2 * step + k) for k in (1, 2))
        which = torch.arange(BATCH) % len(problem.low)
        low, high = torch.tensor(problem.low), torch.tensor(problem.high)
        side = torch.where(torch.arange(BATCH) // len(low) % 2 == 0, low[which], high[which])
        edge[torch.arange(BATCH), which] = side
        adam.zero_grad()
        loss = problem.residual(net.jets(inside, problem.second), inside).square().mean()
        (loss + problem.edge_weight * (net(edge) - problem.exact(edge)).square().mean()).backward()
        adam.step()
        schedule.step()
    return net.eval()


def load_pinn(name: str, seed: int = 0, folder: Path = CACHE) -> Pinn:
    """The trained network, from `folder` where this very code trained it before, else trained now on one thread."""
    problem = PROBLEMS[name]
    code = hashlib.sha256(Path(__file__).read_bytes() + f"{name} {seed} {torch.__version__}".encode()).hexdigest()
    path = folder / f"{name}-{code[:16]}.safetensors"
    net = Pinn(problem.widths, seed, problem.gain)
    if path.is_file():
        net.load_state_dict(load_file(path))
        return net.eval()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the order of sums, and with it the weights, depends on the threads
    try:
        net = train_pinn(name, seed)
    finally:
        torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    save_file(net.state_dict(), partial)
    os.replace(partial, path)
    return net


def pinn_error(name: str, net: Pinn, seed: int = 99) -> float:
    """Relative L2 error against the exact solution on 4096 uniform points."""
    points = pinn_points(name, 4096, seed)
    exact = PROBLEMS[name].exact(points)
    with torch.no_grad():
        return float((net(points) - exact).norm() / exact.norm())
