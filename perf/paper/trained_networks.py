"""The training behind `python -m hrt.perf.paper figures`: small PINNs for Burgers' and Allen and Cahn's equations.

From several seeds, dense, compressed while they train, and shrunk towards low ranks. All three take the same start,
draws and steps: Adam, then Gauss-Newton, on the residual alone. Errors are relative L2 against the exact solution; a
ratio is dense float32 bytes over bytes, in float32 while training, as stored afterwards.
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
from hrt.perf.networks.allen_cahn import ALLEN_CAHN
from hrt.perf.networks.burgers import BURGERS, burgers_points
from hrt.perf.networks.pinn_training import Course, Equation, fit
from hrt.perf.paper.ntk import over_tolerance
from hrt.perf.paper.output import Rows
from hrt.training.rank_penalty import proximal_step, second_moments

EQUATIONS = (BURGERS, ALLEN_CAHN)
DENSE, DYNAMIC, PROXIMAL = "dense", "dynamic compression", "proximal steps"
COARSEST, FINEST = 0.03, 3e-3  # tolerances of dynamic compression, of layers' outputs
SERVED = 0.3  # of a trained network's error: within that of its output it is stored, which adds some 4 % to the error
SEEN = 1e-3  # error of layers' outputs that says which directions count
RATES, ADAM_SHRINK, NEWTON_SHRINK = (2e-3, 1e-4), 1e-5, 3e-5  # learning rates; thresholds of one proximal step
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
                head = f"{equation.name}, {method}, seed {seed}"
                print(f"{head}: {figures}, {last['seconds']:.0f} s of CPU", file=sys.stderr)
    return runs


def train(equation: Equation, method: str, seed: int, t: Training) -> Run:
    """One network; seconds are CPU time of training, without what measures it.

    Dynamic compression changes partitions in the second third of Gauss-Newton: before, networks have not yet found the
    solution, and small ones hardly find it. Proximal steps follow every step of Adam and Gauss-Newton, their threshold
    falling to nothing over the latter.
    """
    network, inputs = equation.network(t.width, t.depth, seed), burgers_points(t.calibration, seed).double()
    dense_numbers = sum(p.numel() for p in network.parameters())
    first, until = (t.adam_epochs + k * t.newton_epochs // 3 for k in (1, 2))
    dynamic = None
    if method == DYNAMIC:
        options = {"every": max(1, t.newton_epochs // 6), "first": first, "tol": COARSEST, "finest": FINEST}
        dynamic = hrt.DynamicCompression(network, inputs[:SAMPLES], **options, seed=seed)
    ends = [k * t.adam // t.adam_epochs for k in range(1, t.adam_epochs + 1)]
    ends += [t.adam + k * t.newton // t.newton_epochs for k in range(1, t.newton_epochs + 1)]
    rows: Rows = []
    losses: list[float] = []
    seconds, start = 0.0, time.process_time()

    def moments() -> dict[str, Tensor]:
        return second_moments(network, inputs[:SAMPLES]) if method == PROXIMAL else {}

    def record(step: int) -> None:
        ratio = 1.0 if dynamic is None else dynamic.ratio
        row = {"case": equation.name, "method": method, "seed": seed, "step": step, "seconds": seconds}
        row |= {"loss": sum(losses) / len(losses) if losses else None, "error": equation.error(network)}
        row |= {"ratio": ratio, "numbers": round(dense_numbers / ratio)}
        rows.append(row | ({"directions": directions(network, inputs[:SAMPLES])} if dynamic is None else {}))

    def on_step(step: int, loss: float) -> None:
        nonlocal seen, seconds, start
        if method == PROXIMAL:
            left = 1 - (step - 1 - t.adam) / t.newton
            threshold = ADAM_SHRINK if step <= t.adam else NEWTON_SHRINK * left
            proximal_step(network, threshold, second_moments=seen)
        losses.append(loss)
        if step not in ends:
            return
        epoch = ends.index(step) + 1
        if dynamic is not None and epoch <= until:
            dynamic.step(epoch, sum(losses) / len(losses))
        seconds += time.process_time() - start
        record(step)
        losses.clear()
        start = time.process_time()
        seen = moments()

    record(0)
    seen = moments()
    fit(equation, network, Course(t.adam, t.newton, t.batch, seed, RATES), on_step)
    rows[-1] |= served(equation, network, inputs, seed, rows[-1]["error"])
    return Run(equation, method, seed, network, rows)


def served(equation: Equation, network: nn.Module, inputs: Tensor, seed: int, error: float) -> dict[str, Any]:
    """Bytes, ratio and error of the network as it is stored within SERVED * error and answers."""
    options: dict[str, Any] = {"tol": min(0.3, SERVED * error), "target": "bytes", "seed": seed, "progress": False}
    model = hrt.compress(network, inputs=inputs, **options)
    error = equation.error(model.predict, torch.float32)
    return {"served_bytes": model.nbytes, "served_ratio": model.compression_ratio, "served_error": error}


def directions(network: nn.Module, inputs: Tensor) -> int:
    """How many directions all weights have together that their inputs see: the least ranks that keep every layer's
    output to SEEN, relative L2, before biases.
    """
    count = 0
    for name, c in second_moments(network, inputs).items():
        seen = network.get_parameter(f"{name}.weight").detach() @ cholesky_psd(c)
        tail = torch.linalg.svdvals(seen).square().flip(0).cumsum(0)
        count += int((tail > SEEN**2 * tail[-1]).sum())
    return count


def rows_of(runs: Sequence[Run], *methods: str) -> Rows:
    """What was measured over the steps of the runs of some methods."""
    return [row for run in runs if run.method in methods for row in run.rows]


def kernel_drift(runs: Sequence[Run], t: Training) -> Rows:
    """Drift of every dense network's kernels of value and residual, over the tolerance of weights and of outputs."""
    rows: Rows = []
    for run in (r for r in runs if r.method == DENSE):
        network = copy.deepcopy(run.network).float()  # so that a weight stored in float32 is stored exactly
        kernels = {"value": None, "residual": run.equation.operator}
        calibration, x = burgers_points(t.calibration, run.seed), burgers_points(t.points, 2024).double()
        drifts = over_tolerance(network, x, calibration, t.tols, kernels)
        rows += [{"case": run.equation.name, "seed": run.seed} | row for row in drifts]
    return rows
