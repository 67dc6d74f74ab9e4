"""The command line: compress, info, predict, residual, export, plot. Exit status 0, or 2 for a user's mistake with one
line on stderr.
"""

import json
import re
import sys
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from hrt.cli import input_files as sources
from hrt.cli import residual as residual_command
from hrt.cli import servers as server_commands
from hrt.cli.arguments import Artifact, Backend, Derivatives, Device, Force, Inputs, MaxBatch
from hrt.errors import HrtError, InputError
from hrt.model.artifact import read_header
from hrt.model.load import load
from hrt.model.report import render
from hrt.network_compression.compress import compress as compress_network
from hrt.runtime.backends import choose, on_cpu, open_session
from hrt.support.atomic_files import check_writable
from hrt.support.progress import track

INTERRUPTED = 130
DERIVATIVES = "--derivatives"

app = typer.Typer(
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


@app.command()
def compress(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="`net.pt2` (torch.export.save with a dynamic batch), `file.py:name` or `package.module:name`, where "
            "name is an nn.Module or a function without arguments that returns one. Code in SRC is run.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NET.hrt", help="Where to write the compressed network.")],
    weights: Annotated[
        Path | None, typer.Option(help="A state_dict to load into the module first (`.safetensors` or `.pt`).")
    ] = None,
    inputs: Annotated[
        list[Path] | None,
        typer.Option(
            "--inputs",
            "-i",
            help="Representative inputs (`.npy`, `.npz`, `.csv`), one row a sample; repeat for several inputs.",
        ),
    ] = None,
    box: Annotated[
        list[str] | None,
        typer.Option(help="Or a box they fill, `low,low : high,high`; repeat for several inputs."),
    ] = None,
    tol: Annotated[
        float, typer.Option(help="Relative error that must hold: of the output, given inputs; else of every weight.")
    ] = 1e-3,
    target: Annotated[str, typer.Option(help="cpu, cuda, or bytes (size only).")] = "cpu",
    storage: Annotated[str, typer.Option(help="auto, float32, float16, bfloat16 or int8.")] = "auto",
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    derivatives: Annotated[
        list[str] | None,
        typer.Option(metavar="d0 d1 d0d0", help="Derivatives by input coordinates that `--tol` must hold for, too."),
    ] = None,
    force: Force = False,
    progress: Annotated[bool, typer.Option(help="Show on the terminal what is being done.")] = True,
) -> None:
    """Compress a network.

    With `--inputs` or `--box` the error of the network's *output* is held below `--tol` on inputs that calibration
    never saw. Without them every weight matrix is held below it in the Frobenius norm, which compresses much less.

    ```
    hrt compress net.py:build --weights net.safetensors --inputs x.npy -o net.hrt
    hrt compress net.pt2 --box "-1,0 : 1,1" --tol 1e-3 -o net.hrt
    hrt compress net.pt2 --box "-1,0 : 1,1" --tol 1e-3 --derivatives d0 d1 d0d0 -o net.hrt
    ```
    """
    check_writable(out, force)
    if inputs and box:
        raise InputError("Found --inputs and --box. Expected one of them.")
    data: Any = None
    if inputs:
        data = tuple(sources.read_array(p) for p in inputs)
    elif box:
        data = tuple(sources.parse_box(b) for b in box)
    net = sources.read_network(source, weights)
    options = {"tol": tol, "target": target, "storage": storage, "seed": seed, "progress": progress}
    model = compress_network(net, inputs=data, derivatives=derivatives or None, **options)
    model.save(out, force=force)
    typer.echo(render(model).rstrip())
    typer.echo(f"wrote {out}: {out.stat().st_size:,} bytes on disk")


@app.command()
def info(
    artifact: Artifact,
    as_json: Annotated[bool, typer.Option("--json", help="Print the certificate as JSON.")] = False,
) -> None:
    """Show what a compressed network (`.hrt`) is made of, and what is certified of it.

    ```
    hrt info net.hrt
    hrt info net.hrt --json
    ```
    """
    if as_json:
        header = read_header(artifact)
        chosen = {k: header.get(k) for k in ("version", "target", "dense_nbytes", "certificate")}
        typer.echo(json.dumps(_without_infinity(chosen), indent=2))
        return
    model = load(artifact, backend="torch")
    program = model.program
    typer.echo(render(model).rstrip())
    taken = choose("auto", None, model.target, model.certificate.runtimes)
    typer.echo(f"on disk {artifact.stat().st_size:,} bytes; on this machine predict takes the backend {taken}")
    for name in on_cpu():
        typer.echo(f"resident on the CPU in {name}: {open_session(program, name).resident_bytes:,} bytes")
    for what, names in (("input", [v.name for v in program.inputs]), ("output", program.outputs)):
        for name in names:
            typer.echo(f"{what} {name}: (batch, {', '.join(map(str, program.shape_of(name)))})")


@app.command()
def predict(
    artifact: Artifact,
    inputs: Inputs,
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
    if out is not None:
        sources.check_outputs(out)
        check_writable(out, force)
    model = load(artifact, backend=backend, device=device, max_batch=max_batch)
    model = model.differentiated(derivatives) if derivatives else model
    result = model.predict(tuple(sources.read_array(p) for p in inputs))
    outputs = result if isinstance(result, tuple) else (result,)
    if out is None:
        sys.stdout.write(sources.as_csv(outputs))
        return
    sources.write_arrays(out, outputs, model.program.outputs, force)
    typer.echo(f"wrote {out}: {', '.join(str(y.shape) for y in outputs)}")


app.command()(residual_command.residual)


@app.command()
def export(
    artifact: Artifact,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NET.onnx", help="The ONNX file to write.")],
    opset: Annotated[int, typer.Option(help="ONNX operator set, 18 to 23.")] = 20,
    external: Annotated[bool, typer.Option(help="Weights in a second file, NET.onnx.data.")] = False,
    functions: Annotated[bool, typer.Option(help="One node per layer, with a body in standard operators.")] = False,
    check: Annotated[bool, typer.Option(help="Compare ONNX Runtime with predict before anything is written.")] = True,
    derivatives: Derivatives = None,
    force: Force = False,
) -> None:
    """Write a compressed network as a plain ONNX file, for any inference server.

    ```
    hrt export net.hrt -o net.onnx
    hrt export net.hrt -o net.onnx --derivatives d0 d1 d0d0
    ```
    Standard operators only, any batch size; float16 and int8 weights keep their bytes. The certificate is in the
    file's metadata.
    """
    check_writable(out, force)
    export_onnx = import_module("hrt").export_onnx  # onnx is not imported by the other commands
    options = {"opset": opset, "external": external, "functions": functions, "check": check}
    export_onnx(artifact, out, derivatives=derivatives or None, **options)
    typer.echo(f"wrote {out}: {out.stat().st_size:,} bytes{', checked by ONNX Runtime' if check else ''}")


app.command()(server_commands.repository)
app.command()(server_commands.triton_backend)


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
    model = load(artifact, backend="cuda", device=device)
    from hrt.kernels.tuning import user_cache  # Triton is not there on every machine
    from hrt.runtime.tune_kernels import BUCKETS
    from hrt.runtime.tune_kernels import tune as measure

    with track("tune", True) as advance:
        found = measure(model.session, bucket or BUCKETS, advance)
    for key, (config, seconds) in found.items():
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
    if status := import_module("hrt.perf.bench.command").bench(
        source, inputs or (), tol or (), batch or (), threads, out
    ):
        raise typer.Exit(status)


@app.command()
def plot(
    artifact: Artifact,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NET.png", help="Image file (`.png`, `.pdf`, `.svg`).")],
    force: Force = False,
) -> None:
    """Draw every layer (`.png`, `.pdf`, `.svg`): its blocks with their ranks, and how fast its singular values fall.

    ```
    hrt plot net.hrt -o net.png
    ```
    """
    check_writable(out, force)
    load(artifact).plot(out)
    typer.echo(f"wrote {out}")


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Show the version and stop.")] = False) -> None:
    if version:
        typer.echo(f"hrt {metadata.version('hrt')}")
        raise typer.Exit


def _without_infinity(value: Any) -> Any:
    """JSON has no infinity: figures that are not finite become null."""
    if isinstance(value, dict):
        return {k: _without_infinity(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_without_infinity(v) for v in value]
    return None if isinstance(value, float) and value - value != 0 else value


def main(arguments: list[str] | None = None) -> int:
    """Entry point of `hrt`: runs the command line, returns the exit status and raises nothing for a user's mistake."""
    try:
        code = app(one_each(sys.argv[1:] if arguments is None else arguments), prog_name="hrt", standalone_mode=False)
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
        print("hrt: interrupted; nothing was written", file=sys.stderr)
    return code if isinstance(code, int) else 0


def one_each(arguments: Sequence[str]) -> list[str]:
    """`--derivatives d0 d1` as an option before each: the parser takes one value at a time. Names end where something
    stands that does not begin with a d or has a dot or a slash in it, as files do. Raises InputError for what no
    system would have passed on: a NUL character.
    """
    found: list[str] = []
    listing = False
    for k, word in enumerate(arguments):
        if "\0" in word:  # the parser itself asks the system about files
            raise InputError(f"Found the argument {word[:80]!r} with a NUL character. Expected none.")
        first = k > 0 and arguments[k - 1] == DERIVATIVES
        listing = first or (listing and re.fullmatch(r"d[^./]*", word) is not None)
        found += [DERIVATIVES, word] if listing and not first else [word]
    return found


def _fail(message: str) -> int:
    print(f"hrt: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
