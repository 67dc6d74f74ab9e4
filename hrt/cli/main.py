"""The command line: compress, info, predict, report, export, plot. Exit status 0, or 2 for a user's mistake with one
line on stderr. What needs torch is imported inside the commands, so that help comes at once.
"""

import json
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hrt import __version__
from hrt.cli import INTERRUPTED, INTERRUPTION
from hrt.cli.arguments import Artifact, Backend, Derivatives, Device, Force, Inputs, MaxBatch, arrays_in
from hrt.cli.compile_ahead import compile_ahead
from hrt.cli.compress import Boxes, Samples, Weights, compress, samples_in
from hrt.cli.export import export
from hrt.cli.report import report
from hrt.cli.residual import residual
from hrt.cli.servers import repository, triton_backend
from hrt.errors import HrtError, InputError, printable

DERIVATIVES = "--derivatives"

app: typer.Typer = typer.Typer(
    name="hrt",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Compress a trained network under an error bound that holds, and run it.

```
hrt compress net.py:build --box "-1,0 : 1,1" --tol 1e-3 -o net.hrt
hrt info net.hrt
hrt predict net.hrt x.npy -o y.npy
hrt plot net.hrt -o net.png
```
""",
)


app.command()(compress)


@app.command()
def info(
    artifact: Artifact,
    as_json: Annotated[bool, typer.Option("--json", help="Print sizes and the certificate as JSON.")] = False,
    verbose: Annotated[bool, typer.Option(help="Also what the paper says of this network.")] = False,
) -> None:
    """Show what is certified of a compressed network (`.hrt`), how large it is, and what it is made of.

    ```
    hrt info net.hrt
    hrt info net.hrt --json
    ```
    """
    from dataclasses import asdict

    import msgspec

    import hrt
    from hrt.model.artifact import read_header
    from hrt.model.report import render
    from hrt.model.sizes import Sizes
    from hrt.runtime.backends import on_cpu, open_session

    model = hrt.load(artifact)
    program, session = model.program, model.session
    # What is not in use is not compiled for this.
    others = (open_session(program, name) for name in on_cpu() if name not in (session.backend, "native"))
    sizes = Sizes.of(model, session, *others, file=artifact.stat().st_size)
    if as_json:
        header = read_header(artifact)
        chosen = {"sizes": asdict(sizes), **{k: header.get(k) for k in ("version", "target", "certificate")}}
        plain = json.loads(msgspec.json.encode(chosen))  # figures that are not finite: null
        typer.echo(json.dumps(plain, indent=2))  # ASCII: no character of a stranger's reaches the terminal
        return
    typer.echo(render(model, sizes, verbose=verbose).rstrip())
    for what, names in (("input", [v.name for v in program.inputs]), ("output", program.outputs)):
        for name in names:
            typer.echo(f"{what} {printable(name)}: (batch, {', '.join(map(str, program.shape_of(name)))})")


@app.command()
def predict(
    artifact: Artifact,
    inputs: Inputs,
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write outputs here (`.npy`, `.npz` by name, or `.csv`), print none."),
    ] = None,
    backend: Backend = "auto",
    device: Device = None,
    max_batch: MaxBatch = None,
    derivatives: Derivatives = None,
    force: Force = False,
) -> None:
    """Evaluate a compressed network on a file of inputs (`.npy`, `.npz` or `.csv`), one row a sample.

    ```
    hrt predict net.hrt x.npy -o y.npy
    hrt predict net.hrt x.csv > y.csv
    hrt predict net.hrt x.npy --derivatives d0 d1 d0d0 -o y.npz
    ```
    """
    import hrt
    from hrt.calibration.input_files import as_csv, check_outputs, write_arrays
    from hrt.support.atomic_files import check_writable

    if out is not None:
        check_outputs(out)
        check_writable(out, force)
    model = hrt.load(artifact, backend=backend, device=device, max_batch=max_batch)
    model = model.differentiated(derivatives) if derivatives else model
    with arrays_in(inputs) as x:
        result = model.predict(x)
    outputs = result if isinstance(result, tuple) else (result,)
    if out is None:
        sys.stdout.write(as_csv(outputs))
        return
    write_arrays(out, outputs, model.program.outputs, force)
    typer.echo(f"wrote {out}: {', '.join(str(y.shape) for y in outputs)}")


app.command()(residual)


app.command()(report)
app.command()(export)
app.command("compile")(compile_ahead)
app.command()(repository)
app.command()(triton_backend)


@app.command()
def tune(
    artifact: Artifact,
    bucket: Annotated[
        list[int] | None, typer.Option(help="Batch bucket to tune, a power of two; may be given several times.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="The GPU, such as cuda:1.")] = None,
) -> None:
    """Time the kernels' configurations for this network on the GPU here, and remember the fastest for later loads.

    ```
    hrt tune net.hrt
    hrt tune net.hrt --bucket 1 --bucket 256
    ```
    Without it a rule chooses, and nothing waits. Results go to `$HRT_CACHE` (default: `~/.cache/hrt`).
    """
    import hrt

    model = hrt.load(artifact, backend="cuda", device=device)
    from hrt.kernels.tuning import user_cache  # Triton is not there on every machine
    from hrt.runtime.tune_kernels import BUCKETS
    from hrt.runtime.tune_kernels import tune as measure
    from hrt.support.progress import track

    with track("tune", True) as advance:
        fastest = measure(model.session, bucket or BUCKETS, advance)
    for key, (config, seconds) in fastest.items():
        typer.echo(
            f"batch {key.bucket:6} {key.kernel:8} {seconds * 1e6:10.1f} us  {config.form} {config.block}, "
            f"{config.warps} warps, {config.stages} stages, {config.programs} programs"
        )
    typer.echo(f"kept in {user_cache()}")


@app.command()
def bench(
    source: Annotated[Path, typer.Argument(metavar="NET", help="Your `.hrt`, `.onnx` or `.pt2` file.")],
    inputs: Annotated[
        list[Path] | None, typer.Option("--inputs", "-i", help="Rows as the network is used on, one file per input.")
    ] = None,
    tol: Annotated[list[float] | None, typer.Option(help="Relative error to compare at; may be repeated.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size; may be repeated (default 1 and 256).")] = None,
    threads: Annotated[int, typer.Option(help="Threads of every method.")] = 2,
    out: Annotated[Path | None, typer.Option("--json", help="Also write the rows here.")] = None,
) -> None:
    """Time a network here beside dense, SVD, pruned and quantized forms of it, all at the same error.

    ```
    hrt bench net.onnx -i x.npy --tol 1e-3
    hrt bench net.hrt --json rows.json
    ```
    A `.hrt` file does not hold the original: its own network, written out dense, stands for it.
    """
    from hrt.perf.bench.command import bench as compare

    if status := compare(source, inputs or (), tol or (), batch or (), threads, out):
        raise typer.Exit(status)


@app.command()
def plot(
    artifact: Artifact,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NET.png", help="Image file (`.png`, `.pdf`, `.svg`).")],
    *,
    reference: Annotated[
        str | None, typer.Option(metavar="SRC", help="The network that was compressed, as `hrt compress` takes it.")
    ] = None,
    weights: Weights = None,
    inputs: Samples = None,
    box: Boxes = None,
    force: Force = False,
) -> None:
    """Draw every layer (`.png`, `.pdf`, `.svg`): its blocks with their ranks, and how fast its singular values fall.

    A `.hrt` file holds neither the original network nor its inputs. Given them, the original's singular values stand
    beside the kept ones, and for inputs of one or two numbers the outputs are drawn as fields.

    ```
    hrt plot net.hrt -o net.png
    hrt plot net.hrt -o net.png --reference net.py:build --weights net.safetensors --box "-1,0 : 1,1"
    ```
    """
    import hrt
    from hrt.capture.checkpoints import read_network
    from hrt.support.atomic_files import check_writable

    check_writable(out, force)
    if weights is not None and reference is None:
        raise InputError("Found --weights and no --reference. Expected the network that they belong to.")
    known = None if reference is None else read_network(reference, weights)
    with samples_in(inputs, box) as samples:
        hrt.load(artifact).plot(out, reference=known, inputs=samples)
    typer.echo(f"wrote {out}")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False) -> None:
    if version:
        typer.echo(f"hrt {__version__}")
        raise typer.Exit


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `hrt`: runs the command line, returns the exit status and raises nothing for a user's mistake."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: print(f"hrt: {printable(str(message))}", file=sys.stderr)
            words = one_each(sys.argv[1:] if arguments is None else arguments)
            code = app(words, prog_name="hrt", standalone_mode=False)
    except HrtError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except SystemExit as error:  # a closed pipe
        code = error.code
    except Exception as error:
        # Usage errors of the command line: the class has moved between versions of typer.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        if not message():  # no arguments: the help has been printed
            return 2
        return _fail(f"{message().rstrip('.')}. Try 'hrt --help', or --help after a command.")
    if code == INTERRUPTED:
        sys.stderr.write(INTERRUPTION)
    return code if isinstance(code, int) else 0


def one_each(arguments: Sequence[str]) -> list[str]:
    """`--derivatives d0 d1` as an option before each: the parser takes one value at a time. Names end before a word
    that does not begin with a d or has a dot or a slash in it. Raises InputError for a NUL character.
    """
    words, listing = list[str](), False
    for k, word in enumerate(arguments):
        if "\0" in word:  # the parser itself asks the system about files
            raise InputError(f"Found the argument {word[:80]!r} with a NUL character. Expected none.")
        first = k > 0 and arguments[k - 1] == DERIVATIVES
        listing = first or (listing and re.fullmatch(r"d[^./]*", word) is not None)
        words += [DERIVATIVES, word] if listing and not first else [word]
    return words


def _fail(message: str) -> int:
    print(f"hrt: {' '.join(message.split())}", file=sys.stderr)
    return 2
