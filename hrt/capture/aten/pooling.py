"""Pools: averages and maxima over windows, by new shapes alone where windows do not overlap."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F

from hrt.capture.aten.convolutions import channels_first, listed, options, windows
from hrt.capture.aten.padding import extended
from hrt.capture.aten.resizing import SIDE, resized_by
from hrt.capture.builder import Builder, Lowering, Ref, reshaped, sliced
from hrt.program.patches import Window

# By the number of axes, whose sizes are lists of so many numbers.
AVERAGES: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
ADAPTIVE: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


def _steps(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    """How many windows torch's pools put over an axis."""
    steps = (size + 2 * padding - dilation * (kernel - 1) - 1 + (stride - 1 if ceil else 0)) // stride + 1
    return steps - (1 if ceil and (steps - 1) * stride >= size + padding else 0)


def _images(b: Builder, x: Ref, axes: int) -> tuple[int, ...]:
    """The sizes of the last axes. Raises CaptureError where the batch is among them, or no channels stand before."""
    if x.axis or x.ndim != axes + 2:
        raise b.fail(f"its input has {x.ndim} dimensions; expected {axes + 2}: (batch, channels, ...)")
    return x.shape[-axes:]


def _largest(b: Builder, x: Ref, axis: int, first: range, reach: range) -> Ref:
    """The maximum over first + reach for every first index of a window along an axis."""
    parts = [sliced(b, x, axis, first[0] + k, first[-1] + k + 1, first.step) for k in reach]
    return reduce(lambda p, q: b.emit("maximum", [p, q], p.shape), parts)


def _blockwise(b: Builder, x: Ref, kernel: Sequence[int]) -> Ref:
    """The maximum of every block; what is left over at the ends counts nowhere."""
    axes = len(kernel)
    steps = [n // k for n, k in zip(_images(b, x, axes), kernel, strict=True)]
    lead = x.shape[:-axes]
    for axis, (n, k) in enumerate(zip(steps, kernel, strict=True), -axes):
        x = sliced(b, x, axis, 0, n * k)
    blocks = reshaped(b, x, (*lead, *(n for pair in zip(steps, kernel, strict=True) for n in pair)))
    return b.emit("amax", [blocks], (*lead, *steps), axes=list(range(1 - 2 * axes, 0, 2)), keep=False)


def _maxima(axes: int) -> Lowering:
    """Axis by axis; windows over the edge see copies of it, which they hold already."""

    def lower(
        b: Builder, x: Ref, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil: bool = False
    ) -> Ref:
        sides = [listed(b, v, axes, "window") for v in (kernel, stride or kernel, padding, dilation)]
        kernel, stride, padding, dilation = sides
        if kernel == stride and not any(padding) and not any(d > 1 for d in dilation) and not ceil:
            return _blockwise(b, x, kernel)
        for axis, (k, s, p, d) in enumerate(zip(*sides, strict=True), -axes):
            size = _images(b, x, axes)[axis]
            steps = _steps(size, k, s, p, d, ceil)
            behind = max(0, (steps - 1) * s + d * (k - 1) + 1 - size - p)
            if d > 1 and (p or behind):
                raise b.fail("its dilated window reaches over the edge")
            x = extended(b, x, [(p, behind), *[(0, 0)] * (-axis - 1)], "replicate")
            x = _largest(b, x, axis, range(0, (steps - 1) * s + 1, s), range(0, d * (k - 1) + 1, d))
        return x

    return lower


def _averages(axes: int) -> Lowering:
    def lower(b: Builder, x: Ref, kernel: Any, *given: Any, **named: Any) -> Ref:
        defaults = {"stride": (), "padding": 0, "ceil_mode": False, "count_include_pad": True, "divisor_override": None}
        o = options(defaults, given, named)
        kernel, stride, padding = (listed(b, v, axes, "window") for v in (kernel, o.stride or kernel, o.padding))
        sides = list(zip(_images(b, x, axes), kernel, stride, padding, strict=True))
        reach = [(_steps(n, k, s, p, 1, o.ceil_mode) - 1) * s + k for n, k, s, p in sides]
        behind = [max(0, r - n - p) for r, (n, _, _, p) in zip(reach, sides, strict=True)]
        window = Window(tuple(kernel), tuple(stride), (1,) * axes, (*padding, *behind))
        rest = [o.ceil_mode, o.count_include_pad, *([o.divisor_override] if o.divisor_override else [])]
        return _mean(b, x, window, kernel, (stride, padding, *rest))

    return lower


def _mean(b: Builder, x: Ref, window: Window, kernel: Sequence[int], given: Sequence[Any]) -> Ref:
    """The mean under a window, zeros counted, times what torch's pool of these options makes of ones more."""
    axes, channels = window.axes, x.shape[0]
    cover = windows(b, x, window)
    steps = cover.shape[:-1]
    y = b.emit(
        "mean", [reshaped(b, cover, (*steps, channels, window.numbers))], (*steps, channels), axes=[-1], keep=False
    )
    y = channels_first(b, y, axes)
    ones = torch.ones(1, 1, *x.shape[-axes:], dtype=torch.float64)
    before, behind = window.padding[:axes], window.padding[axes:]
    wide = F.pad(ones, [n for k in reversed(range(axes)) for n in (before[k], behind[k])])
    plain = AVERAGES[axes - 1](wide, kernel, window.stride)
    share = (AVERAGES[axes - 1](ones, kernel, *given) / plain)[0, 0]
    if bool((share == share.flatten()[0]).all()):
        share = share.flatten()[0]
    return y if bool((share == 1).all()) else b.emit("mul", [y, b.named(share, "share")], y.shape)


def _adaptive(axes: int) -> Lowering:
    """Means, or maxima, over blocks that cover an axis; means of blocks that overlap are a product with a matrix."""

    def lower(b: Builder, x: Ref, sizes: Any) -> Ref:
        sizes = _wanted(b, x, sizes, axes)
        if all(n % m == 0 for n, m in zip(x.shape[-axes:], sizes, strict=True)):
            return _averages(axes)(b, x, [n // m for n, m in zip(x.shape[-axes:], sizes, strict=True)])
        return resized_by(b, x, [lambda basis, k=k: ADAPTIVE[axes - 1](basis, _only(sizes, k)) for k in range(axes)])

    return lower


def _only(sizes: Sequence[int], axis: int) -> list[int]:
    """A size for one axis; the others keep theirs."""
    return [n if k == axis else SIDE for k, n in enumerate(sizes)]


def _wanted(b: Builder, x: Ref, sizes: Any, axes: int) -> list[int]:
    """A size per axis; None keeps the axis as it is."""
    sizes = [sizes] * axes if isinstance(sizes, int) else sizes
    return [m or n for n, m in zip(_images(b, x, axes), sizes, strict=True)]


def _adaptive_maxima(axes: int) -> Lowering:
    def lower(b: Builder, x: Ref, sizes: Any) -> list[Ref | None]:
        sizes = _wanted(b, x, sizes, axes)
        if any(n % m for n, m in zip(x.shape[-axes:], sizes, strict=True)):
            raise b.fail(f"its blocks of {x.shape[-axes:]} in {tuple(sizes)} are not alike; expected sizes that divide")
        return [_maxima(axes)(b, x, [n // m for n, m in zip(x.shape[-axes:], sizes, strict=True)]), None]

    return lower


def _first_of(pool: Lowering) -> Lowering:
    """The values of an op that gives their places, too."""
    return lambda b, *args, **options: [pool(b, *args, **options), None]


POOLING: dict[str, Lowering] = {
    **{f"max_pool{axes}d": _maxima(axes) for axes in (1, 2, 3)},
    **{f"max_pool{axes}d_with_indices": _first_of(_maxima(axes)) for axes in (2, 3)},
    **{f"avg_pool{axes}d": _averages(axes) for axes in (1, 2, 3)},
    **{f"{name}adaptive_avg_pool{axes}d": _adaptive(axes) for axes in (1, 2, 3) for name in ("", "_")},
    **{f"adaptive_max_pool{axes}d": _adaptive_maxima(axes) for axes in (1, 2, 3)},
}
