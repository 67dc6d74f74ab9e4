"""The command that lets a network watch its own equation: `hrt residual`."""

from pathlib import Path
from typing import Annotated

import typer

from hrt.cli.arguments import Artifact, Backend, Device, Force, Inputs, MaxBatch, arrays_in

COORDINATES = 6  # that a line still shows


def residual(
    artifact: Artifact,
    inputs: Inputs,
    *,
    expression: Annotated[
        str,
        typer.Option(
            "--expr",
            metavar="EXPR",
            help="What is zero where the equation holds, of u, d0, d0d1, ..., x0, x1, ...; u[0] of several outputs.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Write the residual of every row (`.npy`, `.npz`, `.csv`).")
    ] = None,
    backend: Backend = "auto",
    device: Device = None,
    max_batch: MaxBatch = None,
    force: Force = False,
) -> None:
    """Evaluate the residual of a differential equation on a file of inputs, one row a sample.

    ```
    hrt residual net.hrt x.npy --expr "d1 + u*d0 - 0.00318*d0d0"
    hrt residual net.hrt x.npy --expr "d0d0 + d1d1 + sin(pi*x0)" -o r.npy
    ```
    Numbers, + - * / **, parentheses, pi, sin, cos, tan, exp, log, sqrt, tanh and abs; nothing is run as code.
    """
    import numpy as np

    import hrt
    from hrt.calibration.input_files import check_outputs, write_arrays
    from hrt.model.residual import summarize
    from hrt.support.atomic_files import check_writable

    if out is not None:
        check_outputs(out)
        check_writable(out, force)
    model = hrt.load(artifact, backend=backend, device=device, max_batch=max_batch)
    with arrays_in(inputs) as x:
        values = hrt.residual(model, x, expression)
    figures = summarize(values)
    row = np.concatenate([v[figures.row].reshape(-1) for v in x])
    place = ", ".join(f"x{k} = {v:.6g}" for k, v in enumerate(row[:COORDINATES])) + (", ..." * (len(row) > COORDINATES))
    typer.echo(f"rows  {figures.rows:,}")
    typer.echo(f"rms   {figures.rms:.6e}")
    typer.echo(f"99 %  {figures.percentile:.6e}")
    typer.echo(f"max   {figures.maximum:.6e} in row {figures.row}, counted from 0 ({place})")
    if figures.not_finite:
        typer.echo(f"not finite in {figures.not_finite:,} rows, which the figures leave out")
    if out is not None:
        write_arrays(out, (values,), ("residual",), force)
        typer.echo(f"wrote {out}: {values.shape}")
