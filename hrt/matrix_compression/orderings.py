"""Which orders of rows and columns to compress in, and matrices brought into such an order."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.matrix_compression.block_source import STRIP, range_basis
from hrt.matrix_compression.cluster_tree import coordinate_order, gram_order
from hrt.matrix_compression.request import Problem
from hrt.support.arrays import as_tensor

ORDERING_SIDE = 256  # of a layer of a network; below this it is one or few leaves and its order hardly matters
GRAM_SIDE = 64  # of a matrix on its own; smaller ones are not worth another try
ESTIMATED_ENTRIES = 1 << 20  # from here on one ordering is chosen by an estimate
CLEARLY_LESS = 0.7  # of the natural order's estimate; a sample of blocks says no more
SAMPLED_PARTS = 16  # of a side; the sample's blocks are that small
SAMPLED_RANK = 8  # directions of a sampled block that count as captured
TILE = 128  # of a comparison with the transpose

Order = tuple[Tensor | None, Tensor | None]  # of rows and of columns; None is the natural order


def orders(problem: Problem) -> list[Order]:
    """The pairs of orders that `ordering` stands for, or the partition's; of a large matrix the one estimated best."""
    request, matrix = problem.request, problem.near
    if request.partition is not None:
        return [(request.partition.row_order, request.partition.col_order)]
    ordering, seed = request.ordering, request.seed
    m, n = matrix.shape
    points = [_as_points(request.row_points, m, "row_points"), _as_points(request.column_points, n, "column_points")]
    if ordering == "coordinates" and points == [None, None]:
        raise InputError('ordering="coordinates" needs row_points or column_points.')
    pairs: list[Order] = []
    if ordering in ("auto", "natural"):
        pairs.append((None, None))
    if ordering in ("auto", "coordinates") and points != [None, None]:
        rows, cols = (None if p is None else coordinate_order(p) for p in points)
        pairs.append((rows, cols))
    if ordering == "gram" or (ordering == "auto" and points == [None, None] and min(m, n) >= GRAM_SIDE):
        rows = gram_order(matrix, seed)
        pairs.append((rows, rows if is_symmetric(matrix) else gram_order(matrix.T, seed)))
    if len(pairs) > 1 and m * n >= ESTIMATED_ENTRIES:
        pairs = [best_order(matrix, pairs, seed)]
    return pairs


def is_symmetric(matrix: Tensor) -> bool:
    """Whether a matrix is its transpose, by tiles that stay in the cache."""
    n = matrix.shape[0]
    cuts = range(0, n, TILE)
    return n == matrix.shape[1] and all(
        torch.equal(matrix[i : i + TILE, j : j + TILE], matrix[j : j + TILE, i : i + TILE].mT)
        for i in cuts
        for j in cuts
        if j <= i
    )


def best_order(matrix: Tensor, pairs: Sequence[Order], seed: int) -> Order:
    """The orders whose sampled blocks leave least outside their first directions; the first unless clearly worse.

    Half of the sample is diagonal, where the energy of kernels is.
    """
    m, n = matrix.shape
    generator = torch.Generator().manual_seed(seed)
    parts = SAMPLED_PARTS
    row_cuts, col_cuts = (torch.linspace(0, side, parts + 1).long().tolist() for side in (m, n))
    places = [(i, i) for i in range(0, parts, 2)]
    places += torch.randint(0, parts, (parts, 2), generator=generator).tolist()
    missed = []
    for rows, cols in pairs:
        total = 0.0
        for i, j in places:
            r, c = slice(row_cuts[i], row_cuts[i + 1]), slice(col_cuts[j], col_cuts[j + 1])
            block = matrix[r] if rows is None else matrix[rows[r]]
            block = (block[:, c] if cols is None else block[:, cols[c]]).to(torch.float64)
            captured = range_basis(block, min(SAMPLED_RANK, *block.shape), seed).mT @ block
            total += math.sqrt(max(0.0, float(block.square().sum() - captured.square().sum())))
        missed.append(total)
    best = min(range(len(pairs)), key=lambda k: missed[k])
    return pairs[best] if missed[best] < CLEARLY_LESS * missed[0] else pairs[0]


def permute(matrix: Tensor, rows: Tensor | None, cols: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    """The matrix in tree order, in another dtype if asked: one copy at most."""
    dtype = dtype or matrix.dtype
    if rows is None and cols is None:
        return matrix.to(dtype)
    out = torch.empty(matrix.shape, dtype=dtype)
    for a in range(0, matrix.shape[0], STRIP):
        strip = matrix[a : a + STRIP] if rows is None else matrix[rows[a : a + STRIP].long()]
        out[a : a + STRIP] = strip if cols is None else strip[:, cols.long()]
    return out


def _as_points(points: Any, count: int, what: str) -> Tensor | None:
    if points is None:
        return None
    p = as_tensor(points, what).cpu().to(torch.float64)
    p = p.reshape(p.shape[0], -1) if p.ndim else p.reshape(1, 1)
    if p.shape[0] != count or not bool(torch.isfinite(p).all()):
        raise InputError(f"Expected {what} as {count} finite points (count, d). Found shape {tuple(p.shape)}.")
    return p
