"""From tables to launches: which tiles one launch of the step kernel executes, cut where they are long, and how.

Where a launch would have too few programs to keep a card busy, long tiles are cut into parts, whose partial sums a
second pass adds in the order of the steps: the same bits every time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import triton
from torch import Tensor

from hrt.kernels import step_tables as at
from hrt.kernels.derivative_streams import VALUE, Streams
from hrt.kernels.network_kernel import network_kernel
from hrt.kernels.precisions import PRECISIONS, Epilogue, converts
from hrt.kernels.step_kernel import finish_kernel, step_kernel
from hrt.kernels.step_tables import NONE, Rescaling, StepTables

MOST_BUFFERS = 4
NETWORK_REGISTERS = 255  # a thread's most: else the assembler spills for the sake of neighbours that never come
FINISH_REGISTERS = 128
FINISH_ROWS = 16  # of a program of the second pass: one form for all batches, so that it is compiled once
MOST_BLOCKS = 65_535  # of batch rows in one launch: CUDA's limit on a grid's second axis
SHORTEST = 4  # steps of a part: fewer are over before the second pass has begun


@dataclass(frozen=True)
class Config:
    """How a launch runs. form: "row", "swapped" or "batch".  block: batch rows of one program (1 in row form).

    programs: cut tiles along their steps until a launch has about so many programs; 0: never.
    """

    form: str
    block: int
    warps: int = 4
    stages: int = 3
    programs: int = 0

    def parts(self, batch: int) -> int:
        """Parts that a launch for so many batch rows should have at least."""
        return self.programs // -(-max(1, batch) // self.block)

    def __post_init__(self) -> None:
        fits = self.block == 1 if self.form == "row" else self.block >= 16 and not self.block & (self.block - 1)
        if self.form not in ("row", "swapped", "batch") or not fits or min(self.warps, self.stages) < 1:
            raise ValueError(
                f"Found {self}. Expected the form row with block 1, or swapped or batch with a power of two from 16 on."
            )


def is_interpreted() -> bool:
    """Whether kernels run on Triton's interpreter (TRITON_INTERPRET=1 before the first import)."""
    return not isinstance(step_kernel, triton.JITFunction)


@dataclass(frozen=True, eq=False)
class TileList:
    """Tiles of uniform `tables` that one launch executes; none may read what another of them writes.

    lists: what the kernel looks up, the first int32 (n, 8), one row per program.  finish: int32 (tiles, 8) of the
    second pass, None where no tile is cut.  Raises ValueError for tables or tiles that do not fit.
    """

    tables: StepTables
    lists: tuple[Tensor, ...]
    finish: Tensor | None
    epilogue: Epilogue
    rescaled: bool = False
    streams: Streams = VALUE

    @staticmethod
    def build(
        tables: StepTables,
        tiles: Sequence[int] | np.ndarray,
        epilogue: Epilogue,
        parts: int,
        rescaling: Mapping[int, Rescaling] | None = None,
        streams: Streams = VALUE,
    ) -> "TileList":
        """The tiles with these numbers. epilogue: of those that have one.  parts: how many there should be at least.
        rescaling: by number, of the tiles that have one.  streams: what the rows of a workspace are.
        """
        check_tables(tables)
        chosen = np.asarray(tiles, dtype=np.int64)
        rows = tables.numbers[0][chosen]
        used = np.unique(rows[:, at.EPILOGUE])
        if (used != NONE).sum() > 1:
            raise ValueError(f"The tiles of one launch have the epilogues {used.tolist()}. Expected at most one.")
        longest = longest_part(rows[:, at.END_STEP] - rows[:, at.FIRST_STEP], parts)
        low, high, owner = cut(rows[:, at.FIRST_STEP], rows[:, at.END_STEP], longest)
        tile_runs = tables.runs.cpu().numpy().astype(np.int64)[chosen]
        if not tables.weights:  # nothing but biases: one buffer that no step is in
            tile_runs = np.repeat(tile_runs, 2, axis=1)
        runs = np.clip(tile_runs[owner], low[:, None], high[:, None])
        steps = tables.numbers[1]
        offsets = np.append(steps[:, at.WEIGHT_OFFSET], 0)
        starts = np.where(runs[:, 1:] > runs[:, :-1], offsets[runs[:, :-1]] // tables.tile_elements, 0)
        groups, first_group = scale_groups(tables, runs, steps[:, at.SCALE_OFFSET])
        wholes, rescaled = _launch_rows(rows, chosen, rescaling or {})
        part_rows = wholes[owner]
        is_cut = len(owner) > len(rows)
        if is_cut:  # parts write sums into slots next to each other; what follows a sum is left to the second pass
            wholes[:, at.FIRST_GROUP] = np.searchsorted(owner, np.arange(len(rows)), "left")
            wholes[:, at.END_GROUP] = np.searchsorted(owner, np.arange(len(rows)), "right")
            part_rows[:, at.OUT_COLUMN] = np.arange(len(owner)) * tables.tile_rows
            part_rows[:, at.OUT_LENGTH] = tables.tile_rows
            part_rows[:, [at.LAUNCH_BIAS, at.GAINS, at.SHIFTS]] = NONE
            part_rows[:, at.HAS_EPILOGUE] = 0
        part_rows[:, at.FIRST_GROUP], part_rows[:, at.END_GROUP] = first_group[:-1], first_group[1:]

        def placed(array: np.ndarray, kind: Any = np.int32) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array, dtype=kind)).to(tables.tiles.device)

        lists = placed(part_rows), placed(runs), placed(starts, np.int64), placed(groups), tables.column_table
        return TileList(tables, lists, placed(wholes) if is_cut else None, epilogue, rescaled, streams)

    def run(self, workspace: Tensor, config: Config, precision: str = "ieee") -> None:
        """Execute in place on `workspace` (batch, width), in as many launches as its rows need. precision: one of
        PRECISIONS; 16-bit ones want a workspace of that type. Raises ValueError where the streams of a point would be
        parted.
        """
        if not check_workspace(workspace, self.streams, config) or not len(self.lists[0]):
            return
        block = config.block if self.finish is None else min(config.block, FINISH_ROWS)
        for rows in workspace.split(MOST_BLOCKS * block):
            self._launch(rows, config, precision)

    def _launch(self, workspace: Tensor, config: Config, precision: str) -> None:
        batch, programs = workspace.shape[0], len(self.lists[0])
        t, target, is_cut = self.tables, workspace, self.finish is not None
        if is_cut:
            target = torch.empty(batch, programs * t.tile_rows, dtype=torch.float32, device=workspace.device)
        pitches, chosen = (workspace.stride(0), target.stride(0)), constants(self, workspace, config, precision)
        options = chosen | {"RESCALE": self.rescaled and not is_cut}
        tensors = pointers(t, workspace)
        launch: Any = step_kernel
        launch[(programs, triton.cdiv(batch, config.block))](
            workspace, target, *tensors, *self.lists, batch, *pitches, **options
        )
        if self.finish is not None:
            second: Any = finish_kernel
            shared = {k: chosen[k] for k in ("ROWS", "EPILOGUE", "FIRST", "SECOND", "RESCALE", "JET")}
            shared |= {"BLOCK": FINISH_ROWS, "num_warps": 4, "maxnreg": FINISH_REGISTERS}
            second[(len(self.finish), triton.cdiv(batch, FINISH_ROWS))](
                target, workspace, tensors[-1], self.finish, batch, *pitches[::-1], **shared
            )


@dataclass(frozen=True, eq=False)
class NetworkList:
    """All waves of a network for one launch. waves: tiles of each wave, in order; `tiles` holds them one by one."""

    tiles: TileList
    wave_ends: Tensor

    @staticmethod
    def build(
        tables: StepTables,
        waves: Sequence[Sequence[int]],
        epilogue: Epilogue,
        rescaling: Mapping[int, Rescaling] | None = None,
        streams: Streams = VALUE,
    ) -> "NetworkList":
        """waves: numbers of the tiles of each wave."""
        ends = np.cumsum([0, *(len(w) for w in waves)]).astype(np.int32)
        tiles = TileList.build(tables, [k for wave in waves for k in wave], epilogue, 0, rescaling, streams)
        return NetworkList(tiles, torch.from_numpy(ends).to(tables.tiles.device))

    def run(self, workspace: Tensor, config: Config, precision: str = "ieee") -> None:
        """Execute in place on `workspace` (batch, width). Raises ValueError as `TileList.run` does."""
        tiles, waves = self.tiles, len(self.wave_ends) - 1
        batch = check_workspace(workspace, tiles.streams, config)
        if not batch or not waves:
            return
        lists = (*pointers(tiles.tables, workspace), *tiles.lists, self.wave_ends)
        options = constants(tiles, workspace, config, precision)
        launch: Any = network_kernel
        launch[(triton.cdiv(batch, config.block),)](
            workspace, *lists, batch, workspace.stride(0), waves, **options, maxnreg=NETWORK_REGISTERS
        )


def longest_part(lengths: np.ndarray, parts: int) -> int:
    """Steps that a part may have at most, so that there are about `parts` of them, none too short to be worth it."""
    if parts <= len(lengths):
        return max(1, int(lengths.max(initial=1)))
    return max(SHORTEST, -(-int(lengths.sum()) // parts))


def cut(first: np.ndarray, end: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Parts of at most `longest` steps: first and end step, and the tile of each; a tile without steps is one part."""
    count = np.maximum(1, -(-(end - first) // longest))
    owner = np.repeat(np.arange(len(first)), count)
    within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    low = first[owner] + within * longest
    return low, np.minimum(low + longest, end[owner]), owner


def scale_groups(tables: StepTables, runs: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of int8 steps of one scale: (groups, 3) first step, end step, scale offset; and where each part's begin."""
    scaled = [k for k, t in enumerate(tables.weights) if t.dtype == torch.int8]
    if not scaled:
        return np.zeros((1, 3), dtype=np.int64), np.zeros(len(runs) + 1, dtype=np.int64)
    low, high = runs[:, scaled[0]], runs[:, scaled[0] + 1]
    changes = np.flatnonzero(scale[1:] != scale[:-1]) + 1
    inner_low, inner_high = np.searchsorted(changes, low, "right"), np.searchsorted(changes, high, "left")
    rows: list[tuple[int, int, int]] = []
    first = [0]
    for a, b, i, j in zip(low.tolist(), high.tolist(), inner_low.tolist(), inner_high.tolist(), strict=True):
        bounds = [a, *changes[i:j].tolist(), b] if b > a else []
        rows += [(p, q, int(scale[p])) for p, q in pairwise(bounds)]
        first.append(len(rows))
    return np.array(rows or [(0, 0, NONE)], dtype=np.int64), np.array(first, dtype=np.int64)


def _launch_rows(tiles: np.ndarray, numbers: np.ndarray, rescaling: Mapping[int, Rescaling]) -> tuple[np.ndarray, bool]:
    """int64 (n, at.LAUNCH_FIELDS) of whole tiles, without groups, and whether any is rescaled."""
    rows = np.zeros((len(tiles), at.LAUNCH_FIELDS), dtype=np.int64)
    rows[:, at.OUT_COLUMN], rows[:, at.OUT_LENGTH] = tiles[:, at.OUT_COLUMN], tiles[:, at.OUT_LENGTH]
    rows[:, at.LAUNCH_BIAS] = tiles[:, at.BIAS_OFFSET]
    rows[:, at.HAS_EPILOGUE] = tiles[:, at.EPILOGUE] != NONE
    rows[:, [at.GAINS, at.SHIFTS]] = NONE
    changes = {k: rescaling[n] for k, n in enumerate(numbers.tolist()) if n in rescaling}
    for k, change in changes.items():
        rows[k, [at.OUT_COLUMN, at.GAINS, at.SHIFTS]] = change.column, change.gains, change.shifts
    return rows, bool(changes)


def check_tables(tables: StepTables) -> None:
    """Raise ValueError unless the kernel can run the tables."""
    sides = (tables.tile_rows, tables.step_columns)
    if not tables.is_uniform or any(s < 16 or s & (s - 1) for s in sides) or len(tables.weights) > MOST_BUFFERS:
        raise ValueError(
            f"Found weight tiles of {sides} in {len(tables.weights)} buffers. Expected a uniform table, sides that are "
            f"powers of two from 16 on, and at most {MOST_BUFFERS} buffers."
        )


def check_workspace(workspace: Tensor, streams: Streams, config: Config) -> int:
    """The number of rows. Raises ValueError where these are not contiguous, or streams of a point would be parted."""
    if workspace.shape[0] % streams.rows or config.block % streams.rows:
        raise ValueError(
            f"Found {workspace.shape[0]} rows, {config.block} in a program. Expected multiples of the {streams.rows} "
            "rows of a point."
        )
    if workspace.shape[0] and workspace.stride(1) != 1:
        raise ValueError(f"The workspace's rows are not contiguous: strides {workspace.stride()}. Expected (., 1).")
    return workspace.shape[0]


def pointers(tables: StepTables, workspace: Tensor) -> list[Tensor]:
    """Weights, scales and biases as the kernels take them; what is absent is never read and stands for itself."""
    weights = [*tables.weights, *[tables.weights[0] if tables.weights else workspace] * MOST_BUFFERS][:MOST_BUFFERS]
    scales = tables.scales if tables.scales.numel() else workspace
    return [*weights, scales, tables.biases if tables.biases.numel() else workspace]


def product_constants(storages: Sequence[torch.dtype], workspace: torch.dtype, config: Config, precision: str) -> dict:
    """The compile-time constants that say how products are formed. storages: of the weight buffers."""
    narrow = workspace != torch.float32
    # Types that differ meet in float32, where tf32 loses nothing of a narrow one. So does bfloat16 on the interpreter,
    # whose bfloat16 products are wrong.
    mixed = narrow and bool(set(storages) - {torch.int8, workspace})
    return {
        "BLOCK": config.block,
        "BUFFERS": max(1, len(storages)),
        "SCALED": storages.index(torch.int8) if torch.int8 in storages else -1,
        "FORM": config.form,
        "WIDEN": config.form == "row" or mixed or (is_interpreted() and workspace == torch.bfloat16),
        "PRECISION": precision if precision in ("tf32", "tf32x3") else "tf32" if narrow else "ieee",
        "num_warps": config.warps,
        "num_stages": config.stages,
    }


def constants(tiles: TileList, workspace: Tensor, config: Config, precision: str) -> dict[str, Any]:
    """The compile-time constants of a launch."""
    if precision not in PRECISIONS:
        raise ValueError(f"Found precision {precision!r}. Expected one of {', '.join(PRECISIONS)}.")
    tables, epilogue = tiles.tables, tiles.epilogue
    storages = [t.dtype for t in tables.weights]
    if config.form == "swapped" and converts(storages, precision) and not is_interpreted():
        raise ValueError(f"Found the form swapped for {storages} under {precision}. Expected batch or row.")
    return product_constants(storages, workspace.dtype, config, precision) | {
        "ROWS": tables.tile_rows,
        "COLUMNS": tables.step_columns,
        "UNIT": tables.unit,
        "EPILOGUE": epilogue.name,
        "FIRST": epilogue.first,
        "SECOND": epilogue.second,
        "RESCALE": tiles.rescaled,
        "JET": tiles.streams.code,
    }
