"""Singular values of every block of a block tree, in a weighted norm (see `factors_of_basis`).

Large blocks get a randomized range finder (Halko, Martinsson, Tropp, SIAM Review 53, 2011, algorithms 4.1 and 4.4).
"""

from collections.abc import Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import STORAGE
from hrt.matrix_compression.block_source import (
    LARGE_BLOCK,
    BlockSource,
    factors_of_basis,
    leading_basis,
    of_one_length,
    range_basis,
    squared_frobenius,
    times,
    weigh_all,
)
from hrt.matrix_compression.cluster_tree import Level, sum_children
from hrt.matrix_compression.rounding import INT8_LEVELS, int8_scale
from hrt.support.parallel import one_blas_thread, parallel_map

EXACT_SIDE = 32  # up to this side a LAPACK SVD is cheaper than a sketch
DETAILED_BLOCKS = 64  # up to this many weighted blocks the rounding noise of every direction is worked out
INT8_VARIANCE = ((1 + 2.0**-8) / INT8_LEVELS) ** 2 / 12  # of rounding uniformly, over the row's largest entry squared
CRUMBS = 0.01  # share of a floor that is not worth a direction
GLANCE = 4  # directions; most blocks of a smooth matrix have no more, and show it for a quarter of an SVD's time
SKETCH = 16  # width of the next sketch


@dataclass(frozen=True, eq=False)
class LevelSpectra:
    """Per block of a level (R, C): squared singular values (R, C, K), zero where unknown; squared norm; squared error
    of dense rounding by storage.  noise (R, C, K): of storing direction k with relative rounding rho, over rho^2.
    """

    level: Level
    heights: Tensor
    widths: Tensor
    sigma2: Tensor
    noise: Tensor
    norm2: Tensor
    rounding2: dict[str, Tensor]
    peaks: Tensor  # (m, C): the largest entry of each row of each block; of no use with weights


@dataclass(frozen=True, eq=False)
class _Strip:
    """One strip of a level's blocks and what it takes to find their spectra; it can travel to another process."""

    source: BlockSource  # the strip's rows; the column weights of the whole matrix
    cols: tuple[int, ...]
    floors: Tensor
    limits: Tensor
    storages: tuple[str, ...]
    detailed: bool
    norm2: Tensor | None  # of the blocks of an unweighted matrix, where their parts' are known


def level_spectra(
    source: BlockSource,
    level: Level,
    storages: tuple[str, ...],
    floor2: float,
    limit: np.ndarray | None = None,
    finer: LevelSpectra | None = None,
    executor: Executor | None = None,
) -> LevelSpectra:
    """Spectra of all blocks of a level, and what rounding them to each storage type costs.

    floor2: squared error of the whole matrix too small to matter; blocks share it by perimeter, a direction's price.
    limit (R, C): the largest rank worth knowing.
    """
    rows, cols = level.rows, level.cols
    heights = torch.tensor([b - a for a, b in pairwise(rows)])
    widths = torch.tensor([b - a for a, b in pairwise(cols)])
    perimeters = (heights[:, None] + widths[None, :]).to(torch.float64)  # float32 would overflow with the floors
    floors = floor2 * perimeters / perimeters.sum()
    limits = torch.full(level.grid, torch.inf) if limit is None else torch.as_tensor(limit)
    detailed = source.weighted and perimeters.numel() <= DETAILED_BLOCKS
    summed = finer is not None and not source.weighted  # squared Frobenius errors of rounding add up

    known2 = sum_children(finer.norm2, level.grid) if summed and finer is not None else [None] * level.grid[0]
    spans, shared = tuple(pairwise(cols)), list[Hashable]()
    if source.right is not None:  # every strip has the same columns
        source.right_factors(spans)
        groups = [tuple(spans[j] for j in members) for members in of_one_length(spans).values()]
        shared += [("factors", spans), *(("rights", group) for group in groups)]

    def strip(i: int) -> _Strip:
        a, b = rows[i], rows[i + 1]
        matrix = source.matrix[a:b] if executor is None else source.matrix[a:b].clone()  # a view would travel whole
        left = None if source.left is None else source.left[a:b, a:b].clone()
        part = BlockSource(matrix, source.right, left, source.seed, source.fast, {k: source.memo[k] for k in shared})
        return _Strip(part, cols, floors[i].clone(), limits[i].clone(), () if summed else storages, detailed, known2[i])

    strips = parallel_map(_strip_spectra, (strip(i) for i in range(len(rows) - 1)), executor)
    sigma2, noise = _stacked([s[0] for s in strips]), _stacked([s[1] for s in strips])
    norm2 = torch.stack([s[2] for s in strips])
    peaks = torch.cat([s[3].mT for s in strips])
    if summed and finer is not None:
        rounding2 = {s: sum_children(v, level.grid) for s, v in finer.rounding2.items() if s != "int8"}
        if "int8" in finer.rounding2:
            peaks = finer.peaks.reshape(len(finer.peaks), level.grid[1], -1).amax(2)
            sums = torch.nn.functional.pad((peaks**2).cumsum(0), (0, 0, 1, 0))[list(rows)]
            rounding2["int8"] = widths * (sums[1:] - sums[:-1]) * INT8_VARIANCE
    else:
        known = [s for s in storages if all(s in part[4] for part in strips)]  # the others overflow
        rounding2 = {s: torch.stack([part[4][s] for part in strips]) for s in known}
    return LevelSpectra(level, heights, widths, sigma2, noise, norm2, rounding2, peaks)


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Tensors that differ in width alone, with zeros behind the narrower ones."""
    width = max(p.shape[-1] for p in parts)
    return torch.stack([torch.nn.functional.pad(p, (0, width - p.shape[-1])) for p in parts])


def _strip_spectra(strip: _Strip) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Per block: squared singular values, their noise, squared norm, row peaks (h,), finite rounding errors."""
    source, spans = strip.source, list(pairwise(strip.cols))
    height, width = source.matrix.shape[0], max(b - a for a, b in spans)
    with one_blas_thread():
        if not source.weighted and not strip.storages and height * width >= LARGE_BLOCK:
            squares = strip.norm2
            if squares is None:
                squares = torch.tensor(
                    [squared_frobenius(source.matrix[:, a:b]) for a, b in spans], dtype=torch.float64
                )
            large = [
                batch_spectra(source.matrix[None, :, a:b], f[None], r[None], source.seed, source.fast, norm2[None])
                for (a, b), f, r, norm2 in zip(spans, strip.floors, strip.limits, squares, strict=True)
            ]
            sigma2 = _stacked([s[0] for s, _ in large])
            return sigma2, 2 * sigma2, torch.cat([n for _, n in large]), sigma2[:, :0], {}
        given = cut_columns(source.matrix, strip.cols)
        blocks = weigh_all(source, given.to(torch.float64), spans)
        sigma2, norm2 = batch_spectra(blocks, strip.floors, strip.limits, source.seed, norm2=strip.norm2)
        sigma2 = sigma2[:, : max(1, int((sigma2 > 0).sum(1).max()))]
        noise = 2 * sigma2
        if strip.detailed:
            for members in of_one_length(spans).values():
                basis = leading_basis(blocks[members], sigma2.shape[1], source.seed)
                noise[members] = direction_noise(source, height, tuple(spans[j] for j in members), basis)
        rounding2 = {}
        for storage in strip.storages:
            if STORAGE[storage] == source.matrix.dtype:
                rounding2[storage] = torch.zeros(len(spans), dtype=torch.float64)
                continue
            lost = rounding_error(given, storage, compensated=source.weighted)
            if source.weighted and bool(lost.any()):  # float32 loses nothing of most networks
                lost = weigh_all(source, lost.to(torch.float64), spans)
            if bool(torch.isfinite(lost).all()):
                rounding2[storage] = (lost * lost).sum((1, 2), dtype=torch.float64)
        peaks = (
            given.abs().amax(2).to(torch.float64)
            if "int8" in strip.storages and not source.weighted
            else norm2[:, None]
        )
        return sigma2, noise, norm2, peaks, rounding2


def cut_columns(strip: Tensor, cols: tuple[int, ...]) -> Tensor:
    """The blocks of a strip (h, n) between column cuts, as (C, h, w); narrower ones get zero columns."""
    if cols == tuple(range(0, strip.shape[1] + 1, max(1, cols[1]))):  # all alike, as where a side is a power of two
        return strip.reshape(strip.shape[0], -1, cols[1]).transpose(0, 1).contiguous()
    starts, ends = torch.tensor(cols[:-1]), torch.tensor(cols[1:])
    places = starts[:, None] + torch.arange(int((ends - starts).max()))
    inside = places < ends[:, None]
    out = strip[:, torch.where(inside, places, 0).flatten()].reshape(strip.shape[0], *places.shape).transpose(0, 1)
    return out.contiguous() if bool(inside.all()) else torch.where(inside[:, None, :], out, 0.0)


def rounding_error(blocks: Tensor, storage: str, compensated: bool) -> Tensor:
    """Blocks (b, h, w) minus themselves rounded, infinite on overflow; `compensated` int8 is better by about half."""
    if storage != "int8":
        return blocks - blocks.to(STORAGE[storage]).to(blocks.dtype)
    scale = int8_scale(blocks.abs().amax(2, keepdim=True)).to(blocks.dtype)
    lost = blocks - (blocks / scale).round().clamp(-INT8_LEVELS, INT8_LEVELS) * scale
    return 0.5 * lost if compensated else lost


def direction_noise(source: BlockSource, height: int, spans: tuple[tuple[int, int], ...], basis: Tensor) -> Tensor:
    """Expected squared error per direction (C, k), over rho^2, when u and vt of the blocks of a strip, of one shape,
    are stored with relative rounding error rho.

    sum_i G_ii u_ik^2 * vt_k C vt_k^T + u_k^T G u_k * sum_j C_jj vt_kj^2, with compensated weights for G_ii and C_jj.
    """
    left, right = source.left_weight(0, height), source.right_weights(spans)
    u, vt = factors_of_basis(torch.stack([source.block((0, height), span) for span in spans]), left, right, basis)
    felt, gu = (1.0, u) if left is None else (left.compensated[:, None], left.moment @ u)
    excited, vm = (1.0, vt) if right is None else (right.compensated[:, None, :], vt @ right.moment)
    u2, u_noise = (gu * u).sum(-2), (felt * u * u).sum(-2)
    v2, v_noise = (vm * vt).sum(-1), (excited * vt * vt).sum(-1)
    return u_noise * v2.clamp_min(0) + u2.clamp_min(0) * v_noise


def batch_spectra(
    blocks: Tensor, floors: Tensor, limits: Tensor, seed: int, fast: bool = False, norm2: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Leading squared singular values (b, k) of `blocks` (b, h, w), zero where unknown, and squared norms (b,).

    A sketch doubles until it misses less than its floor (b,), or low rank cannot pay: at least missed / sigma_k^2 more
    directions are needed, since singular values fall. Small blocks are done exactly. norm2: where known. One large
    block whose norm is known is neither copied nor done exactly, since a sketch wider than a quarter of it never pays.
    """
    count, h, w = blocks.shape
    large = norm2 is not None and count == 1 and h * w >= LARGE_BLOCK
    norm2 = (blocks * blocks).sum((1, 2)) if norm2 is None else norm2
    floors = torch.maximum(floors, 1e-14 * norm2)
    worth = limits > 0
    limits = limits.clamp_max(h * w / (h + w))
    sigma2 = torch.zeros(count, min(h, w), dtype=torch.float64)
    pending = torch.nonzero((norm2 > 0) & worth).flatten()
    k, used, power = SKETCH if large or min(h, w) <= 2 * GLANCE else GLANCE, 1, False
    while len(pending) and not (large and 4 * k > min(h, w)):
        exact = not large and k > GLANCE and (3 * k > min(h, w) or min(h, w) <= EXACT_SIDE)
        part = blocks[0] if large else blocks if len(pending) == count else blocks[pending]
        if exact:
            values = torch.linalg.svdvals(part) ** 2
        else:
            # The squares of the singular values of Q^T A, from its Gram matrix: good to rounding of norm2, as needed.
            basis = range_basis(part, k, seed, fast, power)
            projected = times(part.mT, basis, fast).mT if large else basis.mT @ part
            values = torch.linalg.eigvalsh(projected @ projected.mT).flip(-1).clamp_min(0).reshape(len(pending), -1)
        sigma2[pending, : values.shape[1]] = values
        used = max(used, values.shape[1])
        if exact:
            break
        missed = norm2[pending] - values.sum(1)
        going = missed > floors[pending]
        if power:
            needed = k + (missed - floors[pending]) / (2.0 * values[:, k // 2] + 1e-300)
            going &= (needed <= 1.5 * limits[pending]) & (k < limits[pending])
        # Plain sketches show what is of low rank at a glance; the rest gets the care that decisions need.
        k, power = (SKETCH, False) if k == GLANCE else (2 * k if power else k, True)
        pending = pending[going]
    known_to = torch.float32 if large else torch.float64  # what large blocks have always been cut by
    return without_crumbs(sigma2[:, :used], norm2.to(known_to), floors.to(known_to)), norm2


def without_crumbs(sigma2: Tensor, norm2: Tensor, floors: Tensor) -> Tensor:
    """Squared singular values (b, k) with those set to zero that, and all after them, are far below the floor (b,)."""
    left = norm2[:, None] - sigma2.cumsum(1) + sigma2
    return torch.where(left > CRUMBS * floors[:, None], sigma2, 0.0)
