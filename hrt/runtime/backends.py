"""The backends that can run a network, by name, and how one is chosen.

A row names the function that opens a session as "module:function", imported when first opened: Triton and ONNX are not
on every machine, and a backend may live above this room.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pkgutil import resolve_name
from typing import Any

from hrt.derivatives.differentiate import Differentiated
from hrt.errors import BackendError
from hrt.program.parallel_linears import joined
from hrt.program.program import Program
from hrt.runtime.session import Session
from hrt.support.devices import missing_for_cuda


@dataclass(frozen=True)
class Request:
    """What a backend is asked for. differentiated: what `program` came from, where it gives derivatives."""

    program: Program
    device: Any = None
    precision: str = "tf32x3"
    differentiated: Differentiated | None = None


@dataclass(frozen=True)
class Backend:
    """opens: Request to Session, a function or where to find one. missing: what the backend lacks on this machine and
    what to do, None where it can run.
    """

    opens: str | Callable[[Request], Session]
    missing: Callable[[], str | None] = lambda: None
    on_cpu: bool = False

    def open(self, request: Request) -> Session:
        """A session. Raises BackendError where the network or the device does not suit the backend."""
        opens = resolve_name(self.opens) if isinstance(self.opens, str) else self.opens
        return opens(request)


def _missing_onnxruntime() -> str | None:
    return None if find_spec("onnxruntime") else "ONNX Runtime is not installed (pip install onnxruntime)."


BACKENDS: dict[str, Backend] = {
    "torch": Backend("hrt.runtime.torch_session:open_torch", on_cpu=True),
    "onnxruntime": Backend("hrt.export.onnx.onnxruntime_session:open_onnxruntime", _missing_onnxruntime, on_cpu=True),
    "cuda": Backend("hrt.runtime.cuda_session:open_cuda", missing_for_cuda),
}


def choose(backend: str, device: Any, target: str, certified: Collection[str] = ()) -> str:
    """The backend that "auto" stands for: the GPU's where a CUDA device is named, or where the network was compressed
    for one and one is there; on the CPU ONNX Runtime where it is `certified` for this network; else torch.
    """
    if backend != "auto":
        return backend
    names_cuda = device is not None and str(device).startswith("cuda")
    if (names_cuda or (device is None and target == "cuda")) and BACKENDS["cuda"].missing() is None:
        return "cuda"
    on_this_cpu = device is None or str(device) == "cpu"
    served = on_this_cpu and "onnxruntime" in certified and BACKENDS["onnxruntime"].missing() is None
    return "onnxruntime" if served else "torch"


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
    name = choose(backend, device, target, certified)
    if name not in BACKENDS:
        raise BackendError(f"Found backend {backend!r}. Expected one of auto, {', '.join(sorted(BACKENDS))}.")
    lacks = BACKENDS[name].missing()
    if lacks:
        raise BackendError(f"Backend {name!r} cannot run here: {lacks} Use backend='torch'.")
    if differentiated is not None:
        differentiated = replace(differentiated, origin=joined(differentiated.origin))
    request = Request(joined(program), device, precision, differentiated)
    try:
        return BACKENDS[name].open(request)
    except BackendError:
        if backend != "auto" or name != "onnxruntime":
            raise
        return BACKENDS["torch"].open(request)


def on_cpu() -> list[str]:
    """The backends that can serve a network on this machine's CPU."""
    return [name for name, backend in BACKENDS.items() if backend.on_cpu and backend.missing() is None]
