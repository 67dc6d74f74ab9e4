"""A hierarchical matrix as a handful of batched products: which blocks are multiplied together, and what they read.

The workspace's rows are features, its columns samples: [x ; one row of zeros ; T]. First wave: leaves that share a
column range are stacked into one V^T, and stacks of like shape are one batched product. Second wave: the leaves that
cross a row range, dense or low-rank, are one block [D | U | U ...] that reads its rows of x and T through an index;
tall blocks are first cut to the height of the short ones they cover, so that mostly one product remains and every row
of y is summed inside it. Where blocks are padded to a common shape they read the row of zeros.

Nothing is decoded or copied here: the torch backend and the ONNX exporter make their tables from the same plan.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hrt.hmatrix.leaf import Leaf, Leaves

STACKED, BESIDE = 0, 1  # along which dimension of a block its pieces stand next to each other
Kind = tuple[Any, ...]  # pieces of one kind can share a tensor


@dataclass(frozen=True, eq=False)
class Piece:
    """Rows `first` to `end` (None: all) of `leaf.tensors[part]` (dense or u: 0, vt: 1); the leaf is the `number`-th."""

    leaf: Leaf
    part: int
    number: int
    first: int = 0
    end: int | None = None

    @property
    def rows(self) -> slice:
        """Which rows of the stored tensor."""
        return slice(self.first, self.end)

    @property
    def stored(self) -> Tensor:
        """The numbers as stored, (rows, columns)."""
        return self.leaf.tensors[self.part][self.rows]

    @property
    def is_dense(self) -> bool:
        """Whether these are entries of the matrix itself."""
        return self.leaf.is_dense

    def decoded(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The numbers as `dtype`, (rows, columns), scales multiplied into dense blocks and u."""
        numbers = self.stored.to(dtype)
        if self.leaf.scale is None or self.part:
            return numbers
        scale = self.leaf.scale.to(dtype)
        return numbers * (scale[self.rows, None] if self.is_dense else scale)

    def below(self, start: int, stop: int) -> "Piece":
        """Its rows start to stop, counted from its own first."""
        return Piece(self.leaf, self.part, self.number, self.first + start, self.first + stop)


@dataclass(frozen=True, eq=False)
class Block:
    """A product before batching. STACKED: all pieces read the rows `sources[0]`. BESIDE: piece k reads `sources[k]`."""

    axis: int
    pieces: Sequence[Piece]
    sources: Sequence[range]
    shape: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Bucket:
    """Blocks as one zero-padded batch (blocks, tall, wide), writing from row `top`. slots: (start, size) by kind."""

    blocks: tuple[Block, ...]
    slots: Mapping[Kind, tuple[int, int]]
    tall: int
    wide: int
    top: int
    kind: Callable[[Piece, int], Kind]

    @property
    def axis(self) -> int:
        """STACKED or BESIDE."""
        return self.blocks[0].axis

    def placed(self, g: int) -> list[tuple[Piece, Kind, int]]:
        """The pieces of block g, their kinds, and where along the axis each begins."""
        places, filled = [], dict.fromkeys(self.slots, 0)
        for kind, piece in zip(_kinds(self.blocks[g], self.kind), self.blocks[g].pieces, strict=True):
            places.append((piece, kind, self.slots[kind][0] + filled[kind]))
            filled[kind] += piece.stored.shape[self.axis]
        return places

    def sources(self, zero: int | None = None) -> np.ndarray:
        """The workspace rows that are read, int64 (blocks, wide); padding reads `zero`, or the block's first row."""
        rows = np.empty((len(self.blocks), self.wide), dtype=np.int64)
        for g, block in enumerate(self.blocks):
            rows[g] = block.sources[0].start if zero is None else zero
            if self.axis == STACKED:
                rows[g, : block.shape[1]] = block.sources[0]
            else:
                for (_, _, at), source in zip(self.placed(g), block.sources, strict=True):
                    rows[g, at : at + len(source)] = source
        return rows

    def weights(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """All blocks as `dtype`, (len(blocks), tall, wide)."""
        weights = torch.zeros(len(self.blocks), self.tall, self.wide, dtype=dtype, device="cpu")
        for g in range(len(self.blocks)):
            for piece, _, at in self.placed(g):
                numbers = piece.decoded(dtype)
                r, c = numbers.shape
                if self.axis == STACKED:
                    weights[g, at : at + r, :c] = numbers
                else:
                    weights[g, :r, at : at + c] = numbers
        return weights


@dataclass(frozen=True)
class Limits:
    """Padding worth one product less: a share of a bucket's numbers, or a count. typed: storage types stay apart."""

    share: float = 0.25
    free: int = 2048
    free_columns: int = 2048
    typed: bool = False

    def kind(self, piece: Piece, occurrence: int) -> Kind:
        """Pieces of one kind stand together; int8 blocks that have row scales of their own stand alone."""
        if not self.typed:
            return ()
        place = occurrence if piece.is_dense and piece.leaf.scale is not None else 0
        return (piece.is_dense, str(piece.stored.dtype), place)


@dataclass(frozen=True)
class Plan:
    """The two waves. height: rows of the workspace after one.  layers: per position, a row of the second or -1."""

    shape: tuple[int, int]
    first: tuple[Bucket, ...]
    second: tuple[Bucket, ...]
    height: int
    out_height: int
    layers: tuple[np.ndarray, ...]

    def output_rows(self, row_order: Tensor | None) -> list[np.ndarray]:
        """The layers in the original order of the rows, with `out_height`, a row of zeros, where there is none."""
        place_of = slice(None) if row_order is None else row_order.long().argsort().numpy()
        return [np.where(layer < 0, self.out_height, layer)[place_of] for layer in self.layers]

    @cached_property
    def numbers(self) -> int:
        """Numbers in all products, padding included."""
        return sum(len(b.blocks) * b.tall * b.wide for b in (*self.first, *self.second))


def plan(matrix: Leaves, limits: Limits | None = None) -> Plan:
    """The plan of a matrix. Leaves without entries are left out."""
    limits = limits or Limits()
    m, n = matrix.shape
    leaves = [leaf for leaf in matrix.leaves if leaf.rank != 0 and leaf.rows and leaf.cols]
    stacks = _stacks(leaves)
    first, height = _batched(stacks, n + 1, 0, limits)
    place = {}
    for bucket in first:
        for g in range(len(bucket.blocks)):
            for piece, _, at in bucket.placed(g):
                place[piece.number] = bucket.top + g * bucket.tall + at
    rows, spans = _cut(_rows(leaves, place))
    second, out = _batched(rows, 0, limits.free_columns, limits)
    where = {id(b): u.top + g * u.tall for u in second for g, b in enumerate(u.blocks)}
    layers = _layers(spans, [where[id(b)] for b in rows], m)
    return Plan((m, n), tuple(first), tuple(second), height, out, tuple(layers))


def _stacks(leaves: Sequence[Leaf]) -> list[Block]:
    """V^T of all low-rank leaves, one block per column range."""
    groups: dict[tuple[int, int], list[Piece]] = {}
    for k, leaf in enumerate(leaves):
        if not leaf.is_dense:
            groups.setdefault((leaf.col, leaf.cols), []).append(Piece(leaf, 1, k))
    return [
        Block(STACKED, members, [range(col, col + cols)], (sum(p.leaf.rank for p in members), cols))
        for (col, cols), members in sorted(groups.items(), key=lambda item: item[0])
    ]


def _rows(leaves: Sequence[Leaf], place: Mapping[int, int]) -> dict[tuple[int, int], Block]:
    """The leaves of every row range (row, rows) side by side; `place`: where each leaf's T stands in the workspace."""
    groups: dict[tuple[int, int], list[Piece]] = {}
    for k, leaf in enumerate(leaves):
        groups.setdefault((leaf.row, leaf.rows), []).append(Piece(leaf, 0, k))
    blocks = {}
    for key, members in groups.items():
        starts = [(place[p.number], p.leaf.rank) if not p.is_dense else (p.leaf.col, p.leaf.cols) for p in members]
        sources = [range(start, start + count) for start, count in starts]
        blocks[key] = Block(BESIDE, members, sources, (key[1], sum(len(s) for s in sources)))
    return blocks


def _cut(blocks: Mapping[tuple[int, int], Block]) -> tuple[list[Block], list[tuple[int, int]]]:
    """Blocks and their (row, rows), cut where shorter ones begin or end and joined with them, where that reads less."""
    ends = sorted({e for row, rows in blocks for e in (row, row + rows)})
    joined: dict[tuple[int, int], list[tuple[Block, int]]] = {}
    for (row, rows), block in sorted(blocks.items(), key=lambda item: item[0]):
        width = block.shape[1]
        inner = ends[bisect_left(ends, row) : bisect_left(ends, row + rows) + 1]
        if width * (len(inner) - 1) > 2 * rows + width:
            inner = [row, row + rows]
        for a, b in pairwise(inner):
            joined.setdefault((a, b - a), []).append((block, a - row))
    joined_blocks, spans = [], []
    for (row, rows), parts in sorted(joined.items(), key=lambda item: item[0]):
        pieces = [p.below(above, above + rows) for block, above in parts for p in block.pieces]
        sources = [s for block, _ in parts for s in block.sources]
        joined_blocks.append(Block(BESIDE, pieces, sources, (rows, sum(len(s) for s in sources))))
        spans.append((row, rows))
    return joined_blocks, spans


def _kinds(block: Block, kind: Callable[[Piece, int], Kind]) -> list[Kind]:
    """The kind of every piece of a block."""
    kinds: list[Kind] = []
    seen: dict[Kind, int] = {}
    for piece in block.pieces:
        first = kind(piece, 0)
        kinds.append(kind(piece, seen.get(first, 0)))
        seen[first] = seen.get(first, 0) + 1
    return kinds


def _sizes(block: Block, kind: Callable[[Piece, int], Kind]) -> dict[Kind, int]:
    """How much room the pieces of each kind take along the block's axis."""
    sizes: dict[Kind, int] = {}
    for key, piece in zip(_kinds(block, kind), block.pieces, strict=True):
        sizes[key] = sizes.get(key, 0) + piece.stored.shape[block.axis]
    return sizes


def _batched(blocks: Sequence[Block], top: int, free_columns: int, limits: Limits) -> tuple[list[Bucket], int]:
    """Blocks of like shape as one bucket each, writing from row `top` on; and the end of what is written."""
    share = 1 + limits.share
    groups: list[tuple[list[int], dict[Kind, int], int]] = []  # blocks, room for each kind, largest other dimension
    true = 0  # numbers of the last group
    for k in sorted(range(len(blocks)), key=lambda k: (blocks[k].shape[::-1], k), reverse=True):
        axis, (r, c), size = blocks[k].axis, blocks[k].shape, _sizes(blocks[k], limits.kind)
        members, room, across = groups[-1] if groups else ([], {}, 0)
        merged = {key: max(room.get(key, 0), size.get(key, 0)) for key in {**room, **size}}
        along, beside = sum(merged.values()), max(across, blocks[k].shape[1 - axis])
        padded, wide = (len(members) + 1) * along * beside, along if axis == BESIDE else beside
        like = padded <= share * (true + r * c) + limits.free
        if groups and like and (wide <= share * c or padded - true - r * c <= free_columns):
            groups[-1] = ([*members, k], merged, beside)
            true += r * c
        else:
            groups.append(([k], size, blocks[k].shape[1 - axis]))
            true = r * c
    buckets = []
    for members, room, across in groups:
        ends = list(accumulate((room[key] for key in sorted(room)), initial=0))
        slots = {key: (start, room[key]) for key, start in zip(sorted(room), ends, strict=False)}
        tall, wide = (ends[-1], across) if blocks[members[0]].axis == STACKED else (across, ends[-1])
        buckets.append(Bucket(tuple(blocks[k] for k in sorted(members)), slots, tall, wide, top, limits.kind))
        top += len(members) * tall
    return buckets, top


def _layers(spans: Sequence[tuple[int, int]], starts: Sequence[int], m: int) -> list[np.ndarray]:
    """Per layer of disjoint blocks, the output row of each position, -1 for none; y is the sum of the layers."""
    layers, ends = [np.full(m, -1, dtype=np.int64)], [0]
    for (row, rows), start in zip(spans, starts, strict=True):
        k = next((k for k, end in enumerate(ends) if end <= row), len(ends))
        if k == len(ends):
            ends.append(0)
            layers.append(np.full(m, -1, dtype=np.int64))
        layers[k][row : row + rows] = np.arange(start, start + rows)
        ends[k] = row + rows
    return layers
