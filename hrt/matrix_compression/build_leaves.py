"""From choices to stored leaves: factor the blocks, round their directions, each group into its storage type."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from hrt.hmatrix.hmatrix import Leaf
from hrt.matrix_compression.block_choices import Choice
from hrt.matrix_compression.block_source import (
    LARGE_BLOCK,
    BlockSource,
    is_sketched,
    low_rank_factors,
    plain_factors,
    times,
)
from hrt.matrix_compression.rounding import Rounded, round_columns, round_rows
from hrt.matrix_compression.span_weight import SpanWeight
from hrt.support.parallel import parallel_map
from hrt.support.recent import Recent

SHARED_RANKS = 16  # directions are factored in multiples of it, where all are known anyway
RECENT = 3  # ranks whose factors a block keeps
BATCH_ENTRIES = 1 << 19  # of the blocks that are factored together


@dataclass(frozen=True, eq=False)
class _Batch:
    """Choices of one kind (equal shapes, storage types and counts) with the indices of their places in a plan."""

    source: BlockSource
    indices: list[int]
    choices: list[Choice]

    @property
    def right(self) -> SpanWeight | None:
        """The weight of the columns: blocks of a weighted matrix come one by one."""
        return self.source.right_weight(*self.choices[0].cols)

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
        part = round_rows(batch.blocks.to(torch.float64), kind.dense, batch.right if kind.dense == "int8" else None)
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
    rank, left = choices[0].rank, source.left_weight(*choices[0].rows)
    cuts = [0, *accumulate(n for _, n in groups)]
    spans = [(storage, i, j) for (storage, _), (i, j) in zip(groups, pairwise(cuts), strict=True)]
    if source.weighted:
        shared = _shared_factors(source, choices[0], rank)
        u, parts = shared.u[None, :, :rank], [shared.rounded(s).part(i, j) for s, i, j in spans]
    else:
        blocks = batch.blocks
        u, vt = plain_factors(blocks, rank, source.seed, source.fast)
        parts = [_Rows.of(round_rows(vt[:, i:j], s, None), None, blocks, source.fast) for s, i, j in spans]
    rows = [part.stored for part in parts]
    if groups == [("float32", rank)]:
        return [(Rounded(u.to(torch.float32), None), rows[0])]
    fitted, image, product = (torch.cat([getattr(p, f) for p in parts], dim=d) for f, d in _Rows.FITTED)
    inner = image @ fitted.mT
    scales = [
        torch.ones(fitted.shape[0], n, dtype=torch.float64) if r.scale is None else r.scale.to(torch.float64)
        for r, (_, n) in zip(rows, groups, strict=True)
    ]
    partner = torch.cat(scales, dim=1)
    columns = round_columns(_fit(product, inner), [s for s, n in groups for _ in range(n)], inner, partner, left)
    return list(zip(columns, rows, strict=True))


class _Rows(NamedTuple):
    """Rows of vt of blocks A (b, h, w) as they are stored, as numbers (b, k, w), times the inputs' moment C, and the
    products A C vt^T (b, h, k). Rows that overflow are zeros.
    """

    stored: Rounded
    fitted: Tensor
    image: Tensor
    product: Tensor

    FITTED = ("fitted", 1), ("image", 1), ("product", 2)

    @staticmethod
    def of(stored: Rounded, right: SpanWeight | None, blocks: Tensor, fast: bool) -> "_Rows":
        numbers = stored.decoded(-2)
        overflow = ~torch.isfinite(numbers).all(2, keepdim=True)
        fitted = torch.where(overflow, torch.zeros(()), numbers)
        image = fitted if right is None else fitted @ right.moment
        return _Rows(stored, fitted, image, times(blocks, image.mT, fast))

    def part(self, i: int, j: int) -> "_Rows":
        """The rows from i to j."""
        scale = None if self.stored.scale is None else self.stored.scale[:, i:j]
        stored = Rounded(self.stored.numbers[:, i:j], scale)
        return _Rows(stored, self.fitted[:, i:j], self.image[:, i:j], self.product[:, :, i:j])


@dataclass(frozen=True, eq=False)
class _SharedFactors:
    """The weighted factors of a block, u (h, k) and vt (k, w), best first: directions are rounded independently."""

    block: Tensor
    right: SpanWeight | None
    u: Tensor
    vt: Tensor
    memo: dict[str, _Rows] = field(default_factory=dict)

    def rounded(self, storage: str) -> _Rows:
        """All rows of vt in one storage type."""
        if storage not in self.memo:
            stored = round_rows(self.vt[None], storage, self.right)
            self.memo[storage] = _Rows.of(stored, self.right, self.block[None], False)
        return self.memo[storage]


def _shared_factors(source: BlockSource, choice: Choice, rank: int) -> _SharedFactors:
    """Of `rank` directions or more: plans that differ by a few, or in storage types alone, share them."""
    key, (a, b), (c, d) = ("factors", choice.rows, choice.cols), choice.rows, choice.cols
    wide = rank if is_sketched((b - a, d - c), rank) else min(-(-rank // SHARED_RANKS) * SHARED_RANKS, b - a, d - c)

    def factored() -> _SharedFactors:
        u, vt = low_rank_factors(source, choice.rows, choice.cols, wide)
        return _SharedFactors(source.block(choice.rows, choice.cols), source.right_weight(c, d), u, vt)

    recent: Recent[int, _SharedFactors] = source.once(key, lambda: Recent(RECENT))
    return recent.get(wide, factored)


def _fit(product: Tensor, inner: Tensor) -> Tensor:
    """u minimising the data's error for a given vt: A C V (V^T C V)^-1, scaled to unit diagonal before solving."""
    size = inner.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(torch.float64).tiny).sqrt()
    eye = torch.eye(inner.shape[-1], dtype=inner.dtype)
    scaled = inner / size[..., :, None] / size[..., None, :] + 1e-12 * eye
    return torch.linalg.solve(scaled, (product / size[..., None, :]).mT).mT / size[..., None, :]
