"""Calls that move numbers without computing: slices, joins, new shapes, constants repeated over the batch."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hrt.capture.builder import Builder, Lowering, Ref, axis_of, moved, reshaped, runs


def _resized(x: Ref, axis: int, *size: int) -> tuple[int, ...]:
    """The shape of `x` with another size of a negative axis, or without that axis."""
    place = axis + len(x.shape)
    return (*x.shape[:place], *size, *x.shape[place + 1 :])


def _concat(b: Builder, parts: Sequence[Any], dim: int = 0) -> Ref:
    if not all(isinstance(p, Ref) for p in parts):
        raise b.fail("it joins a constant of a fixed number of rows; expand the constant to x.shape[0] rows")
    return b.emit("concat", list(parts), b.result_shape(), axis=axis_of(parts[0], dim, b))


def _stack(b: Builder, parts: Sequence[Any], dim: int = 0) -> Ref:
    shape = b.result_shape()
    axis = axis_of(Ref("", shape), dim, b)
    new = [1 if k == len(shape) + axis else n for k, n in enumerate(shape)]
    return _concat(b, [reshaped(b, p, new) if isinstance(p, Ref) else p for p in parts], axis)


def _slice(b: Builder, x: Ref, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Ref:
    if dim in (0, -x.ndim):
        if start in (None, 0) and (stop is None or stop > 2**40) and step == 1:
            return x
        raise b.fail("it slices the batch")
    axis = axis_of(x, dim, b)
    size = x.shape[axis]
    start, stop, step = slice(start, stop, step).indices(size)
    shape = _resized(x, axis, len(range(start, stop, step)))
    return x if shape == x.shape else b.emit("slice", [x], shape, axis=axis, start=start, stop=stop, step=step)


def _select(b: Builder, x: Ref, dim: int, index: int) -> Ref:
    axis = axis_of(x, dim, b)
    index = index % x.shape[axis]
    return reshaped(b, _slice(b, x, axis, index, index + 1), _resized(x, axis))


def _split(b: Builder, x: Ref, size: Any, dim: int = 0) -> list[Ref]:
    axis = axis_of(x, dim, b)
    whole = x.shape[axis]
    sizes = [min(size, whole - k) for k in range(0, whole, size)] if isinstance(size, int) else list(size)
    cuts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    return [_slice(b, x, axis, a, c) for a, c in pairwise(cuts)]


def _chunk(b: Builder, x: Ref, chunks: int, dim: int = 0) -> list[Ref]:
    return _split(b, x, math.ceil(x.shape[axis_of(x, dim, b)] / chunks), dim)


def _unbind(b: Builder, x: Ref, dim: int = 0) -> list[Ref]:
    return [_select(b, x, dim, k) for k in range(x.shape[axis_of(x, dim, b)])]


def _selected(b: Builder, x: Ref, axis: int, wanted: Sequence[int]) -> Ref:
    """The entries `wanted` of an axis, in that order, as few slices as possible."""
    parts = [_slice(b, x, axis, start, stop) for start, stop in runs(wanted) or [(0, 0)]]
    return parts[0] if len(parts) == 1 else _concat(b, parts, axis)


def _index(b: Builder, x: Ref, indices: Sequence[Any]) -> Ref:
    given = [k for k, i in enumerate(indices) if i is not None]
    if len(given) != 1:
        raise b.fail("only one axis may be indexed, by a constant list")
    return _index_select(b, x, given[0], indices[given[0]])


def _index_select(b: Builder, x: Ref, dim: int, index: Any) -> Ref:
    axis = axis_of(x, dim, b)
    if not isinstance(index, Tensor) or index.ndim != 1:
        raise b.fail("its index is no constant list")
    return _selected(b, x, axis, torch.arange(x.shape[axis])[index].tolist())


def _flip(b: Builder, x: Ref, dims: Sequence[int]) -> Ref:
    for axis in (axis_of(x, d, b) for d in dims):
        x = _selected(b, x, axis, range(x.shape[axis])[::-1])
    return x


def _roll(b: Builder, x: Ref, shifts: Sequence[int], dims: Sequence[int] = ()) -> Ref:
    if not dims:
        raise b.fail("it rolls the flattened batch; give dims")
    for shift, axis in zip(shifts, (axis_of(x, d, b) for d in dims), strict=True):
        size = x.shape[axis]
        x = _selected(b, x, axis, [(k - shift) % size for k in range(size)])
    return x


def _scatter(b: Builder, x: Ref, part: Any, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Ref:
    """x with the slice start:stop replaced by `part`: what assigning to x[:, start:stop] does."""
    if dim in (0, -x.ndim):
        _slice(b, x, dim, start, stop, step)  # refuses all but the whole batch
        return part
    axis = axis_of(x, dim, b)
    start, stop, step = slice(start, stop, step).indices(x.shape[axis])
    if step != 1:
        raise b.fail("it assigns to every few columns")
    parts = [_slice(b, x, axis, 0, start), part, _slice(b, x, axis, stop, None)]
    return _concat(b, [p for p in parts if not isinstance(p, Ref) or p.shape[axis]], axis)


def _select_scatter(b: Builder, x: Ref, part: Any, dim: int, index: int) -> Ref:
    axis = axis_of(x, dim, b)
    index = index % x.shape[axis]
    part = reshaped(b, part, _resized(x, axis, 1)) if isinstance(part, Ref) else part
    return _scatter(b, x, part, axis, index, index + 1)


def _reshape(b: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    shape = b.result_shape()
    if math.prod(shape) != math.prod(x.shape) or any(isinstance(a, torch.dtype) for a in args):
        raise b.fail("it reads the numbers as another type")
    return reshaped(b, x, shape)


def _transpose(b: Builder, x: Ref, first: int, second: int) -> Ref:
    axes = list(range(-len(x.shape), 0))
    i, j = axis_of(x, first, b), axis_of(x, second, b)
    axes[i], axes[j] = axes[j], axes[i]
    return moved(b, x, axes)


def _permute(b: Builder, x: Ref, dims: Sequence[int]) -> Ref:
    if dims[0] not in (0, -x.ndim):
        raise b.fail("it moves the batch")
    return moved(b, x, [axis_of(x, d, b) for d in dims[1:]])


def _expand(b: Builder, x: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(x, Ref):
        return _repeated(b, x)
    out = b.result_shape()
    return x if x.shape == out else b.emit("expand", [x], out, shape=list(out))


def _repeat(b: Builder, x: Any, times: Sequence[Any]) -> Any:
    if not isinstance(x, Ref):
        return _repeated(b, x.repeat(1, *times[1:]))
    if times[0] != 1 or len(times) != x.ndim:
        raise b.fail("it repeats the batch")
    for axis, count in zip(range(-len(x.shape), 0), times[1:], strict=True):
        x = x if count == 1 else b.emit("concat", [x] * count, _resized(x, axis, x.shape[axis] * count), axis=axis)
    return x


def _repeated(b: Builder, constant: Tensor) -> Any:
    """A constant for every row of the batch, or the constant itself where the result has no batch."""
    static = b.static_shape()
    if static is not None:
        return constant.expand(static)
    out = b.result_shape()
    return b.emit("repeat", [constant, b.batch_ref()], out, shape=list(out))


def _full(value: float | None, position: int = 0) -> Lowering:
    def lower(b: Builder, x: Any, *args: Any, **kwargs: Any) -> Any:
        fill = value if value is not None else args[position] if len(args) > position else kwargs["fill_value"]
        return _repeated(b, torch.full((), float(fill), dtype=torch.float64))

    return lower


SHAPES: dict[str, Lowering] = {
    "cat": _concat,
    "stack": _stack,
    "slice": _slice,
    "select": _select,
    **{name: _split for name in ("split", "split_with_sizes")},
    "chunk": _chunk,
    "unbind": _unbind,
    "index": _index,
    "index_select": _index_select,
    "flip": _flip,
    "roll": _roll,
    "slice_scatter": _scatter,
    "select_scatter": _select_scatter,
    **{name: _reshape for name in ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")},
    "transpose": _transpose,
    "permute": _permute,
    **{name: _expand for name in ("expand", "expand_as", "broadcast_to")},
    "copy": lambda b, target, source, *_: _expand(b, source),
    "repeat": _repeat,
    **{name: _full(0.0) for name in ("zeros", "zeros_like", "new_zeros")},
    **{name: _full(1.0) for name in ("ones", "ones_like", "new_ones")},
    **{name: _full(None) for name in ("full", "full_like", "fill")},
    "new_full": _full(None, 1),
}
