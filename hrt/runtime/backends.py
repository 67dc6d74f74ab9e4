"""The backends that can run a network, by name, and how one is chosen."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from hrt.derivatives.differentiate import Differentiated
from hrt.errors import BackendError
from hrt.program.program import Program


class Session(Protocol):
    """A network made ready on one backend. Thread-safe: a call keeps no state that another could see."""

    resident_bytes: int

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Floating-point inputs (batch, *shape) to float32 outputs."""
        ...


Maker = Callable[[Program, Any, str], Session]
Carrier = Callable[[Differentiated, Any, str], Session | None]


@dataclass(frozen=True)
class Backend:
    """How to make a session from (program, device, precision), and why that is impossible here (None: it is not).

    carry: makes a session that works out derivatives in a way of its own, or None where it has none for a network.
    """

    make: Maker
    missing: Callable[[], str | None]
    carry: Carrier | None = None


BACKENDS: dict[str, Backend] = {}


def register_backend(name: str, make: Maker, missing: Callable[[], str | None], carry: Carrier | None = None) -> None:
    """Add a backend under `name`. `missing()` says in words what it lacks on this machine, or None."""
    BACKENDS[name] = Backend(make, missing, carry)


def choose(backend: str, device: Any, target: str, certified: Collection[str] = ()) -> str:
    """The backend that "auto" stands for: the GPU's where a CUDA device is named, or where the network was compressed
    for one and one is there; on the CPU ONNX Runtime, where it is installed and among those `certified` for this
    network; else torch.
    """
    if backend != "auto":
        return backend
    named = device is not None and str(device).startswith("cuda")
    wanted = named or (device is None and target == "cuda")
    gpu, cpu = BACKENDS.get("cuda"), BACKENDS.get("onnxruntime")
    if wanted and gpu is not None and gpu.missing() is None:
        return "cuda"
    here = device is None or str(device) == "cpu"
    return "onnxruntime" if here and "onnxruntime" in certified and cpu and cpu.missing() is None else "torch"


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
    """A session of `program`. precision: of products on a GPU's tensor cores (see `hrt.schedule.precision`).  certified: the
    backends that "auto" may take beside torch. An "auto" that cannot be had after all becomes torch.  differentiated:
    what `program` came from, where it gives derivatives.

    Raises BackendError for a name that is unknown or cannot run here.
    """
    name = choose(backend, device, target, certified)
    if name not in BACKENDS:
        raise BackendError(f"Found backend {backend!r}. Expected one of auto, {', '.join(sorted(BACKENDS))}.")
    why = BACKENDS[name].missing()
    if why:
        raise BackendError(f"Backend {name!r} cannot run here: {why} Use backend='torch'.")
    carry = BACKENDS[name].carry
    carried = carry(differentiated, device, precision) if carry and differentiated else None
    if carried is not None:
        return carried
    try:
        return BACKENDS[name].make(program, device, precision)
    except BackendError:
        if backend != "auto" or name != "onnxruntime":
            raise
        return BACKENDS["torch"].make(program, device, precision)


def on_cpu() -> list[str]:
    """The backends that can serve a network on this machine's CPU."""
    return [name for name in ("torch", "onnxruntime") if name in BACKENDS and BACKENDS[name].missing() is None]
