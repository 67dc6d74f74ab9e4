"""Comparisons, masks and whole numbers. A mask is a value of 0 and 1, an integer a value without a fraction."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hrt.capture.builder import Builder, Lowering, Ref, axis_of, reshaped
from hrt.capture.compositions import COMPARISONS, COMPOSED, LARGEST, LOGIC, equal, finite, floor_divided, trunc

MOST_PICKED = 8  # entries that topk may take: each is a search through all that are left


def saying(b: Builder) -> Callable[..., Ref]:
    """`b.emit` for elementwise ops, of which those of several operands have the shape of the call's result."""

    def say(op: str, *operands: Any, **attrs: Any) -> Ref:
        values = [x.shape for x in operands if isinstance(x, Ref)]
        alone = all(not isinstance(x, Tensor) or x.numel() == 1 for x in operands if not isinstance(x, Ref))
        shape = values[0] if len(set(values)) == 1 and alone else b.result_shape()
        return b.emit(op, list(operands), shape, **attrs)

    return say


def dtype_of(b: Builder, place: int = 0) -> torch.dtype:
    """The type of an argument of the current call, as the author has it."""
    argument = b.current.args[place]
    value = argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument
    return value.dtype if isinstance(value, Tensor) else torch.get_default_dtype()


def composed(composition: Callable[..., Any]) -> Lowering:
    """A lowering that says a composition."""
    return lambda b, *operands, **options: composition(saying(b), *operands, **options)


def mask_of(b: Builder, x: Any, place: int) -> Any:
    """An argument as a mask: 1 where it is not 0."""
    if not isinstance(x, Ref):
        return (x != 0).to(torch.float64) if isinstance(x, Tensor) else float(bool(x))
    return x if dtype_of(b, place) == torch.bool else COMPARISONS["ne"](saying(b), x, 0)


def _logic(name: str, *, only_masks: bool = False) -> Lowering:
    def lower(b: Builder, *operands: Any) -> Ref:
        if only_masks and b.current.meta["val"].dtype != torch.bool:
            raise b.fail("it works on the bits of numbers")
        return LOGIC[name](saying(b), *(mask_of(b, x, k) for k, x in enumerate(operands)))

    return lower


def _where(b: Builder, mask: Any, x: Any = None, y: Any = None) -> Ref:
    if x is None:
        raise b.fail("the number of its results depends on the data")
    return b.emit("where", [mask_of(b, mask, 0), *map(_without_infinity, (x, y))], b.result_shape())


def _without_infinity(x: Any) -> Any:
    if isinstance(x, Tensor) and x.is_floating_point():
        return x.clamp(-LARGEST, LARGEST)
    return finite(x)


def _masked_fill(b: Builder, x: Any, mask: Any, value: Any) -> Ref:
    return b.emit("where", [mask_of(b, mask, 1), *map(_without_infinity, (value, x))], b.result_shape())


def _cast(b: Builder, x: Any, *args: Any, **kwargs: Any) -> Any:
    """To another type: whole numbers lose their fraction, masks become 0 and 1."""
    source, target = dtype_of(b), b.current.meta["val"].dtype
    if not isinstance(x, Ref) or source == target:
        return x
    if target == torch.bool:
        return mask_of(b, x, 0)
    if target.is_complex:
        raise b.fail("it computes with complex numbers")
    return trunc(saying(b), x) if source.is_floating_point and not target.is_floating_point else x


def divided(b: Builder, x: Any, y: Any, rounding_mode: str | None = None) -> Ref:
    """x / y, perhaps rounded to whole numbers."""
    if rounding_mode == "floor":
        return floor_divided(saying(b), x, y)
    quotient = b.emit("div", [x, y], b.result_shape())
    return quotient if rounding_mode is None else trunc(saying(b), quotient)


def added(add: Lowering) -> Lowering:
    """Masks are added as "or"; `add`: of numbers."""

    def lower(b: Builder, *args: Any, **kwargs: Any) -> Ref:
        return _logic("or")(b, *args[:2]) if b.current.meta["val"].dtype == torch.bool else add(b, *args, **kwargs)

    return lower


def _bucket(b: Builder, x: Any, bounds: Any, right: bool) -> Ref:
    """How many of the bounds, a constant list in order, lie below x; right: or at x."""
    if not isinstance(x, Ref) or not isinstance(bounds, Tensor) or bounds.ndim != 1:
        raise b.fail("its list is no constant, or has more than one axis")
    wide = (*x.shape, len(bounds))
    difference = b.emit("sub", [reshaped(b, x, (*x.shape, 1)), bounds], wide)
    mask = b.emit("step", [difference], wide, at_zero=1.0 if right else 0.0)
    return b.emit("sum", [mask], x.shape, axes=[-1], keep=False)


def _searchsorted(b: Builder, bounds: Any, x: Any, *, right: bool = False, side: str | None = None, **kw: Any) -> Ref:
    if kw.get("sorter") is not None:
        raise b.fail("its list is sorted by another")
    return _bucket(b, x, bounds, right if side is None else side == "right")


def _bucketize(b: Builder, x: Any, bounds: Any, *, right: bool = False, **kwargs: Any) -> Ref:
    return _bucket(b, x, bounds, right)


def one_hot(b: Builder, x: Ref, count: int) -> Ref:
    """(..., count): 1 in the place that a whole number names, else 0; NaN where it names none, as torch refuses it."""
    wide = (*x.shape, count)

    def say(op: str, *operands: Any, **attrs: Any) -> Ref:
        return b.emit(op, list(operands), wide, **attrs)

    places = equal(say, reshaped(b, x, (*x.shape, 1)), torch.arange(count, dtype=torch.float64))
    return say("div", places, b.emit("sum", [places], (*x.shape, 1), axes=[-1], keep=True))


def _picked(b: Builder, x: Ref, axis: int) -> tuple[Ref, Ref]:
    """The largest entry (axis kept) and a mask of its first place."""
    shape = tuple(1 if k == axis + len(x.shape) else n for k, n in enumerate(x.shape))
    best = b.emit("amax", [x], shape, axes=[axis], keep=True)
    at_best = b.emit("step", [b.emit("sub", [x, best], x.shape)], x.shape, at_zero=1.0)
    count = b.emit("cumsum", [at_best], x.shape, axis=axis)
    first = b.emit("step", [b.emit("sub", [1.5, count], x.shape)], x.shape, at_zero=0.0)
    return best, b.emit("mul", [at_best, first], x.shape)


def _place(b: Builder, mask: Ref, axis: int) -> Ref:
    """The place of the one in a mask, the axis kept."""
    shape = tuple(1 if k == axis + len(mask.shape) else n for k, n in enumerate(mask.shape))
    places = torch.arange(mask.shape[axis], dtype=torch.float64).reshape(-1, *(1,) * (-axis - 1))
    return b.emit("sum", [b.emit("mul", [mask, places], mask.shape)], shape, axes=[axis], keep=True)


def topk(b: Builder, x: Ref, k: int, dim: int = -1, largest: bool = True, *rest: Any) -> list[Ref]:
    """The largest or smallest entries and their places, the first of equal ones first."""
    if k > MOST_PICKED:
        raise b.fail(f"it takes the largest {k} entries; at most {MOST_PICKED} are searched for, one after the other")
    axis = axis_of(x, dim, b)
    values, places = [], []
    left = x if largest else b.emit("neg", [x], x.shape)
    for _ in range(k):
        best, mask = _picked(b, left, axis)
        values.append(best)
        places.append(_place(b, mask, axis))
        left = b.emit("where", [mask, -LARGEST, left], x.shape)
    shape = tuple(k if n == axis + len(x.shape) else m for n, m in enumerate(x.shape))
    joined = [b.emit("concat", v, shape, axis=axis) if k > 1 else v[0] for v in (values, places)]
    return [joined[0] if largest else b.emit("neg", joined[:1], shape), joined[1]]


def _argmax(largest: bool) -> Lowering:
    def lower(b: Builder, x: Ref, dim: int | None = None, keepdim: bool = False) -> Ref:
        if dim is None:
            raise b.fail("it searches the batch, so that samples would depend on each other")
        axis = axis_of(x, dim, b)
        _, place = topk(b, x, 1, dim, largest)
        return place if keepdim else reshaped(b, place, [n for k, n in enumerate(x.shape) if k != axis + len(x.shape)])

    return lower


MASKS: dict[str, Lowering] = {
    **{name: composed(c) for name, c in COMPARISONS.items()},
    **{name: composed(c) for name, c in COMPOSED.items()},
    "logical_and": _logic("and"),
    "logical_or": _logic("or"),
    "logical_xor": _logic("xor"),
    "logical_not": _logic("not"),
    "bitwise_and": _logic("and", only_masks=True),
    "bitwise_or": _logic("or", only_masks=True),
    "bitwise_xor": _logic("xor", only_masks=True),
    "bitwise_not": _logic("not", only_masks=True),
    "where": _where,
    "masked_fill": _masked_fill,
    "floor_divide": lambda b, x, y: floor_divided(saying(b), x, y),
    "searchsorted": _searchsorted,
    "bucketize": _bucketize,
    "topk": topk,
    "argmax": _argmax(True),
    "argmin": _argmax(False),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _cast),
}
