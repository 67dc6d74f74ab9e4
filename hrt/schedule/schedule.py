"""The schedule of a network as data: stages over one workspace of columns, and the rules that every schedule obeys."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.kernels.step_tables import (
    BUFFER,
    COLUMN,
    END_STEP,
    EPILOGUE,
    FIRST_STEP,
    LENGTH,
    NONE,
    OUT_COLUMN,
    OUT_LENGTH,
    WEIGHT_OFFSET,
    StepTables,
    TableError,
)


@dataclass(frozen=True)
class Span:
    """Workspace columns of one value of per-sample `shape`, row-major from column `start`.

    pitch: columns from one row (of the last dimension) to the next; 0 where rows follow without a gap.
    """

    start: int
    shape: tuple[int, ...]
    pitch: int = 0

    @property
    def size(self) -> int:
        """How many columns hold numbers."""
        return prod(self.shape)

    @property
    def columns(self) -> np.ndarray:
        """int64 (size,): the workspace column of every number."""
        index = np.arange(self.size)
        if not self.pitch:
            return self.start + index
        row, within = np.divmod(index, self.shape[-1])
        return self.start + row * self.pitch + within


@dataclass(frozen=True)
class Wave:
    """Tiles [first_tile, end_tile): half a linear layer. phase 1 writes T = X V^T, phase 2 Y = [X | T][D ; U].

    inputs: columns of the layer's weight.
    """

    layer: str
    phase: int
    first_tile: int
    end_tile: int
    output: Span
    inputs: int = 0


@dataclass(frozen=True)
class Apply:
    """A node of the op table, on spans and constants (named as in Schedule.constants)."""

    name: str
    op: str
    attrs: Mapping[str, Any]
    operands: tuple[Span | str, ...]
    output: Span


@dataclass(frozen=True, eq=False)
class Gather:
    """Copy workspace column index[j] to column j of `output`: an ordering, or rows brought to an aligned pitch.

    index: int32 (output.size,).
    """

    name: str
    index: Tensor
    output: Span


Stage = Wave | Apply | Gather


@dataclass(frozen=True)
class Epilogue:
    """An activation of the op table that a tile applies to its sum."""

    op: str
    attrs: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Schedule:
    """A network as stages, to be run in order on a workspace (batch, width). Validated where it is made.

    Executors zero the workspace once. Inputs are written to their spans for every run. Columns that nothing ever
    writes (`padding`) must stay zero: steps read them with zero weights, and zero times NaN is NaN. Columns of a value
    that nobody reads any more are given to a later value of the same size, so that padding stays where it is.
    """

    width: int
    inputs: tuple[Span, ...]
    outputs: tuple[Span, ...]
    stages: tuple[Stage, ...]
    tables: StepTables
    epilogues: tuple[Epilogue, ...]
    constants: Mapping[str, Tensor | HMatrix]

    def __post_init__(self) -> None:
        validate(self)

    @cached_property
    def padding(self) -> np.ndarray:
        """bool (width,): columns that nothing writes and that must be zero."""
        untouched = np.ones(self.width, dtype=bool)
        for span in (*self.inputs, *(stage.output for stage in self.stages)):
            untouched[span.columns] = False
        return untouched


def validate(schedule: Schedule) -> None:
    """Raise InputError, naming stage and tile, unless `schedule` can be run in order without a race or a stale read.

    Tables are in bounds and aligned; every output column of a wave has exactly one writer; no wave reads what it
    writes; whatever is read was written before by an input or a stage, or is padding and met by zero weights only.
    """
    spans = [("input", s) for s in schedule.inputs] + [("output", s) for s in schedule.outputs]
    for stage in schedule.stages:
        spans += [(_name(stage), s) for s in (stage.output, *_operands(stage))]
    for name, span in spans:
        columns = span.columns
        if len(columns) and (columns.min() < 0 or columns.max() >= schedule.width):
            raise InputError(f"A span of {name} reaches outside the workspace of {schedule.width} columns.")
    try:
        schedule.tables.check()
    except TableError as error:
        tile = NONE if error.tile is None else error.tile
        where = [_name(s) for s in _waves(schedule) if s.first_tile <= tile < s.end_tile]
        raise InputError(f"{where[0]}: {error}" if where else str(error)) from error
    _check_waves_cover_tables(schedule)
    written = np.zeros(schedule.width, dtype=np.int64)
    for span in schedule.inputs:
        written[span.columns] += 1
    if (written > 1).any():
        raise InputError(f"Two inputs share column {int(written.argmax())} of the workspace.")
    written = written > 0
    checker = _WaveChecker(schedule)
    for stage in schedule.stages:
        reads = np.concatenate([np.zeros(0, dtype=np.int64), *(s.columns for s in _operands(stage))])
        if isinstance(stage, Gather):
            reads = stage.index.cpu().numpy().astype(np.int64)
            if len(reads) != stage.output.size or (len(reads) and not 0 <= reads.min() <= reads.max() < len(written)):
                raise InputError(f"{_name(stage)}: its index does not fit its output or the workspace.")
        if not written[reads].all():
            raise InputError(f"{_name(stage)} reads a column that no earlier stage has written.")
        names = stage.operands if isinstance(stage, Apply) else ()
        unknown = [s for s in names if isinstance(s, str) and s not in schedule.constants]
        if unknown:
            raise InputError(f"{_name(stage)} reads the constants {unknown}, which are not there.")
        columns = stage.output.columns
        if isinstance(stage, Wave):
            checker.check(stage, written)
        elif np.isin(reads, columns).any():
            raise InputError(f"{_name(stage)} reads a column that it writes.")
        written[columns] = True
    for k, span in enumerate(schedule.outputs):
        if not written[span.columns].all():
            raise InputError(f"Output {k} has a column that no stage has written.")


def _check_waves_cover_tables(schedule: Schedule) -> None:
    tile = 0
    for stage in _waves(schedule):
        if stage.first_tile != tile or stage.end_tile < tile:
            raise InputError(f"{_name(stage)} begins at tile {stage.first_tile}. Expected {tile}.")
        tile = stage.end_tile
    if tile != len(schedule.tables.tiles):
        raise InputError(f"The waves end at tile {tile}. Expected {len(schedule.tables.tiles)}, all tiles.")


class _WaveChecker:
    """The rules of waves, on numpy copies of the tables."""

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self.tables = schedule.tables
        self.tiles = schedule.tables.tiles.cpu().numpy().astype(np.int64)
        self.steps = schedule.tables.steps.cpu().numpy().astype(np.int64)
        self.used = [_nonzero_columns(t, self.tables) for t in self.tables.weights] if self.tables.is_uniform else []

    def check(self, wave: Wave, written: np.ndarray) -> None:
        """Raise InputError for the first tile of `wave` that breaks a rule. written: bool (width,)."""
        tiles = self.tiles[wave.first_tile : wave.end_tile]
        bad = tiles[:, EPILOGUE] >= len(self.schedule.epilogues)
        self._fail(wave, bad, "names an epilogue that is not there")
        expected = np.zeros(len(written), dtype=np.int64)
        expected[wave.output.columns] = 1
        out, out_end = tiles[:, OUT_COLUMN], tiles[:, OUT_COLUMN] + tiles[:, OUT_LENGTH]
        self._fail(wave, out_end > len(written), "writes outside the workspace")
        writers = cover(out, out_end, len(written))
        wrong = np.flatnonzero(writers != expected)
        if len(wrong):
            touching = (out <= wrong[0]) & (out_end > wrong[0])
            what = f"column {wrong[0]} has {writers[wrong[0]]} writers, expected {expected[wrong[0]]}"
            self._fail(wave, touching, f"is at fault: {what}")
            raise InputError(f"{_name(wave)}: {what}.")
        first, end = (int(tiles[0, FIRST_STEP]), int(tiles[-1, END_STEP])) if len(tiles) else (0, 0)
        steps = self.steps[first:end]
        owner = np.repeat(np.arange(len(tiles)), tiles[:, END_STEP] - tiles[:, FIRST_STEP])
        column, column_end = steps[:, COLUMN], steps[:, COLUMN] + steps[:, LENGTH]
        self._fail(wave, column_end > len(written), "reads outside the workspace", owner)

        def hits(flags: np.ndarray) -> np.ndarray:
            before = np.concatenate([[0], np.cumsum(flags)])
            return before[column_end] > before[column]

        self._fail(wave, hits(expected > 0), "reads a column that its own wave writes", owner)
        self._fail(wave, hits(~written & ~self.schedule.padding), "reads a column that a later stage writes", owner)
        unwritten = hits(~written)
        if self.tables.is_uniform:  # padding may be read, by zero weights: here the numbers themselves are looked at
            for b, used in enumerate(self.used):
                at = np.flatnonzero(unwritten & (steps[:, BUFFER] == b))
                read = column[at, None] + np.arange(self.tables.step_columns)
                weighted = used[steps[at, WEIGHT_OFFSET] // self.tables.tile_elements]
                unwritten[at] = np.any(weighted & ~written[read], axis=1)
        self._fail(wave, unwritten, "reads a column that no earlier stage has written", owner)

    def _fail(self, wave: Wave, bad: np.ndarray, fault: str, owner: np.ndarray | None = None) -> None:
        if bad.any():
            at = int(bad.argmax())
            tile = wave.first_tile + (at if owner is None else int(owner[at]))
            raise InputError(f"{_name(wave)}: tile {tile} {fault}.")


def _nonzero_columns(weights: Tensor, tables: StepTables) -> np.ndarray:
    """bool (weight tiles, step_columns): which columns of a weight tile hold anything but zeros."""
    whole = weights.numel() // tables.tile_elements * tables.tile_elements
    return weights[:whole].view(-1, tables.tile_rows, tables.step_columns).ne(0).any(1).cpu().numpy()


def cover(starts: np.ndarray, ends: np.ndarray, width: int) -> np.ndarray:
    """int64 (width,): how many of the ranges hold each column."""
    change = np.bincount(starts, minlength=width + 1) - np.bincount(ends, minlength=width + 1)
    return np.cumsum(change)[:width]


def is_run(columns: np.ndarray) -> bool:
    """Whether the columns follow each other."""
    return bool((columns[1:] == columns[:-1] + 1).all())


def _name(stage: Stage) -> str:
    if isinstance(stage, Wave):
        return f"Wave {stage.phase} of {stage.layer}"
    return f"{type(stage).__name__} {stage.name}"


def _operands(stage: Stage) -> Iterator[Span]:
    return (s for s in (stage.operands if isinstance(stage, Apply) else ()) if isinstance(s, Span))


def _waves(schedule: Schedule) -> Iterator[Wave]:
    return (stage for stage in schedule.stages if isinstance(stage, Wave))
