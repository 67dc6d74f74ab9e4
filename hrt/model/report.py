"""The report: a table of every layer and the model's figures, as text. Losses are shown like wins."""

from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table

from hrt.certificate.certificate import BOX_BOUND, IN_PRECISION, VACUOUS, Certificate, LayerRecord
from hrt.certificate.derivative_outputs import UNBOUNDED, held_as
from hrt.errors import printable
from hrt.model.contents import Contents


def render(model: Contents, width: int = 140) -> str:
    """Layer, shape, structure, bytes, ratio, errors and why, then the model's certificate in plain words.

    No line is longer than `width` but for single facts, one a line, and nothing is left out to fit it.
    """
    layers = model.certificate.layers
    table = _table(
        "Errors relative: Frobenius, weighted (by the inputs seen), spectral measured; ~ estimated from below.",
        ("layer", "shape", "structure"),
        ("bytes", "ratio", "Frobenius", "weighted", "spectral"),
        ("why",),
    )
    for r in layers:
        ratio = f"{r.dense_nbytes / r.nbytes:.2f}" if r.nbytes else "-"
        errors = _short(r.frobenius), _short(r.weighted), _spectral(r)
        table.add_row(r.name, f"{r.shape[0]} x {r.shape[1]}", r.structure, f"{r.nbytes:,}", ratio, *errors, r.reason)
    out = StringIO()
    # Plain text whatever the environment says, and names as they are: "[0]" is no markup, ":key:" no picture.
    console = Console(file=out, width=width, color_system=None, markup=False, emoji=False, highlight=False)
    console.print(table)
    if any(r.statements for r in layers):
        console.print(_statements(layers))
    for line in summary(model):
        console.print(printable(line), soft_wrap=True)
    return "\n".join(map(printable, out.getvalue().split("\n")))  # names may be a stranger's


def _table(caption: str, names: Sequence[str], numbers: Sequence[str], words: Sequence[str]) -> Table:
    table = Table(caption=caption)
    for name in names:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for name in words:
        table.add_column(name, overflow="fold")
    return table


def _spectral(r: LayerRecord) -> str:
    estimated = r.spectral is None and r.spectral_estimate is not None
    return f"~{_short(r.spectral_estimate)}" if estimated else _short(r.spectral)


def _short(value: float | None, missing: str = "-") -> str:
    return missing if value is None else f"{value:.1e}"


def _statements(layers: Sequence[LayerRecord]) -> Table:
    """Per layer the condition numbers and what became of every statement of the paper."""
    names = list(dict.fromkeys(s.name for r in layers for s in r.statements))
    table = _table(
        "Condition numbers κ measured; ||W-H||₂ guaranteed, relative; then whether each of the paper's bounds "
        "holds here (`hrt info --json` lists them beside the measured figures).",
        ("layer",),
        ("κ(W)", "κ(H)", "||W-H||₂ ≤"),
        names,
    )
    for r in layers:
        verdicts = {s.name: s.verdict for s in r.statements}
        # computed with the singular values, and then infinite where it is missing
        missing = "-" if r.spectral is None else "∞"
        conditions = [_short(v, missing) for v in (r.condition, r.condition_compressed)]
        table.add_row(r.name, *conditions, _short(r.spectral_bound), *(verdicts.get(name, "-") for name in names))
    return table


def summary(model: Contents) -> list[str]:
    """The model's figures, one fact a line; each line says whether it was measured, estimated or is guaranteed."""
    c = model.certificate
    other, ratio = model.nbytes - sum(r.nbytes for r in c.layers), model.compression_ratio
    smaller = f"{ratio:.2f}x smaller" if ratio > 1 else "not smaller"
    constants = f"{other:,} of them biases and other constants"
    lines = [f"{model.nbytes:,} bytes ({constants}), dense float32 {model.dense_nbytes:,}: {smaller}"]
    dense = [r.name for r in c.layers if r.nbytes >= r.dense_nbytes > 0]
    if dense:
        lines.append(f"no gain on {len(dense)} of {len(c.layers)} layers; the table says why")
    if c.kind == "output":
        lines += _output_figures(c)
    else:
        worst = max((r.frobenius for r in c.layers), default=0.0)
        lines += [
            f"guaranteed: every weight within {c.tol:g} in relative Frobenius norm",
            f"measured: the worst weight is off by {_figure(worst)} in relative Frobenius norm",
            "the output's error was not measured: no inputs were given",
        ]
    lines += _output_bounds(c, model.program.outputs) + _box_figures(c)
    return lines + [f"remark: {r}" for r in c.context.get("remarks", [])]


def _output_figures(c: Certificate) -> list[str]:
    measured, estimated, context = c.measured, c.estimated, c.context
    rows = context.get("held_out_rows", "the")
    lines = [f"asked: relative L2 error of the output at most {c.tol:g}"]
    if "runtime_error" in measured:
        lines.append(f"measured: {_figure(measured['runtime_error'])} on {rows} held-out rows, in float32 arithmetic")
    if "output_error" in measured:
        lines.append(f"measured: {_figure(measured['output_error'])} on the same rows, in float64 arithmetic")
    if "capture_difference" in measured:
        difference = _figure(measured["capture_difference"])
        lines.append(f"measured: the network's own answers differ by {difference} from those in float64")
    if "ntk_drift" in measured:
        drift = _figure(measured["ntk_drift"])
        lines.append(f"measured: the neural tangent kernel drifts by {drift} on {context['ntk_points']} of these rows")
    columns = list(measured.get("per_output", ()))
    if len(columns) > 1:
        lines.append(f"measured per output: {_figure(min(columns))} to {_figure(max(columns))}")
    if "output_error_upper_99" in estimated:
        limit = _figure(estimated["output_error_upper_99"])
        lines.append(f"estimated: at most {limit} on new inputs of this distribution, at 99 % confidence")
    for name in c.derivatives:
        figures = {**measured, **estimated}
        keys = "derivative_runtime_error", "derivative_error", "derivative_error_upper_99"
        error, exact, limit = (_figure(figures[key][name]) for key in keys)
        lines.append(f"{name}: measured {error} in float32, {exact} in float64 arithmetic; estimated at most {limit}")
    if "unseen_probability_99" in estimated:
        share = 100 * estimated["unseen_probability_99"]
        lines.append(f"not covered: kinds of input rarer than {share:.2g} %, of which the held-out rows may hold none")
    if "precision" in context:
        rounded = {k.removeprefix(IN_PRECISION): v for k, v in estimated.items() if k.startswith(IN_PRECISION)}
        limits = ", ".join(f"{name} {_figure(v)}" for name, v in rounded.items())
        lines.append(f"on a GPU: {context['precision']} arithmetic; estimated limits with its rounding: {limits}")
    return lines


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


def _box_figures(c: Certificate) -> list[str]:
    """The bound over the whole box, or why there is none; silent where an older file says nothing of it."""
    if BOX_BOUND not in c.guaranteed:
        obstacle = c.context.get("no_output_bound")
        return [f"guaranteed over a box of inputs: nothing ({obstacle})"] if obstacle else []
    share = next((f" ({s.remark})" for s in c.statements), "")
    vacuous = any(s.verdict == VACUOUS for s in c.statements)
    worst = max(c.guaranteed[BOX_BOUND], default=0.0)
    lines = [
        f"guaranteed: every output within {_figure(worst)} over the whole box{share}, for the stored numbers in exact "
        f"arithmetic{'; vacuous: the outputs are no larger' if vacuous else ''}"
    ]
    if c.measured.get("max_abs_error"):
        lines.append(f"measured: outputs off by at most {_figure(max(c.measured['max_abs_error']))} on held-out rows")
    return lines


def _figure(value: float) -> str:
    return f"{value:.2e}"
