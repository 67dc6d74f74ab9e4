"""Convolutions: patches times a weight (outputs, channels * kernel), so that every one is a linear layer."""

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from hrt.capture.aten.padding import flat_padding, padded, zero_padded
from hrt.capture.builder import ALONG_THE_BATCH, Builder, Lowering, Ref, moved, reshaped, sliced
from hrt.program.patches import Window


def listed(b: Builder, value: Any, axes: int, what: str) -> list[int]:
    """A whole number per axis, given as such or as one for all."""
    numbers = [value] * axes if isinstance(value, int) else list(value)
    numbers = numbers * axes if len(numbers) == 1 else numbers
    if len(numbers) != axes or not all(isinstance(n, int) for n in numbers):
        raise b.fail(f"its {what} is {value}; expected {axes} whole numbers")
    return numbers


def reordered(b: Builder, x: Ref, axes: Sequence[int]) -> Ref:
    """The last axes of a sample in a new order, given by negative axes; what stands before them stays."""
    return moved(b, x, [*range(-len(x.shape), -len(axes)), *axes])


def channels_first(b: Builder, y: Ref, axes: int) -> Ref:
    """(..., *steps, channels) to (..., channels, *steps)."""
    return reordered(b, y, [-1, *range(-1 - axes, -1)])


def windows(b: Builder, x: Ref, window: Window) -> Ref:
    """(..., channels, *sizes) to (..., *steps, channels * kernel), without a window where none reads what others do."""
    axes, source, padding = window.axes, *zero_padded(b, x, window.padding)
    window = Window(window.kernel, window.stride, window.dilation, tuple(padding))
    steps, sides = window.steps(source.shape), list(zip(window.kernel, window.stride, window.dilation, strict=True))
    if min(steps) < 1:
        raise b.fail(f"its window {window.kernel} does not fit {source.shape}")
    if any(padding) or any(k != 1 and (k != s or d != 1) for k, s, d in sides):
        return b.emit("patches", [source], window.result_shape(source.shape), **window.attrs)
    last = [*range(-axes, 0), -axes - 1]
    for axis, (n, k, s) in enumerate(zip(steps, window.kernel, window.stride, strict=True), -axes):
        if k == 1 and s > 1:
            source = sliced(b, source, axis, 0, (n - 1) * s + 1, s)
        else:
            source = sliced(b, source, axis, 0, n * k)
    if window.numbers == 1:
        return reordered(b, source, last)
    lead = source.shape[: -axes - 1]
    split = [*source.shape[:-axes], *(n for pair in zip(steps, window.kernel, strict=True) for n in pair)]
    first = range(-2 * axes, 0, 2)
    x = reordered(b, reshaped(b, source, split), [*first, -2 * axes - 1, *(k + 1 for k in first)])
    return reshaped(b, x, (*lead, *steps, source.shape[-axes - 1] * window.numbers))


def _checked(b: Builder, x: Any, weight: Any, bias: Any) -> None:
    if not isinstance(x, Ref) or not isinstance(weight, Tensor) or isinstance(bias, Ref):
        raise b.fail("its kernel depends on the input; expected a constant one")
    if x.ndim != weight.ndim:
        raise b.fail(f"its input has {x.ndim} dimensions; expected {weight.ndim}: (batch, channels, ...)")
    if x.axis:
        raise b.fail(ALONG_THE_BATCH)


def options(defaults: Mapping[str, Any], given: Sequence[Any], named: Mapping[str, Any]) -> SimpleNamespace:
    """A call's arguments by name: those given in order, those given by name, and defaults for the rest."""
    return SimpleNamespace(**{**defaults, **dict(zip(defaults, given, strict=False)), **named})


def _convolution(b: Builder, x: Ref, weight: Tensor, bias: Any = None, *given: Any, **named: Any) -> Ref:
    """given: stride, padding, dilation, groups."""
    o = options({"stride": 1, "padding": 0, "dilation": 1, "groups": 1}, given, named)
    _checked(b, x, weight, bias)
    axes, kernel = weight.ndim - 2, tuple(weight.shape[2:])
    stride, dilation = listed(b, o.stride, axes, "stride"), listed(b, o.dilation, axes, "dilation")
    if o.padding == "same":
        spare = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        zeros = [*(n // 2 for n in spare), *(n - n // 2 for n in spare)]
    else:
        zeros = 2 * listed(b, 0 if o.padding == "valid" else o.padding, axes, "padding")
    return convolved(b, x, weight, bias, Window(kernel, tuple(stride), tuple(dilation), tuple(zeros)), o.groups)


def convolved(b: Builder, x: Ref, weight: Tensor, bias: Tensor | None, window: Window, groups: int) -> Ref:
    """x (channels, *sizes) by a kernel (outputs, channels / groups, *kernel) under its window: (outputs, *steps)."""
    return channels_first(b, _grouped(b, windows(b, x, window), weight, bias, groups), window.axes)


def _grouped(b: Builder, x: Ref, weight: Tensor, bias: Tensor | None, groups: int, source: Any = None) -> Ref:
    """Patches (*steps, channels * kernel) times a kernel (outputs, channels / groups, *kernel): (*steps, outputs).

    source: what the kernel was computed from, by whose name it goes.
    """
    source = weight if source is None else source
    outputs, width = weight.shape[0], math.prod(weight.shape[1:])
    if groups == 1:
        return _linear(b, x, b.named(weight.reshape(outputs, width), "weight", source), bias)
    if weight.shape[1] == 1:
        return _depthwise(b, x, weight, bias, groups, source)
    parts, each = [], outputs // groups
    for k in range(groups):
        rows = slice(k * each, (k + 1) * each)
        matrix = b.named(weight[rows].reshape(each, width), "weight", source)
        shift = None if bias is None else b.named(bias[rows].clone(), "bias", bias)
        parts.append(_linear(b, sliced(b, x, -1, k * width, (k + 1) * width), matrix, shift))
    return b.emit("concat", parts, (*x.shape[:-1], outputs), axis=-1)


def _linear(b: Builder, x: Ref, weight: Tensor, bias: Tensor | None) -> Ref:
    inputs = [x, weight] if bias is None else [x, weight, b.named(bias, "bias")]
    return b.emit("linear", inputs, (*x.shape[:-1], weight.shape[0]))


def _depthwise(b: Builder, x: Ref, weight: Tensor, bias: Tensor | None, groups: int, source: Any) -> Ref:
    """Every channel by itself: a product and a sum over the kernel."""
    steps, each, size = x.shape[:-1], weight.shape[0] // groups, math.prod(weight.shape[2:])
    middle = (each,) if each > 1 else ()
    x = reshaped(b, x, (*steps, groups, *(1 for _ in middle), size))
    kernel = b.named(weight.reshape(groups, *middle, size), "weight", source)
    y = b.emit("mul", [x, kernel], (*steps, groups, *middle, size))
    y = b.emit("sum", [y], (*steps, groups, *middle), axes=[-1], keep=False)
    y = reshaped(b, y, (*steps, groups * each))
    return y if bias is None else b.emit("add", [y, bias], y.shape)


def _transposed(b: Builder, x: Ref, weight: Tensor, bias: Any = None, *given: Any, **named: Any) -> Ref:
    """given: stride, padding, output padding, groups, dilation."""
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}
    o = options(defaults, given, named)
    _checked(b, x, weight, bias)
    axes = weight.ndim - 2
    names = ("stride", "dilation", "padding", "output_padding")
    stride, dilation, padding, extra = (listed(b, getattr(o, name), axes, name) for name in names)
    window = Window(tuple(weight.shape[2:]), tuple(stride), tuple(dilation), tuple(padding) * 2)
    return transposed_convolution(b, x, weight, bias, window, extra, o.groups)


def transposed_convolution(
    b: Builder, x: Ref, weight: Tensor, bias: Any, window: Window, extra: Sequence[int], groups: int
) -> Ref:
    """A convolution by the flipped kernel: of the blocks that a step fills, where steps divide the kernel, else of the
    input with zeros between its numbers. extra: numbers more behind, per axis.
    """
    axes, kernel, stride, dilation = window.axes, window.kernel, window.stride, window.dilation
    padding = window.padding[:axes]
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    grouped = weight.reshape(groups, inputs, outputs, *kernel).transpose(1, 2)  # (groups, outputs, inputs, *kernel)
    in_blocks = all(d == 1 and k % s == 0 for k, s, d in zip(kernel, stride, dilation, strict=True))
    cut = [p - e for p, e in zip(padding, extra, strict=True)]
    if max(stride) > 1 and in_blocks and min(cut) >= 0:
        y = _by_blocks(b, x, grouped, bias, stride, source=weight)
        return padded(b, y, [(-p, -c) for p, c in zip(padding, cut, strict=True)])
    flipped = grouped.flip([*range(3, 3 + axes)]).reshape(groups * outputs, inputs, *kernel)
    spread = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    x = _spaced(b, x, stride)
    before = [n - p for n, p in zip(spread, padding, strict=True)]
    behind = [n - p + e - (s - 1) for n, p, e, s in zip(spread, padding, extra, stride, strict=True)]
    pads = [*before, *behind]
    x = padded(b, x, flat_padding([min(n, 0) for n in pads]))
    window = Window(kernel, (1,) * axes, dilation, tuple(max(n, 0) for n in pads))
    return channels_first(b, _grouped(b, windows(b, x, window), flipped, bias, groups, weight), axes)


def _by_blocks(b: Builder, x: Ref, grouped: Tensor, bias: Tensor | None, stride: Sequence[int], source: Tensor) -> Ref:
    """All that a transposed convolution writes, (outputs, *sizes): output s m + r sums x[m - q] W[s q + r] over q."""
    axes, (groups, outputs, inputs, *kernel) = len(stride), grouped.shape
    turns = [k // s for k, s in zip(kernel, stride, strict=True)]
    blocks = grouped.reshape(groups, outputs, inputs, *(n for pair in zip(turns, stride, strict=True) for n in pair))
    blocks = blocks.flip([3 + 2 * k for k in range(axes)])
    order = [0, 1, *(4 + 2 * k for k in range(axes)), 2, *(3 + 2 * k for k in range(axes))]
    matrix = blocks.permute(order).reshape(groups * outputs * math.prod(stride), inputs, *turns)
    shift = None if bias is None else b.named(bias.repeat_interleave(math.prod(stride)), "bias", bias)
    window = Window(tuple(turns), (1,) * axes, (1,) * axes, tuple(n - 1 for n in turns) * 2)
    y = channels_first(b, _grouped(b, windows(b, x, window), matrix, shift, groups, source), axes)
    return interleaved(b, y, stride)


def interleaved(b: Builder, y: Ref, factors: Sequence[int]) -> Ref:
    """(..., channels * factors, *sizes) to (..., channels, *sizes times factors), channels spread over blocks."""
    axes = len(factors)
    lead, (channels, *sizes) = y.shape[: -axes - 1], y.shape[-axes - 1 :]
    channels //= math.prod(factors)
    y = reshaped(b, y, (*lead, channels, *factors, *sizes))
    y = reordered(b, y, [-2 * axes - 1, *(n for k in range(axes) for n in (k - axes, k - 2 * axes))])
    return reshaped(b, y, (*lead, channels, *(n * s for n, s in zip(sizes, factors, strict=True))))


def _spaced(b: Builder, x: Ref, stride: Sequence[int]) -> Ref:
    """stride - 1 zeros behind every number of the last axes."""
    for axis, s in enumerate(stride, -len(stride)):
        shape, k = x.shape, len(x.shape) + axis
        x = reshaped(b, x, (*shape[: k + 1], 1, *shape[k + 1 :]))
        behind = [0] * (2 * len(x.shape))
        behind[len(x.shape) + k + 1] = s - 1
        x = reshaped(b, padded(b, x, flat_padding(behind)), (*shape[:k], shape[k] * s, *shape[k + 1 :]))
    return x


def _either(b: Builder, x: Ref, weight: Tensor, bias: Any, *given: Any) -> Ref:
    """given: stride, padding, dilation, transposed, output padding, groups."""
    stride, padding, dilation, transposed, output_padding, groups, *_ = given
    if transposed:
        return _transposed(b, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _convolution(b, x, weight, bias, stride, padding, dilation, groups)


CONVOLUTIONS: dict[str, Lowering] = {
    **{f"conv{axes}d": _convolution for axes in (1, 2, 3)},
    **{f"conv_transpose{axes}d": _transposed for axes in (1, 2, 3)},
    **{name: _either for name in ("convolution", "_convolution")},
}
