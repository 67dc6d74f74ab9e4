"""A physics-informed network for Burgers' equation: the network, its training and its exact solution.

    u_t + u u_x = nu u_xx,   u(x, 0) = -sin(pi x),   u(-1, t) = u(1, t) = 0,   nu = 0.01 / pi

on x in [-1, 1], t in [0, 1]: the standard problem of Raissi, Perdikaris and Karniadakis (2019), whose
solution steepens into a layer about 0.006 wide at x = 0. The network sees only the equation, the initial
condition and the boundary condition; the exact solution serves to measure it, never to train it.

    python -m hrt.perf.networks.burgers train --out perf/data/burgers.safetensors
    python -m hrt.perf.networks.burgers check perf/data/burgers.safetensors
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hrt.perf.networks import pinn_training as pinn_steps
from hrt.perf.networks.pinn_training import Tap, fit, glorot, through

NU = 0.01 / math.pi  # viscosity
DATA_WEIGHT = 10.0  # of the mean squared initial and boundary error against the mean squared residual
ADAM_STEPS, NEWTON_STEPS = 2000, 400
CHECKPOINT = Path(__file__).parent.parent / "data" / "burgers.safetensors"
ERROR_GRID = (513, 101)  # x and t points, ends included, where the relative error is measured
TARGET_ERROR = 1e-4  # relative L2 error on ERROR_GRID that the committed checkpoint has to meet


class BurgersPINN(nn.Module):
    """Plain tanh multilayer perceptron (x, t) -> u, `depth` hidden layers of `width`, no hard constraint."""

    def __init__(self, width: int = 128, depth: int = 4) -> None:
        super().__init__()
        modules: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise([2] + [width] * depth):
            modules += [nn.Linear(fan_in, fan_out), nn.Tanh()]
        self.layers = nn.Sequential(*modules, nn.Linear(width, 1))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        """Value of u, shape (batch, 1), at points of shape (batch, 2) with columns x and t."""
        return self.layers(points)


def burgers_network(width: int = 128, depth: int = 4, seed: int = 0) -> BurgersPINN:
    """Untrained float32 network: Glorot-normal weights that depend on the seed alone, zero biases."""
    network = BurgersPINN(width, depth)
    glorot(network, seed)
    return network


def cole_hopf(x: np.ndarray, t: np.ndarray, nu: float = NU, nodes: int = 128) -> np.ndarray:
    """Exact solution of the problem in the module docstring, to about 1e-14 in float64 for the default nu.

    Formula (Hopf 1950, Cole 1951; for this initial value Basdevant et al., Computers & Fluids 14, 1986):

        u = -int sin(pi y) g(y, eta) d eta / int g(y, eta) d eta,    y = x - eta,
        g = exp(-cos(pi y) / (2 pi nu) - eta^2 / (4 nu t))

    With eta = 2 sqrt(nu t) z both integrals are Gauss-Hermite sums over z. At t = 0 every node falls on
    y = x and the quotient is -sin(pi x) without a special case. Exponents are shifted by their maximum
    before they are exponentiated, because exp(1 / (2 pi nu)) may be far beyond the range of a float.

    Takes positions x in [-1, 1] and times t >= 0 of any shapes that broadcast, viscosity nu > 0 and the
    number of Gauss-Hermite nodes; returns float64 of the broadcast shape.
    """
    x, t = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(t, dtype=np.float64))
    if x.size and t.min() < 0:
        raise ValueError(f"Expected times t >= 0. Got {t.min()}. Burgers' equation is not solved backwards.")
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


def jet(network: BurgersPINN, points: torch.Tensor, taps: list[Tap] | None = None) -> torch.Tensor:
    """Value and derivatives of the network by one forward Taylor pass: one batched product per layer.

    Takes points (N, 2) of the network's dtype; returns (4, N): u, u_x, u_t, u_xx, differentiable with
    respect to the parameters. One entry per linear layer is appended to `taps`, where that is given.
    """
    streams = points.new_zeros(4, *points.shape)
    streams[0] = points
    streams[1, :, 0] = streams[2, :, 1] = 1.0
    return through(network.layers, streams, taps)


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # interior (n, 2), edge (n // 8, 2), edge values


def sample(count: int, generator: torch.Generator) -> Batch:
    """A float64 batch of `count` interior points and count // 8 initial and boundary points in turn.

    Half of all x are uniform, half log-uniform in |x| down to 0.005: they resolve the layer at x = 0.
    """
    unit = torch.rand(4, count + count // 8, generator=generator, dtype=torch.float64)
    x = 2.0 * unit[0] - 1.0
    x = torch.where(unit[2] < 0.5, torch.sign(x) * 0.005 ** unit[3], x)
    points = torch.stack((x, unit[1]), dim=1)
    interior, edge = points[:count], points[count:]
    edge[0::2, 1] = 0.0
    edge[1::2, 0] = torch.sign(edge[1::2, 0])
    return interior, edge, torch.where(edge[:, 1] == 0.0, -torch.sin(math.pi * edge[:, 0]), 0.0)


def residuals(network: BurgersPINN, batch: Batch, taps: list[Tap] | None = None) -> torch.Tensor:
    """Equation, initial and boundary residuals (n + n // 8,), scaled so that the squares sum to the loss."""
    interior, edge, value = batch
    n = len(interior)
    u, u_x, u_t, u_xx = jet(network, torch.cat((interior, edge)), taps)
    equation = (u_t + u * u_x - NU * u_xx)[:n] / math.sqrt(n)
    return torch.cat((equation, (u[n:] - value) * math.sqrt(DATA_WEIGHT / len(value))))


newton_direction = partial(pinn_steps.newton_direction, residuals)
gauss_newton = partial(pinn_steps.gauss_newton, residuals, sample)


def train(
    seed: int = 0,
    adam_steps: int = ADAM_STEPS,
    newton_steps: int = NEWTON_STEPS,
    batch: int = 768,
    on_step: Callable[[BurgersPINN, int, float], None] = lambda network, step, loss: None,
) -> BurgersPINN:
    """Train from the equation, the initial and the boundary condition alone: Adam, then Gauss-Newton.

    Every step draws a fresh batch. A Gauss-Newton step is halved until it lowers the loss of its batch; the
    damping follows the accepted lengths. Over the last quarter the longest step shrinks to 0.1, which
    averages the batches' noise. Gauss-Newton stands where L-BFGS is usual because it gets further: on one
    core 4 minutes of L-BFGS left a relative error of 4e-2 at best, 1 minute of this 6e-4.

    Adam's learning rate falls from 1e-3 to 1e-4 along a cosine; `batch` counts interior points. After every
    step on_step(network, steps so far, loss before the step) is called. Returns the float64 network; equal
    arguments on one thread give equal weights.
    """
    network = burgers_network(seed=seed).double()

    def told(step: int, before: float) -> None:
        on_step(network, step, before)

    fit(residuals, sample, network, seed, adam_steps, newton_steps, batch, told)
    return network


def relative_error(network: BurgersPINN) -> float:
    """Relative L2 error against Cole-Hopf on the uniform ERROR_GRID over the whole domain."""
    x, t = np.meshgrid(np.linspace(-1.0, 1.0, ERROR_GRID[0]), np.linspace(0.0, 1.0, ERROR_GRID[1]))
    points = torch.from_numpy(np.stack((x.ravel(), t.ravel()), axis=1))
    with torch.no_grad():
        u = network(points.to(next(network.parameters()).dtype))[:, 0].double().numpy()
    exact = cole_hopf(x, t).ravel()
    return float(np.linalg.norm(u - exact) / np.linalg.norm(exact))


def save_checkpoint(network: BurgersPINN, path: Path, metadata: dict[str, str]) -> float:
    """Write the weights in float32 with the error measured on exactly those weights; returns that error."""
    rounded = BurgersPINN()
    rounded.load_state_dict(network.state_dict())
    error = relative_error(rounded)
    known = {"nu": repr(NU), "relative_l2_error": repr(error), "torch": str(torch.__version__)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(rounded.state_dict(), path.with_suffix(".partial"), metadata=metadata | known)
    os.replace(path.with_suffix(".partial"), path)
    return error


def load_burgers(path: str | Path = CHECKPOINT) -> BurgersPINN:
    """The trained network, float32, in evaluation mode; FileNotFoundError where there is no checkpoint."""
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"Expected a trained Burgers network at {path}. Found no such file: it is kept in the "
            f"repository, not in the wheel. Train it with: python -m hrt.perf.networks.burgers train --out {path}"
        )
    network = BurgersPINN()
    network.load_state_dict(load_file(path))
    return network.eval()


def main(arguments: list[str] | None = None) -> int:
    """Command line: `train` writes a checkpoint, `check` measures one; status 1 above TARGET_ERROR."""
    parser = argparse.ArgumentParser(prog="python -m hrt.perf.networks.burgers", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    trainer = commands.add_parser("train", help="train from the equation alone and write a checkpoint")
    trainer.add_argument("--out", type=Path, default=CHECKPOINT)
    trainer.add_argument("--seed", type=int, default=0)
    checker = commands.add_parser("check", help="measure a checkpoint against the exact solution")
    checker.add_argument("path", type=Path, nargs="?", default=CHECKPOINT)
    options = parser.parse_args(arguments)
    if options.command == "check":
        error = relative_error(load_burgers(options.path))
        print(f"{options.path}: relative L2 error {error:.3e} against Cole-Hopf on {ERROR_GRID}")
        return 0 if error <= TARGET_ERROR else 1

    torch.set_num_threads(1)  # the order of sums, and with it the weights, depends on the threads
    command = f"python -m hrt.perf.networks.burgers train --seed {options.seed} --out {options.out}"
    with Progress() as progress:
        task = progress.add_task("Training", total=ADAM_STEPS + NEWTON_STEPS)

        def on_step(network: BurgersPINN, step: int, loss: float) -> None:
            progress.update(task, completed=step)
            if step % 100 == 0:
                metadata = {"seed": str(options.seed), "epochs": str(step), "command": command}
                error = save_checkpoint(network, options.out, metadata)
                progress.print(f"step {step}: loss {loss:.2e}, relative L2 error {error:.2e}")

        train(options.seed, on_step=on_step)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())


def burgers_points(count: int, seed: int) -> Tensor:
    """Uniform points (count, 2) of the PINN's domain [-1, 1] x [0, 1], float32."""
    unit = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
    return unit * torch.tensor([2.0, 1.0]) - torch.tensor([1.0, 0.0])
