"""A schedule as a list of launches: which tiles go together, and what torch does between them.

Tiles of a layer's second wave that read nothing of T run with the first. An activation that the kernels do not know is
applied in place after its wave. Orderings at the network's inputs and outputs are part of the copies in and out;
scalings of a layer's output are part of its last wave (`hrt.schedule.output_scaling`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from hrt.kernels.precisions import Epilogue, epilogue_of
from hrt.kernels.step_tables import COLUMN, EPILOGUE, LENGTH, NONE, Rescaling, StepTables
from hrt.program.op_table import TABLE
from hrt.schedule.output_scaling import scalings, with_scalings
from hrt.schedule.ports import Port, boundary
from hrt.schedule.precision import stays_exact
from hrt.schedule.run_reference import read, write
from hrt.schedule.schedule import Apply, Gather, Schedule, Wave


@dataclass(frozen=True)
class Tiles:
    """One launch of the step kernel. exact: float32 products although the network is in tf32."""

    numbers: tuple[int, ...]
    epilogue: Epilogue
    exact: bool = False


Launch = Tiles | Apply | Gather


@dataclass(frozen=True)
class Plan:
    """Launches in order, the tables they refer to (without the epilogues that no kernel knows), and where inputs enter
    (several times, where they are read in several orders) and outputs leave. rescaling: of tiles.
    """

    launches: tuple[Launch, ...]
    tables: StepTables
    entries: tuple[Port, ...] = ()
    exits: tuple[Port, ...] = ()
    rescaling: Mapping[int, Rescaling] = field(default_factory=dict)

    @property
    def waves(self) -> list[tuple[int, ...]] | None:
        """The tiles of every launch if one launch can run them all: nothing but tiles, and one epilogue."""
        tiles = [launch for launch in self.launches if isinstance(launch, Tiles)]
        alike = len({t.epilogue for t in tiles} - {Epilogue()}) <= 1
        return [t.numbers for t in tiles] if tiles and alike and len(tiles) == len(self.launches) else None

    @property
    def epilogue(self) -> Epilogue:
        """The one epilogue of all tiles (see `waves`)."""
        named = {t.epilogue for t in self.launches if isinstance(t, Tiles)} - {Epilogue()}
        return next(iter(named), Epilogue())

    @property
    def has_exact(self) -> bool:
        """Whether some layers stay in float32."""
        return any(t.exact for t in self.launches if isinstance(t, Tiles))


def make_plan(schedule: Schedule, precision: str) -> Plan:
    """The launches of `schedule`."""
    known = [epilogue_of(e.op, e.attrs) for e in schedule.epilogues]
    tiles = schedule.tables.tiles.clone()
    for k, epilogue in enumerate(known):
        if epilogue is None:
            tiles[tiles[:, EPILOGUE] == k, EPILOGUE] = NONE
    tables = replace(schedule.tables, tiles=tiles)
    launches: list[Launch] = []
    entries, exits, folded = boundary(schedule)
    scaled = scalings(schedule, exits, [e is not None for e in known])
    folded |= {id(a) for s in scaled for a in s.applies}
    tables, rescaling = with_scalings(tables, scaled)
    stages = [s for s in schedule.stages if id(s) not in folded]
    stages = [s for s in stages if not isinstance(s, Wave) or s.end_tile > s.first_tile]
    early: list[int] = []  # tiles of the wave at hand that ran with the one before
    for k, stage in enumerate(stages):
        if not isinstance(stage, Wave):
            launches.append(stage)
            continue
        numbers = [t for t in range(stage.first_tile, stage.end_tile) if t not in set(early)]
        early = []
        following = stages[k + 1] if k + 1 < len(stages) else None
        if stage.phase == 1 and isinstance(following, Wave) and (following.layer, following.phase) == (stage.layer, 2):
            early = [t for t in range(following.first_tile, following.end_tile) if not _reads(t, stage, tables)]
            numbers += early
        launches += _split(numbers, tables.numbers[0], known, stays_exact(stage.inputs, precision))
        launches += _in_place(stage, schedule, known)
    return Plan(tuple(launches), tables, entries, exits, rescaling)


def _reads(tile: int, wave: Wave, tables: StepTables) -> bool:
    """Whether a tile reads a column between the first and the last that `wave` writes."""
    columns, steps = wave.output.columns, tables.steps_of(tile, tile + 1)
    begin, end = steps[:, COLUMN], steps[:, COLUMN] + steps[:, LENGTH]
    return bool(((begin <= columns.max()) & (end > columns.min())).any())


def _split(numbers: Sequence[int], tiles: np.ndarray, known: Sequence[Epilogue | None], exact: bool) -> Iterator[Tiles]:
    """One launch, or one for each epilogue where there are several (never within one layer)."""
    used = sorted({int(k) for k in tiles[list(numbers), EPILOGUE]} - {NONE}) or [NONE]
    for k in used if numbers else ():
        alike = [t for t in numbers if tiles[t, EPILOGUE] == k or (k == used[0] and tiles[t, EPILOGUE] == NONE)]
        yield Tiles(tuple(alike), (known[k] if k != NONE else None) or Epilogue(), exact)


def _in_place(wave: Wave, schedule: Schedule, known: Sequence[Epilogue | None]) -> Iterator[Apply]:
    """The wave's activations that no kernel knows."""
    used = {int(k) for k in schedule.tables.tiles[wave.first_tile : wave.end_tile, EPILOGUE]} - {NONE}
    for k in sorted(used):
        if known[k] is None:
            yield Apply(wave.name, schedule.epilogues[k].op, schedule.epilogues[k].attrs, (wave.output,), wave.output)


def run_stage(stage: Apply | Gather, workspace: Tensor, constants: Mapping[str, Any], index: Tensor | None) -> None:
    """What torch does between launches, in place. index: of a Gather, on the workspace's device."""
    if isinstance(stage, Gather):
        write(workspace, stage.output, workspace.index_select(1, index if index is not None else stage.index))
    else:
        operands = [constants[s] if isinstance(s, str) else read(workspace, s).float() for s in stage.operands]
        write(workspace, stage.output, TABLE[stage.op].torch(operands, stage.attrs))
