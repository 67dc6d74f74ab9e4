"""Algorithm 1 of arXiv 2409.07028, as it stands there: the readable reference."""

import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.cluster_tree import Level, block_levels
from hrt.matrix_compression.planner import _factors


def adaptive_partition(matrix: Tensor, tol: float, *, max_rank: int = 16, min_leaf: int = 32) -> HMatrix:
    """Algorithm 1 of arXiv 2409.07028 as a reference: keep a block as rank <= `max_rank` where its truncation error
    is at most its share of the budget, else refine it into four; the finest blocks stay dense.

    The share is tol * ||W||_F * sqrt(block entries / all entries), so that the disjoint errors add up to at most
    tol * ||W||_F (the paper's global bound, an equality for disjoint blocks). matrix: (m, n); returns float32 leaves.
    """
    w = matrix.to(torch.float64)
    budget2 = tol**2 * float((w * w).sum()) / max(1, w.numel())
    levels = block_levels(w.shape[0], w.shape[1], min_leaf)
    leaves: list[Leaf] = []

    def refine(depth: int, i: int, j: int) -> None:
        level: Level = levels[depth]
        (a, b), (c, d) = level.rows[i : i + 2], level.cols[j : j + 2]
        block = w[a:b, c:d]
        u, sigma, vt = torch.linalg.svd(block, full_matrices=False)
        tail2 = torch.cat([(sigma**2).flip(0).cumsum(0).flip(0), sigma.new_zeros(1)])
        rank = int((tail2 > budget2 * block.numel()).sum())
        if rank <= max_rank and rank * (b - a + d - c) < block.numel():
            scale = sigma[:rank].sqrt()
            us, vs = u[:, :rank] * scale, vt[:rank] * scale[:, None]
            leaves.append(Leaf(a, b - a, c, d - c, u=us.float().contiguous(), vt=vs.float().contiguous()))
        elif depth + 1 == len(levels):
            leaves.append(Leaf(a, b - a, c, d - c, dense=block.float().contiguous()))
        else:
            p, q = _factors(levels[depth + 1].grid, level.grid)
            for child_i in range(i * p, i * p + p):
                for child_j in range(j * q, j * q + q):
                    refine(depth + 1, child_i, child_j)

    if w.numel():
        refine(0, 0, 0)
    return HMatrix((w.shape[0], w.shape[1]), tuple(leaves))
