"""The command that makes the artifacts which all others take: `hrt compress`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from hrt.cli.arguments import Force, arrays_in
from hrt.errors import InputError

Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC",
        help="`net.onnx`, `net.pt2` (torch.export.save with a dynamic batch), `mynets.py:build` or "
        "`package.module:build`, where build is an nn.Module or a function without arguments that returns one; or "
        "`net.mdlus`, where physicsnemo is installed. A `.py` or module is run; a `.pt2` that asks for pickle or other "
        "code is refused. A file of weights alone is described: what it holds, and what is missing.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="A checkpoint to load first: state_dict (`.pt`, `.pth`, `.safetensors`), Lightning and PINA (`.ckpt`), "
        "DeepXDE, PhysicsNeMo (`.mdlus`), TorchScript, or a folder of neuraloperator or of sharded files. "
        "`FILE:ema` takes a part. Nothing in it is run.",
    ),
]
Samples = Annotated[
    list[Path] | None,
    typer.Option("--inputs", "-i", help="Inputs (`.npy`, `.npz`, `.csv`), a row a sample; repeat for several."),
]
Boxes = Annotated[list[str] | None, typer.Option(help="Or a box they fill, `low,low : high,high`; repeatable.")]
Tolerance = Annotated[float, typer.Option(help="Relative error of the output, given inputs; else of every weight.")]
BoundedDerivatives = Annotated[
    list[str] | None, typer.Option(metavar="d0 d1 d0d0", help="Derivatives that `--tol` must hold for, too.")
]

Outside = Annotated[str, typer.Option(help="Ops outside the table: refuse, or carry them along dense, as ONNX.")]


def compress(
    source: Source,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NET.hrt", help="Where to write the compressed network.")],
    weights: Weights = None,
    inputs: Samples = None,
    box: Boxes = None,
    tol: Tolerance = 1e-3,
    target: Annotated[str, typer.Option(help="cpu, cuda, or bytes (size only).")] = "cpu",
    storage: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    derivatives: BoundedDerivatives = None,
    per_output: Annotated[bool, typer.Option("--per-output", help="Hold every output column to `--tol`.")] = False,
    outside: Outside = "refuse",
    force: Force = False,
    progress: Annotated[bool, typer.Option(help="Show on the terminal what is being done.")] = True,
) -> None:
    """Compress a network.

    With `--inputs` or `--box` the error of the network's *output* is held below `--tol` on inputs that calibration
    never saw. Without them every weight matrix is held below it in the Frobenius norm, which compresses much less.

    ```
    hrt compress net.py:build --weights net.safetensors --inputs x.npy -o net.hrt
    hrt compress net.py:build --weights epoch=9.ckpt --box "-1,0 : 1,1" -o net.hrt
    hrt compress net.pt2 --box "-1,0 : 1,1" --tol 1e-3 -o net.hrt
    hrt compress net.pt2 --box "-1,0 : 1,1" --tol 1e-3 --derivatives d0 d1 d0d0 -o net.hrt
    ```
    """
    from hrt.capture.checkpoints import read_network
    from hrt.network_compression.compress import compress as compress_network
    from hrt.support.atomic_files import check_writable

    check_writable(out, force)
    with samples_in(inputs, box) as samples:
        model = compress_network(
            read_network(source, weights),
            inputs=samples,
            tol=tol,
            derivatives=derivatives or None,
            target=target,
            storage=storage,
            per_output=per_output,
            seed=seed,
            outside=outside,
            progress=progress,
        )
    model.save(out, force=force)
    typer.echo(model.report().rstrip())
    typer.echo(f"wrote {out}: {out.stat().st_size:,} bytes on disk")


@contextmanager
def samples_in(inputs: Sequence[Path] | None, boxes: Sequence[str] | None) -> Iterator[tuple[Any, ...] | None]:
    """What `--inputs` or `--box` name, one per input of the network; None for neither."""
    from hrt.calibration.input_files import parse_box

    if inputs and boxes:
        raise InputError("Found --inputs and --box. Expected one of them.")
    with arrays_in(inputs or ()) as arrays:
        yield arrays or tuple(parse_box(text) for text in boxes or ()) or None
