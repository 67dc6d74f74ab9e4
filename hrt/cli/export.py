"""`hrt export`: a compressed network as an ONNX file or as C, as the suffix says."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hrt.cli.arguments import Artifact, Derivatives, Force
from hrt.errors import InputError


def export(
    artifact: Artifact,
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="NET.onnx|NET.c", help="The file to write.")],
    opset: Annotated[int | None, typer.Option(help="ONNX: operator set, 18 to 23 (default 20).")] = None,
    external: Annotated[bool, typer.Option(help="ONNX: weights in a second file, NET.onnx.data.")] = False,
    functions: Annotated[
        bool, typer.Option(help="ONNX: one node per layer, with a body in standard operators.")
    ] = False,
    check: Annotated[
        bool, typer.Option(help="ONNX: compare ONNX Runtime with predict before anything is written.")
    ] = True,
    name: Annotated[str | None, typer.Option(help="C: of the functions (default: the file's).")] = None,
    precision: Annotated[
        str | None, typer.Option(help="C: float32 (default) or float64, of inputs, arithmetic and outputs.")
    ] = None,
    fortran: Annotated[bool, typer.Option("--fortran", help="C: also NET.f90, a module for Fortran.")] = False,
    with_example: Annotated[
        bool,
        typer.Option("--with-example", help="C: also programs in C, C++ and Fortran that call it; CMakeLists.txt."),
    ] = False,
    derivatives: Derivatives = None,
    force: Force = False,
) -> None:
    """Write a compressed network as a plain ONNX file, for any inference server, or as one C file to embed.

    ```
    hrt export net.hrt -o net.onnx
    hrt export net.hrt -o net.onnx --derivatives d0 d1 d0d0
    hrt export net.hrt -o net.c
    hrt export net.hrt -o net.c --with-example --precision float64
    ```
    ONNX: standard operators only, any batch size; float16 and int8 weights keep their bytes. The certificate is in the
    file's metadata. C: NET.h stands beside it and says how to call; nothing is allocated, no library is needed.
    """
    of_onnx: dict[str, Any] = {
        "--opset": opset,
        "--external": external,
        "--functions": functions,
        "--no-check": not check,
    }
    of_c: dict[str, Any] = {
        "--name": name,
        "--precision": precision,
        "--fortran": fortran,
        "--with-example": with_example,
    }
    if out.suffix not in (".onnx", ".c"):
        raise InputError(f"Found -o {out}. Expected a name that ends with .onnx or .c.")
    strange = [option for option, value in (of_c if out.suffix == ".onnx" else of_onnx).items() if value]
    if strange:
        other = ".c" if out.suffix == ".onnx" else ".onnx"
        raise InputError(f"Found {', '.join(strange)} with -o {out}. That is for files that end with {other}.")
    if out.suffix == ".c":
        _export_c(
            artifact,
            out,
            derivatives,
            force,
            {"name": name, "precision": precision or "float32", "fortran": fortran, "example": with_example},
        )
        return
    from hrt.export.onnx.exporter import export_onnx
    from hrt.support.atomic_files import check_writable

    check_writable(out, force)
    options = {"opset": 20 if opset is None else opset, "external": external, "functions": functions, "check": check}
    export_onnx(artifact, out, derivatives=derivatives or None, force=force, **options)
    typer.echo(f"wrote {out}: {out.stat().st_size:,} bytes{', checked by ONNX Runtime' if check else ''}")
    typer.echo(names_for_clients(artifact, derivatives))


def names_for_clients(artifact: Path, derivatives: list[str] | None) -> str:
    """The inputs and outputs of the exported graph, by the names that a client asks for."""
    from hrt.export.onnx.exporter import opened, to_onnx

    graph = to_onnx(opened(artifact, derivatives or None)[0]).graph
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.output)
    }
    named = [
        ", ".join(f"{v.name} ({', '.join(map(str, shapes[v.name]))})" for v in side)
        for side in (graph.input, graph.output)
    ]
    return f"inputs: {named[0]}; outputs: {named[1]}"


def _export_c(artifact: Path, out: Path, derivatives: list[str] | None, force: bool, options: dict[str, Any]) -> None:
    from hrt.export.c.exporter import write_c

    _, *beside = write_c(artifact, out, derivatives=derivatives or None, force=force, **options)
    typer.echo(f"wrote {out}: {out.stat().st_size:,} bytes, and {', '.join(path.name for path in beside)}")
