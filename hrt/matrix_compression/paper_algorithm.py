"""Algorithm 1 of arXiv 2409.07028, literally and with shares that keep the whole error: the readable references."""

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.matrix_compression.cluster_tree import block_levels, children_of
from hrt.matrix_compression.compress_matrix import dense_within, scaled
from hrt.matrix_compression.request import MatrixRequest, Problem, check_whole
from hrt.support.torch_state import guarded


@guarded
def adaptive_partition(
    matrix: Tensor | ArrayLike, tol: float, *, max_rank: int = 16, min_leaf: int = 32, literal: bool = False
) -> HMatrix:
    """Partition by the paper's algorithm, as a reference: refine every block whose error is above its tolerance.

    A block is approximated by the least rank within its tolerance, of at most `max_rank`. Where that misses it, the
    block is cut into four; the finest blocks then stay dense. The two forms differ in two rules:

    - literal: every block has the same tolerance tau = tol ||W||_F, as in the paper, and stays where it is within it.
      That bounds the whole error by tau sqrt(blocks) only, not by tau: a log kernel of 256 at 1e-2 ends at 2.3 tau, cut
      to blocks of 16 at 4.8 tau. A block may take more numbers than it has entries.
    - by shares (default): a block's tolerance is tol ||W||_F sqrt(its entries / all entries), so that the disjoint
      errors add up to at most tol ||W||_F. A block within it is cut as well where rank (m + n) >= m n.

    Args:
        matrix: (m, n).
        tol: relative Frobenius error: of all blocks together or, literally, of each one.
        max_rank: the largest rank of a block.
        min_leaf: the smallest block side.
        literal: as the paper has it.

    Returns:
        The partition with float32 leaves.

    Raises:
        InputError: no matrix, NaN or infinite entries, or a rank or side that is no whole number from 1 on (rank: 0).
        ToleranceError: tol is not positive, above 1, or below what float32 can hold.

    Example:
        >>> h = adaptive_partition(torch.ones(64, 64), 1e-3)
        >>> [leaf.rank for leaf in h.leaves]
        [1]

    Source:
        Algorithm 1 of Mango & Katende, arXiv 2409.07028.
    """
    max_rank = check_whole(max_rank, "max_rank", 0)
    problem = Problem.of(matrix, MatrixRequest(tol, min_leaf=min_leaf))
    dense_within(problem)
    w, allowed2 = problem.near.to(torch.float64), problem.near_allowed2
    levels = block_levels(w.shape[0], w.shape[1], min_leaf)
    leaves: list[Leaf] = []

    def refine(depth: int, i: int, j: int) -> None:
        level = levels[depth]
        (a, b), (c, d) = level.rows[i : i + 2], level.cols[j : j + 2]
        block = w[a:b, c:d]
        u, sigma, vt = torch.linalg.svd(block, full_matrices=False)
        tail2 = torch.cat([(sigma**2).flip(0).cumsum(0).flip(0), sigma.new_zeros(1)])
        rank = int((tail2 > (allowed2 if literal else allowed2 * block.numel() / w.numel())).sum())
        if rank <= max_rank and (literal or rank * (b - a + d - c) < block.numel()):
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
    return scaled(HMatrix((w.shape[0], w.shape[1]), tuple(leaves)), problem.exponent)
