"""What the lowerings of `hrt.capture.aten` work with: values that depend on the input, and the Program's builder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor

from hrt.errors import CaptureError

Lowering = Callable[..., Any]  # (builder, *the arguments of a call) to a Ref, a list of them, or a constant
ALONG_THE_BATCH = "it works along the batch, so that samples would depend on each other"


@dataclass(frozen=True)
class Ref:
    """A value that depends on the input: its name and the shape of one sample."""

    name: str
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Dimensions, the batch included."""
        return 1 + len(self.shape)


class Builder(Protocol):
    """What a lowering may ask for.

    emit: a new node; numbers and tensors among its inputs become constants.  named: gives a constant the name of the
    one it was computed from, or that of its role in the current module.  result_shape: per-sample shape that export
    inferred.  static_shape: the whole shape of a result without batch, else None.  batch_ref: any value that has the
    batch.  fail: the error for the current call.
    """

    def emit(self, op: str, inputs: Sequence[Any], shape: Sequence[int], /, **attrs: Any) -> Ref: ...
    def named(self, constant: Tensor, role: str, source: Tensor | None = None) -> Tensor: ...
    def result_shape(self) -> tuple[int, ...]: ...
    def static_shape(self) -> tuple[int, ...] | None: ...
    def batch_ref(self) -> Ref: ...
    def fail(self, why: str) -> CaptureError: ...


def axis_of(ref: Ref, dim: int, b: Builder) -> int:
    """`dim` as a negative axis. Raises CaptureError where it is the batch."""
    axis = dim if dim < 0 else dim - ref.ndim
    if axis == -ref.ndim:
        raise b.fail(ALONG_THE_BATCH)
    return axis


def moved(b: Builder, x: Ref, axes: Sequence[int]) -> Ref:
    """The axes of one sample in a new order, given by negative axes."""
    if list(axes) == list(range(-len(x.shape), 0)):
        return x
    return b.emit("transpose", [x], [x.shape[k] for k in axes], axes=list(axes))


def reshaped(b: Builder, x: Ref, shape: Sequence[int]) -> Ref:
    """The numbers of one sample under another shape."""
    return x if tuple(shape) == x.shape else b.emit("reshape", [x], shape, shape=list(shape))


def runs(indices: Sequence[int]) -> list[tuple[int, int]]:
    """`indices` as ranges (start, stop), as few as possible, in their order."""
    starts = [k for k, i in enumerate(indices) if k == 0 or i != indices[k - 1] + 1]
    return [(indices[k], indices[stop - 1] + 1) for k, stop in pairwise([*starts, len(indices)])]
