"""Determinants, inverses and factors of tiny matrices, one in every sample: written out in their entries."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hrt.capture.aten.masks import saying
from hrt.capture.builder import Builder, Lowering, Ref, axis_of, joined, moved, reshaped, sliced

LARGEST_MINORS = 4  # of matrices that are inverted by their minors, whose number doubles with every row
LARGEST_FACTORS = 16  # of those that are factored row by row

Entries = list[list[Any]]


def _entries(b: Builder, x: Ref, largest: int) -> Entries:
    """The entries of every matrix, each a value (..., 1, 1). Raises CaptureError for matrices that are too large."""
    for dim in (-1, -2):
        axis_of(x, dim, b)
    rows, columns = x.shape[-2:]
    if rows > largest:
        raise b.fail(f"its matrices have {rows} rows; at most {largest} are written out")
    lines = [sliced(b, x, -2, k, k + 1) for k in range(rows)]
    return [[sliced(b, line, -1, k, k + 1) for k in range(columns)] for line in lines]


def _assembled(b: Builder, entries: Entries) -> Ref:
    return joined(b, [joined(b, row, -1) for row in entries], -2)


def _minors(say: Callable[..., Ref], a: Entries) -> Callable[..., Ref]:
    """The determinant of rows and columns of a matrix, each computed once."""

    @cache
    def minor(rows: tuple[int, ...], columns: tuple[int, ...]) -> Ref:
        first, *rest = columns
        if not rest:
            return a[rows[0]][first]
        total: Any = None
        for k, row in enumerate(rows):
            term = say("mul", a[row][first], minor((*rows[:k], *rows[k + 1 :]), tuple(rest)))
            total = term if total is None else say("sub" if k % 2 else "add", total, term)
        return total

    return minor


def determinant(b: Builder, x: Ref) -> Ref:
    """(..., 1, 1)"""
    everything = tuple(range(x.shape[-1]))
    return _minors(saying(b), _entries(b, x, LARGEST_MINORS))(everything, everything)


def _without_axes(b: Builder, x: Ref) -> Ref:
    return reshaped(b, x, x.shape[:-2])


def _log_determinant(b: Builder, x: Ref) -> list[Ref]:
    """The sign, and the logarithm of the size."""
    say, value = saying(b), _without_axes(b, determinant(b, x))
    sign = say("sub", say("mul", say("step", value, at_zero=0.5), 2.0), 1.0)
    return [sign, say("log", say("abs", value))]


def inverse(b: Builder, x: Ref) -> Ref:
    """Minors over the determinant."""
    say, a = saying(b), _entries(b, x, LARGEST_MINORS)
    minor, everything = _minors(say, a), tuple(range(len(a)))
    scale = say("reciprocal", minor(everything, everything))
    if len(a) == 1:
        return scale
    others = [tuple(j for j in everything if j != k) for k in everything]

    def entry(row: int, column: int) -> Ref:
        value = minor(others[column], others[row])
        return say("mul", say("neg", value) if (row + column) % 2 else value, scale)

    return _assembled(b, [[entry(row, column) for column in everything] for row in everything])


def _solve(b: Builder, x: Any, y: Any, left: bool = True) -> Ref:
    """Y of X Y = B, for columns or a vector each."""
    if isinstance(x, Tensor) and x.ndim == 2 and left:
        return _solved_by_constant(b, x, y)
    if not isinstance(x, Ref) or not left:
        raise b.fail("only X Y = B is solved, and matrices that are constant only where there is one")
    if y.ndim == x.ndim - 1 and isinstance(y, Ref):
        return _without_column(b, _solve(b, x, reshaped(b, y, (*y.shape, 1))))
    if y.ndim != x.ndim:
        raise b.fail("its matrices and right sides have other numbers of axes")
    shape = y.shape if isinstance(y, Ref) else (*x.shape[:-2], *y.shape[-2:])
    return b.emit("matmul", [inverse(b, x), y], shape)


def _solved_by_constant(b: Builder, x: Tensor, y: Ref) -> Ref:
    """The inverse is a weight."""
    weight = b.named(torch.linalg.inv(x), "inverse", x)
    axis = axis_of(y, -1 if y.ndim == 1 else -2, b)
    order = [*(k for k in range(-len(y.shape), 0) if k != axis), axis]
    rows = moved(b, y, order)
    product = b.emit("linear", [rows, weight], rows.shape)
    return moved(b, product, [order.index(k) - len(order) for k in range(-len(order), 0)])


def _without_column(b: Builder, x: Ref) -> Ref:
    return reshaped(b, x, x.shape[:-1])


def _dot(say: Callable[..., Ref], left: Sequence[Any], right: Sequence[Any]) -> Any:
    total: Any = None
    for p, q in zip(left, right, strict=True):
        term = say("mul", p, q)
        total = term if total is None else say("add", total, term)
    return total


def _cholesky(b: Builder, x: Ref, upper: bool = False, **_: Any) -> Ref:
    """Row by row: the lower triangle, or its transpose."""
    say, a = saying(b), _entries(b, x, LARGEST_FACTORS)
    zero = say("mul", a[0][0], 0.0)
    lower: Entries = [[zero] * len(a) for _ in a]
    for row in range(len(a)):
        for column in range(row + 1):
            products = _dot(say, lower[row][:column], lower[column][:column])
            rest = a[row][column] if products is None else say("sub", a[row][column], products)
            lower[row][column] = say("sqrt", rest) if row == column else say("div", rest, lower[column][column])
    return _assembled(b, [list(row) for row in zip(*lower, strict=True)] if upper else lower)


def _triangular(b: Builder, x: Ref, y: Ref, *, upper: bool, left: bool = True, unitriangular: bool = False) -> Ref:
    """X^-1 Y by substitution, all columns at once."""
    if not isinstance(x, Ref) or not isinstance(y, Ref) or x.ndim != y.ndim or not left:
        raise b.fail("only matrices that depend on the input are solved, for columns: X Y = B")
    say, a = _broadcasting(b), _entries(b, x, LARGEST_FACTORS)
    order = range(len(a))[:: -1 if upper else 1]
    rows: dict[int, Ref] = {}
    for k in order:
        behind = [j for j in order if j in rows]
        products = _dot(say, [a[k][j] for j in behind], [rows[j] for j in behind])
        line = sliced(b, y, -2, k, k + 1)
        rest = line if products is None else say("sub", line, products)
        rows[k] = rest if unitriangular else say("div", rest, a[k][k])
    return joined(b, [rows[k] for k in range(len(a))], -2)


def _broadcasting(b: Builder) -> Callable[..., Ref]:
    """`b.emit` for elementwise ops of a column (..., 1, 1) and a row (..., 1, n)."""

    def say(op: str, *operands: Ref) -> Ref:
        return b.emit(op, list(operands), max((x.shape for x in operands), key=lambda shape: shape[-1]))

    return say


MATRICES: dict[str, Lowering] = {
    **dict.fromkeys(("linalg_det", "det"), lambda b, x: _without_axes(b, determinant(b, x))),
    "_linalg_det": lambda b, x: [_without_axes(b, determinant(b, x)), None, None],
    "linalg_slogdet": _log_determinant,
    "logdet": lambda b, x: b.emit("log", [_without_axes(b, determinant(b, x))], x.shape[:-2]),
    **dict.fromkeys(("linalg_inv", "inverse"), inverse),
    "linalg_inv_ex": lambda b, x, *_, **__: [inverse(b, x), None],
    "linalg_solve": _solve,
    **dict.fromkeys(("linalg_cholesky", "cholesky"), _cholesky),
    "linalg_cholesky_ex": lambda b, x, *_, upper=False, **__: [_cholesky(b, x, upper), None],
    "linalg_solve_triangular": _triangular,
}
