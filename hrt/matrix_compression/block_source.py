"""A matrix and the norm its errors are measured in, read block by block, and the best low-rank factors of its blocks.

With a right factor L (C = L L^T, the inputs' second moment) and a left factor K (what the output feels) a block's error
is ||K^T E L||_F. Its best rank-r approximation is K^-T P P^T K^T A with P the left singular vectors of K^T A L, so no
second moment is ever inverted.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from hrt.matrix_compression.span_weight import SpanWeight

Made = TypeVar("Made")

LARGE_BLOCK = 1 << 18  # entries; such blocks are worked on one by one, in place
SMALL_SKETCH = 1 << 13  # entries of a sketch that is kept
STRIP = 512  # rows of a large matrix converted or copied at a time


@dataclass(frozen=True, eq=False)
class BlockSource:
    """A matrix (m, n) in tree order, float64 or float32, with optional weights of its errors, semidefinite float64.

    right: (n, n) second moments of the inputs.  left: (m, m) output sensitivities.  fast: multiply large float32 blocks
    in float32, for tolerances far above its rounding.
    """

    matrix: Tensor
    right: Tensor | None = None
    left: Tensor | None = None
    seed: int = 0
    fast: bool = False
    memo: dict[Hashable, Any] = field(default_factory=dict, repr=False)  # see `once`

    @property
    def weighted(self) -> bool:
        """Whether errors are measured in another norm than Frobenius'."""
        return self.right is not None or self.left is not None

    def block(self, rows: tuple[int, int], cols: tuple[int, int]) -> Tensor:
        """One block in float64 (a view where the matrix is float64)."""
        return self.matrix[rows[0] : rows[1], cols[0] : cols[1]].to(torch.float64)

    def right_weight(self, a: int, b: int) -> SpanWeight | None:
        """Of columns a to b; None where these count alike."""
        return self._weight("right", self.right, a, b)

    def left_weight(self, a: int, b: int) -> SpanWeight | None:
        """Of rows a to b; None where these count alike."""
        return self._weight("left", self.left, a, b)

    def right_weights(self, spans: tuple[tuple[int, int], ...]) -> SpanWeight | None:
        """Of several spans of columns of one length, together."""
        moment = self.right
        if moment is None:
            return None
        return self.once(("rights", spans), lambda: SpanWeight(torch.stack([moment[a:b, a:b] for a, b in spans])))

    def right_factors(self, spans: tuple[tuple[int, int], ...]) -> Tensor:
        """The factors L (C, w, w) of the weights of spans, zeros behind the smaller ones."""
        return self.once(("factors", spans), lambda: self._right_factors(spans))

    def _right_factors(self, spans: tuple[tuple[int, int], ...]) -> Tensor:
        width = max(b - a for a, b in spans)
        out = torch.zeros(len(spans), width, width, dtype=torch.float64)
        for w, members in of_one_length(spans).items():
            weights = self.right_weights(tuple(spans[j] for j in members))
            if weights is not None:
                out[members, :w, :w] = weights.factor
        return out

    def _weight(self, side: str, moment: Tensor | None, a: int, b: int) -> SpanWeight | None:
        if moment is None:
            return None
        return self.once((side, a, b), lambda: SpanWeight(moment[a:b, a:b].clone()))

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gave when `key` was first asked for: blocks of a row share its weight, plans share factors."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def norm2(self) -> float:
        """The whole matrix's squared weighted norm, tr(left A right A^T), a strip of rows at a time."""
        if not self.weighted:
            return squared_frobenius(self.matrix)
        total = 0.0
        for a in range(0, self.matrix.shape[0], STRIP):
            strip = self.matrix[a : a + STRIP].to(torch.float64)
            image = strip if self.right is None else strip @ self.right
            if self.left is None:
                total += float((strip * image).sum())
            else:
                for c in range(0, self.matrix.shape[0], STRIP):
                    other = self.matrix[c : c + STRIP].to(torch.float64)
                    total += float((self.left[a : a + STRIP, c : c + STRIP] * (image @ other.mT)).sum())
        return max(total, 0.0)


def of_one_length(spans: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    """The indices of spans, by their length."""
    out: dict[int, list[int]] = {}
    for j, (a, b) in enumerate(spans):
        out.setdefault(b - a, []).append(j)
    return out


def squared_frobenius(matrix: Tensor) -> float:
    """||A||_F^2, summed in float64 a strip of rows at a time."""
    return sum(float(torch.linalg.vector_norm(part, dtype=torch.float64)) ** 2 for part in matrix.split(STRIP))


def weigh(block: Tensor, left: SpanWeight | None, right: SpanWeight | None) -> Tensor:
    """K^T A L of one block (h, w)."""
    if right is not None:
        block = block @ right.factor
    return block if left is None else left.factor.mT @ block


def weigh_all(source: BlockSource, strip: Tensor, spans: Sequence[tuple[int, int]]) -> Tensor:
    """`weigh` for all blocks (C, h, w) of a strip of rows, zeros behind the narrower ones."""
    left = source.left_weight(0, strip.shape[1])
    if source.right is not None:
        strip = strip @ source.right_factors(tuple(spans))
    return strip if left is None else left.factor.mT @ strip


def times(block: Tensor, x: Tensor, fast: bool = False) -> Tensor:
    """block (..., h, w) @ x (..., w, k) in float64; float32 blocks are converted by strips; `fast`: not at all."""
    if block.dtype == torch.float64:
        return block @ x
    if fast:
        return (block @ x.to(block.dtype)).to(torch.float64)
    if block.stride(-1) == 1:
        return torch.cat([part.to(torch.float64) @ x for part in block.split(STRIP, dim=-2)], dim=-2)
    parts = zip(block.split(STRIP, -1), x.split(STRIP, -2), strict=True)
    return sum((part.to(torch.float64) @ y for part, y in parts), torch.zeros(()))


def gaussian(width: int, k: int, seed: int) -> Tensor:
    """Independent normal numbers (width, k), always the same."""
    return torch.randn(width, k, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


small_sketch = lru_cache(maxsize=64)(gaussian)  # drawing one takes as long as using it on a strip of small blocks


def range_basis(block: Tensor, k: int, seed: int, fast: bool = False, power: bool = True) -> Tensor:
    """Orthonormal (..., h, k), nearly the leading left singular vectors: a sketch, then a step of power iteration."""
    width = block.shape[-1]
    sketch = (small_sketch if width * k <= SMALL_SKETCH else gaussian)(width, k, seed)
    basis = torch.linalg.qr(times(block, sketch, fast)).Q
    if not power:
        return basis
    return torch.linalg.qr(times(block, torch.linalg.qr(times(block.mT, basis, fast)).Q, fast)).Q


def is_sketched(shape: tuple[int, int], rank: int) -> bool:
    """Whether `leading_basis` of a block of this shape comes from a sketch."""
    return 3 * (rank + 8) < min(shape)


def leading_basis(block: Tensor, rank: int, seed: int) -> Tensor:
    """Orthonormal (..., h, rank): leading left singular vectors of blocks (..., h, w), sketched where they are wide."""
    if not is_sketched((block.shape[-2], block.shape[-1]), rank):
        return torch.linalg.svd(block, full_matrices=False).U[..., :rank]
    rough = range_basis(block, rank + 8, seed)
    return rough @ torch.linalg.svd(rough.mT @ block, full_matrices=False).U[..., :rank]


def low_rank_factors(
    source: BlockSource, rows: tuple[int, int], cols: tuple[int, int], rank: int
) -> tuple[Tensor, Tensor]:
    """Best rank-`rank` factors of a block in its weighted norm: u (h, r), vt (r, w) in float64."""
    if not source.weighted:
        u, vt = plain_factors(source.matrix[None, rows[0] : rows[1], cols[0] : cols[1]], rank, source.seed)
        return u[0], vt[0]

    def weighted() -> Tensor:
        return weigh(source.block(rows, cols), source.left_weight(*rows), source.right_weight(*cols))

    shape = rows[1] - rows[0], cols[1] - cols[0]
    if is_sketched(shape, rank):
        basis = leading_basis(weighted(), rank, source.seed)
    else:
        every = source.once(("singular vectors", rows, cols), lambda: leading_basis(weighted(), min(shape), 0))
        basis = every[:, :rank]
    return factors_of_basis(source.block(rows, cols), source.left_weight(*rows), source.right_weight(*cols), basis)


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
    """Each direction with ||u_k|| = ||vt_k||, so that narrow storage types lose as little as they can.

    To a power of two: the digits of the numbers are the same whatever the scale of the matrix.
    """
    tiny = torch.finfo(torch.float64).tiny
    ratio = (vt.norm(dim=-1) + tiny) / (u.norm(dim=-2) + tiny)
    balance = torch.exp2((torch.frexp(ratio).exponent // 2).to(u.dtype))
    balance = torch.where(vt.norm(dim=-1) > 0, balance, torch.ones_like(balance))
    return u * balance[..., None, :], vt / balance[..., None]


def factors_of_basis(
    block: Tensor, left: SpanWeight | None, right: SpanWeight | None, basis: Tensor
) -> tuple[Tensor, Tensor]:
    """u (..., h, r) and vt (..., r, w) of blocks from the left singular vectors `basis` (..., h, r) of their weighted
    form: u = K^-T P and vt = P^T K^T A. Components of vt that no input excites, and of u that no output feels, are left
    out.
    """
    u, vt = basis, basis.mT @ block
    if left is not None:
        vt = basis.mT @ (left.factor.mT @ block)
        u = left.solve(left.factor @ basis)
    if right is not None:
        vt = right.solve(right.moment @ vt.mT).mT
    return balanced(u, vt)
