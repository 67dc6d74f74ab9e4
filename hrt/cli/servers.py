"""The commands for inference servers: `hrt repository` and `hrt triton-backend`."""

from pathlib import Path
from typing import Annotated

import typer

from hrt.cli.arguments import Artifact, Derivatives
from hrt.cli.export import names_for_clients


def repository(
    artifact: Artifact,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The repository: a folder of models.")],
    *,
    name: Annotated[str, typer.Option(help="The model's name at the server, and its folder's.")],
    server: Annotated[str, typer.Option(help="triton, mlserver or ray.")] = "triton",
    backend: Annotated[
        str | None, typer.Option(help="For Triton: onnxruntime (an ONNX file, the default) or hrt (the artifact).")
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Rows of the largest batch.")] = 1024,
    instances: Annotated[int, typer.Option(help="Triton's instances, MLServer's workers, Ray's fewest replicas.")] = 1,
    device: Annotated[
        str | None, typer.Option(help="Triton's instances: cpu or gpu; by default what NET.hrt was compressed for.")
    ] = None,
    accelerator: Annotated[str | None, typer.Option(help="tensorrt, for Triton's ONNX Runtime on GPUs.")] = None,
    derivatives: Derivatives = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what hrt wrote there before.")] = False,
) -> None:
    """Write the folder from which an inference server serves a compressed network.

    ```
    hrt repository net.hrt models/ --name burgers
    hrt repository net.hrt models/ --name burgers --server mlserver
    hrt repository net.hrt models/ --name burgers --derivatives d0 d1 d0d0
    ```
    """
    from hrt.export.servers.repository import export_repository

    chosen = {"server": server, "backend": backend, "device": device, "accelerator": accelerator}
    sizes = {"max_batch": max_batch, "instances": instances, "derivatives": derivatives or None}
    typer.echo(f"wrote {export_repository(artifact, folder, name=name, force=force, **chosen, **sizes)}")
    typer.echo(names_for_clients(artifact, derivatives))


def triton_backend(
    folder: Annotated[
        str, typer.Argument(metavar="BACKENDS", help="The server's backends, such as /opt/tritonserver/backends.")
    ],
    name: Annotated[
        str, typer.Option(help="hrt, or onnxruntime for a server that lacks NVIDIA's own backend of that name.")
    ] = "hrt",
    force: Annotated[bool, typer.Option("--force", help="Replace an older one of hrt's.")] = False,
) -> None:
    """Install hrt's backend into a Triton server that has the Python backend.

    ```
    hrt triton-backend /opt/tritonserver/backends
    ```
    """
    from hrt.export.servers.repository import install_triton_backend

    typer.echo(f"wrote {install_triton_backend(folder, name, force=force)}")
