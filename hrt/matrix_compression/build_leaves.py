"""From choices to stored leaves: factor the blocks, round their directions, each group into its storage type."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import Leaf
from hrt.matrix_compression.block_choices import Choice
from hrt.matrix_compression.block_source import LARGE_BLOCK, BlockSource, low_rank_factors, plain_factors, times
from hrt.matrix_compression.rounding import Rounded, round_columns, round_rows
from hrt.support.parallel import parallel_map

BATCH_ENTRIES = 1 << 19  # of the blocks that are factored together


@dataclass(frozen=True, eq=False)
class _Batch:
    """Choices of one kind (equal shapes, storage types and counts) with the indices of their places in a plan."""

    source: BlockSource
    indices: list[int]
    choices: list[Choice]

    @property
    def moment(self) -> Tensor | None:
        """Second moments (b, w, w) of the blocks' inputs."""
        right = self.source.right
        return None if right is None else torch.stack([right[c:d, c:d] for c, d in (x.cols for x in self.choices)])

    @property
    def blocks(self) -> Tensor:
        """The blocks (b, h, w) in float64; a large one of an unweighted matrix as it stands, without a copy."""
        (a, b), (c, d) = self.choices[0].rows, self.choices[0].cols
        if len(self.choices) == 1 and not self.source.weighted and (b - a) * (d - c) >= LARGE_BLOCK:
            return self.source.matrix[None, a:b, c:d]
        return torch.stack([self.source.block(choice.rows, choice.cols) for choice in self.choices])


def build_all(source: BlockSource, choices: Sequence[Choice], storages: tuple[str, ...]) -> list[list[Leaf]]:
    """The stored leaves of each choice, one per storage type that it uses; float32 where a narrow float overflows."""
    kinds: dict[tuple, list[int]] = {}
    for index, choice in enumerate(choices):
        (a, b), (c, d) = choice.rows, choice.cols
        key = (b - a, d - c, choice.dense, choice.counts, index if source.weighted else 0)
        kinds.setdefault(key, []).append(index)
    batches = []
    for (height, width, *_), members in kinds.items():
        size = max(1, BATCH_ENTRIES // max(1, height * width))
        for start in range(0, len(members), size):
            part = members[start : start + size]
            batches.append(_Batch(source, part, [choices[k] for k in part]))
    built: list[list[Leaf]] = [[] for _ in choices]
    for batch, leaves in zip(batches, parallel_map(lambda b: _build(b, storages), batches), strict=True):
        for index, of_choice in zip(batch.indices, leaves, strict=True):
            built[index] = of_choice
    return built


def _build(batch: _Batch, storages: tuple[str, ...]) -> list[list[Leaf]]:
    kind = batch.choices[0]
    if kind.dense is not None:
        part = round_rows(batch.blocks.to(torch.float64), kind.dense, batch.moment if kind.dense == "int8" else None)
        scales = [None] * len(batch.choices) if part.scale is None else part.scale
        return [
            [_leaf(choice, dense=numbers, scale=scale)]
            for choice, numbers, scale in zip(batch.choices, part.numbers, scales, strict=True)
        ]
    if not kind.rank:
        (a, b), (c, d) = kind.rows, kind.cols
        return [[_leaf(choice, torch.zeros(b - a, 0), torch.zeros(0, d - c))] for choice in batch.choices]
    groups = [(s, n) for s, n in zip(storages, kind.counts, strict=True) if n]
    pairs = _low_rank(batch, groups)
    out: list[list[Leaf]] = []
    for k, choice in enumerate(batch.choices):
        leaves = [
            _leaf(choice, u.numbers[k], vt.numbers[k], scale=None if u.scale is None else u.scale[k]) for u, vt in pairs
        ]
        if all(leaf.scale is not None or all(bool(t.isfinite().all()) for t in leaf.tensors) for leaf in leaves):
            out.append(leaves)
        elif groups != [("float32", kind.rank)]:
            wide = Choice(choice.place, choice.rows, choice.cols, None, (kind.rank,))
            out += _build(_Batch(batch.source, [0], [wide]), ("float32",))
        else:
            block = batch.source.block(choice.rows, choice.cols)
            out.append([_leaf(choice, dense=block.to(torch.float32))])
    return out


def _leaf(choice: Choice, u: Tensor | None = None, vt: Tensor | None = None, dense=None, scale=None) -> Leaf:
    """A leaf that owns its numbers: a view would keep, and send to other processes, its whole batch."""
    tensors = [None if t is None else t.clone() for t in (dense, u, vt, scale)]
    (a, b), (c, d) = choice.rows, choice.cols
    return Leaf(a, b - a, c, d - c, *tensors)


def _low_rank(batch: _Batch, groups: list[tuple[str, int]]) -> list[tuple[Rounded, Rounded]]:
    """(u, vt) per group, rounded: vt along the inputs' moment, u fitted to that and rounded along the output's."""
    source, choices = batch.source, batch.choices
    rank = choices[0].rank
    blocks, moment = batch.blocks, batch.moment
    if source.weighted:
        pairs = [low_rank_factors(source, c.rows, c.cols, rank) for c in choices]
        u, vt = (torch.stack([p[k] for p in pairs]) for k in (0, 1))
    else:
        u, vt = plain_factors(blocks, rank, source.seed, source.fast)
    cuts = [0, *accumulate(n for _, n in groups)]
    rows = [round_rows(vt[:, i:j], s, moment) for (i, j), (s, _) in zip(pairwise(cuts), groups, strict=True)]
    if groups == [("float32", rank)]:
        return [(Rounded(u.to(torch.float32), None), rows[0])]
    stored = torch.cat([r.decoded(-2) for r in rows], dim=1)
    overflow = ~torch.isfinite(stored).all(2).all(1)
    fitted = torch.where(overflow[:, None, None], torch.zeros(()), stored)
    image = fitted if moment is None else fitted @ moment
    inner = image @ fitted.mT
    u = _fit(times(blocks, image.mT, source.fast), inner)
    spans = [c.rows for c in choices]
    left = None if source.left is None else torch.stack([source.left[a:b, a:b] for a, b in spans])
    scales = [
        torch.ones(vt.shape[0], n, dtype=torch.float64) if r.scale is None else r.scale.to(torch.float64)
        for r, (_, n) in zip(rows, groups, strict=True)
    ]
    columns = round_columns(u, [s for s, n in groups for _ in range(n)], inner, torch.cat(scales, dim=1), left)
    return list(zip(columns, rows, strict=True))


def _fit(product: Tensor, inner: Tensor) -> Tensor:
    """u minimising the data's error for a given vt: A C V (V^T C V)^-1, scaled to unit diagonal before solving."""
    size = inner.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    eye = torch.eye(inner.shape[-1], dtype=inner.dtype)
    scaled = inner / size[..., :, None] / size[..., None, :] + 1e-12 * eye
    return torch.linalg.solve(scaled, (product / size[..., None, :]).mT).mT / size[..., None, :]
