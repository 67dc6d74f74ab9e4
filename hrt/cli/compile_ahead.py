"""`hrt compile`: what the backend "native" does when it is first opened, ahead of time."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from hrt.cli.arguments import Artifact, Derivatives

VARIABLE = "HRT_CACHE"


def compile_ahead(
    artifact: Artifact,
    derivatives: Derivatives = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Keep it there, for HRT_CACHE=FOLDER.")
    ] = None,
) -> None:
    """Generate a network's C code, compile it for this CPU, and keep it for later loads.

    ```
    hrt compile net.hrt
    hrt compile net.hrt --derivatives d0 d1 d0d0
    hrt compile net.hrt -o cache      # to copy it, with its modes, to machines without a compiler: HRT_CACHE=cache
    ```
    `hrt.load` and `hrt predict` find it then. The compiler is `$CC`, cc, gcc or clang, else zig's from the extra
    `native`. Libraries go to `$HRT_CACHE/native` (default: `~/.cache/hrt/native`). A machine without a compiler takes
    what was compiled where CPUs can do the same, from a folder that belongs to its user alone (mode 0700).
    HRT_NATIVE=off switches this off.
    """
    from hrt.errors import BackendError
    from hrt.export.c.library_cache import cache_folder
    from hrt.export.c.toolchain import compiler
    from hrt.model.load import load

    with _caching_in(out):
        folder, start = cache_folder(), time.perf_counter()
        if folder is None:
            raise BackendError(
                "The cache's folder cannot be made, or others may write to it. Set HRT_CACHE to a folder of yours."
            )
        maker = compiler()
        model = load(artifact, backend="native")
        for names in filter(None, (model.certificate.derivatives, derivatives)):
            _ = model.differentiated(names).session
        typer.echo(
            f"compiled in {time.perf_counter() - start:.1f} s by {maker}; resident: "
            f"{model.session.resident_bytes:,} bytes; kept in {folder}"
        )


@contextmanager
def _caching_in(folder: Path | None) -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    try:
        if folder is not None:
            os.environ[VARIABLE] = str(folder)
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
