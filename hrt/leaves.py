"""From a choice to stored leaves: factor the block, round its directions, each group into its storage type."""

from itertools import accumulate, pairwise

import torch
from torch import Tensor

from hrt.hmatrix import STORAGE, Leaf
from hrt.options import ROUNDING_RMS, Choice
from hrt.rounding import INT8_LEVELS, Rounded, int8_scale, round_columns, round_rows
from hrt.spectra import BlockSource, low_rank_factors, shrink


def rounding_error(matrix: Tensor, storage: str) -> Tensor:
    """W minus W rounded to `storage` by nearest rounding: what the planner expects of a dense block. Overflow gives
    infinite entries. Compensated int8 (see `hrt.rounding`) does better by about half.
    """
    if storage != "int8":
        return matrix - matrix.to(STORAGE[storage]).to(matrix.dtype)
    if not matrix.numel():
        return matrix
    scale = int8_scale(matrix.abs().amax(1)).to(matrix.dtype)[:, None]
    return 0.5 * (matrix - (matrix / scale).round().clamp(-INT8_LEVELS, INT8_LEVELS) * scale)


def build_leaves(source: BlockSource, choice: Choice, storages: tuple[str, ...]) -> list[Leaf]:
    """The stored leaves of one block: one, or one per storage type that its directions use.

    Factors that overflow a narrow float type are kept in float32 instead.
    """
    (a, b), (c, d) = choice.rows, choice.cols
    place = (a, b - a, c, d - c)
    block = source.matrix[a:b, c:d]
    moment = None if source.right is None else source.right[c:d, c:d]
    if choice.dense is not None:
        part = round_rows(block, choice.dense, moment if choice.dense == "int8" else None)
        return [Leaf(*place, dense=part.numbers, scale=part.scale)]
    if not choice.rank:
        return [Leaf(*place, u=torch.zeros(b - a, 0), vt=torch.zeros(0, d - c))]
    groups = [(s, n) for s, n in zip(storages, choice.counts, strict=True) if n]
    found = _low_rank(source, choice, groups, moment)
    if found is None:
        found = _low_rank(source, choice, [("float32", choice.rank)], moment)
    if found is None:
        return [Leaf(*place, dense=block.to(torch.float32).contiguous())]
    return [Leaf(*place, u=u.numbers, vt=vt.numbers, scale=u.scale) for u, vt in found]


def _low_rank(
    source: BlockSource, choice: Choice, groups: list[tuple[str, int]], moment: Tensor | None
) -> list[tuple[Rounded, Rounded]] | None:
    """(u, vt) per group, rounded; None where a float type overflows.

    vt is rounded first, then u is fitted to the rounded vt by least squares in the data's norm, then u is rounded
    along the second moment of T = X V: each step repairs what it can of the one before.
    """
    rounding = torch.tensor([ROUNDING_RMS[s] for s, n in groups for _ in range(n)], dtype=torch.float64)
    u, vt = low_rank_factors(source, choice.rows, choice.cols, choice.rank, rounding)
    cuts = [0, *accumulate(n for _, n in groups)]
    rows = [round_rows(vt[i:j], s, moment) for (i, j), (s, _) in zip(pairwise(cuts), groups, strict=True)]
    if groups != [("float32", choice.rank)]:
        stored = torch.cat([r.decoded(0) for r in rows])
        if not bool(torch.isfinite(stored).all()):
            return None
        (a, b), (c, d) = choice.rows, choice.cols
        block = source.matrix[a:b, c:d]
        image = stored if moment is None else stored @ moment
        inner = image @ stored.mT
        u = _fit(block @ image.mT, inner)
        if source.left is not None:
            sensitivity = source.left[a:b, a:b]
            u = shrink(sensitivity, sensitivity @ u, rounding)
        partner = torch.cat(
            [torch.ones(n) if r.scale is None else r.scale for r, (_, n) in zip(rows, groups, strict=True)]
        )
        columns = round_columns(u, [s for s, n in groups for _ in range(n)], inner, partner.to(torch.float64))
    else:
        columns = [Rounded(u.to(torch.float32).contiguous(), None)]
    found = list(zip(columns, rows, strict=True))
    numbers = [r.numbers for pair in found for r in pair if r.scale is None]
    return found if all(bool(torch.isfinite(t).all()) for t in numbers) else None


def _fit(product: Tensor, inner: Tensor) -> Tensor:
    """u minimising the data's error for a given vt: A C V (V^T C V)^-1, scaled to unit diagonal before solving."""
    size = inner.diagonal().clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    scaled = inner / size[:, None] / size + 1e-12 * torch.eye(len(size), dtype=inner.dtype)
    return torch.linalg.solve(scaled, (product / size).mT).mT / size
