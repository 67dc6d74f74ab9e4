"""`hrt report`: what is certified of a compressed network, in words or as a web page."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrt.cli.arguments import Artifact, Force
from hrt.errors import InputError

if TYPE_CHECKING:
    from hrt.model.model import CompressedModel
    from hrt.support.progress import Advance

ROUNDS = 10  # of bursts, each of ten calls or more


def report(
    artifact: Artifact,
    *,
    html: Annotated[
        Path | None, typer.Option("--html", "-o", metavar="REPORT.html", help="Write one web page, print nothing else.")
    ] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time the network here, too, for the page: some seconds, more if large.")
    ] = False,
    verbose: Annotated[bool, typer.Option(help="Also what the paper says of this network, in the text.")] = False,
    force: Force = False,
) -> None:
    """Say what is certified of a compressed network, how large it is and how fast, layer by layer.

    The page stands alone: one file, readable without a network. It has the certificate, errors of every output, sizes,
    latencies per batch, and pictures of the largest layers: blocks, and singular values of the weights as stored.

    ```
    hrt report net.hrt
    hrt report net.hrt --html report.html
    hrt report net.hrt --html report.html --measure
    ```
    Latencies are predicted, for a server CPU, unless `--measure` times them here.
    """
    import hrt
    from hrt.model.page import write_page
    from hrt.model.sizes import Sizes
    from hrt.support.atomic_files import check_writable, warn_of_suffix
    from hrt.support.progress import part, track

    if html is None:
        if measure:
            raise InputError("Found --measure and no --html. Expected the page that shows the times, --html NET.html.")
        typer.echo(hrt.load(artifact).report(verbose=verbose).rstrip())
        return
    check_writable(html, force)
    warn_of_suffix(html, ".html")
    model = hrt.load(artifact)
    with track("report", True) as advance:
        times = measured(model, part(advance, 0.0, 0.7)) if measure else None
        sizes = Sizes.of(model, model.session, file=artifact.stat().st_size)
        rest = part(advance, 0.7 if measure else 0.0, 1.0)
        write_page(model, html, title=artifact.name, sizes=sizes, measured=times, force=force, advance=rest)
    typer.echo(f"wrote {html}: {html.stat().st_size:,} bytes")


def measured(model: "CompressedModel", advance: "Advance") -> Mapping[int, Any]:
    """By rows, the times of `predict` on this machine, in random order over rounds."""
    import torch

    from hrt.model.page import BATCHES
    from hrt.perf.measuring.bursts import bursts

    generator = torch.Generator().manual_seed(0)

    def inputs(rows: int) -> Any:
        """Standard normal; zeros where numbers may be indices."""
        values = [
            torch.randn(rows, *v.shape, generator=generator) if v.kind == "float" else torch.zeros(rows, *v.shape)
            for v in model.program.inputs
        ]
        return tuple(values) if len(values) > 1 else values[0]

    calls = {str(rows): partial(model.predict, inputs(rows)) for rows in BATCHES}
    times = bursts(calls, rounds=ROUNDS, on_round=lambda k: advance(f"timed {k} of {ROUNDS} rounds", k / ROUNDS))
    return {rows: times[str(rows)] for rows in BATCHES}
