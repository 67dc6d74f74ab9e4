"""`hrt.matrix_compression.hlinear.finetune`: a compressed network is trained on at its size, then judged against the original once more.

Numbers first move freely, then take their storage types a share at a time while those that are still free make up for
it (incremental quantization, Zhou et al., arXiv 1702.03044), int8 before 16-bit floats. Steps are Gauss-Newton where
the Jacobian fits, which on PINNs gets further than L-BFGS by orders of magnitude (`perf/burgers.py`), else Adam.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from hrt.calibration.moments import evaluate, layer_moments
from hrt.calibration.samples import Split, as_boxes, as_samples, distinct
from hrt.capture.network import program_of_network
from hrt.errors import InputError, ToleranceError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.checks import check_tol, check_whole
from hrt.model.model import CompressedModel
from hrt.model.trainable import TrainableNetwork, to_trainable
from hrt.network_compression.verify import Held, output_certificate, served_errors
from hrt.program.program import Constant, Program
from hrt.support.progress import Advance, part, track
from hrt.training.gauss_newton import GaussNewton, Term
from hrt.training.storage_grid import Grid, load_numbers, numbers_of

JACOBIAN_NUMBERS = 1 << 26  # float64; half a gigabyte
FREE_SHARE = 0.3  # of the steps, before anything is rounded
LAST_SHARE = 0.35  # of the others, after all of the last kind is rounded
LAST_ROWS = 8  # times as many rows, where they fit: few numbers are free then, and errors are those of the rows drawn
HALVES = (torch.float16, torch.bfloat16)
SHARES = (0.5, 0.8, 0.95, 1.0)  # of the numbers of a kind that are rounded, drawn by chance
Residual = Callable[[Callable[..., Tensor], Tensor], Tensor]
Points = Callable[[int, torch.Generator], Tensor]


def finetune(
    model: CompressedModel,
    *,
    inputs: Any,
    teacher: Any,
    residual: Residual | None = None,
    points: Points | None = None,
    steps: int = 200,
    batch: int = 512,
    teacher_weight: float = 1.0,
    residual_weight: float = 1.0,
    tol: float | None = None,
    exact: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> CompressedModel:
    """Train `model` on, structure, ranks and storage types (and so its bytes) unchanged; certify it against `teacher`.

    inputs: as for `hrt.network_compression.compress`; give the same, then its held-out rows (same seed) are not trained on here either.
    teacher: the original dense network (whatever `hrt.network_compression.compress` takes). What is minimised is
        teacher_weight^2 mean |f - teacher|^2 / mean |teacher|^2 + residual_weight^2 mean |residual|^2.
    residual: residual(network, row) -> (k,) of one row of what `points` draws, with network((batch, *shape)) ->
        (batch, *shape) and derivatives by torch.func (jvp, jacfwd), not torch.autograd.
    points: points(count, generator) -> (count, ...) float64 for the residual; by default rows of the one input.
    exact: keep in float32 whatever was in 16 bits (biases, short leaves), two bytes more for each number: these make
        up for the rounding of what is in int8.
    steps: optimizer steps in all.  batch: rows in each (up to 8 times as many in the last).
    tol: to be certified; by default the model's own.
    Without a residual a result further from the teacher than `model` is dropped for the numbers of `model`; a remark of
    the certificate says so. Deterministic under `seed` on one thread. Raises InputError for what does not fit or a loss
    that is not finite, and ToleranceError where the result misses `tol`; `model` is never changed. Only the value is
    certified, no derivatives.
    """
    tol = model.certificate.tol if tol is None else check_tol(tol)
    steps, batch, seed = check_whole(steps, "steps", 1), check_whole(batch, "batch", 1), check_whole(seed, "seed", 0)
    given = as_samples(inputs, seed)
    original = program_of_network(teacher, given)
    original.check_inputs(given)
    if set(original.weights) != set(model.program.weights):
        raise InputError(
            f"The teacher's weights are {sorted(original.weights)}, the model's {sorted(model.program.weights)}. "
            "Expected the network that was compressed."
        )
    samples = distinct(given)
    held = Held(given, samples, split := Split.make(samples, seed), evaluate(original, split.held_out))
    known = tuple(torch.cat(pair) for pair in zip(split.calibration, split.search, strict=True))
    answers = evaluate(original, known)
    network = to_trainable(model, dtype=torch.float64)
    draw = _Draws(network, known, answers, residual, points, batch, teacher_weight, residual_weight, seed)
    with track("finetune", progress) as advance:
        stored = model.program
        if exact:
            stored = with_exact_floats(stored)
        program = train_stored(network, stored, draw, steps, seed, part(advance, 0.0, 0.9))
        advance("verify", 0.9)
        start, end = (float((evaluate(p, known) - answers).norm()) for p in (stored, program))
        kept = residual is None and not end < start  # with a residual the teacher is not what is aimed at
        program = stored if kept else program
        served = served_errors(program, split.held_out, held.reference)
        lost = model.certificate.derivatives
        unheld = [f"no longer verified: the derivatives {', '.join(lost)}"] if lost else []
        limit = served["torch"].upper_99
        if limit > tol:
            raise ToleranceError(
                f"After {steps} steps the error against the teacher is at most {limit:.3g} with 99 % confidence. "
                f"Expected {tol:.3g}; take more steps, a larger tol, or a model compressed less."
            )
        certificate = output_certificate(
            original,
            program,
            held,
            {name: e for name, e in served.items() if e.upper_99 <= tol},
            layer_moments(original, split.calibration, seed),
            tol=tol,
            target=model.target,
            seed=seed,
            boxes=as_boxes(inputs),
            remarks=[
                f"{steps} steps of fine-tuning lowered no error: the numbers are those from before"
                if kept
                else f"fine-tuned by {steps} steps; the layers' errors are against the original's weights",
                *unheld,
            ],
        )
    return CompressedModel(program, certificate, model.target, model.dense_nbytes)


def with_exact_floats(program: Program) -> Program:
    """A program whose 16-bit floats are float32; int8 leaves stay."""
    return program.with_constants({name: _exact(c) for name, c in program.constants.items()})


def _exact(constant: Constant) -> Constant:
    if isinstance(constant, Tensor):
        return constant.to(torch.float32) if constant.dtype in HALVES else constant
    leaves = []
    for e in constant.leaves:
        wide = {k: t.to(torch.float32) for k in ("dense", "u", "vt") if (t := getattr(e, k)) is not None}
        leaves.append(replace(e, **wide) if e.dtype in HALVES else e)
    return HMatrix(constant.shape, tuple(leaves), constant.row_order, constant.col_order)


class _Draws:
    """The terms of one step, over rows drawn afresh."""

    def __init__(
        self,
        network: TrainableNetwork,
        known: Sequence[Tensor],
        answers: Tensor,
        residual: Residual | None,
        points: Points | None,
        batch: int,
        teacher_weight: float,
        residual_weight: float,
        seed: int,
    ):
        if residual is not None and points is None and len(known) != 1:
            raise InputError(
                f"Found a residual, {len(known)} inputs and no points. Expected points=... that draws rows."
            )
        for value, what in ((teacher_weight, "teacher_weight"), (residual_weight, "residual_weight")):
            if not 0 <= value < math.inf:
                raise InputError(f"Found {what} {value!r}. Expected a finite number of at least 0.")
        if not teacher_weight and not (residual is not None and residual_weight):
            raise InputError(
                "Found no residual, or none with a weight, and teacher_weight 0. Expected something to fit."
            )
        self.network, self.known, self.answers, self.batch = network, known, answers, batch
        self.residual, self.points = residual, points
        self.weights = teacher_weight / float(answers.square().sum(1).mean().sqrt().clamp_min(1e-300)), residual_weight
        self.generator = torch.Generator().manual_seed(seed)

    def terms(self) -> list[Term]:
        """Fresh rows."""
        rows = torch.randperm(len(self.answers), generator=self.generator)[: self.batch]
        found = []
        if self.weights[0]:
            chosen = (*(x[rows] for x in self.known), self.answers[rows])
            found.append(Term(self._against_teacher, chosen, self.weights[0] / math.sqrt(len(rows))))
        if self.residual is not None and self.weights[1]:
            drawn = self.known[0][rows] if self.points is None else self.points(self.batch, self.generator)
            found.append(Term(self._residual, (drawn,), self.weights[1] / math.sqrt(len(drawn))))
        return found

    def _against_teacher(self, parameters: dict[str, Tensor], *row: Tensor) -> Tensor:
        *x, answer = row
        y = functional_call(self.network, parameters, tuple(v[None] for v in x))
        return torch.cat([v.reshape(-1) for v in (y if isinstance(y, tuple) else (y,))]) - answer

    def _residual(self, parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        found = self.residual(lambda *x: functional_call(self.network, parameters, x), row)  # type: ignore[misc]
        return found.reshape(-1)


class _Adam(GaussNewton):
    """The same steps by Adam (Kingma and Ba, arXiv 1412.6980), for networks whose Jacobian would not fit."""

    RATE = 1e-3
    moments: tuple[Tensor, Tensor, int] | None = None

    def step(self, terms: Sequence[Term], free: Tensor | None = None, longest: float = 1.0) -> float:
        """One step; `longest` scales the learning rate."""
        numbers = self.numbers.clone().requires_grad_()
        loss = torch.stack([term.residuals(self.parameters(numbers)).square().sum() for term in terms]).sum()
        (slope,) = torch.autograd.grad(loss, numbers)
        first, second, count = self.moments or (torch.zeros_like(slope), torch.zeros_like(slope), 0)
        first, second, count = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2, count + 1
        self.moments = first, second, count
        move = first / (1 - 0.9**count) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
        self.numbers = self.numbers - longest * self.RATE * (move if free is None else move * free)
        return float(loss.detach())


def train_stored(
    network: TrainableNetwork, stored: Program, draw: _Draws, steps: int, seed: int, advance: Advance
) -> Program:
    """Train `network` (float64) and return `stored` with its numbers in their storage types."""
    start, outputs = numbers_of(network), draw.answers.shape[1]
    fits = draw.batch * (outputs + 1) * len(start) <= JACOBIAN_NUMBERS
    shapes = {name: p.shape for name, p in network.named_parameters()}
    solver = (GaussNewton if fits else _Adam)(shapes, start)
    before = Grid(network, stored)
    gridded = bool((before.coarse | before.narrow).any())
    free_steps = max(1, round(FREE_SHARE * steps)) if gridded else steps

    def run(count: int, free: Tensor | None, label: str, low: float, high: float) -> None:
        for step in range(1, count + 1):
            advance(f"{label}, step {step}", low + (high - low) * step / count)
            longest = min(1.0, max(0.1, 4 * (1 - step / count)))  # short steps at the end average the draws' noise
            loss = solver.step(draw.terms(), free, longest)
            if not math.isfinite(loss):
                raise InputError(f"The loss is {loss} in step {step} ({label}). Expected finite residuals.")

    run(free_steps, None, "train", 0.0, FREE_SHARE)
    load_numbers(network, solver.numbers)
    grid = Grid(network, stored)
    solver.numbers, free = grid.numbers.clone(), torch.ones_like(grid.coarse)
    generator = torch.Generator().manual_seed(seed)
    kinds = [pair for pair in (("int8", grid.coarse), ("16 bits", grid.narrow)) if bool(pair[1].any())]
    stages = [(label, mine, share) for label, mine in kinds for share in SHARES]
    runs = len(stages) - int(bool((grid.coarse | grid.narrow).all()))  # after the last rounding something must be free
    rest, rows = steps - free_steps, draw.batch
    last = round(LAST_SHARE * rest) if runs > 1 else rest
    for done, (label, mine, share) in enumerate(stages):
        candidates = (mine & free).nonzero()[:, 0]
        count = round(share * int(mine.sum())) - int((mine & ~free).sum())
        chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
        solver.numbers[chosen] = grid.rounded(solver.numbers)[chosen]
        free[chosen] = False
        solver.previous = torch.zeros_like(solver.previous)
        if done < runs:
            low, width = FREE_SHARE + (1 - FREE_SHARE) * done / runs, (1 - FREE_SHARE) / runs
            final = done == runs - 1
            if final:
                room = JACOBIAN_NUMBERS // ((outputs + 1) * max(1, int(solver.moving(free).sum())))
                draw.batch = max(rows, min(LAST_ROWS * rows, room))
            count = last if final else (rest - last) // (runs - 1)
            run(count, free, f"{share:.0%} of {label} rounded", low, low + width)
    return grid.program(solver.numbers)
