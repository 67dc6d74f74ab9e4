"""Arguments that several commands take, each described once."""

from pathlib import Path
from typing import Annotated

import typer

Artifact = Annotated[Path, typer.Argument(metavar="NET.hrt", help="A file that `hrt compress` wrote.")]
Backend = Annotated[str, typer.Option(help="auto, torch, onnxruntime or cuda.")]
Derivatives = Annotated[
    list[str] | None,
    typer.Option(metavar="d0 d1 d0d0", help="Derivatives by input coordinates too, behind the outputs, in this order."),
]
Device = Annotated[str | None, typer.Option(help="Where the backend runs, such as cuda:1.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output file that exists.")]
Inputs = Annotated[
    list[Path], typer.Argument(metavar="X.npy", help="Inputs (`.npy`, `.npz`, `.csv`), one file per input.")
]
MaxBatch = Annotated[int | None, typer.Option(help="Compute so many rows at a time.")]
