"""Which orders of rows and columns to compress in, and matrices brought into such an order."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.matrix_compression.block_source import STRIP, BlockSource
from hrt.matrix_compression.cluster_tree import coordinate_order, gram_order
from hrt.matrix_compression.planner import Plan, planner_for
from hrt.matrix_compression.request import Problem, largest_entry, usable_storages
from hrt.support.arrays import as_tensor

ORDERING_SIDE = 256  # of a layer of a network; below this it is one or few leaves and its order hardly matters
GRAM_SIDE = 64  # of a matrix on its own; smaller ones are not worth another try
ESTIMATED_ENTRIES = 1 << 20  # from here on orders are compared by estimates
SAMPLED_SIDE = 256  # rows and columns that an estimate is made from; 512 is closer, and takes three times as long
# Of the least estimate over another's: from here on that order is tried as well. Estimates of two orders differ less
# than their sizes do (0.24 for 0.06, 3.3 for 4.4), and sizes had no other sign where estimates differed more than this.
ALIKE = 0.95
TILE = 128  # of a comparison with the transpose

Order = tuple[Tensor | None, Tensor | None]  # of rows and of columns; None is the natural order


def orders(problem: Problem) -> list[Order]:
    """The pairs of orders that `ordering` stands for, or the partition's; of a large matrix those that may be best."""
    request, matrix = problem.request, problem.near
    if request.partition is not None:
        return [(request.partition.row_order, request.partition.col_order)]
    ordering, seed = request.ordering, request.seed
    m, n = matrix.shape
    points = [_as_points(request.row_points, m, "row_points"), _as_points(request.column_points, n, "column_points")]
    if ordering == "coordinates" and points == [None, None]:
        raise InputError('ordering="coordinates" needs row_points or column_points.')
    given: list[Order] = []
    searched: list[Order] = []
    if ordering in ("auto", "natural"):
        given.append((None, None))
    if ordering in ("auto", "coordinates") and points != [None, None]:
        rows, cols = (None if p is None else coordinate_order(p) for p in points)
        given.append((rows, cols))
    if ordering == "gram" or (ordering == "auto" and points == [None, None] and min(m, n) >= GRAM_SIDE):
        rows = gram_order(matrix, seed)
        searched.append((rows, rows if is_symmetric(matrix) else gram_order(matrix.T, seed)))
    if len(given + searched) > 1 and m * n >= ESTIMATED_ENTRIES:
        return promising_orders(problem, given, searched)
    return given + searched


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


def promising_orders(problem: Problem, given: Sequence[Order], searched: Sequence[Order]) -> list[Order]:
    """Those that may give the smallest matrix; only given ones where nothing but dense blocks pays in any."""
    plans = sampled_plans(problem, [*given, *searched])
    if plans and all(leaf.dense is not None for leaf in min(plans, key=lambda plan: plan.cost).leaves):
        searched = ()
    pairs = list(zip([*given, *searched], plans, strict=False))
    least = min((plan.cost for _, plan in pairs), default=0.0)
    return [order for order, plan in pairs if ALIKE * plan.cost <= least] or [*given, *searched]


def sampled_plans(problem: Problem, pairs: Sequence[Order]) -> list[Plan]:
    """The plans of a sample of rows and columns in each of these orders, whose bytes count in their costs.

    None where the sample is zero. A position in every part of a side is drawn, in the natural order, and as far into
    its part on both sides: what is near the diagonal stays there. The sample's blocks are thinned blocks of all sizes,
    on the diagonal and off it. A leaf's time is not counted: beside numbers so few it would be all that counts.
    """
    request, matrix = problem.request, problem.near
    rows, cols = (_sample(size, request.seed) for size in matrix.shape)
    sample = matrix[rows][:, cols].to(torch.float64)
    moment = None if problem.moment is None else problem.moment[cols][:, cols]
    if BlockSource(sample, moment).norm2() == 0:
        return []
    leaf = request.min_leaf and max(1, request.min_leaf * min(sample.shape) // min(matrix.shape))
    request = replace(request, target="bytes", min_leaf=leaf)
    storages = usable_storages(request.storages, largest_entry(matrix))
    share = sample.numel() / matrix.numel()  # of the squared error, which is spread evenly
    plans = []
    for order in pairs:
        r, c = (_order_of(picked, o) for picked, o in zip((rows, cols), order, strict=True))
        weights = None if moment is None else permute(moment, c, c)
        source = BlockSource(permute(sample, r, c), weights, None, request.seed)
        budget2 = request.tol**2 * source.norm2() if source.weighted else share * problem.near_allowed2
        plan = planner_for(source, request, budget2, storages).solve_budget(budget2)
        plans.append(replace(plan, cost=plan.cost + sum(4.0 * len(o) for o in (r, c) if o is not None)))
    return plans


def _sample(size: int, seed: int) -> Tensor:
    """At most SAMPLED_SIDE indices below `size`, rising, one from each of parts nearly equal."""
    count = min(size, SAMPLED_SIDE)
    cuts = torch.linspace(0, size, count + 1, dtype=torch.float64)
    within = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (cuts[:-1] + within * cuts.diff()).long().clamp_max(size - 1)


def _order_of(picked: Tensor, order: Tensor | None) -> Tensor | None:
    """The order of picked indices among themselves that an order of all gives."""
    if order is None:
        return None
    place = torch.empty_like(order).index_copy_(0, order.long(), torch.arange(len(order), dtype=order.dtype))
    return place[picked].argsort()


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
