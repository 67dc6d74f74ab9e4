"""Calls that move numbers without computing: slices, joins, new shapes, constants repeated over the batch."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hrt.capture.builder import (
    ALONG_THE_BATCH,
    Builder,
    Lowering,
    Ref,
    axis_of,
    joined,
    moved,
    picked,
    reshaped,
    resized,
    sliced,
)

ENDLESS = 2**40  # torch's "to the end" is beyond
MERGED = "it merges samples so that they cannot be told apart; keep the batch whole, and in one dimension"


def _concat(b: Builder, parts: Sequence[Any], dim: int = 0) -> Ref:
    if not all(isinstance(p, Ref) for p in parts):
        raise b.fail("it joins a constant of a fixed number of rows; expand the constant to x.shape[0] rows")
    first: Ref = parts[0]
    if dim % first.ndim == first.axis:
        return _join_batches(b, parts)
    b.check_alike(parts)
    return joined(b, parts, axis_of(first, dim, b))


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
        bounds = b.current.args[2:]
        return _slice_batches(b, x, _in_batches(b, bounds, 0), _in_batches(b, bounds, 1), step)
    return sliced(b, x, axis_of(x, dim, b), start, stop, step)


def _entry(b: Builder, x: Ref, axis: int, index: int) -> Ref:
    """One entry of an axis of the samples, which loses that axis."""
    index = index % x.shape[axis]
    return reshaped(b, sliced(b, x, axis, index, index + 1), resized(x, axis))


def _select(b: Builder, x: Ref, dim: int, index: int) -> Ref:
    return _entry(b, x, axis_of(x, dim, b), index)


def _split(b: Builder, x: Ref, size: Any, dim: int = 0) -> list[Ref]:
    if dim % x.ndim == x.axis:
        counts = [b.batch_place(fake)[1] for fake in b.current.meta["val"]]
        return [_slice_batches(b, x, sum(counts[:k]), sum(counts[: k + 1])) for k in range(len(counts))]
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
        if start not in (None, 0) or (stop is not None and stop < ENDLESS) or step != 1:
            raise b.fail("it assigns to some samples of the batch")
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
        return _tiled(b, x.repeat(*(1 if n is None else n for n in times)), inner=True)
    place = len(times) - x.ndim + x.axis
    (x,) = b.aligned([x], len(times), place)
    for dim, count in enumerate(times):
        if dim == place and count != 1:
            x = _copy_batches(b, x, count, inner=False)
        elif count != 1:
            x = replace(joined(b, [x] * count, axis_of(x, dim, b)), axis=x.axis, before=x.before, after=x.after)
    return x


def _repeat_interleave(b: Builder, x: Any, count: Any, dim: int | None = None, **_: Any) -> Any:
    if dim is None or isinstance(count, (Tensor, Ref)):
        raise b.fail("it repeats without a dimension, or every entry another number of times")
    if not isinstance(x, Ref):
        return _tiled(b, x if count is None else x.repeat_interleave(count, dim), inner=False)
    if dim % x.ndim == x.axis:
        return _copy_batches(b, x, count, inner=True)
    axis = axis_of(x, dim, b)
    return picked(b, x, axis, [k for k in range(x.shape[axis]) for _ in range(count)])


def _tiled(b: Builder, constant: Tensor, *, inner: bool) -> Any:
    """A constant repeated over the batch along its own dimension. inner: the constant whole, again and again; else
    every entry as often as there are samples.
    """
    fake = b.current.meta["val"]
    if b.static_shape() is not None or (place := b.batch_place(fake)[0]) >= constant.ndim or constant.shape[place] == 1:
        return _repeated(b, constant)
    shape = list(constant.shape)
    y = b.emit("repeat", [constant, b.batch_ref()], shape, shape=shape)
    return replace(y, axis=place, before=int(not inner), after=int(inner))


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


# --- batches side by side: what tells them apart is an axis of the samples that is merged with the batch


def _in_batches(b: Builder, arguments: Sequence[Any], place: int) -> int | None:
    """An argument of the current call that counts rows, in batches; None for one that is missing, or the end."""
    argument = arguments[place] if len(arguments) > place else None
    value = argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument
    if value is None or (isinstance(value, int) and (value == 0 or value > ENDLESS)):
        return 0 if value == 0 else None
    count, symbol = (0, None) if isinstance(value, int) else value.node.expr.as_coeff_Mul()
    if str(symbol) != b.batch:
        raise b.fail("it slices the batch")
    return int(count)


def _opened(b: Builder, x: Ref) -> Ref:
    """`x` with an axis for what stands before the batch in its dimension, also where that is one batch alone."""
    return reshaped(b, x, (*x.shape[: x.axis], x.fold[0], *x.shape[x.axis + x.before :]))


def _closed(b: Builder, x: Ref, like: Ref) -> Ref:
    """The inverse."""
    before = int(x.shape[like.axis] > 1)
    y = x if before else reshaped(b, x, (*x.shape[: like.axis], *x.shape[like.axis + 1 :]))
    return replace(y, axis=like.axis, before=before, after=like.after)


def _join_batches(b: Builder, parts: Sequence[Ref]) -> Ref:
    """One batch after the other."""
    first = parts[0]
    if len({(p.ndim - p.axis, p.fold[1]) for p in parts}) > 1:
        raise b.fail(ALONG_THE_BATCH)
    opened = [_opened(b, p) for p in parts]
    return _closed(b, joined(b, opened, first.axis - len(opened[0].shape)), first)


def _slice_batches(b: Builder, x: Ref, start: int | None, stop: int | None, step: int = 1) -> Ref:
    """Some of the batches that stand one after the other."""
    count = x.fold[0] * x.fold[1]
    start, stop = start or 0, count if stop is None else stop
    if (start, stop, step) == (0, count, 1):
        return x
    if step != 1 or start % x.fold[1] or stop % x.fold[1]:
        raise b.fail("it slices the batch")
    opened = _opened(b, x)
    part = sliced(b, opened, x.axis - len(opened.shape), start // x.fold[1], stop // x.fold[1])
    return _closed(b, part, x)


def _copy_batches(b: Builder, x: Ref, count: int, *, inner: bool) -> Ref:
    """Every row `count` times, one after the other; or, where not inner, the whole batch so often."""
    at = x.axis + (x.before + x.after if inner else 0)
    thin = reshaped(b, x, (*x.shape[:at], 1, *x.shape[at:]))
    wide = (*x.shape[:at], count, *x.shape[at:])
    y = b.emit("expand", [thin], wide, shape=list(wide))
    before, after = x.fold[0] * (1 if inner else count), x.fold[1] * (count if inner else 1)
    merged = (n for n in (before, after) if n > 1)
    y = reshaped(b, y, (*x.shape[: x.axis], *merged, *x.shape[x.axis + x.before + x.after :]))
    return replace(y, axis=x.axis, before=int(before > 1), after=int(after > 1))


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
    "repeat_interleave": _repeat_interleave,
    **{name: _full(0.0) for name in ("zeros", "zeros_like", "new_zeros", "empty_like")},  # what is empty is not read
    **{name: _full(1.0) for name in ("ones", "ones_like", "new_ones")},
    **{name: _full(None) for name in ("full", "full_like", "fill")},
    "new_full": _full(None, 1),
}
