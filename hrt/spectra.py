"""Singular values of every block of a block tree, and factors of chosen blocks, in a weighted norm.

With a right factor L_J (C_JJ = L_J L_J^T, the inputs' second moment) and a left factor K_I (what the output feels),
a block's error is measured as ||K_I^T E L_J||_F. Its best rank-r approximation in that norm is
K_I^-T P_r P_r^T K_I^T A with P the left singular vectors of K_I^T A L_J, so no second moment is ever inverted.
Large blocks are never given a full SVD: a randomized range finder widens until the tail is small or low rank
cannot pay any more (Halko, Martinsson, Tropp, SIAM Review 53, 2011, algorithms 4.1 and 4.4).
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hrt.cluster import Level
from hrt.parallel import parallel_map

EXACT_SIDE = 32  # up to this side a LAPACK SVD is cheaper than a sketch
DETAILED_BLOCKS = 64  # up to this many weighted blocks the rounding noise of every direction is worked out
NOISE_ROUNDING = 2.0e-4  # float16's; the shape of the noise hardly depends on it
SKETCH = 16  # first width of a sketch


@dataclass(frozen=True, eq=False)
class BlockSource:
    """A float64 matrix (already in tree order) with optional second moments of its inputs and output sensitivities.

    matrix: (m, n).  right: (n, n) or None.  left: (m, m) or None, both symmetric positive semidefinite.
    """

    matrix: Tensor
    right: Tensor | None = None
    left: Tensor | None = None
    seed: int = 0

    def right_factor(self, a: int, b: int) -> Tensor | None:
        """Lower L with L L^T = right[a:b, a:b] (regularised at rounding level)."""
        return None if self.right is None else cholesky_psd(self.right[a:b, a:b])

    def left_factor(self, a: int, b: int) -> Tensor | None:
        """Lower K with K K^T = left[a:b, a:b]."""
        return None if self.left is None else cholesky_psd(self.left[a:b, a:b])


def cholesky_psd(c: Tensor) -> Tensor:
    """Cholesky factor of a positive semidefinite matrix; the smallest diagonal shift that makes it succeed."""
    scale = float(c.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)) if c.numel() else 1.0
    eye = torch.eye(c.shape[0], dtype=c.dtype)
    shift = 1e-14
    while True:
        factor, info = torch.linalg.cholesky_ex(c + (shift * scale) * eye)
        if not int(info) and bool(torch.isfinite(factor).all()):
            return factor
        shift *= 10


def weigh(block: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """K^T A L, for one block (h, w) or a batch of them."""
    if right is not None:
        block = block @ right
    return block if left is None else left.mT @ block


@dataclass(frozen=True, eq=False)
class LevelSpectra:
    """Per block (i, j) of a level: heights (R,), widths (C,), squared singular values (R, C, K) in falling order
    (zero where unknown), the squared norm (R, C), and the squared error of rounding the dense block to each storage.
    `noise` (R, C, K): what storing direction k with relative rounding error rho costs, over rho^2, in squared error.
    """

    level: Level
    heights: Tensor
    widths: Tensor
    sigma2: Tensor
    noise: Tensor
    norm2: Tensor
    rounding2: dict[str, Tensor]


def level_spectra(
    source: BlockSource, level: Level, roundings: dict[str, Tensor], floor2: float, limit: np.ndarray | None = None
) -> LevelSpectra:
    """Spectra of all blocks of a level. `roundings`: storage name to (m, n) rounding error matrix.

    `floor2`: a squared error of the whole matrix that is too small to matter; a block's sketch stops widening once
    it misses less than its share of it (by perimeter, which is what a direction costs). `limit` (R, C): a rank beyond
    which a block is not worth knowing.
    """
    rows, cols = level.rows, level.cols
    row_spans, col_spans = list(pairwise(rows)), list(pairwise(cols))
    heights = torch.tensor([b - a for a, b in row_spans])
    widths = torch.tensor([b - a for a, b in col_spans])
    perimeters = heights[:, None] + widths[None, :]
    floors = floor2 * perimeters / perimeters.sum()
    limits = torch.full(level.grid, torch.inf) if limit is None else torch.as_tensor(limit)
    width = int(widths.max())
    rights = [source.right_factor(a, b) for a, b in col_spans] if source.right is not None else [None] * len(col_spans)

    detailed = (source.left is not None or source.right is not None) and perimeters.numel() <= DETAILED_BLOCKS

    def strip(i: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        a, b = row_spans[i]
        left = source.left_factor(a, b)

        def weighted_blocks(matrix: Tensor) -> Tensor:
            out = matrix.new_zeros(len(col_spans), b - a, width)  # narrower blocks are padded with zero columns
            for j, (c, d) in enumerate(col_spans):
                out[j, :, : d - c] = weigh(matrix[a:b, c:d], left, rights[j])
            return out

        blocks = weighted_blocks(source.matrix)
        sigma2, norm2 = batch_spectra(blocks, floors[i], limits[i], source.seed)
        noise = 2 * sigma2
        if detailed:
            for j, span in enumerate(col_spans):
                basis = torch.linalg.svd(blocks[j], full_matrices=False).U[:, : sigma2.shape[1]]
                noise[j] = direction_noise(source, (a, b), span, basis)
        rounded = {name: (weighted_blocks(r) ** 2).sum((1, 2)) for name, r in roundings.items()}
        return sigma2, noise, norm2, rounded

    strips = parallel_map(strip, range(len(row_spans)))
    used = max(1, *(s[0].shape[1] for s in strips))
    sigma2 = torch.stack([torch.nn.functional.pad(s[0], (0, used - s[0].shape[1])) for s in strips])
    noise = torch.stack([torch.nn.functional.pad(s[1], (0, used - s[1].shape[1])) for s in strips])
    rounding2 = {name: torch.stack([s[3][name] for s in strips]) for name in roundings}
    return LevelSpectra(level, heights, widths, sigma2, noise, torch.stack([s[2] for s in strips]), rounding2)


def direction_noise(source: BlockSource, rows: tuple[int, int], cols: tuple[int, int], basis: Tensor) -> Tensor:
    """Expected squared error per direction, over rho^2, when u and vt are stored with relative rounding error rho.

    Independent errors of relative size rho on the entries of u_k and vt_k add
    rho^2 (sum_i G_ii u_ik^2 * vt_k C vt_k^T + u_k^T G u_k * sum_j C_jj vt_kj^2).
    """
    (a, b), (c, d) = rows, cols
    u, vt = factors_of_basis(source, rows, cols, basis, torch.full(basis.shape[1:], NOISE_ROUNDING, dtype=basis.dtype))
    g = torch.eye(b - a, dtype=u.dtype) if source.left is None else source.left[a:b, a:b]
    m = torch.eye(d - c, dtype=u.dtype) if source.right is None else source.right[c:d, c:d]
    u2, u_noise = ((g @ u) * u).sum(0), (g.diagonal()[:, None] * u * u).sum(0)
    v2, v_noise = ((vt @ m) * vt).sum(1), (m.diagonal() * vt * vt).sum(1)
    return u_noise * v2.clamp_min(0) + u2.clamp_min(0) * v_noise


def batch_spectra(blocks: Tensor, floors: Tensor, limits: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Leading squared singular values (b, k) of `blocks` (b, h, w), zero where unknown, and squared norms (b,).

    A sketch doubles until the energy it misses is below its floor (b,), it is wider than its limit (b,), or low rank
    cannot pay: at least missed / sigma_k^2 more directions are needed, since singular values fall. Small blocks are
    done exactly.
    """
    count, h, w = blocks.shape
    norm2 = (blocks * blocks).sum((1, 2))
    floors = torch.maximum(floors, 1e-14 * norm2)
    break_even = h * w / (h + w)
    found = blocks.new_zeros(count, min(h, w))
    pending = torch.nonzero(norm2 > 0).flatten()
    k, used = SKETCH, 1
    while len(pending):
        exact = 3 * k > min(h, w) or min(h, w) <= EXACT_SIDE
        part = blocks[pending]
        if exact:
            values = torch.linalg.svdvals(part) ** 2
        else:
            # The squares of the singular values of Q^T A, from its Gram matrix: good to rounding of norm2, as needed.
            projected = range_basis(part, k, seed).mT @ part
            values = torch.linalg.eigvalsh(projected @ projected.mT).flip(-1).clamp_min(0)
        found[pending, : values.shape[1]] = values
        used = max(used, values.shape[1])
        if exact:
            break
        limits = limits.clamp_max(break_even)
        missed = norm2[pending] - values.sum(1)
        needed = k + (missed - floors[pending]) / (2.0 * values[:, -1] + 1e-300)
        pending = pending[(missed > floors[pending]) & (needed <= 1.5 * break_even) & (k < limits[pending])]
        k *= 2
    return found[:, :used], norm2


def range_basis(block: Tensor, k: int, seed: int) -> Tensor:
    """Orthonormal (..., h, k) basis of nearly the leading k left singular vectors (sketch, one power iteration)."""
    generator = torch.Generator().manual_seed(seed)
    sketch = torch.randn(block.shape[-1], k, dtype=block.dtype, generator=generator)
    basis = torch.linalg.qr(block @ sketch).Q
    return torch.linalg.qr(block @ torch.linalg.qr(block.mT @ basis).Q).Q


def low_rank_factors(
    source: BlockSource, rows: tuple[int, int], cols: tuple[int, int], rank: int, rounding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Best rank-`rank` factors of a block in its weighted norm: u (h, r), vt (r, w) in float64.

    rounding: (r,) relative error of the storage type each direction is meant for; see `factors_of_basis`.
    """
    (a, b), (c, d) = rows, cols
    block = source.matrix[a:b, c:d]
    weighted = weigh(block, source.left_factor(a, b), source.right_factor(c, d))
    if 3 * (rank + 8) >= min(weighted.shape):
        basis = torch.linalg.svd(weighted, full_matrices=False).U[:, :rank]
    else:
        rough = range_basis(weighted, rank + 8, source.seed)
        basis = rough @ torch.linalg.svd(rough.mT @ weighted, full_matrices=False).U[:, :rank]
    rounding = torch.zeros(rank, dtype=basis.dtype) if rounding is None else rounding
    return factors_of_basis(source, rows, cols, basis, rounding)


def factors_of_basis(
    source: BlockSource, rows: tuple[int, int], cols: tuple[int, int], basis: Tensor, rounding: Tensor
) -> tuple[Tensor, Tensor]:
    """u (h, r) and vt (r, w) of a block from the left singular vectors `basis` (h, r) of its weighted form.

    Without weights u = P, vt = P^T A. With weights that is wasteful: components of vt that no input excites (and of u
    that no output feels) cost nothing in the error but set the scale of the rounding noise. The noise of relative
    size rho on vt costs rho^2 ||vt||^2 mean(C); minimising distortion plus noise is Tikhonov's problem,
    vt = P^T K^T A C (C + rho^2 mean(C) I)^-1 and u = (G + rho^2 mean(G) I)^-1 K P.
    Each direction is balanced, ||u_k|| = ||vt_k||, so that narrow storage types lose as little as they can.
    """
    (a, b), (c, d) = rows, cols
    u, vt = basis, basis.mT @ source.matrix[a:b, c:d]
    left = source.left_factor(a, b)
    if left is not None and source.left is not None:
        vt = basis.mT @ (left.mT @ source.matrix[a:b, c:d])
        u = shrink(source.left[a:b, a:b], left @ basis, rounding)
    if source.right is not None:
        moment = source.right[c:d, c:d]
        vt = shrink(moment, moment @ vt.mT, rounding).mT
    tiny = torch.finfo(torch.float64).tiny
    balance = ((vt.norm(dim=1) + tiny) / (u.norm(dim=0) + tiny)).sqrt()
    balance = torch.where(vt.norm(dim=1) > 0, balance, torch.ones_like(balance))
    return u * balance, vt / balance[:, None]


def shrink(moment: Tensor, right_hand_side: Tensor, rounding: Tensor) -> Tensor:
    """Column k of the result is (M + rho_k^2 mean(M) I)^-1 b_k, for a positive semidefinite M; the shift is never below
    rounding level. rounding: (columns,).
    """
    mean = moment.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    eye = torch.eye(moment.shape[0], dtype=moment.dtype)
    out = torch.empty_like(right_hand_side)
    for rho in rounding.unique().tolist():
        columns = rounding == rho
        factor = cholesky_psd(moment + max(rho**2, 1e-13) * mean * eye)
        out[:, columns] = torch.cholesky_solve(right_hand_side[:, columns], factor)
    return out
