"""`hrt.finetune`: train a compressed network on at its size, then certify it against the original once more.

Train in float first, then round in stages, int8 first, and train what is still free (incremental quantization, Zhou et
al., arXiv 1702.03044): by Gauss-Newton where the Jacobian fits, which gets much further on PINNs, else by Adam.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.func import functional_call

from hrt.calibration.moments import evaluate
from hrt.calibration.samples import Inputs, as_boxes, given_inputs
from hrt.capture.network import call_for, captured_network
from hrt.errors import InputError, ToleranceError
from hrt.matrix_compression.request import check_whole
from hrt.model.model import CompressedModel
from hrt.model.trainable import TrainableNetwork, to_trainable
from hrt.network_compression.request import CompressionRequest, Network
from hrt.network_compression.verify import Original, output_certificate
from hrt.program.program import Constant, Program
from hrt.support.progress import Advance, part, track
from hrt.support.torch_state import guarded
from hrt.training.gauss_newton import GaussNewton, Term
from hrt.training.storage_grid import Grid, load_numbers, numbers_of

JACOBIAN_NUMBERS = 1 << 26  # float64; half a gigabyte
FREE_SHARE = 0.3  # of the steps, before anything is rounded
LAST_SHARE = 0.35  # of the others, after all of the last kind is rounded
LAST_ROWS = 8  # times as many rows, where they fit: few numbers are free then, and errors are those of the rows drawn
RATE = 1e-3  # Adam's
NOTHING = 1e-300  # in the place of zero where something is divided by it
HALVES = (torch.float16, torch.bfloat16)
SHARES = (0.5, 0.8, 0.95, 1.0)  # of the numbers of a kind that are rounded, drawn by chance
Residual = Callable[[Callable[..., Tensor], Tensor], Tensor]
Points = Callable[[int, torch.Generator], Tensor]


@guarded
def finetune(
    model: CompressedModel,
    *,
    inputs: Inputs,
    teacher: Network,
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
    """Train a compressed network on at its size, and certify it against the original.

    Structure, ranks, storage types and so the bytes stay. What is minimised is
    teacher_weight^2 mean |f - teacher|^2 / mean |teacher|^2 + residual_weight^2 mean |residual|^2.
    Without a residual a result further from the teacher than `model` is dropped for the numbers of `model`, and a
    remark of the certificate says so. Only the value is certified, no derivatives; every output column, where `model`
    was compressed with per_output=True.

    Args:
        model: is never changed.
        inputs: as for `hrt.compress`. Give the same: its held-out rows (same seed) are then not trained on here either.
        teacher: the original network, as for `hrt.compress`.
        residual: residual(network, row) -> (k,) of one row of what `points` draws, with network((batch, *shape)) ->
            (batch, *shape) and derivatives by torch.func (jvp, jacfwd), not torch.autograd.
        points: points(count, generator) -> (count, ...) float64 for the residual; by default rows of the one input.
        steps: optimizer steps in all.
        batch: rows in each step, up to 8 times as many in the last ones.
        teacher_weight: see above; 0 leaves the teacher out.
        residual_weight: likewise.
        tol: to be certified; by default the model's own.
        exact: keep in float32 what was in 16 bits: two bytes more a number, which make up for the rounding to int8.
        seed: same seed, same numbers, on one thread.
        progress: show a bar on stderr.

    Returns:
        The trained model with a certificate of its own.

    Raises:
        InputError: an argument does not fit, or the loss is not finite.
        ToleranceError: the result misses `tol`.

    Example:
        >>> import hrt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> domain = torch.rand(100, 2)
        >>> model = hrt.compress(net, inputs=domain, tol=0.5, progress=False)
        >>> tuned = hrt.finetune(model, inputs=domain, teacher=net, tol=0.9, steps=4, batch=16, progress=False)
        >>> tuned.nbytes == model.nbytes
        True
    """
    steps, batch = check_whole(steps, "steps", 1), check_whole(batch, "batch", 1)
    each = "per_output_upper_99" in model.certificate.estimated
    tol = model.certificate.tol if tol is None else tol
    request = CompressionRequest(tol, target=model.target, seed=seed, per_output=each)
    samples, call = call_for(teacher, given_inputs(inputs, request.seed))
    original = Original.of(captured_network(teacher, samples, call), samples, request, as_boxes(inputs))
    if set(original.program.weights) != set(model.program.weights):
        names = " and ".join(f"{sorted(p.weights)}" for p in (original.program, model.program))
        raise InputError(f"The teacher's weights and the model's are {names}. Expected the network it was made from.")
    split = original.split
    known = tuple(torch.cat(pair) for pair in zip(split.calibration, split.search, strict=True))
    answers = original.answers(known)
    loss = Loss(known, answers, residual, points, teacher_weight, residual_weight)
    with track("finetune", progress) as advance:
        start = with_exact_floats(model.program) if exact else model.program
        network = to_trainable(model, dtype=torch.float64)
        trained = train_stored(network, start, loss, steps, batch, request.seed, part(advance, 0.0, 0.9))
        advance("verify", 0.9)
        before, after = (float((evaluate(p, known) - answers).norm()) for p in (start, trained))
        improved = residual is not None or after < before  # with a residual the teacher is not what is aimed at
        program = trained if improved else start
        served = original.served_errors(program)
        limit = served["torch"].limit
        if limit > request.tol:
            raise ToleranceError(
                f"After {steps} steps the error against the teacher is at most {limit:.3g} with 99 % confidence. "
                f"Expected {request.tol:.3g}; take more steps, a larger tol, or a model compressed less."
            )
        remarks = [f"{steps} steps of fine-tuning lowered no error: the numbers are those from before"]
        if improved:
            remarks = [f"fine-tuned by {steps} steps; the layers' errors are against the original's weights"]
        if lost := model.certificate.derivatives:
            remarks.append(f"no longer verified: the derivatives {', '.join(lost)}")
        served = {name: e for name, e in served.items() if e.limit <= request.tol}
        moments = original.aim.moments(split.calibration, request.seed)
        certificate = output_certificate(original, program, served, moments, request, remarks)
    return CompressedModel(program, certificate, model.target, dense_nbytes=model.dense_nbytes)


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
    return replace(constant, leaves=tuple(leaves))


@dataclass(frozen=True, eq=False)
class Loss:
    """What is minimised over rows drawn for every step; see `finetune`. answers: the teacher's on the rows `known`."""

    known: tuple[Tensor, ...]
    answers: Tensor
    residual: Residual | None
    points: Points | None
    teacher_weight: float
    residual_weight: float

    def __post_init__(self) -> None:
        if self.residual is not None and self.points is None and len(self.known) != 1:
            raise InputError(f"Found a residual, {len(self.known)} inputs and no points. Expected points=... for rows.")
        for what in ("teacher_weight", "residual_weight"):
            if not 0 <= getattr(self, what) < math.inf:
                raise InputError(f"Found {what} {getattr(self, what)!r}. Expected a finite number of at least 0.")
        if not self.teacher_weight and not (self.residual is not None and self.residual_weight):
            raise InputError("Found teacher_weight 0 and no residual with a weight. Expected something to fit.")

    def terms(self, network: TrainableNetwork, count: int, generator: torch.Generator) -> list[Term]:
        """The squared terms over `count` fresh rows of each kind."""

        def against_teacher(parameters: dict[str, Tensor], *row: Tensor) -> Tensor:
            *x, answer = row
            y = functional_call(network, parameters, tuple(v[None] for v in x))
            return torch.cat([v.reshape(-1) for v in (y if isinstance(y, tuple) else (y,))]) - answer

        rows = torch.randperm(len(self.answers), generator=generator)[:count]
        terms = []
        if self.teacher_weight:
            scale = float(self.answers.square().sum(1).mean().sqrt().clamp_min(NOTHING))
            chosen = (*(x[rows] for x in self.known), self.answers[rows])
            terms.append(Term(against_teacher, chosen, self.teacher_weight / scale / math.sqrt(len(rows))))
        if (residual := self.residual) is not None and self.residual_weight:

            def of_row(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
                return residual(lambda *x: functional_call(network, parameters, x), row).reshape(-1)

            drawn = self.known[0][rows] if self.points is None else self.points(count, generator)
            terms.append(Term(of_row, (drawn,), self.residual_weight / math.sqrt(len(drawn))))
        return terms


class Adam(GaussNewton):
    """The same steps by Adam (Kingma and Ba, arXiv 1412.6980), for networks whose Jacobian would not fit."""

    def __init__(self, shapes: Mapping[str, torch.Size], start: Tensor):
        super().__init__(shapes, start)
        self.parameter = torch.nn.Parameter(self.numbers.clone())
        self.optimizer: torch.optim.Adam = torch.optim.Adam([self.parameter])

    def step(self, terms: Sequence[Term], free: Tensor | None = None, longest: float = 1.0) -> float:
        """One step; `longest` scales the learning rate. Numbers that are not free stay to the bit."""
        with torch.no_grad():
            self.parameter.copy_(self.numbers)
        self.optimizer.zero_grad()
        loss = torch.stack([term.residuals(self.parameters(self.parameter)).square().sum() for term in terms]).sum()
        loss.backward()
        self.optimizer.param_groups[0]["lr"] = longest * RATE
        self.optimizer.step()
        moved = self.parameter.detach()
        self.numbers = moved.clone() if free is None else torch.where(free, moved, self.numbers)
        return float(loss.detach())


def train_stored(
    network: TrainableNetwork, stored: Program, loss: Loss, steps: int, batch: int, seed: int, advance: Advance
) -> Program:
    """Train `network` (float64) and return `stored` with its numbers in their storage types."""
    start, outputs = numbers_of(network), loss.answers.shape[1]
    fits = batch * (outputs + 1) * len(start) <= JACOBIAN_NUMBERS
    shapes = {name: p.shape for name, p in network.named_parameters()}
    solver = (GaussNewton if fits else Adam)(shapes, start)
    before = Grid(network, stored)
    free_steps = max(1, round(FREE_SHARE * steps)) if bool((before.coarse | before.narrow).any()) else steps
    rows = torch.Generator().manual_seed(seed)

    def run(count: int, drawn: int, free: Tensor | None, label: str, advance: Advance) -> None:
        for step in range(1, count + 1):
            advance(f"{label}, step {step}", step / count)
            longest = min(1.0, max(0.1, 4 * (1 - step / count)))  # short steps at the end average the draws' noise
            value = solver.step(loss.terms(network, drawn, rows), free, longest)
            if not math.isfinite(value):
                raise InputError(f"The loss is {value} in step {step} ({label}). Expected finite residuals.")

    run(free_steps, batch, None, "train", part(advance, 0.0, FREE_SHARE))
    load_numbers(network, solver.numbers)
    grid = Grid(network, stored)
    solver.numbers, free = grid.numbers.clone(), torch.ones_like(grid.coarse)
    generator = torch.Generator().manual_seed(seed)
    kinds = [pair for pair in (("int8", grid.coarse), ("16 bits", grid.narrow)) if bool(pair[1].any())]
    stages = [(label, kind, share) for label, kind in kinds for share in SHARES]
    runs = len(stages) - int(bool((grid.coarse | grid.narrow).all()))  # after the last rounding something must be free
    rest = steps - free_steps
    last = round(LAST_SHARE * rest) if runs > 1 else rest
    for done, (label, kind, share) in enumerate(stages):
        candidates = (kind & free).nonzero()[:, 0]
        count = round(share * int(kind.sum())) - int((kind & ~free).sum())
        chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
        solver.numbers[chosen] = grid.rounded(solver.numbers)[chosen]
        free[chosen] = False
        solver.previous = torch.zeros_like(solver.previous)
        if done < runs and bool(free.any()):  # of few numbers a share may be all
            low, width = FREE_SHARE + (1 - FREE_SHARE) * done / runs, (1 - FREE_SHARE) / runs
            count, drawn = (rest - last) // max(1, runs - 1), batch
            if done == runs - 1:
                room = JACOBIAN_NUMBERS // ((outputs + 1) * max(1, int(solver.moving(free).sum())))
                count, drawn = last, max(batch, min(LAST_ROWS * batch, room))
            run(count, drawn, free, f"{share:.0%} of {label} rounded", part(advance, low, low + width))
    return grid.program(solver.numbers)
