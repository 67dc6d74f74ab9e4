"""One weight matrix as two waves of tiles over packed numbers: T = X V^T, then Y = [X | T] [D ; U].

Both waves are the same thing, a matrix of few blocks: V^T reads X and writes T, D reads X and writes Y, U reads T and
writes Y. What this module returns is relative: rows count from the layer's output, columns from the start of X or T.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

import numpy as np
import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.hmatrix import HMatrix, Leaf

X, T = 0, 1  # what a block reads: the layer's input, or the T of its first wave

# In which order the low-rank leaves of a storage type may share T: by the tree over the columns or over the rows,
# depth first or level by level.
ORDERS: tuple[Callable[[Leaf], tuple], ...] = (
    lambda e: (str(e.dtype), e.col, e.cols, e.row),
    lambda e: (str(e.dtype), e.row, e.rows, e.col),
    lambda e: (str(e.dtype), -e.cols, e.col, e.row),
    lambda e: (str(e.dtype), -e.rows, e.row, e.col),
)


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
    """Rows [row, row+rows) of a wave from columns [column, column+columns) of `source`.

    pieces: (first row within the block, numbers (rows, columns)), below each other.
    """

    row: int
    rows: int
    column: int
    columns: int
    source: int
    dtype: torch.dtype
    pieces: tuple[tuple[int, Tensor], ...]


@dataclass(frozen=True, eq=False)
class PackedWave:
    """One wave of a weight: int64 tiles (k, 4) and steps (s, 5).

    tiles: row, rows, first step, end step.  steps: source, column, length, offset, buffer.
    """

    tiles: np.ndarray
    steps: np.ndarray


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """A weight of `shape` (m, n) in packed form. inner: columns of T. leaf_bytes: bytes without any padding."""

    shape: tuple[int, int]
    inner: int
    first: PackedWave
    second: PackedWave
    leaf_bytes: int


@dataclass(frozen=True)
class _Tile:
    """Rows [row, end) and the blocks that reach into them, sorted by (buffer, source, column)."""

    row: int
    end: int
    blocks: tuple[Block, ...]


@dataclass
class Packer:
    """Packs weights one after the other into one buffer per storage type."""

    layout: Layout
    _chunks: dict[torch.dtype, list[Tensor]] = field(default_factory=dict)
    _sizes: dict[torch.dtype, int] = field(default_factory=dict)

    def pack(self, weight: Tensor | HMatrix) -> PackedMatrix:
        """Append the numbers of `weight`, (m, n) in its own row and column order, and say where they lie."""
        leaves = _leaves(weight)
        m, n = weight.shape
        for leaf in leaves:
            self._sizes.setdefault(storage(leaf), 0)
            self._chunks.setdefault(storage(leaf), [])
        # Few reads of X want leaves over the same columns side by side in T, few reads of T those over the same rows.
        orders = ORDERS[:1] if self.layout.tile_rows is None else ORDERS
        plans = [self._plan(leaves, m, order) for order in orders]
        first, second, inner = min(plans, key=lambda p: self._steps(p[0], (n, p[2])) + self._steps(p[1], (n, p[2])))
        widths = (n, inner)
        packed_first, packed_second = self._wave(first, widths), self._wave(second, widths)
        numbers = sum(t.numel() * storage(e).itemsize for e in leaves for t in e.tensors)
        return PackedMatrix((m, n), inner, packed_first, packed_second, numbers)

    def buffers(self) -> tuple[Tensor, ...]:
        """The flat buffers, by buffer id."""
        return tuple(torch.cat(chunks) if chunks else torch.zeros(0, dtype=d) for d, chunks in self._chunks.items())

    def _plan(
        self, leaves: Sequence[Leaf], m: int, order: Callable[[Leaf], tuple]
    ) -> tuple[list[_Tile], list[_Tile], int]:
        first, second, inner = blocks_of(leaves, order)
        return self._tiles(first, inner), self._tiles(second, m), inner

    def _buffer(self, block: Block) -> int:
        return list(self._chunks).index(block.dtype)

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
        """The blocks of one buffer and source, and the windows that cover them."""
        for (_, source), group in groupby(tile.blocks, key=lambda b: (self._buffer(b), b.source)):
            blocks = list(group)
            if self.layout.step_columns is not None:
                spans = [(b.column, b.column + b.columns) for b in blocks]
                yield blocks, *windows(spans, self.layout, self.layout.padded(widths[source]))
            else:
                starts = np.array([b.column for b in blocks])
                yield blocks, starts, starts

    def _wave(self, tiles: Sequence[_Tile], widths: tuple[int, int]) -> PackedWave:
        step_rows: list[np.ndarray] = []
        tile_rows, count = [], 0
        offsets: dict[int, int] = {}
        for tile in tiles:
            begin = count
            for blocks, starts, fresh in self._windows(tile, widths):
                if self.layout.tile_rows is None:
                    lengths = np.array([b.columns for b in blocks])
                    where = np.array([self._place(b, offsets) + (tile.row - b.row) * b.columns for b in blocks])
                else:
                    lengths = np.full(len(starts), self.layout.step_columns)
                    data = _cut(tile, blocks, starts, fresh, self.layout)
                    where = self._append(data.reshape(-1), blocks[0].dtype) + np.arange(len(starts)) * data[0].numel()
                same = np.full((2, len(starts)), [[blocks[0].source], [self._buffer(blocks[0])]])
                step_rows.append(np.stack([same[0], starts, lengths, where, same[1]], 1))
                count += len(starts)
            tile_rows.append((tile.row, tile.end - tile.row, begin, count))
        steps = np.concatenate(step_rows) if step_rows else np.zeros((0, 5))
        return PackedWave(np.array(tile_rows, dtype=np.int64).reshape(-1, 4), steps.astype(np.int64))

    def _place(self, block: Block, offsets: dict[int, int]) -> int:
        """Where the numbers of `block` lie as they are, row by row; stored once, whatever tiles share them."""
        if id(block) not in offsets:
            numbers = torch.cat([t.reshape(-1) for _, t in block.pieces])
            offsets[id(block)] = self._append(numbers, block.dtype)
        return offsets[id(block)]

    def _append(self, numbers: Tensor, dtype: torch.dtype) -> int:
        self._chunks[dtype].append(numbers)
        self._sizes[dtype] += numbers.numel()
        return self._sizes[dtype] - numbers.numel()


def storage(leaf: Leaf) -> torch.dtype:
    """What a leaf's numbers are in the tables: int8 is decoded, since its scale belongs to a direction, not a tile."""
    return torch.float32 if leaf.dtype == torch.int8 else leaf.dtype


def blocks_of(leaves: Sequence[Leaf], order: Callable[[Leaf], tuple]) -> tuple[list[Block], list[Block], int]:
    """The blocks of the first and the second wave, and the columns of T that `order` gives to the low-rank leaves.

    Neighbours over the same columns are one block: their V^T stand below each other and read X once.
    """
    first, second, inner = [], [], 0
    low = sorted((e for e in leaves if e.rank > 0 and e.rows and e.cols), key=order)
    for (col, cols, dtype), group in groupby(low, key=lambda e: (e.col, e.cols, storage(e))):
        start, pieces = inner, []
        for e in group:
            u, vt = e.decoded(dtype)
            second.append(Block(e.row, e.rows, inner, e.rank, T, dtype, ((0, u),)))
            pieces.append((inner - start, vt))
            inner += e.rank
        first.append(Block(start, inner - start, col, cols, X, dtype, tuple(pieces)))
    for e in leaves:
        if e.dense is not None and e.rows and e.cols:
            second.append(Block(e.row, e.rows, e.col, e.cols, X, storage(e), ((0, e.decoded(storage(e))[0]),)))
    return first, second, inner


def panels(cuts: Sequence[int], limit: int | None) -> list[tuple[int, int]]:
    """Row ranges between sorted `cuts`: all of them, or as few as fit `limit` rows, which end at a cut if they can."""
    if limit is None:
        return list(pairwise(cuts))
    found, row = [], cuts[0]
    while row < cuts[-1]:
        cut = cuts[bisect_right(cuts, row + limit) - 1]
        end = cut if cut > row else row + limit
        found.append((row, end))
        row = end
    return found


def windows(spans: Sequence[tuple[int, int]], layout: Layout, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The fewest steps that cover `spans` (sorted by start) of a source that is `width` columns wide with its padding.

    Returns the first column of every window, and the first column that no window before it has covered. A window at
    the end is moved back, so that none reads beyond the source: what lies there belongs to somebody else.
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


def _leaves(weight: Tensor | HMatrix) -> tuple[Leaf, ...]:
    if isinstance(weight, HMatrix):
        return weight.leaves
    m, n = weight.shape
    weight = weight.detach().cpu()
    weight = weight if weight.is_floating_point() else weight.to(torch.float64)
    return (Leaf(0, m, 0, n, dense=weight.contiguous()),)
