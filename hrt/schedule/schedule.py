"""The schedule of a network as data: stages over one workspace of columns, and the rules that every schedule obeys."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.kernels.step_tables import COLUMN, EPILOGUE, LENGTH, OUT_COLUMN, OUT_LENGTH, StepTables


@dataclass(frozen=True)
class Span:
    """Workspace columns of one value of per-sample `shape`, row-major from column `start`. pitch: columns from one row
    to the next; 0 where rows follow without a gap.
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

    @property
    def name(self) -> str:
        """What errors call it."""
        return f"{self.phase} of {self.layer}"


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
    """Copy workspace column index[j], int32, to column j of `output`: an ordering, or rows at an aligned pitch."""

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

    Executors zero the workspace once. Columns that nothing ever writes (`padding`) must stay zero: steps read them with
    zero weights, and zero times NaN is NaN. A value that is read no more leaves its columns to one of the same size.
    """

    width: int
    inputs: tuple[Span, ...]
    outputs: tuple[Span, ...]
    stages: tuple[Stage, ...]
    tables: StepTables
    epilogues: tuple[Epilogue, ...]
    constants: Mapping[str, Tensor | HMatrix]

    def __post_init__(self) -> None:
        """Raise InputError unless the stages can be run in order without a race or a stale read: every output column of
        a wave has one writer, no stage reads what it writes, and what is read was written or is padding of uniform
        tables.
        """
        operands = [s for stage in self.stages if isinstance(stage, Apply) for s in stage.operands]
        spans = [s for s in operands if isinstance(s, Span)] + [stage.output for stage in self.stages]
        for span in (*self.inputs, *self.outputs, *spans):
            columns = span.columns
            inside = not len(columns) or 0 <= columns.min() <= columns.max() < self.width
            _require(inside, f"{span} reaches outside the workspace of {self.width} columns.")
        tiles, steps = self.tables.numbers
        for table, start, length, verb in ((tiles, OUT_COLUMN, OUT_LENGTH, "writes"), (steps, COLUMN, LENGTH, "reads")):
            end = (table[:, start] + table[:, length]).max(initial=0)
            _require(end <= self.width, f"A tile {verb} outside the workspace of {self.width} columns.")
        _require(tiles[:, EPILOGUE].max(initial=-1) < len(self.epilogues), "A tile names an unknown epilogue.")
        unknown = [s for s in operands if isinstance(s, str) and s not in self.constants]
        _require(not unknown, f"The constants {unknown} are read but not there.")
        self._check_order()

    def _check_order(self) -> None:
        written, tile = np.zeros(self.width, dtype=bool), 0
        for span in self.inputs:
            _require(not written[span.columns].any(), f"Two inputs share columns of {span}.")
            written[span.columns] = True
        for stage in self.stages:
            columns, name = stage.output.columns, f"{type(stage).__name__} {stage.name}"
            if isinstance(stage, Wave):
                _require(tile == stage.first_tile <= stage.end_tile, f"{name} does not begin at tile {tile}.")
                tile = stage.end_tile
                out, length = self.tables.numbers[0][stage.first_tile : tile, [OUT_COLUMN, OUT_LENGTH]].T
                expected = np.bincount(columns, minlength=self.width)
                fits = np.array_equal(cover(out, out + length, self.width), expected)
                _require(fits, f"{name}: a column of its output has no writer or several, or it writes another one.")
            elif isinstance(stage, Gather):
                index = stage.index
                fits = len(index) == len(columns) and (not len(index) or 0 <= index.min() <= index.max() < self.width)
                _require(bool(fits), f"{name}: its index does not fit its output or the workspace.")
            reads = columns_read(stage, self)
            readable = written | self.padding if isinstance(stage, Wave) and self.tables.is_uniform else written
            _require(bool(readable[reads].all()), f"{name} reads a column that no earlier stage has written.")
            _require(not np.isin(reads, columns).any(), f"{name} reads a column that it writes.")
            written[columns] = True
        _require(tile == len(self.tables.tiles), f"The waves end at tile {tile}. Expected {len(self.tables.tiles)}.")
        for k, span in enumerate(self.outputs):
            _require(bool(written[span.columns].all()), f"Output {k} has a column that no stage has written.")

    @cached_property
    def padding(self) -> np.ndarray:
        """bool (width,): columns that nothing writes and that must be zero."""
        untouched = np.ones(self.width, dtype=bool)
        for span in (*self.inputs, *(stage.output for stage in self.stages)):
            untouched[span.columns] = False
        return untouched


def _require(holds: bool, fault: str) -> None:
    if not holds:
        raise InputError(fault)


def columns_read(stage: Stage, schedule: Schedule) -> np.ndarray:
    """int64: the workspace columns that a stage reads."""
    if isinstance(stage, Gather):
        return stage.index.cpu().numpy().astype(np.int64)
    if isinstance(stage, Apply):
        spans = [s.columns for s in stage.operands if isinstance(s, Span)]
        return np.concatenate([np.zeros(0, dtype=np.int64), *spans])
    steps = schedule.tables.steps_of(stage.first_tile, stage.end_tile)
    return np.flatnonzero(cover(steps[:, COLUMN], steps[:, COLUMN] + steps[:, LENGTH], schedule.width))


def cover(starts: np.ndarray, ends: np.ndarray, width: int) -> np.ndarray:
    """int64 (width,): how many of the ranges hold each column."""
    change = np.bincount(starts, minlength=width + 1) - np.bincount(ends, minlength=width + 1)
    return np.cumsum(change)[:width]


def is_run(columns: np.ndarray) -> bool:
    """Whether the columns follow each other."""
    return bool((columns[1:] == columns[:-1] + 1).all())
