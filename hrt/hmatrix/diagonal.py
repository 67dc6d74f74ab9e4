"""A matrix that is zero outside of equal blocks along its diagonal: a stack of matrices, side by side."""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix
from hrt.hmatrix.leaf import Leaf


def block_count(matrix: HMatrix) -> int:
    """The most equal blocks along the diagonal outside of which every leaf is empty; 0 for less than two. Orderings
    must keep to the blocks.
    """
    m, n = matrix.shape
    places = np.array([e.place for e in matrix.leaves if e.is_dense or e.rank]).reshape(-1, 4)
    if not len(places) or 2 * places[:, 1].max() > m or 2 * places[:, 3].max() > n:
        return 0
    common = math.gcd(m, n)
    for count in (k for k in range(common, 1, -1) if common % k == 0):
        size = np.array([m // count, n // count])
        first = places[:, ::2] // size
        last = (places[:, ::2] + places[:, 1::2] - 1) // size
        orders = (_keeps(order, count) for order in (matrix.row_order, matrix.col_order))
        if (first[:, 0] == first[:, 1]).all() and (first == last).all() and all(orders):
            return count
    return 0


def diagonal_blocks(matrix: HMatrix) -> tuple[HMatrix, ...]:
    """The blocks that `block_count` counts, from the top."""
    if not (count := block_count(matrix)):
        return ()
    m, n = (size // count for size in matrix.shape)
    leaves: list[list[Leaf]] = [[] for _ in range(count)]
    for e in matrix.leaves:
        last = min((e.row + e.rows - 1) // m, (e.col + e.cols - 1) // n)
        for k in range(max(e.row // m, e.col // n), last + 1):
            leaves[k].append(_cut(e, k * m, m, k * n, n))
    orders = [
        [None] * count if order is None else list(order.long().reshape(count, -1) - size * torch.arange(count)[:, None])
        for order, size in ((matrix.row_order, m), (matrix.col_order, n))
    ]
    return tuple(HMatrix((m, n), tuple(part), *both) for part, *both in zip(leaves, *orders, strict=True))


def _cut(leaf: Leaf, row: int, rows: int, col: int, cols: int) -> Leaf:
    """What of a leaf lies in a block that it meets, counted from the block's corner. Only a leaf of rank 0 may reach
    outside.
    """
    top, left = max(leaf.row, row), max(leaf.col, col)
    if leaf.is_dense or leaf.rank:
        return replace(leaf, row=top - row, col=left - col)
    height, width = min(leaf.row + leaf.rows, row + rows) - top, min(leaf.col + leaf.cols, col + cols) - left
    u, vt = leaf.tensors
    return replace(leaf, row=top - row, rows=height, col=left - col, cols=width, u=u[:height], vt=vt[:, :width])


def _keeps(order: Tensor | None, count: int) -> bool:
    """Whether an ordering leaves each of so many equal parts to itself."""
    if order is None:
        return True
    parts = order.numpy().reshape(count, -1) // (len(order) // count)
    return bool((parts == np.arange(count)[:, None]).all())
