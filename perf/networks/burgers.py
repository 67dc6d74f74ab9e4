"""Burgers' equation: the committed network, its training and the exact solution.

    u_t + u u_x = nu u_xx,   u(x, 0) = -sin(pi x),   u(-1, t) = u(1, t) = 0,   nu = 0.01 / pi

on x in [-1, 1], t in [0, 1] (Raissi, Perdikaris and Karniadakis, 2019): a layer about 0.006 wide forms at x = 0. The
network sees the equation, initial and boundary values; the exact solution measures it and never trains it.

    python -m hrt.perf.networks.burgers train --out perf/data/burgers.safetensors
    python -m hrt.perf.networks.burgers check perf/data/burgers.safetensors
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.progress import Progress
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.func import grad

from hrt.perf.networks.pinn_training import Course, Equation, fit
from hrt.perf.networks.taylor_pass import Pinn, Tap, by_jvp, jets
from hrt.support.atomic_files import replacing

NU = 0.01 / math.pi  # viscosity
DATA_WEIGHT = 10.0  # of the mean squared initial and boundary error against the mean squared residual
EDGE_SHARE = 8  # one initial or boundary point for so many inside
ADAM_STEPS, NEWTON_STEPS, BATCH = 2000, 400, 768
MEMBERS, MEMBER_ADAM, MEMBER_NEWTON, MEMBER_BATCH = 5, 200, 60, 512  # of an ensemble
CHECKPOINT = Path(__file__).parent.parent / "data" / "burgers.safetensors"
ERROR_GRID = (513, 101)  # x and t points, ends included, where the relative error is measured
TARGET_ERROR = 1e-4  # relative L2 error on ERROR_GRID that the committed checkpoint has to meet
DERIVATIVES = ("d0", "d1", "d0d0")  # that torch gives by its own ways, which ours are measured beside
Way = Callable[[nn.Module, Tensor], tuple[Tensor, ...]]


def burgers_network(width: int = 128, depth: int = 4, seed: int = 0) -> Pinn:
    """Untrained float32 network (x, t) -> u, `depth` hidden layers of `width`, without hard constraints."""
    return Pinn([2] + [width] * depth + [1], seed)


def cole_hopf(x: np.ndarray, t: np.ndarray, nu: float = NU, nodes: int = 128) -> np.ndarray:
    """Exact solution to about 1e-14 at x and t >= 0 of any shapes that broadcast, float64.

        u = -int sin(pi y) g(y, eta) d eta / int g(y, eta) d eta,    y = x - eta,
        g = exp(-cos(pi y) / (2 pi nu) - eta^2 / (4 nu t))

    (Hopf 1950, Cole 1951; Basdevant et al., Computers & Fluids 14, 1986.) With eta = 2 sqrt(nu t) z both integrals are
    Gauss-Hermite sums over z. Exponents are shifted by their maximum, because exp(1 / (2 pi nu)) may overflow.
    """
    x, t = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(t, dtype=np.float64))
    z, weight = np.polynomial.hermite.hermgauss(nodes)
    log_weight = np.log(weight)
    flat_x, flat_t = x.ravel(), t.ravel()
    u = np.empty(flat_x.size)
    for start in range(0, flat_x.size, 4096):  # bounds the (points, nodes) temporaries
        part = slice(start, start + 4096)
        y = flat_x[part, None] - 2.0 * np.sqrt(nu * flat_t[part, None]) * z
        exponent = log_weight - np.cos(np.pi * y) / (2.0 * np.pi * nu)
        mass = np.exp(exponent - exponent.max(axis=1, keepdims=True))
        u[part] = -(np.sin(np.pi * y) * mass).sum(axis=1) / mass.sum(axis=1)
    return u.reshape(x.shape)


@cache
def exact_solution() -> tuple[Tensor, Tensor]:
    """Cole and Hopf's solution on ERROR_GRID over the whole domain: points (m, 2) and values (m,)."""
    x, t = np.meshgrid(np.linspace(-1.0, 1.0, ERROR_GRID[0]), np.linspace(0.0, 1.0, ERROR_GRID[1]))
    return torch.from_numpy(np.stack((x.ravel(), t.ravel()), axis=1)), torch.from_numpy(cole_hopf(x, t).ravel())


def sample(count: int, generator: torch.Generator) -> Tensor:
    """Rows (x, t, is_edge, value) float64: `count` points inside, then count // EDGE_SHARE initial and boundary points
    in turn. Half of all x are uniform, half log-uniform in |x| down to 0.005: they resolve the layer at x = 0.
    """
    unit = torch.rand(4, count + count // EDGE_SHARE, generator=generator, dtype=torch.float64)
    x = 2.0 * unit[0] - 1.0
    x = torch.where(unit[2] < 0.5, torch.sign(x) * 0.005 ** unit[3], x)
    rows = torch.stack((x, unit[1], torch.zeros_like(x), torch.zeros_like(x)), dim=1)
    edge = rows[count:]
    edge[0::2, 1] = 0.0
    edge[1::2, 0] = torch.sign(edge[1::2, 0])
    edge[:, 2] = 1.0
    edge[:, 3] = torch.where(edge[:, 1] == 0.0, -torch.sin(math.pi * edge[:, 0]), 0.0)
    return rows


def weighted(equation: Tensor, u: Tensor, rows: Tensor) -> Tensor:
    """What training makes small at every row: the equation inside, the distance from the value on the edge."""
    edge = (u - rows[:, 3]) * math.sqrt(DATA_WEIGHT * EDGE_SHARE)
    return torch.where(rows[:, 2] > 0, edge, equation)


def residuals(network: Any, rows: Tensor, taps: list[Tap] | None = None) -> Tensor:
    """Residuals (n,) of rows as `sample` draws them. Layers may be HLinear."""
    u, u_x, u_t, u_xx = jets(network.layers, rows[:, :2], taps=taps)[..., 0]
    return weighted(u_t + u * u_x - NU * u_xx, u, rows)


def burgers_operator(u: Any, points: Tensor) -> Tensor:
    """u_t + u u_x - nu u_xx of any function (rows, 2) -> (rows, 1), by forward differentiation: (rows, 1)."""
    value, u_x, u_t, u_xx = by_jvp(u, points)
    return u_t + value * u_x - NU * u_xx


BURGERS = Equation(
    name="Burgers",
    network=lambda width, depth, seed: burgers_network(width, depth, seed).double(),
    rows=sample,
    residuals=residuals,
    operator=burgers_operator,
    exact=exact_solution,
)


def relative_error(network: Pinn) -> float:
    """Relative L2 error against Cole-Hopf on the uniform ERROR_GRID over the whole domain."""
    return BURGERS.error(network, next(network.parameters()).dtype)


def save_checkpoint(network: Pinn, path: Path, metadata: dict[str, str]) -> float:
    """Write the weights in float32 with the error measured on exactly those weights; returns that error."""
    rounded = burgers_network()
    rounded.load_state_dict(network.state_dict())
    error = relative_error(rounded)
    facts = {"nu": repr(NU), "relative_l2_error": repr(error), "torch": str(torch.__version__)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(save(rounded.state_dict(), metadata=metadata | facts))
    return error


def load_burgers(path: str | Path = CHECKPOINT) -> Pinn:
    """The trained network, float32, in evaluation mode; FileNotFoundError where there is no checkpoint."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"Expected a trained Burgers network at {path}. Found no such file: it is kept in the repository, not in "
            f"the wheel. Train it with: python -m hrt.perf.networks.burgers train --out {path}"
        )
    network = burgers_network()
    network.load_state_dict(load_file(path))
    return network.eval()


class Ensemble(nn.Module):
    """Several networks side by side: (rows, 2) to the answer of each, (rows, members)."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, points: Tensor) -> Tensor:
        return torch.cat([member(points) for member in self.members], dim=1)


def train_ensemble(members: int = MEMBERS, adam: int = MEMBER_ADAM, newton: int = MEMBER_NEWTON) -> Ensemble:
    """A deep ensemble (Lakshminarayanan and others, 2017): networks that differ in the seeds of weights and points,
    float32, in evaluation mode, trained for less than the committed one.
    """
    networks = []
    for seed in range(members):
        network = BURGERS.network(128, 4, seed)
        fit(BURGERS, network, Course(adam, newton, MEMBER_BATCH, seed))
        networks.append(network.float())
    return Ensemble(networks).eval()


def burgers_points(count: int, seed: int) -> Tensor:
    """Uniform points (count, 2) of the domain [-1, 1] x [0, 1], float32."""
    unit = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
    return unit * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])


def reverse(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """u, u_x, u_t, u_xx by reverse over reverse."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        u = net(x)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first[:, 0].sum(), x)
    return u.detach(), first[:, :1].detach(), first[:, 1:].detach(), second[:, :1]


def functional_reverse(net: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """The same by torch.func, which torch.compile takes."""

    def value(z: Tensor) -> tuple[Tensor, Tensor]:
        u = net(z)
        return u.sum(), u

    def slope(z: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        first, u = grad(value, has_aux=True)(z)
        return first[:, 0].sum(), (u, first)

    second, (u, first) = grad(slope, has_aux=True)(x)
    return u, first[:, :1], first[:, 1:], second[:, :1]


class Differentiating(nn.Module):
    """The PINN with its derivatives, by one of these ways; parameters are frozen."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.net, self.way = load_burgers().requires_grad_(False), way

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.way(self.net, x)


def torch_ways() -> dict[str, nn.Module]:
    """By name; the first is what most people write, the last what torch.compile takes."""
    ways = {"reverse over reverse": reverse, "jvp of jvp": by_jvp, "torch.func": functional_reverse}
    return {name: Differentiating(way) for name, way in ways.items()}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="The network of Burgers' equation.")


@app.command("train")
def train_command(
    out: Annotated[Path, typer.Option(help="File to write.")] = CHECKPOINT,
    seed: Annotated[int, typer.Option(help="Of weights and draws.")] = 0,
) -> None:
    """Train from the equation alone and write a checkpoint."""
    torch.set_num_threads(1)  # the order of sums, and with it the weights, depends on the threads
    command = f"python -m hrt.perf.networks.burgers train --seed {seed} --out {out}"
    network = burgers_network(seed=seed).double()
    with Progress() as progress:
        task = progress.add_task("Training", total=ADAM_STEPS + NEWTON_STEPS)

        def on_step(step: int, loss: float) -> None:
            progress.update(task, completed=step)
            if step % 100 == 0:
                error = save_checkpoint(network, out, {"seed": str(seed), "epochs": str(step), "command": command})
                progress.print(f"step {step}: loss {loss:.2e}, relative L2 error {error:.2e}")

        fit(BURGERS, network, Course(ADAM_STEPS, NEWTON_STEPS, BATCH, seed), on_step)


@app.command()
def check(path: Annotated[Path, typer.Argument(help="A checkpoint.")] = CHECKPOINT) -> None:
    """Measure a checkpoint against the exact solution; status 1 above TARGET_ERROR."""
    error = relative_error(load_burgers(path))
    print(f"{path}: relative L2 error {error:.3e} against Cole-Hopf on {ERROR_GRID}")
    if error > TARGET_ERROR:
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m hrt.perf.networks.burgers")
