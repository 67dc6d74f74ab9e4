"""The hierarchical matrix: disjoint blocks, each dense or low-rank, that cover a matrix exactly once.

Indices of leaves count positions; `row_order[p]` is the original row at position p. An ordering so costs one small
table and no arithmetic. No torch.nn and no Triton in here.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.hmatrix.leaf import Leaf, Place
from hrt.hmatrix.torch_products import Executor, executor
from hrt.support.arrays import as_tensor
from hrt.support.torch_state import guarded_values

STORAGE = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "int8": torch.int8}
STORAGE_NAME = {dtype: name for name, dtype in STORAGE.items()}
STRIP_ENTRIES = 1 << 18  # of a large matrix decoded at a time; about a cache's worth
LEAF_FIELDS = 5  # row, rows, col, cols, rank (-1: dense)

Array = TypeVar("Array", Tensor, np.ndarray)


def index_dtype(largest: int) -> torch.dtype:
    """The narrowest signed integer type that holds `largest`."""
    return torch.int16 if largest <= 32767 else torch.int32


def _as_order(order: Any, size: int, what: str) -> Tensor | None:
    if order is None:
        return None
    order = torch.as_tensor(order, dtype=torch.int64).reshape(-1)
    if order.numel() != size or not torch.equal(order.sort().values, torch.arange(size)):
        raise InputError(f"The {what} ordering is not a permutation of 0..{size - 1}.")
    return None if torch.equal(order, torch.arange(size)) else order.to(index_dtype(size))


@dataclass(frozen=True, eq=False)
class HMatrix:
    """A hierarchical matrix: a tuple of leaves and two optional orderings. `hrt.compress_matrix` finds one.

    Args:
        shape: (m, n).
        leaves: their blocks cover every entry exactly once. Low-rank leaves over the same block are added, so that
            each direction of a block can have a storage type of its own.
        row_order: (m,), the original row at each position; None is the natural order.
        col_order: (n,), the original column at each position, likewise.

    Raises:
        InputError: the blocks overlap, leave a gap or reach outside, or an ordering is no permutation.

    Example:
        >>> h = HMatrix.from_dense(torch.eye(3))
        >>> h.nbytes, h.error(torch.eye(3))
        (36, 0.0)
    """

    shape: tuple[int, int]
    leaves: tuple[Leaf, ...]
    row_order: Tensor | None = None
    col_order: Tensor | None = None

    @guarded_values
    def __post_init__(self) -> None:
        m, n = self.shape
        object.__setattr__(self, "leaves", tuple(self.leaves))
        object.__setattr__(self, "row_order", _as_order(self.row_order, m, "row"))
        object.__setattr__(self, "col_order", _as_order(self.col_order, n, "column"))
        dense = (e.place for e in self.leaves if e.is_dense)
        check_cover(self.shape, [*{e.place for e in self.leaves if not e.is_dense}, *dense])

    @staticmethod
    def from_dense(matrix: Tensor, dtype: torch.dtype = torch.float32) -> "HMatrix":
        """An ordinary matrix as one dense leaf.

        Args:
            matrix: (m, n).
            dtype: of what is stored.

        Returns:
            The H-matrix.
        """
        m, n = matrix.shape
        return HMatrix((m, n), (Leaf(0, m, 0, n, dense=matrix.to(dtype).contiguous()),) if m * n else ())

    @property
    def is_dense(self) -> bool:
        """Whether this is one dense leaf in natural order: an ordinary matrix."""
        return all(leaf.is_dense and (leaf.rows, leaf.cols) == self.shape for leaf in self.leaves)

    @cached_property
    @guarded_values
    def table(self) -> Tensor:
        """(leaves, 5): row, rows, col, cols, rank (-1: dense). Empty for an ordinary matrix."""
        if self.is_dense:
            return torch.zeros((0, LEAF_FIELDS), dtype=torch.int16)
        return torch.tensor([(*e.place, e.rank) for e in self.leaves]).to(index_dtype(max(self.shape)))

    def blocks(self) -> dict[Place, tuple[Leaf, ...]]:
        """The leaves block by block.

        Returns:
            By place, in their order: one dense leaf, or low-rank leaves that are added.
        """
        groups: dict[Place, list[Leaf]] = {}
        for leaf in self.leaves:
            groups.setdefault(leaf.place, []).append(leaf)
        return {place: tuple(leaves) for place, leaves in groups.items()}

    @property
    def nbytes(self) -> int:
        """Bytes that must be resident to multiply: numbers, leaf table, storage types and orderings."""
        stored = (*self.leaves, self.table, self.row_order, self.col_order)
        return sum(part.nbytes for part in stored if part is not None) + len(self.table)

    @guarded_values
    def to_dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The matrix that is represented.

        Args:
            dtype: floating.

        Returns:
            (m, n), in the original row and column order.
        """
        out = torch.zeros(self.shape, dtype=dtype)
        for e in self.leaves:
            out[e.row : e.row + e.rows, e.col : e.col + e.cols] += e.to_dense(dtype)
        for dim, order in enumerate((self.row_order, self.col_order)):
            out = out if order is None else torch.empty_like(out).index_copy_(dim, order.long(), out)
        return out

    @guarded_values
    def apply(self, x: Array) -> Array:
        """Multiply: y = x W^T, with gradients by x alone (`HLinear` is what is trained).

        The first product of a type prepares the numbers for the next ones: leaves that are changed in place afterwards
        are not seen.

        Args:
            x: (batch, n), floating point. float64 computes in float64, other types in float32.

        Returns:
            (batch, m) of the type of `x`: numpy in, numpy out.

        Raises:
            InputError: another width, or a type that is not floating point.
        """
        is_numpy = not isinstance(x, Tensor)
        xt = as_tensor(x, "input") if is_numpy else x
        if xt.ndim != 2 or xt.shape[1] != self.shape[1] or not xt.is_floating_point():
            raise InputError(f"Found {xt.dtype} {tuple(xt.shape)}. Expected floating point (batch, {self.shape[1]}).")
        y: Tensor = (self._in_float64 if xt.dtype == torch.float64 else self._in_float32)(xt)
        return y.to(xt.dtype).numpy() if is_numpy else y.to(xt.dtype)  # type: ignore[return-value]

    @cached_property
    def _in_float32(self) -> Executor:
        return executor(self, torch.float32)

    @cached_property
    def _in_float64(self) -> Executor:
        return executor(self, torch.float64)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is prepared at the first product."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @cached_property
    def T(self) -> "HMatrix":
        """The transpose: its leaves are those of this matrix, transposed, without a copy of their numbers (dense int8
        becomes float32).
        """
        m, n = self.shape
        return HMatrix((n, m), tuple(e.transposed for e in self.leaves), self.col_order, self.row_order)

    __array_ufunc__ = None  # numpy leaves `array @ h` to this class

    def __matmul__(self, x: Array) -> Array:
        """h @ x as of an ordinary matrix: (n,) to (m,), (..., n, k) to (..., m, k). Whole numbers become float64."""
        if not isinstance(x, (Tensor, np.ndarray)):
            return NotImplemented
        if x.ndim < 2:
            return self._rows(x)
        return self._rows(x.swapaxes(-1, -2)).swapaxes(-1, -2)

    def __rmatmul__(self, x: Array) -> Array:
        """x @ h as of an ordinary matrix: (m,) to (n,), (..., k, m) to (..., k, n). Whole numbers become float64."""
        if not isinstance(x, (Tensor, np.ndarray)):
            return NotImplemented
        return self.T._rows(x)

    def _rows(self, x: Any) -> Any:
        """(..., n) to (..., m)."""
        if not x.ndim or x.shape[-1] != self.shape[1]:
            raise InputError(
                f"Found an array of shape {tuple(x.shape)} beside a matrix with a side of {self.shape[1]}."
            )
        if isinstance(x, Tensor):
            x = x if x.is_floating_point() or x.is_complex() else x.double()
        elif x.dtype.kind not in "fc":
            x = x.astype(np.float64)
        if x.dtype in (torch.complex64, torch.complex128) or (isinstance(x, np.ndarray) and x.dtype.kind == "c"):
            return self._rows(x.real) + 1j * self._rows(x.imag)
        rows = math.prod(x.shape[:-1])
        return self.apply(x.reshape(rows, self.shape[1])).reshape(*x.shape[:-1], self.shape[0])

    def to_scipy(self) -> Any:
        """The matrix as a scipy.sparse.linalg.LinearOperator, for solvers. float64 vectors are multiplied in float64.

        Returns:
            (m, n), with products by vectors and matrices, and by the transpose.

        Example:
            >>> HMatrix.from_dense(torch.eye(3)).to_scipy().rmatvec(np.ones(3))
            array([1., 1., 1.])
        """
        from scipy.sparse.linalg import LinearOperator  # a fifth of a second that few need

        make: Any = LinearOperator  # its stub shows the constructor of another class
        return make(
            self.shape, dtype=np.float64, matvec=self.__matmul__, matmat=self.__matmul__,
            rmatvec=self.T.__matmul__, rmatmat=self.T.__matmul__,
        )  # fmt: skip

    @guarded_values
    def error(self, w: Tensor | np.ndarray, second_moment: Tensor | np.ndarray | None = None) -> float:
        """Relative error of the stored numbers, in float64.

        Args:
            w: the matrix (m, n) that this one stands for.
            second_moment: C = E[x x^T] (n, n) of the inputs.

        Returns:
            ||E||_F / ||W||_F with E = W - H or, with a second moment, sqrt(tr(E C E^T) / tr(W C W^T)). A reference of
            zero gives 0 or infinity.

        Raises:
            InputError: `w` has another shape.
        """
        w = as_tensor(w, "matrix").cpu().to(torch.float64)
        if tuple(w.shape) != self.shape:
            raise InputError(f"Expected a matrix of shape {self.shape}. Found {tuple(w.shape)}.")
        c = None if second_moment is None else as_tensor(second_moment, "second moment").to(torch.float64)
        e = w - self.to_dense()
        size = float(w.abs().max()) if w.numel() else 0.0
        if 0 < size < float("inf"):  # squares of very small entries would vanish
            e, w = e / size, w / size
        return relative(squared_norm(e, c), squared_norm(w, c))

    def __repr__(self) -> str:
        low = [e.rank for e in self.leaves if not e.is_dense]
        what = f"{len(self.leaves)} leaves ({len(self.leaves) - len(low)} dense"
        what += f", ranks {min(low)} to {max(low)})" if low else ")"
        m, n = self.shape
        ratio = 4 * m * n / self.nbytes if self.nbytes else 1.0
        return f"HMatrix({m} x {n}, {what}, {self.nbytes:,} bytes, {ratio:.2f}x smaller than float32)"


def squared_norm(e: Tensor, c: Tensor | None) -> float:
    """||E||_F^2, or tr(E C E^T) where a second moment is given (all cross terms included)."""
    return float((e * e).sum() if c is None else ((e @ c) * e).sum().clamp_min(0))


def squared_error(matrix: Tensor, h: "HMatrix", c: Tensor | None) -> float:
    """`squared_norm` of `matrix` (m, n) minus `h`, a strip of rows at a time: `h` is never written out as a whole."""
    (m, n), total = h.shape, 0.0
    height = max(16, STRIP_ENTRIES // max(1, n))
    waiting, active = sorted(h.leaves, key=lambda leaf: -leaf.row), []
    for a in range(0, m, height):
        b = min(a + height, m)
        active = [leaf for leaf in active if leaf.row + leaf.rows > a]
        while waiting and waiting[-1].row < b:
            active.append(waiting.pop())
        out = torch.zeros(b - a, n, dtype=torch.float64)
        for e in active:
            rows = slice(max(a, e.row) - e.row, min(b, e.row + e.rows) - e.row)
            out[e.row + rows.start - a : e.row + rows.stop - a, e.col : e.col + e.cols] += e.to_dense(rows=rows)
        out = out if h.col_order is None else torch.empty_like(out).index_copy_(1, h.col_order.long(), out)
        e = out.sub_(matrix[a:b] if h.row_order is None else matrix[h.row_order[a:b].long()])
        total += float((e * e).sum() if c is None else ((e @ c) * e).sum())
    return total if math.isnan(total) else max(total, 0.0)


def relative(error2: float, norm2: float) -> float:
    """sqrt(error2 / norm2), with 0/0 = 0 and x/0 = infinity."""
    return float(np.sqrt(error2 / norm2)) if norm2 > 0 else 0.0 if error2 == 0 else float("inf")


def relative_difference(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected||, with 0/0 = 0 and x/0 = infinity."""
    difference, size = float((actual - expected).norm()), float(expected.norm())
    return difference / size if size else 0.0 if difference == 0 else float("inf")


def check_cover(shape: tuple[int, int], blocks: Iterable[Place]) -> None:
    """Raise InputError unless the blocks tile `shape`."""
    m, n = shape
    items = [b for b in blocks if b[1] and b[3]]
    if any(min(block) < 0 or block[0] + block[1] > m or block[2] + block[3] > n for block in items):
        raise InputError(f"A leaf reaches outside the matrix of shape {shape}.")
    odd: set[tuple[int, int]] = set()  # corners of an odd number of blocks: these tell which entries oddly many cover
    for r, h, c, w in items:
        odd ^= {(r, c), (r + h, c), (r, c + w), (r + h, c + w)}
    if sum(h * w for _, h, _, w in items) != m * n or (items and odd != {(0, 0), (m, 0), (0, n), (m, n)}):
        raise InputError("The leaves overlap or leave a gap.")
