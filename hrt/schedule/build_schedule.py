"""From a Program to a Schedule: every linear layer as tiles and steps of one table, everything else as table ops.

An activation that alone reads a linear layer becomes the epilogue of its tiles. Orderings of an H-matrix are not
applied until somebody needs the numbers in order: until then a value is the list of columns where its numbers stand.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from math import prod
from typing import cast

import numpy as np
import torch
from torch import Tensor

from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.kernels.step_tables import NONE, STEP_FIELDS, TILE_FIELDS, StepTables
from hrt.program.program import Node, Program
from hrt.schedule.pack_weights import Layout, PackedMatrix, PackedWave, Packer
from hrt.schedule.precision import fused_activations
from hrt.schedule.schedule import Apply, Epilogue, Gather, Schedule, Span, Stage, Wave, is_run

SCRATCH = "(scratch)"  # owner of what one layer needs only while it runs


def build_schedule(
    program: Program, *, tile_rows: int | None = None, step_columns: int | None = None, unit: int = 1
) -> Schedule:
    """The schedule of `program`, compact or, with tile_rows and step_columns, uniform.

    unit (uniform only): what the starts of spans and the columns of steps are multiples of. Raises InputError for sizes
    that do not fit each other and for weights that do not fit their inputs.
    """
    return _Builder(program, Layout(tile_rows, step_columns, unit)).build()


@dataclass(frozen=True)
class _Rows:
    """Equal rows in the workspace: row i starts at column start + i * pitch."""

    start: int = 0
    pitch: int = 0


@dataclass
class _Tables:
    """Tiles and steps while they grow."""

    tiles: list[np.ndarray] = field(default_factory=list)
    steps: list[np.ndarray] = field(default_factory=list)
    tile_count: int = 0
    step_count: int = 0

    def append(
        self, wave: PackedWave, count: int, sources: Sequence[_Rows], out: _Rows, bias: int, epilogue: int
    ) -> None:
        """`wave` once for each of `count` rows. sources: where X and T stand.  bias: where it begins, or -1."""
        row = np.arange(count)[:, None]
        relative = wave.steps[:, 0]
        start, pitch = (np.array([getattr(s, name) for s in sources])[relative] for name in ("start", "pitch"))
        steps = np.empty((count, len(wave.steps), STEP_FIELDS), dtype=np.int64)
        steps[:] = wave.steps[:, 1:]
        steps[:, :, 0] += start + row * pitch
        tiles = np.empty((count, len(wave.tiles), TILE_FIELDS), dtype=np.int64)
        tiles[:, :, :4] = wave.tiles
        tiles[:, :, 0] += out.start + row * out.pitch
        tiles[:, :, 2:4] += (self.step_count + row * len(wave.steps))[:, :, None]
        tiles[:, :, 4] = NONE if bias == NONE else bias + wave.tiles[:, 0]
        tiles[:, :, 5] = epilogue
        self.tiles.append(tiles.reshape(-1, TILE_FIELDS))
        self.steps.append(steps.reshape(-1, STEP_FIELDS))
        self.tile_count += len(self.tiles[-1])
        self.step_count += len(self.steps[-1])


class _Builder:
    """Walks a program once. `places` says in which columns the numbers of a value stand, `owned` what it occupies."""

    def __init__(self, program: Program, layout: Layout):
        self.program = program
        self.layout = layout
        self.packer = Packer(layout)
        self.shapes = {v.name: v.shape for v in (*program.inputs, *program.nodes)}
        self.places: dict[str, np.ndarray] = {}
        self.owned: dict[str, list[tuple[int, int, int]]] = {}
        self.free: dict[tuple[int, int], list[int]] = {}
        self.width = 0
        self.stages: list[Stage] = []
        self.tables = _Tables()
        self.packed: dict[str, PackedMatrix] = {}
        self.biases: list[Tensor] = []
        self.bias_places: dict[tuple[str, str], int] = {}
        self.epilogues: list[Epilogue] = []
        self.constants: dict[str, Tensor | HMatrix] = {}

    def build(self) -> Schedule:
        """All stages, then the tables."""
        missing = [name for name in self.program.outputs if name not in self.shapes]
        if missing:
            raise InputError(f"The outputs {missing} are constants. Expected values that depend on an input.")
        inputs = tuple(Span(self._new_value(v.name), v.shape) for v in self.program.inputs)
        last = {name: k for k, node in enumerate(self.program.nodes) for name in node.inputs}
        # a linear layer of a constant is a constant: no tile, it has no columns to read
        linear = {node.name for node in self.program.linear_nodes if node.inputs[0] in self.shapes}
        fused = {k: a for k, a in fused_activations(self.program).items() if k in linear}
        skip = {node.name for node in fused.values()}
        for k, node in enumerate(self.program.nodes):
            if node.name in linear:
                self._linear(node, fused.get(node.name))
            elif node.name not in skip:
                self._apply(node)
            for name in dict.fromkeys(node.inputs):
                if last[name] == k and name not in self.program.outputs:
                    self._release(name)
        outputs = tuple(self._span(name) for name in self.program.outputs)
        stages, epilogues = tuple(self.stages), tuple(self.epilogues)
        return Schedule(self.width, inputs, outputs, stages, self._step_tables(), epilogues, self.constants)

    def _step_tables(self) -> StepTables:
        tiles = np.concatenate([np.zeros((0, TILE_FIELDS), dtype=np.int64), *self.tables.tiles])
        steps = np.concatenate([np.zeros((0, STEP_FIELDS), dtype=np.int64), *self.tables.steps])
        narrow = not len(steps) or steps.max() < 2**31
        kind = reduce(torch.promote_types, (t.dtype for t in self.biases), torch.float32)
        return StepTables(
            torch.from_numpy(tiles.astype(np.int32)),
            torch.from_numpy(steps.astype(np.int32 if narrow else np.int64)),
            self.packer.buffers(),
            torch.cat([torch.zeros(0, dtype=kind), *(t.to(kind) for t in self.biases)]),
            self.layout.tile_rows or 0,
            self.layout.step_columns or 0,
            self.layout.unit,
            self.packer.scales(),
        )

    # the workspace --------------------------------------------------------------------------------------------------

    def _allocate(self, rows: int, width: int, owner: str) -> _Rows:
        """Room for `rows` rows. Only room that held the same is used again: its padding is then already zero."""
        pitch = self.layout.padded(width) if rows > 1 else width
        free = self.free.get((rows, width))
        if free:
            start = free.pop()
        else:
            start = self.width
            self.width += rows * self.layout.padded(width)
        self.owned.setdefault(owner, []).append((rows, width, start))
        return _Rows(start, pitch)

    def _release(self, owner: str) -> None:
        for rows, width, start in self.owned.pop(owner, ()):
            if rows * width:
                self.free.setdefault((rows, width), []).append(start)

    def _new_value(self, name: str) -> int:
        size = prod(self.shapes[name])
        start = self._allocate(1, size, name).start
        self.places[name] = start + np.arange(size)
        return start

    def _span(self, name: str) -> Span:
        """A value in its natural order, gathered if it is not."""
        columns = self.places[name]
        if len(columns) and not is_run(columns):
            self._new_value(name)
            self._gather(name, columns, Span(int(self.places[name][0]), (len(columns),)))
        return Span(int(self.places[name][0]) if len(columns) else 0, self.shapes[name])

    def _gather(self, name: str, columns: np.ndarray, output: Span) -> None:
        self.stages.append(Gather(name, torch.from_numpy(columns.reshape(-1).astype(np.int32)), output))

    # nodes ----------------------------------------------------------------------------------------------------------

    def _apply(self, node: Node) -> None:
        operands: list[Span | str] = []
        for name in node.inputs:
            if name in self.program.constants:
                self.constants[name] = self.program.constants[name]
            operands.append(name if name in self.program.constants else self._span(name))
        output = Span(self._new_value(node.name), node.shape)
        self.stages.append(Apply(node.name, node.op, node.attrs, tuple(operands), output))

    def _linear(self, node: Node, activation: Node | None) -> None:
        x, name, *rest = node.inputs
        weight = self.program.constants[name]
        m, n = weight.shape
        shape = self.shapes[x]
        if not shape or shape[-1] != n or node.shape != (*shape[:-1], m):
            raise InputError(
                f"Layer {node.module or node.name}: the weight {name!r} of shape {(m, n)} does not fit a value of "
                f"shape {('batch', *shape)} and a result of shape {('batch', *node.shape)}."
            )
        count = prod(shape[:-1])
        if name not in self.packed:
            self.packed[name] = self.packer.pack(weight)
        packed = self.packed[name]
        row_order, col_order = (weight.row_order, weight.col_order) if isinstance(weight, HMatrix) else (None, None)
        source = self._rows(x, count, n, col_order, node.name)
        inner = self._allocate(count, packed.inner, SCRATCH) if packed.inner else _Rows()
        result = node.name if activation is None else activation.name
        start = self._new_value(result)
        bias = self._bias(name, rest[0], row_order) if rest else NONE
        epilogue = NONE if activation is None else self._epilogue(activation)
        sources, label = (source, inner), node.module or node.name
        for phase, wave, out, width, added in (
            (1, packed.first, inner, packed.inner, NONE),
            (2, packed.second, _Rows(start, m), m, bias),
        ):
            if count * width:
                first = self.tables.tile_count
                self.tables.append(wave, count, sources, out, added, epilogue if phase == 2 else NONE)
                output = Span(out.start, (count, width), out.pitch)
                self.stages.append(Wave(label, phase, first, self.tables.tile_count, output, n))
        if row_order is not None:
            position = np.empty(m, dtype=np.int64)
            position[row_order.numpy()] = np.arange(m)
            self.places[result] = self.places[result].reshape(count, m)[:, position].reshape(-1)
        self._release(SCRATCH)

    def _rows(self, x: str, count: int, n: int, order: Tensor | None, layer: str) -> _Rows:
        """The rows of `x` in the weight's column order and at an aligned pitch, gathered if they are not so already."""
        columns = self.places[x].reshape(count, n)
        if not columns.size:
            return _Rows()
        columns = columns if order is None else columns[:, order.numpy()]
        aligned = count == 1 or self.layout.padded(n) == n
        if aligned and is_run(columns.reshape(-1)):
            return _Rows(int(columns[0, 0]), n)
        rows = self._allocate(count, n, SCRATCH)
        self._gather(f"{x} for {layer}", columns, Span(rows.start, (count, n), rows.pitch))
        return rows

    def _bias(self, weight: str, bias: str, row_order: Tensor | None) -> int:
        """Where the bias, in the weight's row order, begins."""
        key = (bias, weight if row_order is not None else "")
        if key not in self.bias_places:
            numbers = cast(Tensor, self.program.constants[bias]).detach().cpu()
            numbers = numbers if numbers.is_floating_point() else numbers.to(torch.float64)
            self.bias_places[key] = sum(t.numel() for t in self.biases)
            self.biases.append(numbers if row_order is None else numbers[row_order.long()])
        return self.bias_places[key]

    def _epilogue(self, activation: Node) -> int:
        epilogue = Epilogue(activation.op, dict(activation.attrs))
        if epilogue not in self.epilogues:
            self.epilogues.append(epilogue)
        return self.epilogues.index(epilogue)
