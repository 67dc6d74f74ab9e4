"""What a certificate says, in words: the verdict, and the figures behind it. One fact a line, each of one kind."""

import math
from collections.abc import Sequence

from hrt.certificate.certificate import BOX_BOUND, VACUOUS, Certificate
from hrt.certificate.derivative_outputs import UNBOUNDED, held_as
from hrt.certificate.figures import IN_PRECISION

SHOWN = 8  # output columns that are named
FEWEST = 8  # held-out rows; a confidence limit of fewer is worth nothing, and the network stays dense then
Outputs = Sequence[tuple[str, tuple[int, ...]]]  # names and shapes of one sample


def head(c: Certificate, outputs: Outputs) -> list[str]:
    """The verdict, the error measured, its limit, and the output columns over the tolerance."""
    if c.kind != "output":
        worst = max((r.frobenius for r in c.layers), default=0.0)
        return [
            "verdict: not of the output, whose error was not measured: no inputs were given",
            f"guaranteed: every weight within {c.tol:g} in relative Frobenius norm",
            f"measured: the worst weight is off by {_figure(worst)} in relative Frobenius norm",
        ]
    measured, estimated = c.measured, c.estimated
    errors = [measured[k] for k in ("runtime_error", "output_error") if k in measured]
    errors += measured.get("derivative_runtime_error", {}).values()
    limits = [estimated[k] for k in ("output_error_upper_99",) if k in estimated]
    limits += estimated.get("derivative_error_upper_99", {}).values()
    worst = f"off by {_figure(max(errors))}" if errors else "of unknown error"
    asked = f"the output is {worst}; asked: relative L2 error of at most {c.tol:g}"
    lines = [f"verdict: {_verdict(errors, limits, c.tol)}; {asked}"]
    if "runtime_error" in measured:
        rows, runtimes = c.context.get("held_out_rows", "the"), ", ".join(c.runtimes)
        lines.append(f"measured: {_figure(measured['runtime_error'])} on {rows} held-out rows, in float32 ({runtimes})")
    if c.context.get("held_out_rows", FEWEST) < FEWEST:
        lines.append(f"estimated: nothing; fewer than {FEWEST} held-out rows say too little of others")
    elif "output_error_upper_99" in estimated:
        limit = _figure(estimated["output_error_upper_99"])
        lines.append(f"estimated: at most {limit} on new inputs of this distribution, at 99 % confidence")
    for name in c.derivatives:
        figures = {**measured, **estimated}
        keys = "derivative_runtime_error", "derivative_error", "derivative_error_upper_99"
        error, exact, limit = (_figure(figures[key][name]) for key in keys)
        lines.append(f"{name}: measured {error} in float32, {exact} in float64 arithmetic; estimated at most {limit}")
    return lines + _columns(c, outputs)


def _verdict(errors: Sequence[float], limits: Sequence[float], tol: float) -> str:
    if not errors:
        return "none"
    if not all(e <= tol for e in errors):
        return "NOT held"
    if not all(limit <= tol for limit in limits):
        return "held on the rows held out, not at 99 % confidence"
    return "held"


def _columns(c: Certificate, outputs: Outputs) -> list[str]:
    """The range over the output columns, and those over the tolerance, the worst first."""
    errors = list(c.measured.get("per_output", ()))
    if len(errors) < 2:
        return []
    lines = [f"measured per output: {_figure(min(errors))} to {_figure(max(errors))}"]
    names, sizes = column_names(outputs, len(errors)), list(c.measured.get("output_rms", ())) or [1.0] * len(errors)
    over = [(e, n) for e, n, size in zip(errors, names, sizes, strict=False) if size and not e <= c.tol]
    if over:
        worst = sorted(over, key=lambda pair: -pair[0])[:SHOWN]
        named = ", ".join(f"{name} {_figure(e)}" for e, name in worst) + (", ..." if len(over) > SHOWN else "")
        lines.append(f"over tol by themselves: {len(over)} of {len(errors)} output columns: {named}")
    return lines


def column_names(outputs: Outputs, count: int) -> list[str]:
    """Of all outputs' entries, one output after the other: "y[3]", or "y" where it is the only one."""
    names = []
    for name, shape in outputs:
        size = math.prod(shape)
        names += [name] if size == 1 else [f"{name}[{k}]" for k in range(size)]
    return names if len(names) == count else [f"column {k}" for k in range(count)]


def details(c: Certificate, outputs: Sequence[str], verbose: bool) -> list[str]:
    """What else is known; with `verbose` the paper's figures too."""
    measured, estimated, context, lines = c.measured, c.estimated, c.context, []
    if "output_error" in measured:
        lines.append(f"measured: {_figure(measured['output_error'])} on the same rows, in float64 arithmetic")
    if "capture_difference" in measured:
        difference = _figure(measured["capture_difference"])
        lines.append(f"measured: the network's own answers differ by {difference} from those in float64")
    if "unseen_probability_99" in estimated:
        share = 100 * estimated["unseen_probability_99"]
        lines.append(f"not covered: kinds of input rarer than {share:.2g} %, of which the held-out rows may hold none")
    if "compiler" in context:
        lines.append(f"native: verified as compiled by {context['compiler']}")
    if "precision" in context:
        rounded = {k.removeprefix(IN_PRECISION): v for k, v in estimated.items() if k.startswith(IN_PRECISION)}
        limits = ", ".join(f"{name} {_figure(v)}" for name, v in rounded.items())
        lines.append(f"on a GPU: {context['precision']} arithmetic; estimated limits with its rounding: {limits}")
    lines += _output_bounds(c, outputs)
    return lines + (_paper(c) if verbose else [])


def _output_bounds(c: Certificate, outputs: Sequence[str]) -> list[str]:
    """What was not asked of outputs that are derivatives, and where those jump."""
    lines = []
    free = [name for name, held in held_as(c, outputs).items() if held == UNBOUNDED] if "outputs" in c.context else []
    if free:
        lines.append(
            f"not bounded: {', '.join(free)}; the tolerance was not asked for these outputs, and says nothing of them "
            "(hrt.compress(..., inputs=..., derivatives=[...]) holds derivatives to it)"
        )
    if c.context.get("kinks"):
        lines.append(
            f"kinks: {', '.join(c.context['kinks'])}; at a kink itself a derivative may differ from torch's, and the "
            "jump is in no second derivative, which is what it is beside the kink"
        )
    return lines


def _paper(c: Certificate) -> list[str]:
    """The drift of the tangent kernel, and the bound over the whole box or why there is none."""
    lines = []
    if "ntk_drift" in c.measured:
        drift = _figure(c.measured["ntk_drift"])
        points = c.context["ntk_points"]
        lines.append(f"measured: the neural tangent kernel drifts by {drift} on {points} of these rows")
    if BOX_BOUND not in c.guaranteed:
        obstacle = c.context.get("no_output_bound")
        return lines + ([f"guaranteed over a box of inputs: nothing ({obstacle})"] if obstacle else [])
    share = next((f" ({s.remark})" for s in c.statements), "")
    vacuous = any(s.verdict == VACUOUS for s in c.statements)
    worst = max(c.guaranteed[BOX_BOUND], default=0.0)
    lines.append(
        f"guaranteed: every output within {_figure(worst)} over the whole box{share}, for the stored numbers in exact "
        f"arithmetic{'; vacuous: the outputs are no larger' if vacuous else ''}"
    )
    if c.measured.get("max_abs_error"):
        lines.append(f"measured: outputs off by at most {_figure(max(c.measured['max_abs_error']))} on held-out rows")
    return lines


def _figure(value: float) -> str:
    return f"{value:.2e}"
