"""The backends that there are: torch, which batches leaves of like shape, and the GPU's (see `hrt.runtime.cuda_session`)."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from hrt.derivatives.differentiate import Differentiated
from hrt.errors import BackendError
from hrt.hmatrix.torch_products import prepare
from hrt.program.program import Program
from hrt.runtime.backends import Session, on_cpu, open_session, register_backend
from hrt.support.devices import missing_for_cuda

__all__ = ["Session", "TorchSession", "on_cpu", "open_session", "register_backend"]


class TorchSession:
    """The reference on the CPU (or any torch device): float32 arithmetic, narrow storage decoded once at loading.

    resident_bytes: what this session holds; more than the artifact's `nbytes` where narrow types were decoded.
    Raises BackendError for a device that is unknown or absent.
    """

    def __init__(self, program: Program, device: Any = None):
        self.program = program
        try:
            self.device = torch.device("cpu" if device is None else device)
            probe = torch.zeros((), device=self.device)
            probe.cpu()
            self.device = probe.device  # with its number, as tensors name it
            self.constants = {k: prepare(c, self.device) for k, c in program.constants.items()}
        except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
            why = str(error).partition("\n")[0]
            raise BackendError(f"Device {str(device)!r} cannot be used: {why}. Use 'cpu'.") from error
        self.resident_bytes = sum(
            c.numel() * c.element_size() if isinstance(c, Tensor) else c.nbytes for c in self.constants.values()
        )
        names = [v.name for v in program.inputs] + list(self.constants) + [n.name for n in program.nodes]
        slot = {name: k for k, name in enumerate(names)}
        self._start = [*self.constants.values(), *([None] * len(program.nodes))]
        dead = program.last_use
        self._steps = [
            (n.row.torch, [slot[i] for i in n.inputs], n.attrs, slot[n.name], [slot[d] for d in dead.get(n.name, ())])
            for n in program.nodes
        ]
        self._outputs = [slot[name] for name in program.outputs]

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Evaluate in float32, without gradients and whatever autocast is set to around the call."""
        with torch.no_grad():
            if torch.is_autocast_enabled(self.device.type):
                with torch.autocast(self.device.type, enabled=False):
                    return self._run(inputs)
            return self._run(inputs)

    def _run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """`Program.run` with names resolved beforehand: at batch 1 the look-ups would cost more than the arithmetic."""
        values: list[Any] = [x if x.device == self.device else x.to(self.device) for x in inputs]
        values += self._start
        for function, arguments, attrs, out, dead in self._steps:
            values[out] = function([values[k] for k in arguments], attrs)
            for k in dead:
                values[k] = None
        return tuple(values[k] for k in self._outputs)


def _open_cuda(program: Program, device: Any, precision: str) -> Session:
    from hrt.runtime.cuda_session import CudaSession  # Triton is not there on every machine

    return CudaSession(program, device, precision)


def _carry_cuda(differentiated: Differentiated, device: Any, precision: str) -> Session | None:
    from hrt.runtime.cuda_session import CudaSession
    from hrt.runtime.kernel_derivatives import NotCarriedError

    try:
        return CudaSession(differentiated.origin, device, precision, derivatives=differentiated.derivatives)
    except NotCarriedError:
        return None


def _open_onnxruntime(program: Program, device: Any, precision: str) -> Session:
    from hrt.export.onnx.onnxruntime_session import OnnxSession  # onnx is not imported by those who do not use it

    return OnnxSession(program, device)


def _missing_onnxruntime() -> str | None:
    found = find_spec("onnxruntime") is not None
    return None if found else "ONNX Runtime is not installed (pip install onnxruntime)."


register_backend("onnxruntime", _open_onnxruntime, _missing_onnxruntime)
register_backend("torch", lambda program, device, _: TorchSession(program, device), lambda: None)
register_backend("cuda", _open_cuda, missing_for_cuda, _carry_cuda)
