"""What a compressed network is held to: its error on held-out rows in every backend, and the certificate of that."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from hrt.calibration.jumps import Jumps, Unseen, jumping
from hrt.calibration.moments import Moments
from hrt.calibration.objective import Aim, derivative_figures
from hrt.calibration.output_error import RISK, OutputError, output_error
from hrt.calibration.replay import Replay
from hrt.calibration.samples import Box, Split, distinct
from hrt.capture.network import Captured, rounding_places
from hrt.certificate.certificate import BOX_BOUND, Certificate
from hrt.certificate.figures import IN_PRECISION
from hrt.certificate.layer_records import layer_records
from hrt.certificate.output_bound import output_bound
from hrt.certificate.paper_statements import box_statement
from hrt.errors import BackendError
from hrt.network_compression.remarks import columns_over, heavy_tails, jumps, too_few_rows
from hrt.network_compression.request import CompressionRequest
from hrt.program.dense_view import DenseView
from hrt.program.program import Node, Program
from hrt.runtime.backends import compiler_of, open_session, serving
from hrt.schedule.precision import fastest_within, precision_limits
from hrt.tangent_kernel.ntk import affordable_drift

Boxes = tuple[Box, ...] | None
UNCOUNTED = 0.1  # of the tolerance: by so much the network may differ from its program before that counts as error
ROUNDED = 0.01  # of the tolerance; squared, a rounding error of this is a ten-thousandth of what is allowed
FEW_ROWS = 200  # distinct ones; the remark says that fewer make the confidence limit wide
CALLER = 5  # frames up from a certificate to whoever called `hrt.compress`, which is guarded


@dataclass(frozen=True, eq=False)
class Original:
    """The network as given, its program in float64, and the distinct rows, of `boxes` or not, that judge its
    compressed forms. Errors of the value are against the network's own answers where those differ from the program's
    by more than a tenth of the request's tolerance; derivatives are always the program's.
    """

    network: Captured
    aim: Aim
    given: tuple[Tensor, ...]
    samples: tuple[Tensor, ...]
    split: Split
    tol: float
    boxes: Boxes = None

    @staticmethod
    def of(
        network: Captured,
        given: tuple[Tensor, ...],
        request: CompressionRequest,
        boxes: Boxes = None,
        derivatives: Sequence[str] = (),
    ) -> "Original":
        """Raises InputError for rows that do not fit, and what `differentiate` raises for `derivatives`."""
        program, samples = network.program, distinct(given)
        program.check_inputs(given)
        aim, split = Aim.of(program, derivatives, request.per_output), Split.make(samples, request.seed)
        return Original(network, aim, given, samples, split, request.tol, boxes)

    @property
    def program(self) -> Program:
        """The network in float64."""
        return self.network.program

    @cached_property
    def search_reference(self) -> Tensor:
        """What it answers on the search rows: (rows, features) float64, derivatives behind the value."""
        return self.answers(self.split.search)

    @cached_property
    def replay(self) -> Replay:
        """Value and derivatives on the search rows for the constants of one candidate after the other, in float32 where
        that alone costs little of the tolerance.
        """
        single, double = (Replay(self.aim.graph, self.split.search, t) for t in (torch.float32, torch.float64))
        rounded = self.aim.error(double.outputs({}), single.outputs({}))
        return single if rounded.limit <= ROUNDED * self.tol else double

    @cached_property
    def reference(self) -> Tensor:
        """What it answers on the held-out rows."""
        return self.answers(self.split.held_out)

    @cached_property
    def captured(self) -> Tensor:
        """What its program answers on the held-out rows."""
        return self.aim.outputs(self.split.held_out)

    @cached_property
    def capture_difference(self) -> float | None:
        """How far the network's own answers on the held-out rows are from its program's, in the worst column where each
        is held to the tolerance; None if it has only its program.
        """
        if self.network.answers is None:
            return None
        answers, captured = self.network.answers.flat(self.split.held_out), self.aim.parts(self.captured)[0]
        return output_error(answers, captured, self.aim.each).largest

    @cached_property
    def jumping(self) -> tuple[Node, ...]:
        """Where its value jumps, or nearly so, and with it where its derivatives do."""
        if not jumping(self.program, self.split.search):
            return ()
        return jumping(self.aim.graph, self.split.search)

    @cached_property
    def search_jumps(self) -> Jumps | None:
        """What the search rows say of rows that cross a jump; None where it has none."""
        return Jumps.of(self.aim.graph, self.jumping, self.split.search) if self.jumping else None

    @cached_property
    def jumps(self) -> Jumps | None:
        """What the held-out rows say of them."""
        return Jumps.of(self.aim.graph, self.jumping, self.split.held_out) if self.jumping else None

    @property
    def reference_runtime(self) -> str | None:
        """What evaluates the network as its author does, with its version; None where nothing here can."""
        return None if self.network.answers is None else self.network.answers.runtime

    @property
    def rounding(self) -> str:
        """In words, why errors are against the network's own answers; nothing where they are not."""
        if self.capture_difference is None or self.capture_difference <= UNCOUNTED * self.tol:
            return ""
        places = rounding_places(self.network.roundings) or f"it computes in float32, by {self.reference_runtime}"
        return f"the network's answers differ from those in float64 by {self.capture_difference:.2g} ({places})"

    def answers(self, rows: tuple[Tensor, ...]) -> Tensor:
        """The network's own where they count, else those of its program, derivatives behind the value."""
        if not self.rounding or self.network.answers is None:
            return self.captured if rows is self.split.held_out else self.aim.outputs(rows)
        derivatives = self.aim.parts(self.aim.outputs(rows))[1:] if self.aim.names else ()
        return torch.cat([self.network.answers.flat(rows), *derivatives], dim=1)

    def unseen(self, program: Program) -> Unseen | None:
        """What crossings of jumps do to rows like those held out, if `program` takes the network's place."""
        return None if self.jumps is None else self.jumps.unseen(program.constants)

    def served_errors(
        self, program: Program, risk: float = RISK, backends: Sequence[str] | None = None
    ) -> dict[str, OutputError]:
        """Float32 errors on the held-out rows by CPU backend, without those that cannot run this network: the larger of
        `program`'s and its derivatives'.
        """
        errors, unseen = {}, self.unseen(program)
        for backend in backends or serving(program):
            try:
                errors[backend] = self._served_error(program, risk, backend, unseen)
            except BackendError:
                if backend == "torch":
                    raise
        return errors

    def _served_error(self, program: Program, risk: float, backend: str, unseen: Unseen | None) -> OutputError:
        rows = self.split.held_out
        error = self.aim.error(self.reference, _outputs_of(backend, self.aim.served(program), rows), risk, unseen)
        if self.aim.names:
            value = self.aim.parts(self.reference)[0]
            alone = output_error(value, _outputs_of(backend, program, rows), self.aim.each, risk)
            among = replace(error, derivatives=())
            error = replace(max(alone, among, key=lambda e: e.limit), derivatives=error.derivatives)
        return error


def output_certificate(
    original: Original,
    best: Program,
    served: Mapping[str, OutputError],
    moments: Mapping[str, Moments],
    request: CompressionRequest,
    remarks: Sequence[str] = (),
) -> Certificate:
    """What can be said of `best` as a stand-in for `original`. served: errors of the backends within the tolerance."""
    aim, rows, reference = original.aim, original.split.held_out, original.reference
    difference = original.capture_difference
    dense, view = DenseView(original.program), DenseView(best)  # for everything that multiplies in float64
    outputs = aim.outputs(rows, view.constants)
    exact = aim.error(reference, outputs)
    error = max(served.values(), key=lambda e: e.upper_99)
    derived = derivative_figures(aim, exact, served, reference)
    value, compressed_value = aim.parts(reference)[0], aim.parts(outputs)[0]
    rms = value.square().mean(0).sqrt()
    worst = (value - compressed_value).abs().amax(0)
    worst_captured = (aim.parts(original.captured)[0] - compressed_value).abs().amax(0)
    bound = output_bound(dense, view, original.boxes)
    drift, ntk_points, no_drift = affordable_drift(dense, view, rows)
    limits = served_limits(original, best, error.risk) if request.target == "cuda" else {}
    over = [*heavy_tails(error, rows[0].shape[0]), *columns_over(aim, error, reference, request.tol)]
    for remark in over:
        warnings.warn(remark, UserWarning, stacklevel=CALLER)
    return Certificate(
        tol=request.tol,
        kind="output",
        layers=layer_records(dense, view, moments, request.tol),
        measured={
            "output_error": exact.value,
            "runtime_error": error.value,
            "per_output": list(error.per_output),
            "output_rms": rms.tolist(),
            "max_abs_error": worst.tolist(),
            **({} if difference is None else {"capture_difference": difference}),
            **({} if drift is None else {"ntk_drift": drift}),
            **derived["measured"],
        },
        estimated={
            "output_error_upper_99": error.upper_99,
            **({"per_output_upper_99": list(error.columns)} if aim.each else {}),
            "unseen_probability_99": 1 - 0.01 ** (1 / rows[0].shape[0]),
            **{IN_PRECISION + name: limit for name, limit in limits.items() if math.isfinite(limit)},
            **derived["estimated"],
        },
        guaranteed={} if bound.per_output is None else {BOX_BOUND: list(bound.per_output)},
        statements=() if bound.per_output is None else (box_statement(bound.per_output, worst_captured, rms),),
        context={
            **{f"{name}_rows": rows[0].shape[0] for name, rows in vars(original.split).items()},
            "seed": request.seed,
            "torch": torch.__version__,
            **({"reference": original.reference_runtime} if original.reference_runtime else {}),
            "target": request.target,
            "runtimes": list(served),
            **({"compiler": compiler_of("native")} if "native" in served else {}),
            "remarks": [
                *_remarks(original, remarks),
                *too_few_rows(error, rows[0].shape[0]),
                *jumps(original.jumping, original.unseen(best), float(reference.square().sum(1).mean())),
                *over,
            ],
            **({"no_ntk_drift": no_drift} if drift is None else {"ntk_points": ntk_points}),
            **({"precision": fastest_within(limits, request.tol)} if limits else {}),
            **({"no_output_bound": bound.reason} if bound.per_output is None else {"boxes": bound.boxes}),
            **derived["context"],
        },
    ).brief()


def _remarks(original: Original, remarks: Sequence[str]) -> list[str]:
    """`remarks` among those on the user's rows."""
    rows, distinct_rows = original.given[0].shape[0], original.samples[0].shape[0]
    out = [f"{rows - distinct_rows} of {rows} rows repeat another and were left out"] if rows > distinct_rows else []
    out += remarks
    if original.network.answers is None:
        out.append(
            "no runtime here runs the network as it was given: errors are against hrt's reading of it in float64"
        )
    if original.rounding:
        out.append(f"{original.rounding}: errors are against its own answers, derivatives' against those in float64")
    if distinct_rows < FEW_ROWS:
        out.append(f"only {distinct_rows} distinct calibration rows; the confidence limit is wide")
    constant = [i for i, x in enumerate(original.given) if bool((x == x[:1]).all())]
    if constant:
        out.append(f"calibration inputs {constant} are constant: the certificate speaks of that one point")
    return out


def served_limits(original: Original, program: Program, risk: float) -> dict[str, float]:
    """The largest 99 % limit in every emulated arithmetic of a GPU: of the network alone, and with its derivatives."""
    aim, rows, reference = original.aim, original.split.held_out, original.reference
    error = partial(aim.error, risk=risk, unseen=original.unseen(program))
    if not aim.names:
        return precision_limits(program, rows, reference, error)
    value = partial(output_error, each=aim.each, risk=risk)
    limits = precision_limits(program, rows, aim.parts(reference)[0], value)
    others = precision_limits(aim.served(program), rows, reference, error)
    return {name: max(limit, others[name]) for name, limit in limits.items()}


def _outputs_of(backend: str, program: Program, inputs: tuple[Tensor, ...]) -> Tensor:
    ys = open_session(program, backend).run([x.to(torch.float32).contiguous() for x in inputs])
    return torch.cat([y.reshape(y.shape[0], -1) for y in ys], dim=1).to(torch.float64)
