"""The row `patches` of the op table: what every step of a convolution reads, side by side (im2col).

With it a convolution is a linear layer: its weight (outputs, channels * kernel) multiplies patches, and everything that
holds for weights holds for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

MAX_AXES = 3


@dataclass(frozen=True)
class Window:
    """A window that steps over the last axes. kernel, stride, dilation: per axis.  padding: zeros before every axis,
    then those behind every axis.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]

    @staticmethod
    def of(attrs: Mapping[str, Any]) -> "Window":
        """From a node's attributes. Raises ValueError for numbers that describe no window."""
        names = ("kernel", "stride", "dilation", "padding")
        if set(attrs) != set(names):
            raise ValueError(f"a window has the attributes {sorted(attrs)}; expected {', '.join(names)}")
        lists = [attrs[name] for name in names]
        if not all(isinstance(v, (list, tuple)) and all(type(n) is int for n in v) for v in lists):
            raise ValueError(f"a window is {dict(attrs)}; expected lists of whole numbers")
        kernel, stride, dilation, padding = map(tuple, lists)
        axes = len(kernel)
        if not 1 <= axes <= MAX_AXES or (len(stride), len(dilation), len(padding)) != (axes, axes, 2 * axes):
            raise ValueError(f"a window is {dict(attrs)}; expected 1 to {MAX_AXES} axes, and two paddings each")
        if min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
            raise ValueError(f"a window is {dict(attrs)}; expected positive numbers, and paddings of 0 or more")
        return Window(kernel, stride, dilation, padding)

    @property
    def axes(self) -> int:
        """How many axes it steps over."""
        return len(self.kernel)

    @property
    def numbers(self) -> int:
        """What one channel gives to a patch."""
        return math.prod(self.kernel)

    @property
    def attrs(self) -> dict[str, list[int]]:
        """As attributes of a node."""
        return {k: list(getattr(self, k)) for k in ("kernel", "stride", "dilation", "padding")}

    def steps(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """How often it fits, per axis, into values (..., *axes) of this shape; none where it is too large."""
        sizes = shape[len(shape) - self.axes :]
        padded = [n + a + b for n, a, b in zip(sizes, self.padding, self.padding[self.axes :], strict=False)]
        reach = [d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation, strict=True)]
        return tuple(max(0, (n - r) // s + 1) for n, r, s in zip(padded, reach, self.stride, strict=True))

    def result_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the patches of values (..., channels, *axes)."""
        lead = shape[: len(shape) - self.axes]
        return (*lead[:-1], *self.steps(shape), lead[-1] * self.numbers)

    @property
    def repeats(self) -> int:
        """How many patches hold the same number, at most."""
        reach = zip(self.kernel, self.stride, self.dilation, strict=True)
        return math.prod(min(k, -(-(d * (k - 1) + 1) // s)) for k, s, d in reach)


def patches(x: Tensor, attrs: Mapping[str, Any]) -> Tensor:
    """x (..., channels, *axes) to (..., *steps, channels * kernel): for every step of the window what it covers."""
    axes, padding = len(attrs["kernel"]), attrs["padding"]
    if any(padding):
        x = F.pad(x, [n for k in reversed(range(axes)) for n in (padding[k], padding[axes + k])])
    lead = x.ndim - axes
    for k, (size, step, apart) in enumerate(zip(attrs["kernel"], attrs["stride"], attrs["dilation"], strict=True)):
        x = x.unfold(lead + k, apart * (size - 1) + 1, step)[..., ::apart]
    order = [*range(lead - 1), *range(lead, lead + axes), lead - 1, *range(lead + axes, lead + 2 * axes)]
    x = x.permute(order)
    return x.reshape(*x.shape[: lead - 1 + axes], math.prod(x.shape[lead - 1 + axes :]))
