"""`hrt compile`: what the backend "native" does when it is first opened, ahead of time."""

import time

import typer

from hrt.cli.arguments import Artifact, Derivatives


def compile_ahead(artifact: Artifact, derivatives: Derivatives = None) -> None:
    """Generate a network's C code, compile it for this CPU, and keep it for later loads.

    ```
    hrt compile net.hrt
    hrt compile net.hrt --derivatives d0 d1 d0d0
    ```
    `hrt.load` and `hrt predict` find it then. The compiler is `$CC`, cc, gcc or clang, else zig's from the extra
    `native`. Libraries go to `$HRT_CACHE/native` (default: `~/.cache/hrt/native`). HRT_NATIVE=off switches this off.
    """
    from hrt.errors import BackendError
    from hrt.export.c.library_cache import cache_folder
    from hrt.export.c.toolchain import compiler
    from hrt.model.load import load

    folder, start = cache_folder(), time.perf_counter()
    if folder is None:
        raise BackendError(
            "The cache's folder cannot be made, or others may write to it. Set HRT_CACHE to a folder of yours."
        )
    model = load(artifact, backend="native")
    for names in filter(None, (model.certificate.derivatives, derivatives)):
        _ = model.differentiated(names).session
    typer.echo(
        f"compiled in {time.perf_counter() - start:.1f} s by {compiler()}; resident: {model.session.resident_bytes:,} "
        f"bytes; kept in {folder}"
    )
