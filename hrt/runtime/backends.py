"""The backends that can run a network, by name, and how one is chosen.

A row names the function that opens a session as "module:function", imported when first opened: Triton and ONNX are not
on every machine, and a backend may live above this room.
"""

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any

from hrt.derivatives.differentiate import Differentiated
from hrt.errors import BackendError
from hrt.program.parallel_linears import joined
from hrt.program.program import Program
from hrt.runtime.by_rows import ByRows
from hrt.runtime.native_costs import EVERY, faster_up_to
from hrt.runtime.session import Session
from hrt.support.devices import missing_for_cuda

PATIENT, IMPATIENT = 300.0, 3.0  # seconds for a compiler: that somebody asked for, and that "auto" would like to have


@dataclass(frozen=True)
class Request:
    """What a backend is asked for. differentiated: what `program` came from, where it gives derivatives. patience: how
    many seconds a compiler may take. native_rows: up to how many generated C is asked.
    """

    program: Program
    device: Any = None
    precision: str = "tf32x3"
    differentiated: Differentiated | None = None
    patience: float = PATIENT
    native_rows: int = EVERY


@dataclass(frozen=True)
class Backend:
    """opens: Request to Session, a function or where to find one. missing: what the backend lacks on this machine and
    what to do, None where it can run. compiler: where to find what makes its code here.
    """

    opens: str | Callable[[Request], Session]
    missing: Callable[[], str | None] = lambda: None
    on_cpu: bool = False
    compiler: str | None = None

    def open(self, request: Request) -> Session:
        """A session. Raises BackendError where the network or the device does not suit the backend."""
        opens = resolve_name(self.opens) if isinstance(self.opens, str) else self.opens
        return opens(request)


def _missing_onnxruntime() -> str | None:
    return None if find_spec("onnxruntime") else "ONNX Runtime is not installed (pip install onnxruntime)."


def _missing_native() -> str | None:
    if os.environ.get("HRT_NATIVE", "").lower() == "off":
        return "HRT_NATIVE=off is set."
    return resolve_name("hrt.export.c.library_cache:missing")()


BACKENDS: dict[str, Backend] = {
    "torch": Backend("hrt.runtime.torch_session:open_torch", on_cpu=True),
    "onnxruntime": Backend("hrt.export.onnx.onnxruntime_session:open_onnxruntime", _missing_onnxruntime, on_cpu=True),
    "native": Backend(
        "hrt.export.c.native_session:open_native", _missing_native, True, "hrt.export.c.library_cache:made_by"
    ),
    "cuda": Backend("hrt.runtime.cuda_session:open_cuda", missing_for_cuda),
}


def choose(
    backend: str, device: Any, target: str, certified: Collection[str] = (), native_rows: int = 0
) -> tuple[str, ...]:
    """The backends to try, the first choice first. What "auto" stands for: the GPU's where a CUDA device is named, or
    where the network was compressed for one and one is there. On the CPU, of those that are `certified` for this
    network, generated C where that is predicted to be faster up to some number of rows, `native_rows`, and ONNX
    Runtime; else torch.
    """
    if backend != "auto":
        return (backend,)
    names_cuda = device is not None and str(device).startswith("cuda")
    if (names_cuda or (device is None and target == "cuda")) and BACKENDS["cuda"].missing() is None:
        return ("cuda",)
    if device is not None and str(device) != "cpu":
        return ("torch",)
    served = [n for n in ("native", "onnxruntime") if n in certified and BACKENDS[n].missing() is None]
    return (*(name for name in served if native_rows or name != "native"), "torch")


def open_session(
    program: Program,
    backend: str = "auto",
    device: Any = None,
    *,
    target: str = "cpu",
    precision: str = "tf32x3",
    certified: Collection[str] = (),
    differentiated: Differentiated | None = None,
) -> Session:
    """A session of `program` (see `Request`). certified: the backends that "auto" may take beside torch, which it falls
    back to. Raises BackendError for a name that is unknown or cannot run here.
    """
    program = joined(program)
    asks_native = backend == "auto" and "native" in certified and BACKENDS["native"].missing() is None
    native_rows = faster_up_to(program) if asks_native else 0
    names = choose(backend, device, target, certified, native_rows)
    if names[0] not in BACKENDS:
        raise BackendError(f"Found backend {backend!r}. Expected one of auto, {', '.join(sorted(BACKENDS))}.")
    lacks = BACKENDS[names[0]].missing()
    if lacks:
        raise BackendError(f"Backend {names[0]!r} cannot run here: {lacks} Use backend='torch'.")
    if differentiated is not None:
        differentiated = replace(differentiated, origin=joined(differentiated.origin))
    patience = IMPATIENT if backend == "auto" else PATIENT
    request = Request(program, device, precision, differentiated, patience, native_rows or EVERY)
    return _first_of(names, request)


def _first_of(names: Sequence[str], request: Request) -> Session:
    """A session of the first that opens; beside that of generated C which is best for few rows, one for many."""
    name, *others = names
    try:
        session = BACKENDS[name].open(request)
    except BackendError:
        if not others:
            raise
        return _first_of(others, request)
    few = name == "native" and request.native_rows < EVERY
    return ByRows(session, _first_of(others, request), request.native_rows) if few else session


def on_cpu() -> list[str]:
    """The backends that can serve a network on this machine's CPU."""
    return [name for name, backend in BACKENDS.items() if backend.on_cpu and backend.missing() is None]


def serving(program: Program) -> list[str]:
    """Those of `on_cpu` that "auto" may take for a network: nothing is compiled that would not serve."""
    names = on_cpu()
    return [n for n in names if n != "native" or faster_up_to(joined(program))]


def compiler_of(name: str) -> str:
    """What makes a backend's code on this machine, with its flags; nothing for most."""
    where = BACKENDS[name].compiler
    return str(resolve_name(where)()) if where else ""
