"""Low-rank factors of chosen blocks, best in the norm of their weights.

With a right factor L_J (C_JJ = L_J L_J^T, the inputs' second moment) and a left factor K_I (what the output feels),
a block's error is measured as ||K_I^T E L_J||_F. Its best rank-r approximation in that norm is
K_I^-T P_r P_r^T K_I^T A with P the left singular vectors of K_I^T A L_J, so no second moment is ever inverted.
"""

import torch
from torch import Tensor

from hrt.matrix_compression.block_source import BlockSource, cholesky_psd, leading_basis, range_basis, times, weigh


def low_rank_factors(
    source: BlockSource, rows: tuple[int, int], cols: tuple[int, int], rank: int
) -> tuple[Tensor, Tensor]:
    """Best rank-`rank` factors of a block in its weighted norm: u (h, r), vt (r, w) in float64."""
    if not source.weighted:
        u, vt = plain_factors(source.matrix[None, rows[0] : rows[1], cols[0] : cols[1]], rank, source.seed)
        return u[0], vt[0]
    weighted = weigh(source.block(rows, cols), source.left_factor(*rows), source.right_factor(*cols))
    return factors_of_basis(source, rows, cols, leading_basis(weighted, rank, source.seed))


def plain_factors(blocks: Tensor, rank: int, seed: int, fast: bool = False) -> tuple[Tensor, Tensor]:
    """Best rank-`rank` factors of blocks (b, h, w) in the Frobenius norm: u (b, h, r), vt (b, r, w), balanced.

    From Gram matrices, whose rounding is that of the block's squared norm: far below any tolerance that float32 holds.
    """
    rough, image = None, blocks
    if 3 * (rank + 8) < min(blocks.shape[1:]):
        rough = range_basis(blocks, rank + 8, seed, fast)
        image = times(blocks.mT, rough, fast).mT
    elif blocks.shape[1] > blocks.shape[2]:
        vt, u = (f.mT for f in plain_factors(blocks.mT, rank, seed, fast))
        return u, vt
    image = image.to(torch.float64)
    basis = torch.linalg.eigh(image @ image.mT).eigenvectors[..., -rank:].flip(-1)
    return balanced(basis if rough is None else rough @ basis, basis.mT @ image)


def balanced(u: Tensor, vt: Tensor) -> tuple[Tensor, Tensor]:
    """Each direction with ||u_k|| = ||vt_k||, so that narrow storage types lose as little as they can."""
    tiny = torch.finfo(torch.float64).tiny
    balance = ((vt.norm(dim=-1) + tiny) / (u.norm(dim=-2) + tiny)).sqrt()
    balance = torch.where(vt.norm(dim=-1) > 0, balance, torch.ones_like(balance))
    return u * balance[..., None, :], vt / balance[..., None]


def factors_of_basis(
    source: BlockSource, rows: tuple[int, int], cols: tuple[int, int], basis: Tensor
) -> tuple[Tensor, Tensor]:
    """u (h, r) and vt (r, w) of a block from the left singular vectors `basis` (h, r) of its weighted form: u = K^-T P
    and vt = P^T K^T A. Components of vt that no input excites, and of u that no output feels, are left out.
    """
    (a, b), (c, d) = rows, cols
    u, vt = basis, basis.mT @ source.block(rows, cols)
    left = source.left_factor(a, b)
    if left is not None and source.left is not None:
        vt = basis.mT @ (left.mT @ source.block(rows, cols))
        u = least_squares(source.left[a:b, a:b], left @ basis)
    if source.right is not None:
        moment = source.right[c:d, c:d]
        vt = least_squares(moment, moment @ vt.mT).mT
    return balanced(u, vt)


def least_squares(moment: Tensor, right_hand_side: Tensor) -> Tensor:
    """M^-1 B for a positive semidefinite M that may be singular, regularised at rounding level."""
    mean = moment.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    eye = torch.eye(moment.shape[0], dtype=moment.dtype)
    return torch.cholesky_solve(right_hand_side, cholesky_psd(moment + 1e-13 * mean * eye))
