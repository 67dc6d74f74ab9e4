"""The tables that every backend executes: tiles, steps, packed weights, biases. Tensors and integers only.

A step takes `length` columns of the workspace, multiplies them by one weight tile and accumulates; a tile is a run of
steps that writes one range of columns, Y[:, out] = epilogue(sum_s X[:, columns_s] W_s^T + bias). Layers of any
structure are rows of these tables. A *compact* table gives every step its each length and holds no padding. A *uniform*
one, for GPU kernels, has tiles of exactly `tile_rows` x `step_columns` and columns that are multiples of `unit`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

NONE = -1  # no bias, no epilogue, no scale
OUT_COLUMN, OUT_LENGTH, FIRST_STEP, END_STEP, BIAS_OFFSET, EPILOGUE = range(6)
TILE_FIELDS = 6
# The rows of a launch (`hrt.kernels.launch.TileList`) begin as a tile's do and go on with what only kernels look up:
# the runs of steps that share a scale (or, in a second pass, slots of partial sums), and where gains and shifts begin.
# Eight int32 are 32 bytes: no row straddles a cache line.
LAUNCH_BIAS, HAS_EPILOGUE, FIRST_GROUP, END_GROUP, GAINS, SHIFTS = range(2, 8)
LAUNCH_FIELDS = 8
COLUMN, LENGTH, WEIGHT_OFFSET, BUFFER, SCALE_OFFSET = range(5)
STEP_FIELDS = 5


@dataclass(frozen=True)
class Rescaling:
    """What becomes of a tile's output: times gains, plus shifts (offsets among the biases, or -1), moved."""

    column: int
    gains: int
    shifts: int


@dataclass(frozen=True, eq=False)
class StepTables:
    """Everything a step kernel reads besides the workspace. Raises ValueError where the tables do not fit together.

    tiles: int32 (n_tiles, 6): out_column, out_length, first_step, end_step, bias_offset or -1, epilogue id or -1.
    The runs [first_step, end_step) follow each other without gap; an empty run writes epilogue(bias or 0).
    steps: int32, or int64 where an offset needs it, (n_steps, 5): column, length, weight_offset (in elements), buffer,
    scale_offset or -1.
    weights: one flat buffer per storage type, floating point or (one of them) int8; the weight tile of a step is
    row-major, `length` contiguous, and has the tile's out_length rows (compact) or `tile_rows` rows (uniform, zero
    padded). Row r of an int8 weight tile stands for scales[scale_offset + r] times its numbers, or the numbers
    themselves where scale_offset is -1.
    biases, scales: flat. tile_rows, step_columns: 0, 0 where the table is compact. unit: what columns are multiples of.

    In a uniform table the steps of a tile are sorted by buffer, and the weight tiles of consecutive steps of one
    buffer lie one after the other, so that a kernel looks up only the first offset of a run (see `runs`).
    """

    tiles: Tensor
    steps: Tensor
    weights: tuple[Tensor, ...]
    biases: Tensor
    tile_rows: int = 0
    step_columns: int = 0
    unit: int = 1
    scales: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bfloat16))

    def __post_init__(self) -> None:
        self._check_types()
        for fault, bad, owner in self._faults():
            if bad.any():
                raise ValueError(f"Tile {owner[bad.argmax()] if len(owner) else 0}: {fault}.")

    @property
    def is_uniform(self) -> bool:
        """Whether all weight tiles have one shape."""
        return self.tile_rows > 0

    @property
    def tile_elements(self) -> int:
        """Numbers in one weight tile of a uniform table."""
        return self.tile_rows * self.step_columns

    @property
    def weight_bytes(self) -> int:
        """Bytes of the packed weights and their scales, padding included."""
        return sum(t.nbytes for t in (*self.weights, self.scales))

    @property
    def nbytes(self) -> int:
        """Bytes of everything: weights, biases, tiles and steps."""
        return self.weight_bytes + self.biases.nbytes + self.tiles.nbytes + self.steps.nbytes

    @cached_property
    def column_table(self) -> Tensor:
        """int32 (n_steps + 1,): columns in units, and a sentinel 0 so that a kernel may always fetch the next one."""
        columns = torch.zeros(len(self.steps) + 1, dtype=torch.int32, device=self.steps.device)
        columns[:-1] = self.steps[:, COLUMN] // self.unit
        return columns

    @cached_property
    def runs(self) -> Tensor:
        """int32 (n_tiles, n_buffers + 1): the steps of tile t in buffer b are runs[t, b] up to runs[t, b + 1]."""
        tiles, steps = self.numbers
        bounds = [tiles[:, FIRST_STEP]]
        for b in range(len(self.weights)):
            before = np.concatenate([[0], np.cumsum(steps[:, BUFFER] == b)])
            bounds.append(bounds[-1] + before[tiles[:, END_STEP]] - before[tiles[:, FIRST_STEP]])
        return torch.from_numpy(np.stack(bounds, 1).astype(np.int32)).to(self.tiles.device)

    def map(self, change: Callable[[Tensor], Tensor]) -> "StepTables":
        """The same tables with every tensor changed: copied, or moved to a device."""
        tensors = {name: change(getattr(self, name)) for name in ("tiles", "steps", "biases", "scales")}
        return replace(self, weights=tuple(map(change, self.weights)), **tensors)

    @cached_property
    def numbers(self) -> tuple[np.ndarray, np.ndarray]:
        """Tiles and steps as int64 arrays on the CPU."""
        return self.tiles.cpu().numpy().astype(np.int64), self.steps.cpu().numpy().astype(np.int64)

    def steps_of(self, first_tile: int, end_tile: int) -> np.ndarray:
        """int64 (n, 5): the steps of tiles [first_tile, end_tile)."""
        tiles, steps = self.numbers
        begin, end = (tiles[first_tile, FIRST_STEP], tiles[end_tile - 1, END_STEP]) if end_tile > first_tile else (0, 0)
        return steps[begin:end]

    def _check_types(self) -> None:
        if self.tiles.dtype != torch.int32 or tuple(self.tiles.shape[1:]) != (TILE_FIELDS,):
            raise ValueError(f"tiles is {self.tiles.dtype} {tuple(self.tiles.shape)}. Expected int32 (n_tiles, 6).")
        if self.steps.dtype not in (torch.int32, torch.int64) or tuple(self.steps.shape[1:]) != (STEP_FIELDS,):
            raise ValueError(f"steps is {self.steps.dtype} {tuple(self.steps.shape)}. Expected int32 or int64 (n, 5).")
        for t in (*self.weights, self.biases, self.scales):
            packed = t.dtype == torch.int8 and t is not self.biases and t is not self.scales
            if t.ndim != 1 or not (t.is_floating_point() or packed) or not t.is_contiguous():
                raise ValueError(f"A buffer is {t.dtype} {tuple(t.shape)}. Expected flat, contiguous floats or int8.")
        whole = (self.tile_rows > 0) == (self.step_columns > 0) and self.unit > 0 and self.step_columns % self.unit == 0
        if not whole or min(self.tile_rows, self.step_columns) < 0:
            raise ValueError(
                f"Found tile_rows = {self.tile_rows}, step_columns = {self.step_columns}, unit = {self.unit}. "
                "Expected both 0 (compact) or both positive, and step_columns a multiple of unit."
            )

    def _faults(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """What may be wrong, bool where it is, and the tile of each; a rule may count on those before it."""
        tiles, steps = self.numbers
        out, length, first, end, bias, epilogue = tiles.T
        column, columns, offset, buffer, scale = steps.T
        each = np.arange(len(tiles))
        yield (
            "its run does not begin where the one before ends",
            (first != np.append(0, end)[:-1]) | (end < first),
            each,
        )
        yield "the runs do not end at the last step", np.array([end[-1:].sum() != len(steps)]), each[-1:]
        yield "it writes no columns, or negative ones", (out < 0) | (length < 1), each
        yield "its epilogue is below -1", epilogue < NONE, each
        loose = (bias < NONE) | ((bias != NONE) & (bias + length > self.biases.numel()))
        yield "its bias is out of bounds", loose, each
        owner = np.repeat(each, end - first)
        yield "a step names a buffer that is not there", (buffer < 0) | (buffer >= len(self.weights)), owner
        yield "a step has a negative column or offset, or no length", (column < 0) | (columns < 1) | (offset < 0), owner
        yield f"a step's column is not a multiple of unit = {self.unit}", column % self.unit != 0, owner
        rows = np.full(len(steps), self.tile_rows) if self.is_uniform else length[owner]
        plain = np.array([t.dtype != torch.int8 for t in self.weights], dtype=bool)[buffer]
        scaled = scale != NONE
        loose = (scale < NONE) | (scaled & (plain | (scale + rows > self.scales.numel())))
        yield "a step's scales are out of bounds, or its weights take none", loose, owner
        size = np.array([t.numel() for t in self.weights], dtype=np.int64)[buffer]
        yield "a step's weights are out of bounds", offset + rows * columns > size, owner
        if not self.is_uniform:
            return
        yield f"it writes more than tile_rows = {self.tile_rows} columns", length > self.tile_rows, each
        yield f"a step's length is not step_columns = {self.step_columns}", columns != self.step_columns, owner
        yield "a step's weights do not begin at a whole weight tile", offset % self.tile_elements != 0, owner
        together = owner[1:] == owner[:-1]
        yield "its steps are not sorted by buffer", together & (buffer[1:] < buffer[:-1]), owner[1:]
        apart = (buffer[1:] == buffer[:-1]) & (offset[1:] != offset[:-1] + self.tile_elements)
        yield "the weights of its steps are not stored one after the other", together & apart, owner[1:]
