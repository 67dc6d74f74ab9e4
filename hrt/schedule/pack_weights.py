"""One weight matrix as two waves of tiles over packed numbers: T = X V^T, then Y = [X | T] [D ; U].

Both waves are a matrix of few blocks. What this module returns is relative: rows count from the layer's output,
columns from the start of X or T.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import cast

import numpy as np
import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.kernels.step_tables import NONE

X, T = 0, 1  # what a block reads: the layer's input, or the T of its first wave

# In which order the low-rank leaves of a storage type may share T: by the tree over the columns or over the rows,
# depth first or level by level.
ORDERS: tuple[Callable[[Leaf], tuple], ...] = (
    lambda e: (str(e.dtype), e.col, e.cols, e.row),
    lambda e: (str(e.dtype), e.row, e.rows, e.col),
    lambda e: (str(e.dtype), -e.cols, e.col, e.row),
    lambda e: (str(e.dtype), -e.rows, e.row, e.col),
)
SCALE = torch.bfloat16  # of int8 rows, as leaves keep it


@dataclass(frozen=True)
class Layout:
    """The shape of weight tiles: both None for compact, else every tile is tile_rows x step_columns."""

    tile_rows: int | None = None
    step_columns: int | None = None
    unit: int = 1

    def __post_init__(self) -> None:
        rows, columns, unit = self.tile_rows, self.step_columns, self.unit
        if rows is None or columns is None:
            fits = rows is columns and unit == 1
        else:
            fits = min(rows, columns, unit) > 0 and columns % unit == 0
        if not fits:
            raise InputError(
                f"Found tile_rows = {self.tile_rows}, step_columns = {self.step_columns}, unit = {self.unit}. Expected "
                "neither size and unit = 1 (compact), or two positive sizes with step_columns a multiple of unit."
            )

    def padded(self, width: int) -> int:
        """Columns to set aside for `width` of them, so that a step over any of them stays inside."""
        return max(self.step_columns or 0, -(-width // self.unit) * self.unit) if width else 0


@dataclass(frozen=True, eq=False)
class Block:
    """Rows [row, row+rows) of a wave from columns [column, column+columns) of `source`. pieces: (first row, numbers),
    below each other. scale: (rows,) multiplies the rows of int8 numbers.
    """

    row: int
    rows: int
    column: int
    columns: int
    source: int
    dtype: torch.dtype
    pieces: tuple[tuple[int, Tensor], ...]
    scale: Tensor | None = None


@dataclass(frozen=True, eq=False)
class PackedWave:
    """One wave of a weight: int64 tiles (k, 4) and steps (s, 6).

    tiles: row, rows, first step, end step.  steps: source, column, length, offset, buffer, scale offset or -1.
    """

    tiles: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A weight in packed form. inner: columns of T."""

    inner: int
    first: PackedWave
    second: PackedWave


@dataclass(frozen=True)
class _Tile:
    """Rows [row, end) and the blocks that reach into them, sorted by (buffer, source, column)."""

    row: int
    end: int
    blocks: tuple[Block, ...]


@dataclass
class _Flat:
    """A buffer while it grows."""

    dtype: torch.dtype
    chunks: list[Tensor] = field(default_factory=list)
    size: int = 0

    def append(self, numbers: Tensor) -> int:
        """Where `numbers` begin."""
        self.chunks.append(numbers)
        self.size += numbers.numel()
        return self.size - numbers.numel()

    def whole(self) -> Tensor:
        return torch.cat([torch.zeros(0, dtype=self.dtype), *self.chunks])


@dataclass
class Packer:
    """Packs weights one after the other into one buffer per storage type."""

    layout: Layout
    _buffers: dict[torch.dtype, _Flat] = field(default_factory=dict)
    _scales: _Flat = field(default_factory=lambda: _Flat(SCALE))

    def pack(self, weight: Tensor | HMatrix) -> PackedMatrix:
        """Append the numbers of `weight`, (m, n) in its own row and column order, and say where they lie."""
        m, n = weight.shape
        if isinstance(weight, HMatrix):
            leaves = weight.leaves
        else:
            numbers = weight.detach().cpu()
            numbers = numbers if numbers.is_floating_point() else numbers.to(torch.float64)
            leaves = (Leaf(0, m, 0, n, dense=numbers.contiguous()),)
        for leaf in leaves:
            self._buffers.setdefault(leaf.dtype, _Flat(leaf.dtype))
        # Few reads of X want leaves over the same columns side by side in T, few reads of T those over the same rows.
        orders = ORDERS[:1] if self.layout.tile_rows is None else ORDERS
        plans = []
        for order in orders:
            first, second, inner = blocks_of(leaves, order)
            plans.append((self._tiles(first, inner), self._tiles(second, m), (n, inner)))
        first, second, widths = min(plans, key=lambda p: self._steps(p[0], p[2]) + self._steps(p[1], p[2]))
        return PackedMatrix(widths[1], self._wave(first, widths), self._wave(second, widths))

    def buffers(self) -> tuple[Tensor, ...]:
        """The flat buffers, by buffer id."""
        return tuple(buffer.whole() for buffer in self._buffers.values())

    def scales(self) -> Tensor:
        """The scales of int8 rows, flat bfloat16."""
        return self._scales.whole()

    def _buffer(self, block: Block) -> int:
        return list(self._buffers).index(block.dtype)

    def _tiles(self, blocks: list[Block], rows: int) -> list[_Tile]:
        blocks = sorted(blocks, key=lambda b: (self._buffer(b), b.source, b.column, b.row))
        row = np.array([b.row for b in blocks], dtype=np.int64)
        end = row + np.array([b.rows for b in blocks], dtype=np.int64)
        cuts = sorted({0, rows, *row.tolist(), *end.tolist()})
        tiles = []
        for a, b in panels(cuts, self.layout.tile_rows):
            tiles.append(_Tile(a, b, tuple(blocks[k] for k in np.flatnonzero((row < b) & (end > a)))))
        return tiles

    def _steps(self, tiles: Iterable[_Tile], widths: tuple[int, int]) -> int:
        return sum(len(starts) for tile in tiles for _, starts, _ in self._windows(tile, widths))

    def _windows(self, tile: _Tile, widths: tuple[int, int]) -> Iterable[tuple[list[Block], np.ndarray, np.ndarray]]:
        """The blocks of one buffer and source that can share steps, and the windows that cover them."""
        for (_, source), group in groupby(tile.blocks, key=lambda b: (self._buffer(b), b.source)):
            for blocks in alike(tile, list(group)):
                if self.layout.step_columns is not None:
                    spans = [(b.column, b.column + b.columns) for b in blocks]
                    yield blocks, *windows(spans, self.layout, self.layout.padded(widths[source]))
                else:
                    starts = np.array([b.column for b in blocks])
                    yield blocks, starts, starts

    def _wave(self, tiles: Sequence[_Tile], widths: tuple[int, int]) -> PackedWave:
        step_rows: list[np.ndarray] = []
        tile_rows, count = [], 0
        places: dict[int, tuple[int, int]] = {}
        for tile in tiles:
            begin = count
            for blocks, starts, fresh in self._windows(tile, widths):
                if self.layout.tile_rows is None:
                    lengths = np.array([b.columns for b in blocks])
                    where, scale = np.array([self._place(b, tile.row - b.row, places) for b in blocks]).T
                else:
                    lengths = np.full(len(starts), self.layout.step_columns)
                    data = _cut(tile, blocks, starts, fresh, self.layout)
                    where = (
                        self._buffers[blocks[0].dtype].append(data.reshape(-1))
                        + np.arange(len(starts)) * data[0].numel()
                    )
                    scale = np.full(len(starts), self._append_scale(_cut_scale(tile, blocks, self.layout)))
                same = np.full((2, len(starts)), [[blocks[0].source], [self._buffer(blocks[0])]])
                step_rows.append(np.stack([same[0], starts, lengths, where, same[1], scale], 1))
                count += len(starts)
            tile_rows.append((tile.row, tile.end - tile.row, begin, count))
        steps = np.concatenate(step_rows) if step_rows else np.zeros((0, 6))
        return PackedWave(np.array(tile_rows, dtype=np.int64).reshape(-1, 4), steps.astype(np.int64))

    def _place(self, block: Block, row: int, places: dict[int, tuple[int, int]]) -> tuple[int, int]:
        """Where row `row` of `block` lies as it is, and its scale; stored once, whatever tiles share the block."""
        if id(block) not in places:
            numbers = torch.cat([t.reshape(-1) for _, t in block.pieces])
            places[id(block)] = self._buffers[block.dtype].append(numbers), self._append_scale(block.scale)
        where, scale = places[id(block)]
        return where + row * block.columns, NONE if scale == NONE else scale + row

    def _append_scale(self, scale: Tensor | None) -> int:
        return NONE if scale is None else self._scales.append(scale.to(SCALE))


def blocks_of(leaves: Sequence[Leaf], order: Callable[[Leaf], tuple]) -> tuple[list[Block], list[Block], int]:
    """The blocks of the first and the second wave, and the columns of T that `order` gives to the low-rank leaves.

    Neighbours over the same columns are one block: their V^T stand below each other and read X once.
    """
    first, second, inner = [], [], 0
    low = sorted((e for e in leaves if e.rank > 0 and e.rows and e.cols), key=order)
    for (col, cols, dtype), group in groupby(low, key=lambda e: (e.col, e.cols, e.dtype)):
        start, pieces, scales = inner, [], []
        for e in group:
            u, vt = e.tensors  # the scale of a direction may multiply either; here its row of V^T, and so of T
            second.append(Block(e.row, e.rows, inner, e.rank, T, dtype, ((0, u),)))
            pieces.append((inner - start, vt))
            scales += [] if e.scale is None else [e.scale]
            inner += e.rank
        scale = torch.cat(scales) if scales else None
        first.append(Block(start, inner - start, col, cols, X, dtype, tuple(pieces), scale))
    for e in leaves:
        if e.dense is not None and e.rows and e.cols:
            second.append(Block(e.row, e.rows, e.col, e.cols, X, e.dtype, ((0, e.dense),), e.scale))
    return first, second, inner


def alike(tile: _Tile, blocks: list[Block]) -> list[list[Block]]:
    """`blocks` as groups within which every row of `tile` has one scale: no two int8 blocks share a row."""
    if blocks[0].scale is None:
        return [blocks]
    groups: list[tuple[list[Block], np.ndarray]] = []
    for block in blocks:
        rows = slice(max(0, block.row - tile.row), block.row + block.rows - tile.row)
        free = [g for g in groups if not g[1][rows].any()]
        if not free:
            groups.append(([], np.zeros(tile.end - tile.row, dtype=bool)))
        group, taken = (free or groups[-1:])[0]
        group.append(block)
        taken[rows] = True
    return [group for group, _ in groups]


def panels(cuts: Sequence[int], limit: int | None) -> list[tuple[int, int]]:
    """Row ranges between sorted `cuts`: all of them, or as few as fit `limit` rows, which end at a cut if they can."""
    if limit is None:
        return list(pairwise(cuts))
    ranges, row = [], cuts[0]
    while row < cuts[-1]:
        cut = cuts[bisect_right(cuts, row + limit) - 1]
        end = cut if cut > row else row + limit
        ranges.append((row, end))
        row = end
    return ranges


def windows(spans: Sequence[tuple[int, int]], layout: Layout, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The fewest steps that cover `spans` (sorted by start) of a source that is `width` columns wide with its padding:
    the first column of each, and the first that no window before it covers. None reads beyond the source.
    """
    size = layout.step_columns or 1
    starts, fresh, reach = [], [], 0
    for begin, end in spans:
        column = max(begin, reach)
        while column < end:
            start = min(column - column % layout.unit, width - size)
            starts.append(start)
            fresh.append(max(start, reach))
            column = reach = start + size
    return np.array(starts, dtype=np.int64), np.array(fresh, dtype=np.int64)


def _cut(tile: _Tile, blocks: Sequence[Block], starts: np.ndarray, fresh: np.ndarray, layout: Layout) -> Tensor:
    """The weight tiles (windows, tile_rows, step_columns) of one tile, every number in exactly one of them."""
    size = layout.step_columns or 1
    low, high = int(starts.min()), int(starts.max()) + size
    strip = torch.zeros(layout.tile_rows or 1, high - low, dtype=blocks[0].dtype)
    for b in blocks:
        for within, numbers in b.pieces:
            row, end = max(b.row + within, tile.row), min(b.row + within + numbers.shape[0], tile.end)
            if row < end:
                part = numbers[row - b.row - within : end - b.row - within]
                strip[row - tile.row : end - tile.row, b.column - low : b.column - low + b.columns] = part
    columns = starts[:, None] + np.arange(size)
    data = strip[:, torch.from_numpy(columns - low)].permute(1, 0, 2).contiguous()
    return data.masked_fill_(torch.from_numpy(columns < fresh[:, None])[:, None, :], 0)


def _cut_scale(tile: _Tile, blocks: Sequence[Block], layout: Layout) -> Tensor | None:
    """The scale (tile_rows,) of every row of a group that shares its steps; 1 where no block has the row."""
    if blocks[0].scale is None:
        return None
    out = torch.ones(layout.tile_rows or 1, dtype=SCALE)
    for b in blocks:
        low, high = max(b.row, tile.row), min(b.row + b.rows, tile.end)
        out[low - tile.row : high - tile.row] = cast(Tensor, b.scale)[low - b.row : high - b.row]
    return out
