"""What a compressed network is held to: its error on held-out rows in every backend, and the certificate of that."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hrt.calibration.moments import Moments
from hrt.calibration.objective import Aim, derivative_figures
from hrt.calibration.output_error import OutputError, output_error
from hrt.calibration.samples import Box, Split
from hrt.certificate.certificate import BOX_BOUND, IN_PRECISION, Certificate
from hrt.certificate.layer_records import layer_records
from hrt.certificate.output_bound import output_bound
from hrt.certificate.paper_statements import box_statement
from hrt.program.program import Program, dense_constants
from hrt.runtime.backends import on_cpu, open_session
from hrt.schedule.precision import fastest_within, precision_limits
from hrt.tangent_kernel.ntk import affordable_drift


@dataclass(frozen=True, eq=False)
class Held:
    """The user's rows as given and without repetitions, their split, and what the original network answers on the
    held-out ones: (rows, features) float64, derivatives that are held to the tolerance behind the value.
    """

    given: tuple[Tensor, ...]
    samples: tuple[Tensor, ...]
    split: Split
    reference: Tensor


def output_certificate(
    program: Program,
    best: Program,
    held: Held,
    served: Mapping[str, OutputError],
    moments: Mapping[str, Moments],
    *,
    tol: float,
    target: str,
    seed: int,
    boxes: Sequence[Box] | None = None,
    remarks: Sequence[str] = (),
    aim: Aim | None = None,
) -> Certificate:
    """What can be said of `best` as a stand-in for `program`, the original in float64.

    served: the errors of the backends that kept `tol`.  moments: what the weights of `program` see.  aim: what was held
    to `tol`, by default the value alone.
    """
    aim = aim or Aim.of(program)
    error = max(served.values(), key=lambda e: e.upper_99)
    found = aim.outputs(held.split.held_out, dense_constants(best))
    exact = aim.error(held.reference, found)
    derived = derivative_figures(aim, exact, served, held.reference)
    value, found_value = aim.parts(held.reference)[0], aim.parts(found)[0]
    rms = value.square().mean(0).sqrt()
    worst = (value - found_value).abs().amax(0)
    proven = output_bound(program, best, boxes)
    drift, ntk_points, no_drift = affordable_drift(program, best, held.split.held_out)
    limits = served_limits(best, held, aim) if target == "cuda" else {}
    precision = fastest_within(limits, tol) if limits else ""
    said = []
    rows, distinct_rows = held.given[0].shape[0], held.samples[0].shape[0]
    if rows > distinct_rows:
        said.append(f"{rows - distinct_rows} of {rows} rows repeat another and were left out")
    said += remarks
    if distinct_rows < 200:
        said.append(f"only {distinct_rows} distinct calibration rows; the confidence limit is wide")
    constant = [i for i, x in enumerate(held.given) if bool((x == x[:1]).all())]
    if constant:
        said.append(f"calibration inputs {constant} are constant: the certificate speaks of that one point")
    return Certificate(
        tol=tol,
        kind="output",
        layers=layer_records(program, best, moments, tol),
        measured={
            "output_error": exact.value,
            "runtime_error": error.value,
            "per_output": list(error.per_output),
            "output_rms": rms.tolist(),
            "max_abs_error": worst.tolist(),
            **({} if drift is None else {"ntk_drift": drift}),
            **derived["measured"],
        },
        estimated={
            "output_error_upper_99": error.upper_99,
            "unseen_probability_99": 1 - 0.01 ** (1 / held.split.held_out[0].shape[0]),
            **{IN_PRECISION + name: limit for name, limit in limits.items() if math.isfinite(limit)},
            **derived["estimated"],
        },
        guaranteed={} if proven.per_output is None else {BOX_BOUND: list(proven.per_output)},
        statements=() if proven.per_output is None else (box_statement(proven.per_output, worst, rms),),
        context={
            "calibration_rows": held.split.calibration[0].shape[0],
            "search_rows": held.split.search[0].shape[0],
            "held_out_rows": held.split.held_out[0].shape[0],
            "seed": seed,
            "torch": torch.__version__,
            "target": target,
            "runtimes": list(served),
            "remarks": said,
            **({"no_ntk_drift": no_drift} if drift is None else {"ntk_points": ntk_points}),
            **({"precision": precision} if precision else {}),
            **({"no_output_bound": proven.reason} if proven.per_output is None else {"boxes": proven.boxes}),
            **derived["context"],
        },
    )


def served_limits(best: Program, held: Held, aim: Aim) -> dict[str, float]:
    """The largest 99 % limit in every emulated arithmetic of a GPU: of the network alone, and with its derivatives."""
    rows = held.split.held_out
    limits = precision_limits(best, rows, aim.parts(held.reference)[0])
    if not aim.names:
        return limits
    others = precision_limits(aim.served(best), rows, held.reference, aim.error)
    return {name: max(limit, others[name]) for name, limit in limits.items()}


def served_errors(
    program: Program, inputs: tuple[Tensor, ...], reference: Tensor, aim: Aim | None = None
) -> dict[str, OutputError]:
    """The error of the float32 network against the float64 network's `reference`, in every CPU backend that is here.

    Where `aim` has derivatives they come from the program that gives them, whose value counts too, where it is worse.
    """
    aim = aim or Aim.of(program)
    return {name: _error_on(name, program, inputs, reference, aim) for name in on_cpu()}


def _error_on(backend: str, program: Program, inputs: tuple[Tensor, ...], reference: Tensor, aim: Aim) -> OutputError:
    error = aim.error(reference, _outputs_of(backend, aim.served(program), inputs))
    if not aim.names:
        return error
    alone = output_error(aim.parts(reference)[0], _outputs_of(backend, program, inputs))
    return replace(max(alone, error, key=lambda e: e.upper_99), derivatives=error.derivatives)


def _outputs_of(backend: str, program: Program, inputs: tuple[Tensor, ...]) -> Tensor:
    ys = open_session(program, backend).run([x.to(torch.float32).contiguous() for x in inputs])
    return torch.cat([y.reshape(y.shape[0], -1) for y in ys], dim=1).to(torch.float64)
