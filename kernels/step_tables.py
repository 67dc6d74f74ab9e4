"""The tables that every backend executes: tiles, steps, packed weights, biases. Tensors and integers only.

A step takes `length` columns of the workspace, multiplies them by one weight tile and accumulates; a tile is a run of
steps that writes one range of columns, Y[:, out] = epilogue(sum_s X[:, columns_s] W_s^T + bias). Layers of any
structure are rows of these tables. A *compact* table gives every step its own length and holds no padding. A *uniform*
one, for GPU kernels, has tiles of exactly `tile_rows` x `step_columns` and columns that are multiples of `unit`.
"""

from collections.abc import Callable
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
    """What becomes of a tile's output after its epilogue: times gains, plus shifts, written to another column.

    gains, shifts: where those of the tile's first row begin among the biases, or -1.
    """

    column: int
    gains: int
    shifts: int


class TableError(ValueError):
    """Tables that contradict themselves; `tile` is the first tile at fault, None where it is not one tile's fault."""

    def __init__(self, message: str, tile: int | None = None):
        super().__init__(message)
        self.tile = tile


@dataclass(frozen=True, eq=False)
class StepTables:
    """Everything a step kernel reads besides the workspace. Raises TableError where the tables do not fit together.

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
        self.check()

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
        """int32 (n_tiles, n_buffers + 1): the steps of tile t in buffer b of a uniform table are runs[t, b] up to
        runs[t, b + 1]. Column 0 is first_step, the last one end_step.
        """
        steps = self.steps.cpu().numpy()
        tiles = self.tiles.cpu().numpy()
        bounds = [tiles[:, FIRST_STEP]]
        for b in range(len(self.weights)):
            before = np.concatenate([[0], np.cumsum(steps[:, BUFFER] == b)])
            bounds.append(bounds[-1] + before[tiles[:, END_STEP]] - before[tiles[:, FIRST_STEP]])
        return torch.from_numpy(np.stack(bounds, 1).astype(np.int32)).to(self.tiles.device)

    def map(self, change: Callable[[Tensor], Tensor]) -> "StepTables":
        """The same tables with every tensor changed: copied, or moved to a device."""
        tensors = {name: change(getattr(self, name)) for name in ("tiles", "steps", "biases", "scales")}
        return replace(self, weights=tuple(map(change, self.weights)), **tensors)

    def check(self) -> None:
        """Raise TableError where a table has the wrong type, a run has a gap or an offset leaves its buffer."""
        self._check_types()
        tiles = self.tiles.cpu().numpy().astype(np.int64)
        steps = self.steps.cpu().numpy().astype(np.int64)
        first, end = tiles[:, FIRST_STEP], tiles[:, END_STEP]
        previous = np.concatenate([[0], end[:-1]])
        _fail_at((first != previous) | (end < first), "its run does not begin where the run of the tile before ends")
        if len(steps) != (end[-1] if len(end) else 0):
            raise TableError(f"The runs end at step {end[-1] if len(end) else 0}. Expected {len(steps)}, all steps.")
        length, bias = tiles[:, OUT_LENGTH], tiles[:, BIAS_OFFSET]
        _fail_at((tiles[:, OUT_COLUMN] < 0) | (length < 1), "it writes no columns, or negative ones")
        _fail_at(tiles[:, EPILOGUE] < NONE, "its epilogue is below -1")
        _fail_at((bias < NONE) | ((bias != NONE) & (bias + length > self.biases.numel())), "its bias is out of bounds")
        if self.is_uniform:
            _fail_at(length > self.tile_rows, f"it writes more than tile_rows = {self.tile_rows} columns")
        self._check_steps(steps, np.repeat(np.arange(len(tiles)), end - first), length)

    def _check_types(self) -> None:
        if self.tiles.dtype != torch.int32 or self.tiles.ndim != 2 or self.tiles.shape[1] != TILE_FIELDS:
            raise TableError(f"tiles is {self.tiles.dtype} {tuple(self.tiles.shape)}. Expected int32 (n_tiles, 6).")
        if self.steps.dtype not in (torch.int32, torch.int64) or tuple(self.steps.shape[1:]) != (STEP_FIELDS,):
            raise TableError(
                f"steps is {self.steps.dtype} {tuple(self.steps.shape)}. Expected int32 or int64 (n_steps, 5)."
            )
        for t in (*self.weights, self.biases, self.scales):
            packed = t.dtype == torch.int8 and t is not self.biases and t is not self.scales
            if t.ndim != 1 or not (t.is_floating_point() or packed) or not t.is_contiguous():
                raise TableError(
                    f"A buffer is {t.dtype} {tuple(t.shape)}. Expected flat, contiguous floating point or int8 weights."
                )
        whole = (self.tile_rows > 0) == (self.step_columns > 0) and self.unit > 0 and self.step_columns % self.unit == 0
        if not whole or min(self.tile_rows, self.step_columns) < 0:
            raise TableError(
                f"Found tile_rows = {self.tile_rows}, step_columns = {self.step_columns}, unit = {self.unit}. "
                "Expected both 0 (compact) or both positive, and step_columns a multiple of unit."
            )

    def _check_steps(self, steps: np.ndarray, owner: np.ndarray, out_length: np.ndarray) -> None:
        """owner: (n_steps,) the tile of every step.  out_length: (n_tiles,)."""
        column, length, offset, buffer, scale = steps.T
        _fail_at((buffer < 0) | (buffer >= len(self.weights)), "a step names a buffer that is not there", owner)
        negative = (column < 0) | (length < 1) | (offset < 0)
        _fail_at(negative, "a step has a negative column or offset, or no length", owner)
        _fail_at(column % self.unit != 0, f"a step's column is not a multiple of unit = {self.unit}", owner)
        size = np.array([t.numel() for t in self.weights], dtype=np.int64)
        scaled = np.array([t.dtype == torch.int8 for t in self.weights], dtype=bool)
        rows = np.full(len(steps), self.tile_rows) if self.is_uniform else out_length[owner]
        loose = (scale < NONE) | ((scale != NONE) & (scale + rows > self.scales.numel()))
        if len(steps):
            loose |= (scale != NONE) & ~scaled[buffer]
        _fail_at(loose, "a step's scales are out of bounds, or its weights take none", owner)
        elements = self.tile_elements if self.is_uniform else out_length[owner] * length
        if len(steps):
            _fail_at(offset + elements > size[buffer], "a step's weights are out of bounds", owner)
        if not self.is_uniform:
            return
        _fail_at(length != self.step_columns, f"a step's length is not step_columns = {self.step_columns}", owner)
        _fail_at(offset % self.tile_elements != 0, "a step's weights do not begin at a whole weight tile", owner)
        together = owner[1:] == owner[:-1]
        _fail_at(together & (buffer[1:] < buffer[:-1]), "its steps are not sorted by buffer", owner[1:])
        apart = (buffer[1:] == buffer[:-1]) & (offset[1:] != offset[:-1] + self.tile_elements)
        _fail_at(together & apart, "the weights of its steps are not stored one after the other", owner[1:])


def _fail_at(bad: np.ndarray, fault: str, owner: np.ndarray | None = None) -> None:
    """Raise TableError for the first true entry of `bad`, of a tile or of a step whose tile is in `owner`."""
    if bad.any():
        at = int(bad.argmax())
        tile = at if owner is None else int(owner[at])
        raise TableError(f"Tile {tile}: {fault}.", tile)
