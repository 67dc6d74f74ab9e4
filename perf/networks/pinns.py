"""Physics-informed networks of usual sizes, trained briefly by this module from a seed: Helmholtz and Navier-Stokes.

    Helmholtz      u_xx + u_yy + k^2 u = q on [-1, 1]^2, u = sin(pi x) sin(2 pi y), k = 1 (2 -> 4 x 256 -> 1)
    Navier-Stokes  incompressible, unsteady, in 2-D, nu = 0.1, the Taylor-Green vortex on [0, pi]^2 x [0, 1]
                   (3 -> 6 x 256 -> 3: u, v, p)

They see the equations and the values on the boundary. A few hundred steps leave them far from solved, but no longer
initial: what is measured is what compression does to networks of this shape.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from hrt.perf.networks.pinn_training import adam, one_thread
from hrt.perf.networks.taylor_pass import Pinn, jets
from hrt.support.atomic_files import replacing

VISCOSITY = 0.1
CACHE = Path("build") / "pinns"
BATCH, LEARNING_RATE = 256, 2e-3


@dataclass(frozen=True)
class Problem:
    """low, high: the box of the inputs.  residual: (N, equations) from `jets` and points.  gain: of the first layer,
    without which oscillating solutions are missed.  edge_weight: of the boundary's squared error in the loss.
    """

    widths: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    residual: Callable[[Tensor, Tensor], Tensor]
    exact: Callable[[Tensor], Tensor]
    steps: int
    gain: float = 1.0
    edge_weight: float = 10.0


def _helmholtz_exact(p: Tensor) -> Tensor:
    return (torch.sin(math.pi * p[:, 0]) * torch.sin(2 * math.pi * p[:, 1]))[:, None]


def _helmholtz(derivatives: Tensor, p: Tensor) -> Tensor:
    u, _, _, u_xx, u_yy = derivatives
    source = (1 - 5 * math.pi**2) * _helmholtz_exact(p)
    return (u_xx + u_yy + u - source) / (5 * math.pi**2)


def _vortex_exact(p: Tensor) -> Tensor:
    x, y, t = p.T
    decay = torch.exp(-2 * VISCOSITY * t)
    u, v = -torch.cos(x) * torch.sin(y) * decay, torch.sin(x) * torch.cos(y) * decay
    return torch.stack((u, v, -0.25 * (torch.cos(2 * x) + torch.cos(2 * y)) * decay**2), dim=1)


def _navier_stokes(derivatives: Tensor, p: Tensor) -> Tensor:
    value, dx, dy, dt, dxx, dyy = derivatives
    u, v = value[:, :1], value[:, 1:2]
    momentum = dt[:, :2] + u * dx[:, :2] + v * dy[:, :2] - VISCOSITY * (dxx + dyy)[:, :2]
    pressure = torch.stack((dx[:, 2], dy[:, 2]), dim=1)
    return torch.cat((momentum + pressure, dx[:, :1] + dy[:, 1:2]), dim=1)


PROBLEMS = {
    "helmholtz": Problem(
        (2, 256, 256, 256, 256, 1), (-1.0, -1.0), (1.0, 1.0), _helmholtz, _helmholtz_exact, 800, 8.0, 1.0
    ),
    "navier-stokes": Problem(
        (3, *[256] * 6, 3), (0.0, 0.0, 0.0), (math.pi, math.pi, 1.0), _navier_stokes, _vortex_exact, 300
    ),
}


def pinn_points(name: str, count: int, seed: int) -> Tensor:
    """Uniform points (count, inputs) of a problem's box, float32."""
    problem = PROBLEMS[name]
    low, high = torch.tensor(problem.low), torch.tensor(problem.high)
    return low + torch.rand(count, len(low), generator=torch.Generator().manual_seed(seed)) * (high - low)


def train_pinn(name: str, seed: int = 0, steps: int | None = None) -> Pinn:
    """The float32 network in evaluation mode, the same for equal arguments on one thread."""
    problem = PROBLEMS[name]
    net = Pinn(problem.widths, seed, problem.gain)
    steps = problem.steps if steps is None else steps
    low, high = torch.tensor(problem.low), torch.tensor(problem.high)
    which = torch.arange(BATCH) % len(low)
    side = torch.where(torch.arange(BATCH) // len(low) % 2 == 0, low[which], high[which])

    def loss(step: int) -> Tensor:
        inside, edge = (pinn_points(name, BATCH, seed + 2 * (step - 1) + k) for k in (1, 2))
        edge[torch.arange(BATCH), which] = side
        residual = problem.residual(jets(net.layers, inside, (0, 1)), inside).square().mean()
        return residual + problem.edge_weight * (net(edge) - problem.exact(edge)).square().mean()

    adam(net, loss, steps, (LEARNING_RATE, 0.0), lambda step, value: None)
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
    with one_thread():
        net = train_pinn(name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(save(net.state_dict()))
    return net
