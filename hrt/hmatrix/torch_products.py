"""Products of H-matrices in torch: the plan of batched products, prepared on a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hrt.hmatrix.batched_products import Bucket, plan
from hrt.hmatrix.leaf import Leaf, Leaves
from hrt.support.torch_state import guarded

Executor = Callable[[Tensor], Tensor]  # x (batch, n), converted, to (batch, m)


@guarded
@torch.no_grad()
def executor(matrix: Leaves, dtype: torch.dtype) -> Executor:
    """y = x H^T in `dtype`, with gradients by x. A whole dense matrix of that type is not copied."""
    whole = [leaf for leaf in matrix.leaves if leaf.is_dense and (leaf.rows, leaf.cols) == matrix.shape]
    if whole and matrix.row_order is None and matrix.col_order is None:
        (dense,) = whole[0].decoded(dtype)
        return lambda x: x.to(dtype) @ dense.T
    product = Product.of(matrix, torch.device("cpu"), dtype)
    return lambda x: product.differentiable(x.to(dtype))


def prepare(constant: Any, device: torch.device) -> Any:
    """A constant of a program as the table's torch functions take it, in float32 on `device`."""
    if isinstance(constant, Tensor):
        return constant.to(device, torch.float32)
    if constant.is_dense:
        return constant.to_dense(torch.float32).to(device)
    return Product.of(constant, device)


@dataclass(frozen=True)
class _Step:
    """One product: weights (count, wide, tall) of the workspace rows `sources`, written to rows from `top` on."""

    sources: slice | Tensor
    weights: Tensor
    top: int

    def run(self, work: Tensor, out: Tensor) -> None:
        count, wide, tall = self.weights.shape
        batch = work.shape[1]
        rows = _take(work, self.sources)
        target = out[self.top : self.top + count * tall]
        if batch == 1:  # the same numbers in memory; as a row times a matrix they take a fifth of the time
            torch.bmm(rows.view(count, 1, wide), self.weights, out=target.view(count, 1, tall))
        else:
            torch.bmm(self.weights.mT, rows.view(count, wide, batch), out=target.view(count, tall, batch))

    def product(self, work: Tensor) -> Tensor:
        """The same as a new tensor."""
        count, wide, tall = self.weights.shape
        batch, rows = work.shape[1], _take(work, self.sources)
        if batch == 1:
            return torch.bmm(rows.reshape(count, 1, wide), self.weights).reshape(count * tall, 1)
        return torch.bmm(self.weights.mT, rows.reshape(count, wide, batch)).reshape(count * tall, batch)


class Product:
    """y = x H^T in a handful of batched products, not one or two per leaf (see `hrt.hmatrix.batched_products`)."""

    first: list[_Step]
    second: list[_Step]
    height: int
    out_height: int
    index: list[slice | Tensor]

    def __init__(self, matrix: Leaves, device: torch.device, dtype: torch.dtype = torch.float32):
        self.shape: tuple[int, int] = matrix.shape
        self.cols: Tensor | None = None if matrix.col_order is None else matrix.col_order.to(device, torch.int32)
        products = plan(matrix)
        zero = self.shape[1]
        self.first, self.second = (
            [_step(b, zero, device, dtype) for b in wave] for wave in (products.first, products.second)
        )
        self.height, self.out_height = products.height, products.out_height + 1  # and one row of zeros
        self.index = [_index(rows, device) for rows in products.output_rows(matrix.row_order)]

    @staticmethod
    def of(matrix: Leaves, device: torch.device, dtype: torch.dtype = torch.float32) -> "Product | LowRank":
        """The cheapest executor: two plain products where the whole matrix is one low-rank block."""
        return LowRank(matrix.leaves, device, dtype) if is_low_rank(matrix) else Product(matrix, device, dtype)

    @property
    def row_numbers(self) -> int:
        """Numbers that a row takes while it is multiplied."""
        return self.height + 2 * self.out_height + self.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes held, decoded."""
        steps = (*self.first, *self.second)
        held = [*(s.weights for s in steps), *(s.sources for s in steps), *self.index, self.cols]
        return sum(t.nbytes for t in held if isinstance(t, Tensor))

    def apply(self, x: Tensor) -> Tensor:
        """x (batch, n) to (batch, m), both of the weights' type."""
        n, batch = self.shape[1], x.shape[0]
        work = x.new_empty(self.height, batch)
        if self.cols is None:
            work[:n] = x.T
        else:
            torch.index_select(x.T, 0, self.cols, out=work[:n])
        work[n] = 0
        for step in self.first:
            step.run(work, work)
        out = x.new_empty(self.out_height, batch)
        out[-1] = 0
        for step in self.second:
            step.run(work, out)
        y = _take(out, self.index[0])
        for index in self.index[1:]:
            y = y + _take(out, index)
        return y.T

    def differentiable(self, x: Tensor) -> Tensor:
        """The same with gradients by x, in tensors of its own."""
        work = x.T if self.cols is None else x.T.index_select(0, self.cols)
        zero = work[:0].sum(0, keepdim=True)
        work = torch.cat([work, zero])
        work = torch.cat([work, *(step.product(work) for step in self.first)])
        out = torch.cat([*(step.product(work) for step in self.second), zero])
        return sum((_take(out, index) for index in self.index[1:]), _take(out, self.index[0])).T


def is_low_rank(matrix: Leaves) -> bool:
    """Whether the whole matrix is one low-rank block in natural order."""
    kinds = {(leaf.rows, leaf.cols, leaf.is_dense) for leaf in matrix.leaves}
    return kinds == {(*matrix.shape, False)} and matrix.row_order is None and matrix.col_order is None


class LowRank:
    """y = (x V) U^T: the whole matrix is one low-rank block, the sum of `leaves`."""

    u: Tensor
    vt: Tensor

    def __init__(self, leaves: Sequence[Leaf], device: torch.device, dtype: torch.dtype = torch.float32):
        us, vts = zip(*(leaf.decoded(dtype) for leaf in leaves), strict=True)
        self.u, self.vt = torch.cat(us, dim=1).to(device), torch.cat(vts).to(device)
        self.shape: tuple[int, int] = (leaves[0].rows, leaves[0].cols)
        self.nbytes: int = self.u.nbytes + self.vt.nbytes
        self.row_numbers: int = self.vt.shape[0]

    def apply(self, x: Tensor) -> Tensor:
        """x (batch, n) to (batch, m)."""
        return self.affine(x, None)

    differentiable = apply

    def affine(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., n) to (..., m), plus the bias (m,) in the same pass."""
        return torch.nn.functional.linear(torch.nn.functional.linear(x, self.vt), self.u, bias)


def _step(bucket: Bucket, zero: int, device: torch.device, dtype: torch.dtype) -> _Step:
    weights = bucket.weights(dtype).mT.contiguous().to(device)
    return _Step(_index(bucket.sources(zero).reshape(-1), device), weights, bucket.top)


def _index(rows: Any, device: torch.device) -> slice | Tensor:
    """Workspace rows as a slice where they follow each other, else as an index table."""
    index = torch.as_tensor(rows, dtype=torch.int32)
    if len(index) and bool((index[1:] == index[:-1] + 1).all()):
        return slice(int(index[0]), int(index[0]) + len(index))
    return index.to(device)


def _take(work: Tensor, rows: slice | Tensor) -> Tensor:
    return work[rows] if isinstance(rows, slice) else work.index_select(0, rows)
