"""Slices, joins and new shapes of complex values. Most cost nothing: they wait (`hrt.capture.spectra`)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hrt.capture.aten.complex_products import as_complex
from hrt.capture.builder import Builder, Lowering, Ref, reshaped
from hrt.capture.spectra import Complex, concatenated, of_pair, pair
from hrt.program.generated import NOTHING


def _range(z: Complex, axis: int, start: Any, stop: Any, step: int) -> range:
    return range(z.shape[axis])[slice(start, stop, step)]


def _whole(start: Any, stop: Any, step: int) -> bool:
    return start in (None, 0) and (stop is None or stop > 2**40) and step == 1


def _slice(b: Builder, z: Complex, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Complex:
    if dim % z.ndim == z.axis and _whole(start, stop, step):
        return z
    axis = z.along(dim, b)
    return z.taken(axis, _range(z, axis, start, stop, step))


def _scatter(
    b: Builder, z: Any, part: Any, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> Complex:
    z, part = as_complex(z), operand(b, part)
    if dim % z.ndim == z.axis and _whole(start, stop, step):
        return part
    axis = z.along(dim, b)
    places = _range(z, axis, start, stop, step)
    if step != 1:
        raise b.fail("it assigns to every few entries")
    size = z.shape[axis]
    sides = z.taken(axis, range(places.start)), part, z.taken(axis, range(places.start + len(places), size))
    return concatenated(b, [s for s in sides if s.shape[axis]], axis)


def operand(b: Builder, value: Any) -> Complex:
    """A value that is joined with a complex one: real, complex, or a constant of zeros."""
    if isinstance(value, (Ref, Complex)):
        return as_complex(value)
    if isinstance(value, Tensor) and not value.any():
        return Complex.zeros(value.shape[1:])
    raise b.fail("it joins a constant that is not zero with a complex value")


def _concat(b: Builder, values: Sequence[Any], dim: int = 0) -> Complex:
    parts = [operand(b, v) for v in values]
    return concatenated(b, parts, parts[0].along(dim, b))


def _stack(b: Builder, values: Sequence[Any], dim: int = 0) -> Complex:
    parts = [pair(b, operand(b, v)) for v in values]
    first = as_complex(values[0])
    place = dim % (first.ndim + 1)
    place -= place > first.axis
    shape = list(parts[0].shape)
    shape.insert(1 + place, 1)
    wide = [n * len(parts) if k == 1 + place else n for k, n in enumerate(shape)]
    return of_pair(b, b.emit("concat", [reshaped(b, p, shape) for p in parts], wide, axis=1 + place - len(shape)))


def _permute(b: Builder, z: Complex, dims: Sequence[int]) -> Complex:
    """No node: the source stays as it is."""
    dims = [d % z.ndim for d in dims]
    order = [z.along(d, b) for d in dims if d != z.axis]
    labels = tuple(order.index(k) if k >= 0 else k for k in z.labels)
    return replace(z, labels=labels, lines=tuple(z.lines[k] for k in order), axis=dims.index(z.axis))


def _transpose(b: Builder, z: Complex, first: int, second: int) -> Complex:
    dims = list(range(z.ndim))
    dims[first], dims[second] = dims[second], dims[first]
    return _permute(b, z, dims)


def _select(b: Builder, z: Complex, dim: int, index: int) -> Complex:
    axis = z.along(dim, b)
    one = pair(b, z.taken(axis, [index % z.shape[axis]]))
    return of_pair(b, reshaped(b, one, [n for k, n in enumerate(one.shape) if k != 1 + axis]))


def _index_select(b: Builder, z: Complex, dim: int, index: Any) -> Complex:
    axis = z.along(dim, b)
    if not isinstance(index, Tensor) or index.ndim != 1:
        raise b.fail("its index is no constant list")
    return z.taken(axis, torch.arange(z.shape[axis])[index].tolist())


def _index(b: Builder, z: Complex, indices: Sequence[Any]) -> Complex:
    given = [k for k, i in enumerate(indices) if i is not None]
    if len(given) != 1:
        raise b.fail("only one axis may be indexed, by a constant list")
    return _index_select(b, z, given[0], indices[given[0]])


def _split(b: Builder, z: Complex, size: Any, dim: int = 0) -> list[Complex]:
    axis = z.along(dim, b)
    whole = z.shape[axis]
    sizes = [min(size, whole - k) for k in range(0, whole, size)] if isinstance(size, int) else list(size)
    cuts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    return [z.taken(axis, range(start, stop)) for start, stop in pairwise(cuts)]


def _flip(b: Builder, z: Complex, dims: Sequence[int]) -> Complex:
    for axis in [z.along(d, b) for d in dims]:
        z = z.taken(axis, range(z.shape[axis])[::-1])
    return z


def _roll(b: Builder, z: Complex, shifts: Sequence[int], dims: Sequence[int] = ()) -> Complex:
    if not dims:
        raise b.fail("it rolls the flattened batch; give dims")
    for shift, axis in zip(shifts, [z.along(d, b) for d in dims], strict=True):
        size = z.shape[axis]
        z = z.taken(axis, [(k - shift) % size for k in range(size)])
    return z


def _pad(b: Builder, z: Complex, widths: Sequence[int], value: float = 0) -> Complex:
    if value:
        raise b.fail("it pads a complex value with numbers other than zero")
    for k, (before, after) in enumerate(zip(widths[::2], widths[1::2], strict=True)):
        if before or after:
            axis = z.along(-1 - k, b)
            size = z.shape[axis]
            places = range(-before, size + after)
            z = z.taken(axis, [p if 0 <= p < size else NOTHING for p in places])
    return z


def _reshape(b: Builder, z: Complex, *args: Any, **kwargs: Any) -> Complex:
    """The same numbers in other dimensions, the batch whole and first."""
    place, count = b.batch_place(b.current.meta["val"])
    if place or z.axis or count != 1:
        raise b.fail("it reshapes a complex value whose batch is not dimension 0")
    shape = b.result_shape()
    return of_pair(b, reshaped(b, pair(b, z), (2, *shape)))


def _zeros(b: Builder, *args: Any, **kwargs: Any) -> Complex:
    place, _ = b.batch_place(b.current.meta["val"])
    return Complex.zeros(b.result_shape(), place)


def _select_scatter(b: Builder, z: Any, part: Any, dim: int, index: int) -> Complex:
    z = as_complex(z)
    x, axis = pair(b, operand(b, part)), z.along(dim, b)
    index = index % z.shape[axis]
    part = of_pair(b, reshaped(b, x, (*x.shape[: 1 + axis], 1, *x.shape[1 + axis :])))
    return _scatter(b, z, replace(part, axis=z.axis), dim, index, index + 1)


COMPLEX_SHAPES: dict[str, Lowering] = {
    "slice": _slice,
    "slice_scatter": _scatter,
    "select": _select,
    "select_scatter": _select_scatter,
    "index": _index,
    "index_select": _index_select,
    "cat": _concat,
    "stack": _stack,
    **{name: _split for name in ("split", "split_with_sizes")},
    "permute": _permute,
    "transpose": _transpose,
    "flip": _flip,
    "roll": _roll,
    "constant_pad_nd": _pad,
    "pad": lambda b, z, widths, mode="constant", value=None: _pad(b, z, widths, value or 0),
    **{name: _reshape for name in ("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")},
    **{name: _zeros for name in ("zeros", "zeros_like", "new_zeros")},
}
