"""Algorithm 1 of arXiv 2409.07028, as it stands there: the readable reference."""

import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.cluster_tree import block_levels, children_of
from hrt.support.torch_state import guarded


@guarded
def adaptive_partition(matrix: Tensor, tol: float, *, max_rank: int = 16, min_leaf: int = 32) -> HMatrix:
    """Partition by the paper's algorithm, as a reference: refine every block whose error is above its share.

    A block stays as low rank where its truncation error is at most tol * ||W||_F * sqrt(its entries / all entries), so
    that the disjoint errors add up to at most tol * ||W||_F. Else it is cut into four; the finest blocks stay dense.

    Args:
        matrix: (m, n).
        tol: relative Frobenius error.
        max_rank: the largest rank of a block.
        min_leaf: the smallest block side.

    Returns:
        The partition with float32 leaves.

    Example:
        >>> h = adaptive_partition(torch.ones(64, 64), 1e-3)
        >>> [leaf.rank for leaf in h.leaves]
        [1]

    Source:
        Algorithm 1 of Mango & Katende, arXiv 2409.07028.
    """
    w = matrix.to(torch.float64)
    budget2 = tol**2 * float((w * w).sum()) / max(1, w.numel())
    levels = block_levels(w.shape[0], w.shape[1], min_leaf)
    leaves: list[Leaf] = []

    def refine(depth: int, i: int, j: int) -> None:
        level = levels[depth]
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
            p, q = children_of(levels[depth + 1].grid, level.grid)
            for child_i in range(i * p, i * p + p):
                for child_j in range(j * q, j * q + q):
                    refine(depth + 1, child_i, child_j)

    if w.numel():
        refine(0, 0, 0)
    return HMatrix((w.shape[0], w.shape[1]), tuple(leaves))
