"""The training behind `python -m hrt.perf.paper.command`: small PINNs for Burgers' and Allen and Cahn's equations from several
seeds, dense, compressed while they train, and shrunk towards low ranks.

All three take the same start, draws and steps: Adam, then Gauss-Newton, on the residual alone. Errors are relative L2
against the exact solution; a ratio is dense float32 bytes over bytes, in float32 while training, as stored afterwards.
"""

import copy
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hrt
from hrt.matrix_compression.block_source import cholesky_psd
from hrt.perf.networks.pinn_training import Newton, Tap
from hrt.perf.paper.equations import EQUATIONS, Equation
from hrt.perf.paper.ntk import Rows, over_tolerance
from hrt.training.rank_penalty import proximal_step, second_moments

DENSE, DYNAMIC, PROXIMAL = "dense", "dynamic compression", "proximal steps"
COARSEST, FINEST = 0.03, 3e-3  # tolerances of dynamic compression, of layers' outputs
SERVED = 0.3  # of a trained network's error: within that of its output it is stored, which adds some 4 % to the error
SEEN = 1e-3  # error of layers' outputs that says which directions count
ADAM_RATE, ADAM_SHRINK, NEWTON_SHRINK = 2e-3, 1e-5, 3e-5  # learning rate; thresholds of one proximal step
SAMPLES = 1024  # inputs of second moments


@dataclass(frozen=True)
class Training:
    """How much is trained. adam, newton: steps.  adam_epochs, newton_epochs: how often figures are taken during them,
    and partitions may change.  calibration: inputs of compression.  tols, points: of the kernels.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    batch: int = 320
    adam: int = 200
    newton: int = 84
    adam_epochs: int = 4
    newton_epochs: int = 12
    calibration: int = 3000
    tols: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    points: int = 32

    @staticmethod
    def quick() -> "Training":
        """The same seeds, on smaller networks, for fewer steps and tolerances."""
        return Training(width=24, depth=3, batch=128, adam=100, newton=36, calibration=1600, tols=(1e-1, 1e-2, 1e-3))


@dataclass(frozen=True, eq=False)
class Run:
    """A trained network and its figures, one row for every epoch; the last one has those of the stored network, too."""

    equation: Equation
    method: str
    seed: int
    network: nn.Module
    rows: Rows


def trained(t: Training, equations: Sequence[Equation] = EQUATIONS) -> list[Run]:
    """Every equation, seed and method in turn."""
    runs = []
    for equation in equations:
        for seed in t.seeds:
            for method in (DENSE, DYNAMIC, PROXIMAL):
                runs.append(train(equation, method, seed, t))
                last = runs[-1].rows[-1]
                figures = f"error {last['error']:.1e}, {last['ratio']:.1f}x, stored {last['served_ratio']:.1f}x"
                print(
                    f"{equation.name}, {method}, seed {seed}: {figures}, {last['seconds']:.0f} s of CPU",
                    file=sys.stderr,
                )
    return runs


def train(equation: Equation, method: str, seed: int, t: Training) -> Run:
    """One network; seconds are CPU time of training, without what measures it.

    Dynamic compression changes partitions in the second third of Gauss-Newton: before, networks have not yet found the
    solution, and small ones hardly find it. Proximal steps follow every step of Adam and Gauss-Newton, their threshold
    falling to nothing over the latter.
    """
    draws = torch.Generator().manual_seed(seed)
    network = equation.network(t.width, t.depth, seed)
    inputs = equation.inputs(t.calibration, seed)
    dense_numbers = sum(p.numel() for p in network.parameters())
    newton: Newton | None = None
    every = max(1, t.newton_epochs // 6)
    first, until = (t.adam_epochs + k * t.newton_epochs // 3 for k in (1, 2))
    options: dict[str, Any] = {"every": every, "first": first, "tol": COARSEST, "finest": FINEST, "seed": seed}
    dynamic = hrt.DynamicCompression(network, inputs[:SAMPLES], **options) if method == DYNAMIC else None
    adam = torch.optim.Adam(network.parameters(), lr=ADAM_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, t.adam, eta_min=ADAM_RATE / 20)
    rows: Rows = []
    seconds, done = 0.0, 0

    def root_mean(network: nn.Module, points: Tensor, taps: list[Tap] | None = None) -> Tensor:
        return equation.residuals(network, points, taps) / len(points) ** 0.5

    def record(loss: float | None) -> None:
        row = {"case": equation.name, "method": method, "seed": seed, "step": done, "loss": loss, "seconds": seconds}
        ratio = 1.0 if dynamic is None else dynamic.ratio
        row |= {"error": equation.error(network), "ratio": ratio, "numbers": round(dense_numbers / ratio)}
        rows.append(row | ({"directions": directions(network, inputs[:SAMPLES])} if dynamic is None else {}))

    record(None)
    for epoch in range(1, t.adam_epochs + t.newton_epochs + 1):
        start, losses = time.process_time(), []
        moments = second_moments(network, inputs[:SAMPLES]) if method == PROXIMAL else {}
        if epoch <= t.adam_epochs:
            for _ in range(t.adam // t.adam_epochs):
                adam.zero_grad()
                loss = equation.residuals(network, equation.rows(t.batch, draws)).square().mean()
                loss.backward()
                adam.step()
                schedule.step()
                if method == PROXIMAL:
                    proximal_step(network, ADAM_SHRINK, second_moments=moments)
                losses.append(loss.item())
                done += 1
        else:
            newton = newton or Newton(root_mean, network)
            for _ in range(t.newton // t.newton_epochs):
                left = max(0.0, 1 - (done - t.adam) / t.newton)
                losses.append(newton.step(equation.rows(t.batch, draws), left))
                if method == PROXIMAL:
                    proximal_step(network, NEWTON_SHRINK * left, second_moments=moments)
                done += 1
        loss = sum(losses) / len(losses)
        if dynamic is not None and epoch <= until:
            dynamic.step(epoch, loss)
        seconds += time.process_time() - start
        record(loss)
    rows[-1] |= served(equation, network, inputs, seed, rows[-1]["error"])
    return Run(equation, method, seed, network, rows)


def served(equation: Equation, network: nn.Module, inputs: Tensor, seed: int, error: float) -> dict[str, Any]:
    """Bytes, ratio and error of the network as it is stored within SERVED * error and answers."""
    options: dict[str, Any] = {"tol": min(0.3, SERVED * error), "target": "bytes", "seed": seed, "progress": False}
    model = hrt.compress(network, inputs=inputs, **options)
    found = {"served_bytes": model.nbytes, "served_ratio": model.compression_ratio}
    return found | {"served_error": equation.error(lambda points: model.predict(points.float()))}


def directions(network: nn.Module, inputs: Tensor) -> int:
    """How many directions all weights have together that their inputs see: the least ranks that keep every layer's
    output to SEEN, relative L2, before biases.
    """
    found = 0
    for name, c in second_moments(network, inputs).items():
        seen = network.get_parameter(f"{name}.weight").detach() @ cholesky_psd(c)
        tail = torch.linalg.svdvals(seen).square().flip(0).cumsum(0)
        found += int((tail > SEEN**2 * tail[-1]).sum())
    return found


def convergence(runs: Sequence[Run]) -> Rows:
    """Error and ratio over the steps, dense and with dynamic compression."""
    return [row for run in runs if run.method in (DENSE, DYNAMIC) for row in run.rows]


def regularised(runs: Sequence[Run]) -> Rows:
    """Error and directions over the steps, with and without proximal steps."""
    return [row for run in runs if run.method in (DENSE, PROXIMAL) for row in run.rows]


def kernel_drift(runs: Sequence[Run], t: Training) -> Rows:
    """Drift of every dense network's kernels of value and residual, over the tolerance of weights and of outputs."""
    rows: Rows = []
    for run in (r for r in runs if r.method == DENSE):
        network = copy.deepcopy(run.network).float()  # so that a weight stored in float32 is stored exactly
        kernels = {"value": None, "residual": run.equation.operator}
        inputs, x = run.equation.inputs(t.calibration, run.seed), run.equation.inputs(t.points, 2024)
        some = over_tolerance(network, x, inputs.float(), t.tols, kernels)
        rows += [{"case": run.equation.name, "seed": run.seed} | row for row in some]
    return rows
