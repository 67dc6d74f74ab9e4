"""One block of a hierarchical matrix, and what the planners of products read of a whole one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hrt.errors import InputError

Place = tuple[int, int, int, int]  # of a block: row, rows, col, cols


@dataclass(frozen=True, eq=False)
class Leaf:
    """One block of a matrix, stored as `dense` or as `u @ vt`.

    Args:
        row: the first row of the block.
        rows: how many rows it has.
        col: its first column.
        cols: how many columns it has.
        dense: (rows, cols), or None.
        u: (rows, rank), or None. A rank of 0 is a block of zeros.
        vt: (rank, cols), of the dtype of `u`, or None.
        scale: bfloat16, with int8 alone: (rows,) multiplies the rows of `dense`, (rank,) the directions of `u @ vt`.
            A number times its scale is exact in float32.

    Raises:
        InputError: the tensors do not fit the block, or each other.

    Example:
        >>> Leaf(0, 4, 0, 3, u=torch.ones(4, 1), vt=torch.ones(1, 3)).rank
        1
    """

    row: int
    rows: int
    col: int
    cols: int
    dense: Tensor | None = None
    u: Tensor | None = None
    vt: Tensor | None = None
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        u, vt, ok = self.u, self.vt, False
        if self.dense is not None:
            ok = u is None and vt is None and tuple(self.dense.shape) == (self.rows, self.cols)
        elif u is not None and vt is not None and u.dtype == vt.dtype:
            ok = tuple(u.shape) == (self.rows, vt.shape[0]) and vt.shape[1] == self.cols
        if ok and (self.dtype == torch.int8 or self.scale is not None):
            count = self.rows if self.dense is not None else self.rank
            ok = self.dtype == torch.int8 and self.scale is not None and tuple(self.scale.shape) == (count,)
        if not ok:
            raise InputError(
                f"A leaf over rows {self.row}+{self.rows}, columns {self.col}+{self.cols} does not fit its data. "
                "Expected either dense (rows, cols) or u (rows, r) and vt (r, cols) of one dtype (int8: with a scale)."
            )

    @property
    def place(self) -> Place:
        """The block as (row, rows, col, cols)."""
        return self.row, self.rows, self.col, self.cols

    @property
    def is_dense(self) -> bool:
        """Whether the block is stored entry by entry."""
        return self.dense is not None

    @property
    def rank(self) -> int:
        """Columns of `u`; -1 for a dense block."""
        return -1 if self.u is None else self.u.shape[1]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The stored tensors, in the order in which they are packed."""
        return tuple(t for t in (self.dense, self.u, self.vt) if t is not None)

    def decoded(self, dtype: torch.dtype, rows: slice = slice(None)) -> tuple[Tensor, ...]:
        """`tensors` as numbers, the scale multiplied into the first.

        Args:
            dtype: floating.
            rows: of the first tensor, all by default.

        Returns:
            (dense,), or (u, vt).
        """
        first, *rest = (t.to(dtype) for t in (self.tensors[0][rows], *self.tensors[1:]))
        if self.scale is not None:
            scale = self.scale.to(dtype)
            first = first * (scale[rows, None] if self.dense is not None else scale)
        return first, *rest

    @property
    def dtype(self) -> torch.dtype:
        """Storage type of the numbers."""
        return self.tensors[0].dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the stored numbers (the leaf table is counted by the matrix)."""
        return sum(t.nbytes for t in (*self.tensors, self.scale) if t is not None)

    def to_dense(self, dtype: torch.dtype = torch.float64, rows: slice = slice(None)) -> Tensor:
        """The block entry by entry.

        Args:
            dtype: floating.
            rows: of the block, all by default.

        Returns:
            (rows, cols).
        """
        first, *rest = self.decoded(dtype, rows)
        return first @ rest[0] if rest else first

    @property
    def transposed(self) -> "Leaf":
        """The block's transpose. Dense int8 becomes float32, exactly: its scales are of rows."""
        place = (self.col, self.cols, self.row, self.rows)
        if self.u is None or self.vt is None:
            return Leaf(*place, dense=(self.tensors[0] if self.scale is None else self.decoded(torch.float32)[0]).T)
        return Leaf(*place, u=self.vt.T, vt=self.u.T, scale=self.scale)


class Leaves(Protocol):
    """A matrix as leaves over positions, with the order of its rows and columns."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def leaves(self) -> Sequence[Leaf]: ...
    @property
    def row_order(self) -> Tensor | None: ...
    @property
    def col_order(self) -> Tensor | None: ...
