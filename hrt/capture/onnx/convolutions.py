"""ONNX's convolutions, said as ATen's are (`hrt.capture.aten.convolutions`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrt.capture.aten.convolutions import convolved, transposed_convolution
from hrt.capture.builder import Builder, Ref
from hrt.capture.onnx.builder import OnnxBuilder
from hrt.errors import CaptureError
from hrt.program.patches import MAX_AXES, Window


class LentBuilder(Builder):
    """What ATen's lowerings ask for, at the node of an ONNX graph that is read."""

    def __init__(self, lender: OnnxBuilder):
        super().__init__("")
        self.lender, self.inputs = lender, lender.inputs

    def emit(self, op: str, inputs: Sequence[Any], shape: Sequence[int], /, **attrs: Any) -> Ref:
        """A node in the ONNX builder's program."""
        names = [x.name if isinstance(x, Ref) else self.lender.constant(self._name(x), x.numpy()) for x in inputs]
        name = self.lender.emit(op, names, None, **attrs)
        return self.value(name)

    def named(self, constant: Tensor, role: str, source: Tensor | None = None) -> Tensor:
        """Under the name of its source, or that of its role at this node."""
        name = self._name(source) if source is not None and role == "weight" else f"{self.lender.out}.{role}"
        self.names.setdefault(id(constant), (constant, name))
        return constant

    def value(self, name: str) -> Ref:
        """A value that depends on an input."""
        return Ref(name, tuple(self.lender.example[name].shape[1:]))

    def constant(self, name: str, numbers: np.ndarray) -> Tensor:
        """Known numbers in float64, under their name."""
        tensor = torch.from_numpy(np.array(numbers, dtype=np.float64, order="C"))
        self.names[id(tensor)] = (tensor, name)
        return tensor

    def fail(self, why: str, kind: type[CaptureError] = CaptureError) -> CaptureError:
        """In the words of ONNX's builder."""
        return self.lender.fail(why)

    def _name(self, constant: Tensor) -> str:
        return self.names.get(id(constant), (constant, f"{self.lender.out}.number"))[1]


def lent(function: Callable[[LentBuilder, Ref, Sequence[str], Mapping[str, Any]], Ref]) -> Callable[..., object]:
    """A lowering of ONNX's from one that works on values as ATen's do."""

    def lower(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
        if x[0] not in b.example:
            raise b.fail("it reads a constant; expected a value that depends on an input")
        builder = LentBuilder(b)
        b.finish(function(builder, builder.value(x[0]), x, t).name)

    return lower


def window_of(b: Builder, x: Ref, kernel: Sequence[int], t: Mapping[str, Any]) -> Window:
    """The window that an operator's attributes describe, over the last axes of x."""
    axes = len(kernel)
    if not 1 <= axes <= MAX_AXES or len(x.shape) != axes + 1:
        raise b.fail(f"it has a kernel {tuple(kernel)} on values {x.shape}; expected channels and 1 to {MAX_AXES} axes")
    stride, dilation = (tuple(t.get(k, [1] * axes)) for k in ("strides", "dilations"))
    padding, automatic = tuple(t.get("pads", [0] * 2 * axes)), t.get("auto_pad", b"NOTSET").decode()
    if automatic.startswith("SAME"):
        sizes = zip(x.shape[1:], kernel, stride, dilation, strict=True)
        spare = [max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n) for n, k, s, d in sizes]
        less, more = tuple(n // 2 for n in spare), tuple(n - n // 2 for n in spare)
        padding = (*less, *more) if automatic == "SAME_UPPER" else (*more, *less)
    try:
        return Window.of({"kernel": [*kernel], "stride": [*stride], "dilation": [*dilation], "padding": [*padding]})
    except ValueError as error:
        raise b.fail(str(error)) from error


def _kernel(b: LentBuilder, x: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    known = b.lender.known
    names = [n for n in x[1:] if n]
    if any(n not in known for n in names) or known[names[0]].ndim < 3:
        raise b.fail("expected a constant kernel and a constant bias")
    weight = b.constant(names[0], known[names[0]])
    return weight, b.constant(f"{b.lender.out}.bias", known[names[1]]) if len(names) > 1 else None


def _conv(b: LentBuilder, x: Ref, names: Sequence[str], t: Mapping[str, Any]) -> Ref:
    weight, bias = _kernel(b, names)
    groups = int(t.get("group", 1))
    if groups < 1 or weight.shape[0] % groups or weight.shape[1] * groups != x.shape[0]:
        raise b.fail(f"its kernel {tuple(weight.shape)} in {groups} groups does not fit {x.shape[0]} channels")
    return convolved(b, x, weight, bias, window_of(b, x, weight.shape[2:], t), groups)


def _conv_transpose(b: LentBuilder, x: Ref, names: Sequence[str], t: Mapping[str, Any]) -> Ref:
    weight, bias = _kernel(b, names)
    window, axes = window_of(b, x, weight.shape[2:], t), weight.ndim - 2
    before, behind = window.padding[:axes], window.padding[axes:]
    groups = int(t.get("group", 1))
    extra = [int(n) for n in t.get("output_padding", [0] * axes)]
    if before != behind or "output_shape" in t or t.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise b.fail("expected the same padding on both sides, given as numbers")
    if groups < 1 or weight.shape[0] % groups or weight.shape[0] != x.shape[0] or not min(extra) >= 0:
        raise b.fail(f"its kernel {tuple(weight.shape)} in {groups} groups does not fit {x.shape[0]} channels")
    return transposed_convolution(b, x, weight, bias, window, extra, groups)


CONVOLUTIONS = {"Conv": lent(_conv), "ConvTranspose": lent(_conv_transpose)}
