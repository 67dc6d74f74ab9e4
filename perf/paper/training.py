"""What the method gains while training; errors are against the exact solution.

finetune: the committed Burgers PINN, compressed, then trained on at its size.
penalty: bytes at an error of 1e-3 with and without rank regularisation, the same steps and draws.
dynamic: compressed while it is trained, beside dense training of the same steps.
allen-cahn: the network of the second equation, trained densely.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import hrt
from hrt.perf.networks import allen_cahn
from hrt.perf.networks import burgers as problem
from hrt.perf.networks.allen_cahn import ALLEN_CAHN, AllenCahnPINN
from hrt.perf.networks.burgers import BURGERS, burgers_network, burgers_operator, load_burgers, sample, weighted
from hrt.perf.networks.pinn_training import Course, Equation, fit
from hrt.perf.paper.trained_networks import directions
from hrt.program.program import program_nbytes
from hrt.training.finetune import with_exact_floats
from hrt.training.rank_penalty import proximal_step, rank_penalty, second_moments

DOMAIN = hrt.Box([-1.0, 0.0], [1.0, 1.0])
TEACHER_WEIGHT = 0.0  # of fine-tuning: with 10 the steps from the compressed network get stuck
PENALTY_ADAM = 500  # steps before Gauss-Newton's, which are what makes a PINN accurate
SHRUNK = 0.7  # of Gauss-Newton's steps are followed by a proximal one; the others recover what that took
AGAIN = 20  # steps after which the norm of the data is taken anew
SEEN = 2048  # points that it is taken from
PENALTY_TOL = 1e-3  # of storing what was trained with a penalty


@dataclass(frozen=True)
class Options:
    """What an experiment is run with. steps: of its training, None for its usual ones.  ratio: of finetune, how many
    times smaller.  weights: of the penalty, and thresholds of the proximal steps, each beside none.
    """

    steps: int | None = None
    batch: int | None = None
    ratio: float = 16.0
    weights: tuple[float, ...] = ()
    thresholds: tuple[float, ...] = (1e-3,)
    width: int | None = None


@dataclass(frozen=True)
class DynamicCourse:
    """adam, newton: steps.  first, every, until: Gauss-Newton's before the first change of the partitions, between two,
    and before the last: the rest trains the last ones.  coarsest, finest: tolerances of the layers, which fall as the
    loss does.  stored: that of storing what was trained.

    Partitions that change sooner are those of a network that has not found the solution: what they drop then costs
    more steps than it saves.
    """

    adam: int = 1000
    newton: int = 600
    first: int = 240
    every: int = 60
    until: int = 300
    coarsest: float = 1e-2
    finest: float = 3e-4
    stored: float = 1.5e-5


@dataclass(frozen=True)
class Figure:
    """A network: its error against the solution, its bytes, dense float32 bytes over them, and what it took."""

    name: str
    seed: int
    error: float
    nbytes: int
    ratio: float
    steps: int
    seconds: float
    remark: str = ""


def of_model(name: str, seed: int, model: hrt.CompressedModel, steps: int, since: float, remark: str = "") -> Figure:
    """The figure of a compressed model of Burgers' equation, as it is served."""
    error = BURGERS.error(model.predict, torch.float32)
    return Figure(name, seed, error, model.nbytes, model.compression_ratio, steps, time.perf_counter() - since, remark)


def of_dense(equation: Equation, seed: int, network: nn.Module, steps: int, since: float) -> Figure:
    """The figure of a dense network, stored in float32."""
    numbers = list(network.parameters())
    error = equation.error(network, numbers[0].dtype)
    return Figure("dense", seed, error, 4 * sum(p.numel() for p in numbers), 1.0, steps, time.perf_counter() - since)


def row_residual(network: Callable[..., Tensor], row: Tensor) -> Tensor:
    """The residual (1,) of one row of `burgers.sample`, by torch.func alone."""
    rows = row[None]
    operator, u = burgers_operator(network, rows[:, :2]), network(rows[:, :2])
    return weighted(operator[:, 0], u[:, 0], rows)


def finetune(o: Options, seed: int) -> Iterator[Figure]:
    """The committed network, compressed, then trained on at its size for a tenth of its steps."""
    dense, since, total = load_burgers(), time.perf_counter(), problem.ADAM_STEPS + problem.NEWTON_STEPS
    yield of_dense(BURGERS, seed, dense, total, since)
    model = compressed_to(dense, 4 * sum(p.numel() for p in dense.parameters()) / o.ratio, seed)
    yield of_model("compressed", seed, model, 0, since, f"tol {model.certificate.tol:.2g}")
    since, steps = time.perf_counter(), o.steps or total // 10
    tuned = hrt.finetune(
        model,
        inputs=DOMAIN,
        teacher=dense,
        residual=row_residual,
        points=sample,
        teacher_weight=TEACHER_WEIGHT,
        exact=True,
        steps=steps,
        batch=o.batch or problem.BATCH,
        seed=seed,
        progress=False,
    )
    limit = tuned.certificate.estimated["output_error_upper_99"]
    yield of_model("fine-tuned", seed, tuned, steps, since, f"against dense at most {limit:.2g}")


def compressed_to(network: nn.Module, nbytes: float, seed: int) -> hrt.CompressedModel:
    """The tightest of a ladder of tolerances (5 % apart) that takes at most `nbytes` with its 16-bit floats exact."""
    tol = 5e-3
    while True:
        model = hrt.compress(network, inputs=DOMAIN, tol=tol, target="bytes", seed=seed, progress=False)
        if program_nbytes(with_exact_floats(model.program)) <= nbytes:
            return model
        tol *= 1.05


def penalty(o: Options, seed: int) -> Iterator[Figure]:
    """Without, with every weight of the penalty, and with every threshold of the proximal steps."""
    pairs = [(0.0, 0.0), *((w, 0.0) for w in o.weights), *((0.0, t) for t in o.thresholds)]
    return (penalised(o, seed, weight, threshold) for weight, threshold in pairs)


def penalised(o: Options, seed: int, weight: float, threshold: float) -> Figure:
    """Adam on the loss plus `weight` times the penalty in the norm of the data, then Gauss-Newton with proximal steps
    of `threshold` between its own; bytes of `hrt.compress` at PENALTY_TOL.
    """
    since, steps = time.perf_counter(), o.steps or 100
    seen = sample(SEEN, torch.Generator().manual_seed(seed + 1))[:SEEN, :2]
    network = burgers_network(o.width or 128, seed=seed).double()
    moments: dict[str, Tensor] = {}

    def penalty_at(step: int) -> Tensor | float:
        if not weight:
            return 0.0
        if step % AGAIN == 1:
            moments.update(second_moments(network, seen))
        return weight * rank_penalty(network, second_moments=moments)

    def shrink(step: int, loss: float) -> None:
        newton = step - PENALTY_ADAM
        if threshold and 0 < newton <= SHRUNK * steps:
            if newton % AGAIN == 1:
                moments.update(second_moments(network, seen))
            proximal_step(network, threshold, second_moments=moments)

    course = Course(PENALTY_ADAM, steps, o.batch or problem.BATCH, seed, (2e-3, 1e-4))
    fit(BURGERS, network, course, shrink, penalty_at)
    model = hrt.compress(network, inputs=DOMAIN, tol=PENALTY_TOL, target="bytes", seed=seed, progress=False)
    parts = [f"penalty {weight:g}"] * bool(weight) + [f"proximal {threshold:g}"] * bool(threshold)
    remark = f"dense {BURGERS.error(network):.3e}, {directions(network, seen)} directions seen"
    return of_model(", ".join(parts) or "neither", seed, model, PENALTY_ADAM + steps, since, remark)


def dynamic(o: Options, seed: int) -> Iterator[Figure]:
    """The dense network, and the one that is compressed while it is trained: equal starts, steps and draws."""
    plan = DynamicCourse() if o.steps is None else DynamicCourse(newton=o.steps)
    course, total = Course(plan.adam, plan.newton, o.batch or problem.BATCH, seed), plan.adam + plan.newton
    since, network = time.perf_counter(), burgers_network(o.width or 128, seed=seed).double()
    fit(BURGERS, network, course)
    yield of_dense(BURGERS, seed, network, total, since)
    since, network = time.perf_counter(), burgers_network(o.width or 128, seed=seed).double()
    tols: dict[str, Any] = {"tol": plan.coarsest, "finest": plan.finest, "seed": seed}
    compression = hrt.DynamicCompression(network, DOMAIN, every=plan.every, first=plan.adam + plan.first, **tols)
    smoothed = math.nan

    def follow(step: int, loss: float) -> None:
        nonlocal smoothed
        noisy = 1 < step <= plan.adam  # Adam's losses vary from batch to batch
        smoothed = 0.98 * smoothed + 0.02 * loss if noisy else loss
        if step <= plan.adam + plan.until:
            compression.step(step, smoothed)

    fit(BURGERS, network, course, follow)
    ranks = " ".join("+".join(map(str, r)) or "-" for r in compression.ranks.values())
    model = hrt.compress(network, inputs=DOMAIN, tol=plan.stored, target="bytes", seed=seed, progress=False)
    yield of_model("dynamic", seed, model, total, since, f"ranks {ranks}, {compression.ratio:.2f}x in float32")


def allen_cahn_alone(o: Options, seed: int) -> Iterator[Figure]:
    """The network of Allen and Cahn's equation."""
    since, newton = time.perf_counter(), o.steps or allen_cahn.NEWTON_STEPS
    network = AllenCahnPINN(o.width or allen_cahn.WIDTH, seed=seed).double()
    fit(ALLEN_CAHN, network, Course(allen_cahn.ADAM_STEPS, newton, o.batch or allen_cahn.BATCH, seed))
    yield of_dense(ALLEN_CAHN, seed, network, allen_cahn.ADAM_STEPS + newton, since)


EXPERIMENTS: dict[str, Callable[[Options, int], Iterator[Figure]]] = {
    "finetune": finetune,
    "penalty": penalty,
    "dynamic": dynamic,
    "allen-cahn": allen_cahn_alone,
}
