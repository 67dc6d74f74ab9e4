"""A matrix that is zero outside of equal blocks along its diagonal: a stack of matrices, side by side."""

import math
from dataclasses import replace

import numpy as np
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix


def diagonal_blocks(matrix: HMatrix) -> tuple[HMatrix, ...]:
    """The most equal blocks along the diagonal, from the top, outside of which every leaf is empty; () for less than
    two. Orderings must keep to the blocks.
    """
    m, n = matrix.shape
    places = np.array([e.place for e in matrix.leaves if e.is_dense or e.rank]).reshape(-1, 4)
    if not len(places) or 2 * places[:, 1].max() > m or 2 * places[:, 3].max() > n:
        return ()
    common = math.gcd(m, n)
    for count in (k for k in range(common, 1, -1) if common % k == 0):
        size = np.array([m // count, n // count])
        first = places[:, ::2] // size
        last = (places[:, ::2] + places[:, 1::2] - 1) // size
        orders = (_keeps(order, count) for order in (matrix.row_order, matrix.col_order))
        if (first[:, 0] == first[:, 1]).all() and (first == last).all() and all(orders):
            return tuple(_block(matrix, k, m // count, n // count) for k in range(count))
    return ()


def _keeps(order: Tensor | None, count: int) -> bool:
    """Whether an ordering leaves each of so many equal parts to itself."""
    if order is None:
        return True
    parts = order.numpy().reshape(count, -1) // (len(order) // count)
    return bool((parts == np.arange(count)[:, None]).all())


def _block(matrix: HMatrix, k: int, m: int, n: int) -> HMatrix:
    row, col = k * m, k * n
    leaves = tuple(
        replace(e, row=e.row - row, col=e.col - col)
        for e in matrix.leaves
        if row <= e.row and e.row + e.rows <= row + m and col <= e.col and e.col + e.cols <= col + n
    )
    orders = ((matrix.row_order, row, m), (matrix.col_order, col, n))
    parts = (None if order is None else order[start : start + size].long() - start for order, start, size in orders)
    return HMatrix((m, n), leaves, *parts)
