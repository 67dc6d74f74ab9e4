"""PINNs that are trained for the paper's figures: dense, compressed while they train, or shrunk towards low ranks.

All take the same start, draws and steps: Adam, then Gauss-Newton, on the residual alone. Errors are relative L2 against
the exact solution.
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
from hrt.matrix_compression.span_weight import cholesky_psd
from hrt.perf.networks.allen_cahn import ALLEN_CAHN
from hrt.perf.networks.burgers import BURGERS, burgers_points
from hrt.perf.networks.pinn_training import Course, Equation, fit
from hrt.perf.paper.ntk import over_tolerance
from hrt.perf.paper.output import Rows
from hrt.training.rank_penalty import proximal_step, rank_penalty, second_moments

EQUATIONS = (BURGERS, ALLEN_CAHN)
SERVED = 0.3  # of a trained network's error: within that of its output it is stored, which adds some 4 % to the error
SEEN = 1e-3  # error of layers' outputs that says which directions count
SAMPLES = 1024  # inputs of second moments
SNAPSHOT = 20  # epochs after which a network is looked at, as the paper does


@dataclass(frozen=True)
class Method:
    """What is done to a network while it trains.

    tols: of dynamic compression, coarsest and finest.  changes: shares of Gauss-Newton at which partitions change first
    and last (what is dropped earlier costs more steps than it saves).  penalty: of ranks, while Adam runs.
    adam_shrink, newton_shrink: thresholds of proximal steps.  shrunk: the share of Gauss-Newton that they follow.
    fading: whether the threshold falls to nothing over Gauss-Newton.
    """

    name: str
    tols: tuple[float, float] | None = None
    changes: tuple[float, float] = (1 / 3, 2 / 3)
    penalty: float = 0.0
    adam_shrink: float = 0.0
    newton_shrink: float = 0.0
    shrunk: float = 1.0
    fading: bool = False

    @property
    def sees_data(self) -> bool:
        """Whether it works in the norm of the data."""
        return bool(self.penalty or self.adam_shrink or self.newton_shrink)


DENSE = Method("dense")
DYNAMIC = Method("dynamic compression", tols=(0.03, 3e-3))
PROXIMAL = Method("proximal steps", adam_shrink=1e-5, newton_shrink=3e-5, fading=True)


@dataclass(frozen=True)
class Training:
    """How much is trained. adam, newton: steps.  *_epochs: how often figures are taken, and partitions may change.
    stored: tol of storing the network; None for SERVED times its error.  tols, points: of the kernels.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    width: int = 48
    depth: int = 4
    batch: int = 320
    adam: int = 400
    newton: int = 300
    rates: tuple[float, float] = (2e-3, 1e-4)
    adam_epochs: int = 8
    newton_epochs: int = 24
    calibration: int = 3000
    stored: float | None = None
    tols: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4)
    points: int = 32

    @staticmethod
    def quick() -> "Training":
        return Training(width=24, depth=3, batch=128, adam=100, newton=72, calibration=1600)

    @property
    def ends(self) -> list[int]:
        """Steps at which epochs end."""
        adam = [k * self.adam // self.adam_epochs for k in range(1, self.adam_epochs + 1)]
        return adam + [self.adam + k * self.newton // self.newton_epochs for k in range(1, self.newton_epochs + 1)]


@dataclass(frozen=True, eq=False)
class Run:
    """A trained network, one row for every epoch; the last one has the stored network's figures, too. snapshot: the
    network after epoch SNAPSHOT, or at its end where it has fewer.
    """

    equation: Equation
    method: str
    seed: int
    network: nn.Module
    rows: Rows
    snapshot: nn.Module


def trained(t: Training, equations: Sequence[Equation] = EQUATIONS) -> list[Run]:
    """Every equation, seed and method in turn."""
    runs = []
    for equation in equations:
        for seed in t.seeds:
            for method in (DENSE, DYNAMIC, PROXIMAL):
                runs.append(train(equation, method, seed, t))
                last = runs[-1].rows[-1]
                figures = f"error {last['error']:.1e}, {last['ratio']:.1f}x, stored {last['served_ratio']:.1f}x"
                head = f"{equation.name}, {method.name}, seed {seed}"
                print(f"{head}: {figures}, {last['seconds']:.0f} s of CPU", file=sys.stderr)
    return runs


class _Watch:
    """What happens to a network after every step and every epoch, and the rows that are taken of it."""

    def __init__(self, equation: Equation, method: Method, seed: int, t: Training) -> None:
        self.equation, self.method, self.seed, self.t = equation, method, seed, t
        self.network = equation.network(t.width, t.depth, seed)
        self.inputs = burgers_points(t.calibration, seed).double()
        self.dense_numbers = sum(p.numel() for p in self.network.parameters())
        first, last = (t.adam_epochs + int(share * t.newton_epochs + 1e-9) for share in method.changes)
        self.last_change, self.dynamic = last, None
        if method.tols:
            options: dict[str, Any] = {"every": max(1, t.newton_epochs // 6), "first": first, "seed": seed}
            options |= {"tol": method.tols[0], "finest": method.tols[1]}
            self.dynamic = hrt.DynamicCompression(self.network, self.inputs[:SAMPLES], **options)
        self.rows: Rows = []
        self.losses: list[float] = []
        self.seconds = 0.0
        self.record(0)

    def penalty(self, step: int) -> Tensor | float:
        """Of Adam's loss."""
        weight = self.method.penalty
        return weight * rank_penalty(self.network, second_moments=self.moments) if weight else 0.0

    def threshold(self, step: int) -> float:
        """Of the proximal step after `step`; 0 for none."""
        if step <= self.t.adam:
            return self.method.adam_shrink
        share = (step - 1 - self.t.adam) / self.t.newton
        return self.method.newton_shrink * (share < self.method.shrunk) * (1 - share if self.method.fading else 1.0)

    def on_step(self, step: int, loss: float) -> None:
        threshold = self.threshold(step)
        if threshold:
            proximal_step(self.network, threshold, second_moments=self.moments)
        self.losses.append(loss)
        if step in self.t.ends:
            epoch = self.t.ends.index(step) + 1
            if self.dynamic is not None and epoch <= self.last_change:
                self.dynamic.step(epoch, sum(self.losses) / len(self.losses))
            self.seconds += time.process_time() - self.start
            self.record(step)

    def record(self, step: int) -> None:
        """A row; an epoch begins. Seconds are CPU time of training, without what measures it."""
        ratio = 1.0 if self.dynamic is None else self.dynamic.ratio
        row = {"case": self.equation.name, "method": self.method.name, "seed": self.seed, "step": step}
        row["optimiser"] = "Adam" if step <= self.t.adam else "Gauss-Newton"
        row |= {"loss": sum(self.losses) / len(self.losses) if self.losses else None, "seconds": self.seconds}
        row |= {"error": self.equation.error(self.network), "ratio": ratio}
        row["numbers"] = round(self.dense_numbers / ratio)
        if self.dynamic is None:
            row["directions"] = directions(self.network, self.inputs[:SAMPLES])
        self.rows.append(row)
        if len(self.rows) <= SNAPSHOT + 1:
            self.snapshot = copy.deepcopy(self.network)
        self.losses.clear()
        self.start = time.process_time()
        self.moments = second_moments(self.network, self.inputs[:SAMPLES]) if self.method.sees_data else {}


def train(equation: Equation, method: Method, seed: int, t: Training) -> Run:
    """One network, trained by one method and stored."""
    watch = _Watch(equation, method, seed, t)
    course = Course(t.adam, t.newton, t.batch, seed, t.rates)
    fit(equation, watch.network, course, watch.on_step, watch.penalty)
    tol = t.stored or min(0.3, SERVED * watch.rows[-1]["error"])
    options: dict[str, Any] = {"tol": tol, "target": "bytes", "seed": seed, "progress": False}
    model = hrt.compress(watch.network, inputs=watch.inputs, **options)
    served = {"served_bytes": model.nbytes, "served_ratio": model.compression_ratio}
    watch.rows[-1] |= served | {
        "served_error": equation.error(lambda p: torch.as_tensor(model.predict(p)), torch.float32)
    }
    if watch.dynamic is not None:
        watch.rows[-1]["ranks"] = {name: list(ranks) for name, ranks in watch.dynamic.ranks.items()}
    return Run(equation, method.name, seed, watch.network, watch.rows, watch.snapshot)


def directions(network: nn.Module, inputs: Tensor) -> int:
    """The sum of the least ranks that keep every layer's output to SEEN, relative L2, before biases."""
    count = 0
    for name, c in second_moments(network, inputs).items():
        seen = network.get_parameter(f"{name}.weight").detach() @ cholesky_psd(c)
        tail = torch.linalg.svdvals(seen).square().flip(0).cumsum(0)
        count += int((tail > SEEN**2 * tail[-1]).sum())
    return count


def rows_of(runs: Sequence[Run], *methods: Method) -> Rows:
    """What was measured over the steps of the runs of some methods."""
    return [row for run in runs if run.method in [m.name for m in methods] for row in run.rows]


def kernel_drift(runs: Sequence[Run], t: Training) -> Rows:
    """Drift of every dense network's kernels of value and residual, over the tolerance of weights and of outputs."""
    rows: Rows = []
    for run in (r for r in runs if r.method == DENSE.name):
        network = copy.deepcopy(run.network).float()  # so that a weight stored in float32 is stored exactly
        kernels = {"value": None, "residual": run.equation.operator}
        calibration, x = burgers_points(t.calibration, run.seed), burgers_points(t.points, 2024).double()
        drifts = over_tolerance(network, x, calibration, t.tols, kernels)
        rows += [{"case": run.equation.name, "seed": run.seed} | row for row in drifts]
    return rows
