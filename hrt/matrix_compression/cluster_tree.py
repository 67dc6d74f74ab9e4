"""Cluster trees and the orderings that make blocks low-rank: natural, coordinates (k-d), Gram angles.

A tree is implicit: every interval is halved at `split_point`, so that blocks of a level are nearly equal.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hrt.matrix_compression.block_source import times

SKETCHED = 256  # dimensions of the vectors whose angles are compared
ALIGN = 8  # interior cuts are multiples of this where an interval is long enough: tensor-core tiles start there


def split_point(size: int) -> int:
    """Where an interval of `size` positions is halved."""
    half = (size + 1) // 2
    return (half + ALIGN // 2) // ALIGN * ALIGN if size >= 4 * ALIGN else half


def bounds(size: int, depth: int) -> tuple[int, ...]:
    """The 2^depth + 1 cuts of [0, size) after `depth` halvings."""
    cuts = [0, size]
    for _ in range(depth):
        halved = [a + split_point(b - a) for a, b in pairwise(cuts)]
        cuts = sorted([*cuts, *halved])
    return tuple(cuts)


@dataclass(frozen=True)
class Level:
    """One level of the block tree: row cuts and column cuts; block (i, j) lies between cuts i, i+1 and j, j+1."""

    rows: tuple[int, ...]
    cols: tuple[int, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks down and across."""
        return len(self.rows) - 1, len(self.cols) - 1


def block_levels(m: int, n: int, min_leaf: int) -> tuple[Level, ...]:
    """Levels from the whole matrix down to blocks of at least `min_leaf`; a long side is halved first."""
    row_depth = col_depth = 0
    levels = [Level(bounds(m, 0), bounds(n, 0))]
    while True:
        h, w = m / 2**row_depth, n / 2**col_depth
        rows, cols = h >= 2 * min_leaf, w >= 2 * min_leaf
        if not rows and not cols:
            return tuple(levels)
        if rows and cols and (h > 1.5 * w or w > 1.5 * h):
            rows, cols = h > w, w > h
        row_depth, col_depth = row_depth + rows, col_depth + cols
        levels.append(Level(bounds(m, row_depth), bounds(n, col_depth)))


def children_of(fine: tuple[int, int], coarse: tuple[int, int]) -> tuple[int, int]:
    """How many blocks of the grid `fine`, down and across, one block of the grid `coarse` is cut into."""
    return fine[0] // coarse[0], fine[1] // coarse[1]


def sum_children(values: Any, grid: tuple[int, int]) -> Any:
    """Of an array or tensor of numbers of blocks, the sums over those within each block of `grid`."""
    a, b = children_of(values.shape[:2], grid)
    return values.reshape(grid[0], a, grid[1], b, *values.shape[2:]).sum((1, 3))


def coordinate_order(points: Tensor) -> Tensor:
    """k-d order of `points` (n, d): every interval is halved along its widest coordinate. Returns (n,) int64."""
    points = points.to(torch.float64).reshape(points.shape[0], -1)

    def score(index: Tensor) -> Tensor:
        p = points[index]
        return p[:, (p.amax(0) - p.amin(0)).argmax()]

    return _bisect(points.shape[0], score)


def gram_order(vectors: Tensor, seed: int = 0) -> Tensor:
    """Order `vectors` (n, d) by their Gram angles arccos |cos(v_i, v_j)|, (n,) int64, in O(n d log n).

    Intervals are halved by which of two far-apart pivots is closer in angle (the distance of GOFMM: Yu, Levitt, Reiz,
    Biros, SC 2017, section 2.1). Long vectors are first projected to SKETCHED random dimensions.
    """
    if vectors.shape[1] > 2 * SKETCHED:
        generator = torch.Generator().manual_seed(seed)
        sketch = torch.randn(vectors.shape[1], SKETCHED, dtype=torch.float64, generator=generator)
        v = times(vectors, sketch)
    else:
        v = vectors.to(torch.float64)
    unit = v / v.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)

    def angle(u: Tensor, pivot: Tensor) -> Tensor:
        return torch.arccos((u @ pivot).abs().clamp_max(1.0))

    def score(index: Tensor) -> Tensor:
        u = unit[index]
        p = u[angle(u, u[0]).argmax()]
        from_p = angle(u, p)
        return from_p - angle(u, u[from_p.argmax()])

    return _bisect(v.shape[0], score)


def _bisect(size: int, score) -> Tensor:
    order = torch.arange(size)
    stack = [(0, size)]
    while stack:
        a, b = stack.pop()
        if b - a <= ALIGN:
            continue
        part = order[a:b]
        order[a:b] = part[torch.argsort(score(part), stable=True)]
        cut = a + split_point(b - a)
        stack += [(a, cut), (cut, b)]
    return order


def default_min_leaf(m: int, n: int) -> int:
    """Smallest block side worth a leaf of its own (measured on log kernels: 16 keeps 14 % fewer bytes than 32)."""
    return 8 if min(m, n) < 256 else 16
