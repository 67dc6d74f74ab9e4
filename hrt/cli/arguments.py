"""Arguments that several commands take, each described once, and the files that some of them name."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hrt.errors import InputError

Artifact = Annotated[Path, typer.Argument(metavar="NET.hrt", help="A file that `hrt compress` wrote.")]
Backend = Annotated[str, typer.Option(help="auto, torch, onnxruntime, native or cuda.")]
Derivatives = Annotated[
    list[str] | None,
    typer.Option(metavar="d0 d1 d0d0", help="Derivatives by input coordinates too, behind the outputs, in this order."),
]
Device = Annotated[str | None, typer.Option(help="Where the backend runs, such as cuda:1.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output file that exists.")]
Inputs = Annotated[
    list[Path],
    typer.Argument(
        metavar="X.npy", help="Inputs (`.npy`, `.npz`, `.csv` with a line of names or without), one per input."
    ),
]
MaxBatch = Annotated[int | None, typer.Option(help="Compute so many rows at a time.")]


@contextmanager
def arrays_in(paths: Sequence[Path]) -> Iterator[tuple[Any, ...]]:
    """The arrays in files. The names of their columns are said on stderr, or with the mistake that they may explain."""
    from hrt.calibration.input_files import read_table

    tables = [read_table(path) for path in paths]
    named = [
        f"{p} has the columns {', '.join(map(repr, t.columns))}"
        for p, t in zip(paths, tables, strict=True)
        if t.columns
    ]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Found float64")  # the file's choice, or that of this reader
            yield tuple(t.numbers for t in tables)
    except InputError as error:
        raise InputError(" ".join([str(error), *(f"{text}." for text in named)])) from error
    for text in named:
        typer.echo(text, err=True)
