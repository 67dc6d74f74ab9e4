"""Entries by their places: by constant lists, as on a fixed graph, and by whole numbers that depend on the input."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hrt.capture.aten.masks import one_hot, saying
from hrt.capture.aten.shapes import SHAPES
from hrt.capture.builder import ROWS, Builder, Lowering, Ref, axis_of, joined, moved, reshaped, resized, runs
from hrt.capture.compositions import COMPARISONS

COUNTS_ROWS = (
    "it counts rows, which says something as y[torch.arange(batch), i] alone; write torch.take_along_dim, y.gather or "
    "y.scatter_add"
)
MOST_SLICES = 64  # that a list of places is said as; a longer one is a `gather`


def _gathered(b: Builder, x: Ref, axis: int, places: Sequence[int]) -> Ref:
    index = b.named(torch.tensor(places, dtype=torch.float64), "places")
    return b.emit("gather", [x, index], resized(x, axis, len(places)), axis=axis)


def _index_select(b: Builder, x: Ref, dim: int, index: Any) -> Ref:
    """Entries by a constant list, which may have several axes."""
    if not isinstance(index, Tensor):
        raise b.fail("its index depends on the input; write it as a mask, or by torch.gather")
    axis = axis_of(x, dim, b)
    places = torch.arange(x.shape[axis])[index]
    if places.ndim == 1 and len(runs(places.tolist())) <= MOST_SLICES:
        return SHAPES["index_select"](b, x, dim, index)
    return reshaped(b, _gathered(b, x, axis, places.flatten().tolist()), resized(x, axis, *places.shape))


def _index(b: Builder, x: Any, indices: Sequence[Any]) -> Ref:
    given = [k for k, i in enumerate(indices) if i is not None]
    if given[:1] == [0] and isinstance(x, Ref) and getattr(indices[0], "name", "") == ROWS and len(given) < 3:
        return _of_every_row(b, x, given[1], indices[given[1]]) if given[1:] else x
    if len(given) > 1 and isinstance(x, Ref):
        return _index_lists(b, x, indices, given)
    if len(given) != 1:
        raise b.fail("only one axis of a constant may be indexed by values")
    index = indices[given[0]]
    if isinstance(x, Tensor):
        if given != [0]:
            raise b.fail("only the first axis of a constant may be indexed by values")
        return _looked_up(b, x, _from_the_front(b, index, len(x)))
    return _index_select(b, x, given[0], index)


def _places(
    b: Builder, x: Ref, indices: Sequence[Any], given: Sequence[int]
) -> tuple[list[int], Ref, Tensor, tuple[int, ...]]:
    """Neighbouring axes that constant lists index: the order of the axes that puts them last, the samples with these
    as one, the places that the lists name in it, and their sizes.
    """
    if not all(isinstance(indices[k], Tensor) for k in given):
        raise b.fail("its lists of places depend on the input; torch.where and torch.scatter say the same of one axis")
    if list(given) != list(range(given[0], given[0] + len(given))):
        raise b.fail("the axes that it indexes are no neighbours")
    axes = [axis_of(x, k, b) for k in given]
    others = [k for k in range(-len(x.shape), 0) if k not in axes]
    sizes = tuple(x.shape[k] for k in axes)
    grid = torch.arange(math.prod(sizes)).reshape(sizes)
    flat = reshaped(b, moved(b, x, [*others, *axes]), (*(x.shape[k] for k in others), grid.numel()))
    return [*others, *axes], flat, grid[tuple(indices[k] for k in given)], sizes


def _index_lists(b: Builder, x: Ref, indices: Sequence[Any], given: Sequence[int]) -> Ref:
    """x[..., rows, columns]"""
    order, flat, places, _ = _places(b, x, indices, given)
    y = _gathered(b, flat, -1, places.flatten().tolist())
    front = sum(k < order[-1] for k in order[: -len(given)])  # axes that stand before the lists
    axes = list(range(-len(y.shape), -1))
    y = moved(b, y, [*axes[:front], -1, *axes[front:]])
    return reshaped(b, y, (*y.shape[:front], *places.shape, *y.shape[front + 1 :]))


def _row_numbers(b: Builder, *bounds: Any, **_: Any) -> Ref:
    """torch.arange(batch), which says something as an index alone."""
    if bounds not in ((None,), (0, None), (0, None, 1)):
        raise b.fail(COUNTS_ROWS)
    return Ref(ROWS, ())


def _of_every_row(b: Builder, x: Ref, dim: int, index: Any) -> Ref:
    """x[torch.arange(batch), index]: of every row its own entry."""
    axis = axis_of(x, dim, b)
    if x.axis or x.before + x.after or len(getattr(index, "shape", (0,))):
        raise b.fail(COUNTS_ROWS)
    if not isinstance(index, Ref):
        return reshaped(b, _gathered(b, x, axis, [int(index) % x.shape[axis]]), resized(x, axis))
    others = [k for k in range(-len(x.shape), 0) if k != axis]
    count = x.shape[axis]
    values = reshaped(b, moved(b, x, [*others, axis]), (math.prod(resized(x, axis)), count))
    mask = reshaped(b, one_hot(b, _from_the_front(b, index, count), count), (count, 1))
    return reshaped(b, b.emit("matmul", [values, mask], (values.shape[0], 1)), resized(x, axis))


def _unfold(b: Builder, x: Ref, dim: int, size: int, step: int) -> Ref:
    """Windows of an axis, whose entries stand last."""
    axis = axis_of(x, dim, b)
    starts = range(0, x.shape[axis] - size + 1, step)
    y = _gathered(b, x, axis, [start + k for start in starts for k in range(size)])
    y = reshaped(b, y, resized(x, axis, len(starts), size))
    return moved(b, y, [*(k for k in range(-len(y.shape), 0) if k != axis), axis])


def _from_the_front(b: Builder, index: Ref, count: int) -> Ref:
    """Places that may count from the end, as torch takes them, from 0 on."""
    behind = COMPARISONS["lt"](saying(b), index, 0)
    return b.emit("add", [index, b.emit("mul", [behind, float(count)], index.shape)], index.shape)


def _looked_up(b: Builder, table: Tensor, index: Ref) -> Ref:
    """Rows of a constant table by whole numbers: a product with the table, which may be compressed as a weight."""
    rows = b.named(table.flatten(1) if table.ndim > 1 else table[:, None], "table", table)
    places = one_hot(b, index, len(table))
    y = b.emit("linear", [places, b.named(rows.T, "table", rows)], (*index.shape, rows.shape[1]))
    return reshaped(b, y, (*index.shape, *table.shape[1:]))


def _gather(b: Builder, x: Ref, dim: int, index: Any, **kwargs: Any) -> Ref:
    """x[..., index[..., k], ...]: by a mask for every k where the places depend on the input or on other axes."""
    axis, constant = axis_of(x, dim, b), _constant_behind(b, index)
    if constant is not None and (places := _along_one_axis(constant, axis)) is not None:
        wanted = _gathered(b, x, axis, places)
        shape = tuple(constant.shape)
        if wanted.shape == shape:
            return wanted
        raise b.fail("its index has other axes than what it is taken from")
    last, values, masks = _masks(b, x, axis, index)
    shape = (*values.shape[:-1], masks.shape[-2])
    if masks.ndim < values.ndim + 1:
        return _back(b, b.emit("matmul", [values, moved(b, masks, [-1, -2])], shape), last)
    spread = reshaped(b, values, (*values.shape[:-1], 1, values.shape[-1]))
    product = b.emit("mul", [masks, spread], masks.shape)
    return _back(b, b.emit("sum", [product], shape, axes=[-1], keep=False), last)


def _masks(b: Builder, x: Ref, axis: int, index: Any) -> tuple[list[int], Ref, Ref]:
    """The order of the axes that puts one last, the samples in it, and a mask of it (..., places, n) for every place
    in the index; (places, n) for an index that was repeated along the other axes.
    """
    if not isinstance(index, Ref):
        index = b.emit("repeat", [index, b.batch_ref()], index.shape[1:], shape=[*index.shape[1:]])
    if resized(x, axis, 1) != resized(index, axis, 1):
        raise b.fail("its index has other axes than what it is of")
    others = [k for k in range(-len(x.shape), 0) if k != axis]
    values, thin = moved(b, x, [*others, axis]), b.before_expansion(index, others)
    count = thin.shape[axis]
    repeated = len(thin.shape) > 1 and thin.name != index.name and math.prod(thin.shape) == count
    picks = reshaped(b, thin, (count,)) if repeated else moved(b, index, [*others, axis])
    return [*others, axis], values, one_hot(b, picks, values.shape[-1])


def _back(b: Builder, x: Ref, order: Sequence[int]) -> Ref:
    """The axes as they were before they were put in this order."""
    return moved(b, x, [order.index(k) - len(order) for k in range(-len(order), 0)])


def _scattered(b: Builder, x: Ref, axis: int, index: Any, source: Any) -> tuple[list[int], Ref, Ref, Ref]:
    """The order of the axes that puts one last; in it the samples, what comes to every place, and whether any does."""
    last, values, masks = _masks(b, x, axis, index)
    covered = b.emit("amax", [masks], (*masks.shape[:-2], masks.shape[-1]), axes=[-2], keep=False)
    if not isinstance(source, Ref):
        return last, values, b.emit("mul", [covered, source], covered.shape), covered
    if source.shape != index.shape:
        raise b.fail(f"its source has shape {source.shape}, its index {index.shape}")
    source = moved(b, source, last)
    if masks.ndim < values.ndim + 1:
        return last, values, b.emit("matmul", [source, masks], values.shape), covered
    parts = b.emit("mul", [masks, reshaped(b, source, (*source.shape, 1))], masks.shape)
    return last, values, b.emit("sum", [parts], values.shape, axes=[-2], keep=False), covered


def _scatter(b: Builder, x: Ref, dim: int, index: Any, source: Any, *, reduce: str | None = None) -> Ref:
    """x with entries of `source` in places that may depend on the input, which must differ along the axis."""
    if reduce is not None or (isinstance(source, Tensor) and source.numel() > 1):
        raise b.fail("it reduces, or what it puts in does not depend on the input")
    source = float(source) if isinstance(source, Tensor) else source
    last, values, total, covered = _scattered(b, x, axis_of(x, dim, b), index, source)
    return _back(b, b.emit("where", [covered, total, values], values.shape), last)


def _constant_behind(b: Builder, x: Any) -> Tensor | None:
    """The numbers of one sample, where they are the same in all."""
    if isinstance(x, Tensor):
        return None
    node = next((n for n in reversed(b.nodes) if n.name == x.name and n.op == "repeat"), None)
    if node is None:
        return None
    constant = b.constants[node.inputs[0]]
    return constant[0] if constant.ndim > len(x.shape) else constant.expand(x.shape)


def _along_one_axis(index: Tensor, axis: int) -> list[int] | None:
    """The places that an index names along an axis; None where they depend on other axes."""
    rows = index.movedim(axis, 0).reshape(index.shape[axis], -1)
    return rows[:, 0].long().tolist() if bool((rows == rows[:, :1]).all()) else None


def _added_at(b: Builder, x: Any, axis: int, places: Sequence[int], source: Any) -> Ref:
    """x plus the entries of `source`, each added in its place: every place sums over the entries that come to it."""
    lists: list[list[int]] = [[] for _ in range(x.shape[axis])]
    for entry, place in enumerate(places):
        lists[place].append(entry)
    most = max(map(len, lists), default=0)
    if not most:
        return x
    side = (1,) * (-axis - 1)
    mask = torch.tensor([[float(k < len(v)) for k in range(most)] for v in lists], dtype=torch.float64)
    wanted = [v[k] if k < len(v) else 0 for v in lists for k in range(most)]
    y = _gathered(b, source, axis, wanted)
    y = reshaped(b, y, resized(source, axis, len(lists), most))
    if not bool(mask.all()):
        y = b.emit("mul", [y, b.named(mask.reshape(*mask.shape, *side), "mask")], y.shape)
    y = b.emit("sum", [y], resized(source, axis, len(lists)), axes=[axis], keep=False)
    behind = _constant_behind(b, x)
    return y if behind is not None and not bool(behind.any()) else b.emit("add", [x, y], x.shape)


def _index_add(b: Builder, x: Ref, dim: int, index: Any, source: Any, *, alpha: float = 1) -> Ref:
    if not isinstance(index, Tensor) or not isinstance(source, Ref):
        raise b.fail("its index depends on the input, or what it adds does not")
    source = source if alpha == 1 else b.emit("mul", [source, float(alpha)], source.shape)
    axis = axis_of(x, dim, b)
    return _added_at(b, x, axis, torch.arange(x.shape[axis])[index].tolist(), source)


def _scatter_add(b: Builder, x: Ref, dim: int, index: Any, source: Any) -> Ref:
    axis, constant = axis_of(x, dim, b), _constant_behind(b, index)
    places = None if constant is None else _along_one_axis(constant, axis)
    if not isinstance(source, Ref) or source.shape != index.shape:
        raise b.fail("what it adds does not depend on the input, or is larger than its index")
    if places is not None:
        return _added_at(b, x, axis, places, source)
    last, values, total, _ = _scattered(b, x, axis, index, source)
    return _back(b, b.emit("add", [values, total], values.shape), last)


def _scatter_reduce(
    b: Builder, x: Ref, dim: int, index: Any, source: Any, reduce: str, *, include_self: bool = True
) -> Ref:
    if reduce != "sum" or not include_self:
        raise b.fail(f"it reduces by {reduce!r}; only sums over what is there are said")
    return _scatter_add(b, x, dim, index, source)


def _index_put(b: Builder, x: Ref, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Ref:
    """What x[..., rows, columns] = values does, by constant lists or a mask of x's shape, and += by lists."""
    given = [k for k, i in enumerate(indices) if i is not None]
    constant = all(isinstance(indices[k], Tensor) for k in given)
    if accumulate and len(given) == 1:
        return _index_add(b, x, given[0], indices[given[0]], values)
    number = float(values) if isinstance(values, Tensor) and values.numel() == 1 else None
    if (
        not constant
        and number is not None
        and not accumulate
        and given == [0]
        and indices[0].shape == x.shape[: indices[0].ndim - 1]
    ):
        mask = reshaped(b, indices[0], (*indices[0].shape, *(1,) * (x.ndim - indices[0].ndim)))
        return b.emit("where", [mask, number, x], x.shape)
    order, flat, places, sizes = _places(b, x, indices, given)
    count = math.prod(sizes)
    if accumulate:
        if not isinstance(values, Ref) or places.ndim != 1 or values.shape != (*flat.shape[:-1], len(places)):
            raise b.fail("it adds to places on several axes; torch.index_add says the same of one")
        y = _added_at(b, flat, -1, places.tolist(), values)
    elif number is not None:
        mask = torch.zeros(count, dtype=torch.float64).index_fill(0, places.flatten(), 1.0)
        y = b.emit("where", [b.named(mask, "mask"), number, flat], flat.shape)
    elif isinstance(values, Ref) and places.ndim == 1 and values.shape == (*flat.shape[:-1], len(places)):
        sources = torch.arange(count).index_copy(0, places, count + torch.arange(len(places)))
        y = _gathered(b, joined(b, [flat, values], -1), -1, sources.tolist())
    else:
        raise b.fail("what it assigns has another shape than its places, which must stand last")
    return _back(b, reshaped(b, y, [x.shape[k] for k in order]), order)


def _diagonal(b: Builder, x: Ref, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Ref:
    """Its entries stand last."""
    first, second = axis_of(x, dim1, b), axis_of(x, dim2, b)
    others = [k for k in range(-len(x.shape), 0) if k not in (first, second)]
    flat = moved(b, x, [*others, first, second])
    rows, columns = flat.shape[-2:]
    flat = reshaped(b, flat, (*flat.shape[:-2], rows * columns))
    return _gathered(b, flat, -1, [k * columns + k + offset for k in range(rows) if 0 <= k + offset < columns])


def _triangle(keep: Callable[[Tensor, int], Tensor]) -> Lowering:
    """Zeros beyond a diagonal."""

    def lower(b: Builder, x: Ref, diagonal: int = 0) -> Ref:
        for dim in (-1, -2):
            axis_of(x, dim, b)
        return b.emit("mul", [x, keep(torch.ones(x.shape[-2:], dtype=torch.float64), diagonal)], x.shape)

    return lower


def _embedding(b: Builder, table: Any, index: Any, *_: Any, **__: Any) -> Ref:
    if not isinstance(table, Tensor):
        raise b.fail("its table depends on the input")
    return _looked_up(b, table, index)


def _bilinear(b: Builder, x: Ref, y: Ref, weight: Any, bias: Any = None) -> Ref:
    """x^T W_o y for every o: W as one matrix applied to x, then a product of values."""
    if not isinstance(weight, Tensor) or not isinstance(x, Ref) or not isinstance(y, Ref):
        raise b.fail("its weight depends on the input, or one of its inputs does not")
    for v in (x, y):
        axis_of(v, -1, b)
    outputs, left, right = weight.shape
    matrix = b.named(weight.transpose(1, 2).reshape(outputs * right, left), "weight", weight)
    lead = x.shape[:-1]
    rows = reshaped(b, b.emit("linear", [x, matrix], (*lead, outputs * right)), (*lead, outputs, right))
    product = b.emit("matmul", [rows, reshaped(b, y, (*lead, right, 1))], (*lead, outputs, 1))
    out = reshaped(b, product, (*lead, outputs))
    return out if bias is None else b.emit("add", [out, bias], out.shape)


INDICES: dict[str, Lowering] = {
    "arange": _row_numbers,
    "unfold": _unfold,
    "index": _index,
    "index_select": _index_select,
    "gather": _gather,
    "index_add": _index_add,
    **dict.fromkeys(("index_put", "_unsafe_index_put"), _index_put),
    "scatter": _scatter,
    "scatter_add": _scatter_add,
    "scatter_reduce": _scatter_reduce,
    "embedding": _embedding,
    "one_hot": lambda b, x, count=-1: one_hot(b, x, count),
    "diagonal": _diagonal,
    "tril": _triangle(torch.tril),
    "triu": _triangle(torch.triu),
    "bilinear": _bilinear,
}
