"""The report: the verdict first, then sizes, speed and every layer, as text. Losses are shown like wins."""

import textwrap
from collections.abc import Sequence
from io import StringIO

from rich.console import Console
from rich.table import Table

from hrt.certificate.certificate import LayerRecord
from hrt.errors import printable
from hrt.model.contents import Contents
from hrt.model.sizes import Sizes
from hrt.model.verdict import details, head
from hrt.program.parallel_linears import joined
from hrt.program.program import Program, carried_nbytes
from hrt.runtime.onnx_costs import FEW_ROWS, MANY_ROWS, choose_forms, program_us

WIDTH = 100


def render(model: Contents, sizes: Sizes, *, verbose: bool = False, width: int = WIDTH) -> str:
    """The error that is held, sizes, expected speed; a table of the layers; with `verbose` what the paper says, too.

    No line is longer than `width`, and nothing is left out to fit it.
    """
    c, outputs = model.certificate, [(n, model.program.shape_of(n)) for n in model.program.outputs]
    lines = [*head(c, outputs), *sizes.lines(), *predicted_speed(joined(model.program))]
    dense = [r.name for r in c.layers if r.nbytes >= r.dense_nbytes > 0]
    if dense:
        lines.append(f"no gain on {len(dense)} of {len(c.layers)} layers; the table says why")
    out = StringIO()
    # Plain text whatever the environment says, and names as they are: "[0]" is no markup, ":key:" no picture.
    console = Console(file=out, width=width, color_system=None, markup=False, emoji=False, highlight=False)
    _print(console, lines)
    if c.layers:
        console.print(_layers(c.layers))
    other = (
        f"besides the layers: {model.nbytes - sum(r.nbytes for r in c.layers):,} bytes of biases and other constants"
    )
    carried = [
        f"carried outside the op table, dense: {label}, {n:,} bytes, {100 * n / model.nbytes:.3g} % of what is stored"
        for label, n in carried_nbytes(model.program).items()
    ]
    remarks = [f"remark: {r}" for r in c.context.get("remarks", [])]
    _print(console, [other, *carried, *details(c, model.program.outputs, verbose), *remarks])
    if verbose:
        console.print(_errors(c.layers))
        if any(r.statements for r in c.layers):
            console.print(_statements(c.layers))
    return out.getvalue()


def predicted_speed(program: Program) -> list[str]:
    """What the cost model expects of ONNX Runtime on a CPU, beside dense; nothing without linear layers."""
    times = []
    for rows, batches in ((FEW_ROWS[0], FEW_ROWS), (MANY_ROWS[-1], MANY_ROWS)):
        forms = choose_forms(program, batches, never_slower=True)
        written_out = {name: form if form == "stacked" else "multiplied" for name, form in forms.items()}
        dense = program_us(program, written_out, rows)
        if not dense:
            return []
        times.append(
            f"{rows} row{'s' if rows > 1 else ''} {program_us(program, forms, rows):.3g} us (dense {dense:.3g})"
        )
    return [f"speed, predicted of the linear layers in ONNX Runtime on a CPU: {'; '.join(times)}"]


def _print(console: Console, lines: Sequence[str]) -> None:
    for line in lines:
        for part in textwrap.wrap(printable(line), console.width, subsequent_indent="    "):
            console.print(part, soft_wrap=True)


def _layers(layers: Sequence[LayerRecord]) -> Table:
    table = _table(
        "error: relative, by the inputs seen, else in the Frobenius norm (F)",
        ("layer", "shape", "structure"),
        ("bytes", "ratio", "error"),
        ("why",),
    )
    for r in layers:
        ratio = f"{r.dense_nbytes / r.nbytes:.2f}" if r.nbytes else "-"
        error = f"{_short(r.frobenius)} F" if r.weighted is None else _short(r.weighted)
        _add(table, r.name, f"{r.shape[0]} x {r.shape[1]}", r.structure, f"{r.nbytes:,}", ratio, error, r.reason)
    return table


def _errors(layers: Sequence[LayerRecord]) -> Table:
    table = _table(
        "Relative errors: Frobenius, weighted (by the inputs seen) and spectral measured, ~ estimated from below; "
        "||W-H||₂ guaranteed. Condition numbers κ measured.",
        ("layer",),
        ("Frobenius", "weighted", "spectral", "||W-H||₂ ≤", "κ(W)", "κ(H)"),
        (),
    )
    for r in layers:
        # computed with the singular values, and then infinite where it is missing
        missing = "-" if r.spectral is None else "∞"
        conditions = [_short(v, missing) for v in (r.condition, r.condition_compressed)]
        errors = _short(r.frobenius), _short(r.weighted), _spectral(r), _short(r.spectral_bound)
        _add(table, r.name, *errors, *conditions)
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(printable, cells))


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
    """What became of every statement of the paper, layer by layer."""
    names = list(dict.fromkeys(s.name for r in layers for s in r.statements))
    table = _table(
        "Whether each of the paper's bounds holds here (`hrt info --json` lists them beside the measured figures).",
        ("layer",),
        (),
        list(map(printable, names)),
    )
    for r in layers:
        verdicts = {s.name: s.verdict for s in r.statements}
        _add(table, r.name, *(verdicts.get(name, "-") for name in names))
    return table
