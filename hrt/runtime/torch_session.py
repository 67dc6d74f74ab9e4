"""The reference backend: a program in torch, hierarchical layers as a few batched products."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from hrt.errors import BackendError
from hrt.hmatrix.torch_products import prepare
from hrt.program.convolutions import CONVOLUTION, convolve, fused
from hrt.program.dense_view import written_out
from hrt.program.op_table import Attrs
from hrt.program.program import Constant, Node, Program, last_uses
from hrt.runtime.backends import Request
from hrt.runtime.session import Session, as_tensors, of_kind
from hrt.support.torch_state import is_autocasting

ALIGNMENT = 64  # bytes, of what torch allocates
LEAST_SHARE = 0.25  # of a kernel that is no block of zeros
WORKSPACE = 1 << 27  # bytes that the values of a part of a batch take at most, about
PART_MULTIPLE = 16  # rows: parts of contiguous float32 inputs then begin at aligned addresses


class TorchSession(Session):
    """The reference on the CPU (or any torch device): float32 arithmetic, narrow storage decoded once at loading.

    Batches whose values would take more than `workspace` bytes are computed in parts of one size.
    resident_bytes: what this session holds; more than the artifact's `nbytes` where narrow types were decoded.
    Raises BackendError for a device that is unknown or absent.
    """

    backend = "torch"

    def __init__(self, program: Program, device: Any = None, *, workspace: int = WORKSPACE):
        try:
            self.device = torch.device("cpu" if device is None else device)
            probe = torch.zeros((), device=self.device)
            probe.cpu()
            self.device = probe.device  # with its number, as tensors name it
            nodes = fused(program, _as_kernel)
            kernels = {node.inputs[1] for node in nodes if node.op == CONVOLUTION}
            program = written_out(program, kernels)
            constants = {k: prepare(c, self.device) for k, c in program.constants.items()}
        except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
            reason = str(error).partition("\n")[0]
            raise BackendError(f"Device {str(device)!r} cannot be used: {reason}. Use 'cpu'.") from error
        self.resident_bytes = sum(c.nbytes for c in constants.values())
        names = [v.name for v in program.inputs] + list(constants) + [n.name for n in nodes]
        slot = {name: k for k, name in enumerate(names)}
        self._start = [*constants.values(), *([None] * len(nodes))]
        dead = last_uses(nodes, {*program.outputs, *program.constants, *(v.name for v in program.inputs)})
        self._steps = [
            (_function(n), [slot[i] for i in n.inputs], n.attrs, slot[n.name], [slot[d] for d in dead.get(n.name, ())])
            for n in nodes
        ]
        self._outputs = [slot[name] for name in program.outputs]
        rows = workspace // (4 * row_numbers(program, constants))
        self.part: int = max(1, rows // PART_MULTIPLE) * PART_MULTIPLE

    def run(self, inputs: Sequence[Any]) -> tuple[Any, ...]:
        """See `Session.run`. Without gradients and whatever autocast is set to around the call."""
        with torch.no_grad():
            tensors = as_tensors(inputs)
            if is_autocasting():
                with torch.autocast(self.device.type, enabled=False):
                    outputs = self._in_parts(tensors)
            else:
                outputs = self._in_parts(tensors)
            return of_kind(outputs, inputs[0])

    def _in_parts(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """New outputs, never views of inputs, of constants or of each other."""
        rows = tensors[0].shape[0]
        if rows <= self.part:
            outputs = self._run([_placed(x, self.device) for x in tensors])
            return [y.clone(memory_format=torch.contiguous_format) for y in outputs]
        whole: list[Tensor] = []
        for first in range(0, rows, self.part):
            here = slice(start := min(first, rows - self.part), start + self.part)  # a short rest may get other bits
            part = self._run([_placed(x[here], self.device) for x in tensors])
            whole = whole or [y.new_empty(rows, *y.shape[1:]) for y in part]
            for out, y in zip(whole, part, strict=True):
                out[here] = y
        return whole

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """`Program.run` with names resolved beforehand: at batch 1 the look-ups would cost more than the arithmetic."""
        values: list[Any] = [*inputs, *self._start]
        for function, arguments, attrs, out, dead in self._steps:
            values[out] = function([values[k] for k in arguments], attrs)
            for k in dead:
                values[k] = None
        return [values[k] for k in self._outputs]


def _as_kernel(weight: Constant) -> bool:
    """Whether a convolution is run as one, by its kernel written out: not where most of that is zeros (many groups).

    A U-Net of ranks 3 to 12 at 16 rows, one thread, over thin and pointwise kernels: 0.5 times; over patches: 0.23.
    """
    if isinstance(weight, Tensor):
        return True
    return LEAST_SHARE * prod(weight.shape) < sum(e.rows * e.cols for e in weight.leaves if e.is_dense or e.rank)


def _function(node: Node) -> Callable[[Sequence[Any], Attrs], Tensor]:
    """What a step of `fused` computes."""
    return convolve if node.op == CONVOLUTION else node.row.torch


def row_numbers(program: Program, constants: Mapping[str, Any]) -> int:
    """Numbers that a row takes at most at a time: of the values that are still read, and in the products at work."""
    sizes = {v.name: prod(v.shape) for v in (*program.inputs, *program.nodes)}
    held = most = sum(sizes[v.name] for v in program.inputs)
    for node in program.nodes:
        held += sizes[node.name]
        most = max(most, held + sum(getattr(constants.get(name), "row_numbers", 0) for name in node.inputs))
        held -= sum(sizes[name] for name in program.last_use.get(node.name, ()))
    return max(1, most)


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
