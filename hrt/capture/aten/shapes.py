"""Calls that move numbers without computing: slices, joins, new shapes, constants repeated over the batch."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hrt.capture.builder import Builder, Lowering, Ref, axis_of, joined, moved, picked, reshaped, resized, sliced

MERGED = "it merges samples so that they cannot be told apart; keep the batch whole, and in one dimension"


def _concat(b: Builder, parts: Sequence[Any], dim: int = 0) -> Ref:
    if not all(isinstance(p, Ref) for p in parts):
        raise b.fail("it joins a constant of a fixed number of rows; expand the constant to x.shape[0] rows")
    axis = axis_of(parts[0], dim, b)
    b.check_alike(parts)
    return joined(b, parts, axis)


def _stack(b: Builder, parts: Sequence[Any], dim: int = 0) -> Ref:
    if not all(isinstance(p, Ref) for p in parts):
        raise b.fail("it joins a constant of a fixed number of rows; expand the constant to x.shape[0] rows")
    b.check_alike(parts)
    first: Ref = parts[0]
    place = dim % (first.ndim + 1)
    axis = (place if place <= first.axis else place - 1 + first.before + first.after) - len(first.shape) - 1
    shape = list(first.shape)
    shape.insert(axis + len(first.shape) + 1, 1)
    return joined(b, [reshaped(b, p, shape) for p in parts], axis)


def _slice(b: Builder, x: Ref, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Ref:
    if dim % x.ndim == x.axis:
        if start in (None, 0) and (stop is None or stop > 2**40) and step == 1:
            return x
        raise b.fail("it slices the batch")
    return sliced(b, x, axis_of(x, dim, b), start, stop, step)


def _entry(b: Builder, x: Ref, axis: int, index: int) -> Ref:
    """One entry of an axis of the samples, which loses that axis."""
    index = index % x.shape[axis]
    return reshaped(b, sliced(b, x, axis, index, index + 1), resized(x, axis))


def _select(b: Builder, x: Ref, dim: int, index: int) -> Ref:
    return _entry(b, x, axis_of(x, dim, b), index)


def _split(b: Builder, x: Ref, size: Any, dim: int = 0) -> list[Ref]:
    axis = axis_of(x, dim, b)
    whole = x.shape[axis]
    sizes = [min(size, whole - k) for k in range(0, whole, size)] if isinstance(size, int) else list(size)
    cuts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    return [sliced(b, x, axis, start, stop) for start, stop in pairwise(cuts)]


def _chunk(b: Builder, x: Ref, chunks: int, dim: int = 0) -> list[Ref]:
    return _split(b, x, math.ceil(x.shape[axis_of(x, dim, b)] / chunks), dim)


def _unbind(b: Builder, x: Ref, dim: int = 0) -> list[Ref]:
    axis = axis_of(x, dim, b)
    return [_entry(b, x, axis, k) for k in range(x.shape[axis])]


def _index(b: Builder, x: Ref, indices: Sequence[Any]) -> Ref:
    given = [k for k, i in enumerate(indices) if i is not None]
    if len(given) != 1:
        raise b.fail("only one axis may be indexed, by a constant list")
    return _index_select(b, x, given[0], indices[given[0]])


def _index_select(b: Builder, x: Ref, dim: int, index: Any) -> Ref:
    axis = axis_of(x, dim, b)
    if not isinstance(index, Tensor) or index.ndim != 1:
        raise b.fail("its index is no constant list")
    return picked(b, x, axis, torch.arange(x.shape[axis])[index].tolist())


def _flip(b: Builder, x: Ref, dims: Sequence[int]) -> Ref:
    for axis in [axis_of(x, d, b) for d in dims]:
        x = picked(b, x, axis, range(x.shape[axis])[::-1])
    return x


def _roll(b: Builder, x: Ref, shifts: Sequence[int], dims: Sequence[int] = ()) -> Ref:
    if not dims:
        raise b.fail("it rolls the flattened batch; give dims")
    for shift, axis in zip(shifts, [axis_of(x, d, b) for d in dims], strict=True):
        size = x.shape[axis]
        x = picked(b, x, axis, [(k - shift) % size for k in range(size)])
    return x


def _scatter(b: Builder, x: Ref, part: Any, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Any:
    """x with the slice start:stop replaced by `part`: what assigning to x[:, start:stop] does."""
    if dim % x.ndim == x.axis:
        _slice(b, x, dim, start, stop, step)  # refuses all but the whole batch
        return part
    return _replaced(b, x, part, axis_of(x, dim, b), range(x.shape[axis_of(x, dim, b)])[start:stop:step])


def _select_scatter(b: Builder, x: Ref, part: Any, dim: int, index: int) -> Ref:
    axis = axis_of(x, dim, b)
    index = index % x.shape[axis]
    part = reshaped(b, part, resized(x, axis, 1)) if isinstance(part, Ref) else part
    return _replaced(b, x, part, axis, range(index, index + 1))


def _replaced(b: Builder, x: Ref, part: Any, axis: int, places: range) -> Ref:
    """x with some neighbouring entries of an axis of the samples replaced."""
    if places.step != 1:
        raise b.fail("it assigns to every few columns")
    if not isinstance(part, Ref):
        raise b.fail("it joins a constant of a fixed number of rows; expand the constant to x.shape[0] rows")
    parts = [sliced(b, x, axis, 0, places.start), part, sliced(b, x, axis, places.stop, None)]
    return joined(b, [p for p in parts if p.shape[axis]], axis)


def _reshape(b: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    """Other dimensions for the numbers, which keep their order: what stood before the batch still stands before it."""
    fake = b.current.meta["val"]
    place, count = b.batch_place(fake)
    shape = [*fake.shape[:place], 1, *fake.shape[place + 1 :]]
    if count * math.prod(shape) != math.prod(x.shape) or any(isinstance(a, torch.dtype) for a in args):
        raise b.fail("it reads the numbers as another type")
    lead = math.prod(shape[:place])
    before = x.outer // lead if lead else 0
    if lead * before != x.outer or (before and count % before):
        raise b.fail(MERGED)
    merged = (before, count // before) if before else (1, 1)
    y = reshaped(b, x, [*shape[:place], *(n for n in merged if n > 1), *shape[place + 1 :]])
    return replace(y, axis=place, before=int(merged[0] > 1), after=int(merged[1] > 1))


def _transpose(b: Builder, x: Ref, first: int, second: int) -> Ref:
    dims = list(range(x.ndim))
    dims[first], dims[second] = dims[second], dims[first]
    return _permute(b, x, dims)


def _permute(b: Builder, x: Ref, dims: Sequence[int]) -> Ref:
    """The batch moves without a node, and what it is merged with moves with it."""
    dims = [d % x.ndim for d in dims]
    y = moved(b, x, [axis for d in dims for axis in x.axes_of(d)])
    return replace(y, axis=dims.index(x.axis), before=x.before, after=x.after)


def _expand(b: Builder, x: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(x, Ref):
        return _repeated(b, x)
    fake = b.current.meta["val"]
    (x,) = b.aligned([x], fake.ndim, b.batch_place(fake)[0])
    out = b.result_shape()
    return x if x.shape == out else b.emit("expand", [x], out, shape=list(out))


def _repeat(b: Builder, x: Any, times: Sequence[Any]) -> Any:
    if not isinstance(x, Ref):
        return _repeated(b, x.repeat(*(1 if n is None else n for n in times)))
    place = len(times) - x.ndim + x.axis
    if times[place] != 1:
        raise b.fail("it repeats the batch")
    (x,) = b.aligned([x], len(times), place)
    for dim, count in enumerate(times):
        if count != 1:
            x = replace(joined(b, [x] * count, axis_of(x, dim, b)), axis=x.axis, before=x.before, after=x.after)
    return x


def _repeated(b: Builder, constant: Tensor) -> Any:
    """A constant for every row of the batch, or the constant itself where the result has no batch."""
    static = b.static_shape()
    if static is not None:
        return constant.expand(static)
    fake, out = b.current.meta["val"], b.result_shape()
    (constant,) = b.aligned([constant], fake.ndim, b.batch_place(fake)[0], len(out) + 1 - fake.ndim)
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
    **{name: _full(0.0) for name in ("zeros", "zeros_like", "new_zeros", "empty_like")},  # what is empty is not read
    **{name: _full(1.0) for name in ("ones", "ones_like", "new_ones")},
    **{name: _full(None) for name in ("full", "full_like", "fill")},
    "new_full": _full(None, 1),
}
