"""The reference backend: a program in torch, hierarchical layers as a few batched products."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrt.errors import BackendError
from hrt.hmatrix.torch_products import prepare
from hrt.program.program import Program
from hrt.runtime.backends import Request
from hrt.runtime.session import Session, as_tensors, of_kind

ALIGNMENT = 64  # bytes, of what torch allocates


class TorchSession(Session):
    """The reference on the CPU (or any torch device): float32 arithmetic, narrow storage decoded once at loading.

    resident_bytes: what this session holds; more than the artifact's `nbytes` where narrow types were decoded.
    Raises BackendError for a device that is unknown or absent.
    """

    backend = "torch"

    def __init__(self, program: Program, device: Any = None):
        try:
            self.device = torch.device("cpu" if device is None else device)
            probe = torch.zeros((), device=self.device)
            probe.cpu()
            self.device = probe.device  # with its number, as tensors name it
            constants = {k: prepare(c, self.device) for k, c in program.constants.items()}
        except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0]
            raise BackendError(f"Device {str(device)!r} cannot be used: {reason}. Use 'cpu'.") from error
        self.resident_bytes = sum(c.nbytes for c in constants.values())
        names = [v.name for v in program.inputs] + list(constants) + [n.name for n in program.nodes]
        slot = {name: k for k, name in enumerate(names)}
        self._start = [*constants.values(), *([None] * len(program.nodes))]
        dead = program.last_use
        self._steps = [
            (n.row.torch, [slot[i] for i in n.inputs], n.attrs, slot[n.name], [slot[d] for d in dead.get(n.name, ())])
            for n in program.nodes
        ]
        self._outputs = [slot[name] for name in program.outputs]

    def run(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """See `Session.run`. Without gradients and whatever autocast is set to around the call."""
        with torch.no_grad():
            tensors = [_placed(x, self.device) for x in as_tensors(inputs)]
            if torch.is_autocast_enabled(self.device.type):
                with torch.autocast(self.device.type, enabled=False):
                    outputs = self._run(tensors)
            else:
                outputs = self._run(tensors)
            # always a copy: an output may be a view of an input or of a constant, or another output
            return of_kind([y.clone(memory_format=torch.contiguous_format) for y in outputs], inputs[0])

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """`Program.run` with names resolved beforehand: at batch 1 the look-ups would cost more than the arithmetic."""
        values: list[Any] = [*inputs, *self._start]
        for function, arguments, attrs, out, dead in self._steps:
            values[out] = function([values[k] for k in arguments], attrs)
            for k in dead:
                values[k] = None
        return [values[k] for k in self._outputs]


def _placed(x: Tensor, device: torch.device) -> Tensor:
    """`x` on the device; on a CPU contiguous and at an aligned address, since the last bits of torch's products depend
    on both.
    """
    if x.device != device:
        x = x.to(device)
    fits = device.type != "cpu" or (x.is_contiguous() and x.data_ptr() % ALIGNMENT == 0)
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def open_torch(request: Request) -> TorchSession:
    """The backend "torch"."""
    return TorchSession(request.program, request.device)
