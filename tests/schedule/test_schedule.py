"""hrt.schedule.schedule: no schedule that is wrong gets through."""

from dataclasses import replace

import pytest
import torch

from hrt.errors import InputError
from hrt.kernels.step_tables import COLUMN, EPILOGUE, FIRST_STEP, OUT_COLUMN
from hrt.program.program import Node, Program, Value
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.schedule import Apply, Gather, Schedule, Span, Wave

from helpers import random_hmatrix

COMPACT: dict = {}
UNIFORM = {"tile_rows": 16, "step_columns": 16, "unit": 8}


def example(layout: dict) -> Schedule:
    """Gather, two waves, an op of the table, two waves, gather."""
    h = random_hmatrix(7, 20, 20, depth=2, ordered=True)
    u = random_hmatrix(8, 20, 20, depth=2, ordered=False)
    nodes = (
        Node("a", "linear", ("x", "h", "b"), (20,), {}, "one"),
        Node("s", "add", ("a", "x"), (20,), {}),
        Node("y", "linear", ("s", "u"), (20,), {}, "two"),
    )
    program = Program((Value("x", (20,)),), nodes, ("y",), {"h": h, "u": u, "b": torch.ones(20)})
    return build_schedule(program, **layout)


def with_table(schedule: Schedule, table: str, row: int, field: int, value: int) -> Schedule:
    changed = getattr(schedule.tables, table).clone()
    changed[row, field] = value
    return replace(schedule, tables=replace(schedule.tables, **{table: changed}))


def with_stage(schedule: Schedule, kind: type, which: int = 0, **changes) -> Schedule:
    stages = list(schedule.stages)
    at = [k for k, stage in enumerate(stages) if isinstance(stage, kind)][which]
    stages[at] = replace(stages[at], **changes)
    return replace(schedule, stages=tuple(stages))


def stage_of(schedule: Schedule, kind: type, which: int = 0):
    return [stage for stage in schedule.stages if isinstance(stage, kind)][which]


def in_table(table: str, stage: int, last: bool, field: int, value):
    """A change of the first or last tile of a wave, or of that tile's first step. value: of (schedule, wave)."""

    def change(schedule: Schedule) -> Schedule:
        wave = stage_of(schedule, Wave, stage)
        tile = wave.end_tile - 1 if last else wave.first_tile
        row = tile if table == "tiles" else int(schedule.tables.tiles[tile, FIRST_STEP])
        return with_table(schedule, table, row, field, value(schedule, wave))

    return change


def wider(schedule: Schedule) -> Schedule:
    return replace(schedule, width=schedule.width + 64)


FAULTS = {
    "two writers": (
        in_table("tiles", 1, True, OUT_COLUMN, lambda s, w: int(s.tables.tiles[w.first_tile, OUT_COLUMN])),
        "Wave 2 of one: a column of its output",
    ),
    "no writer": (
        lambda s: with_stage(s, Wave, 1, output=replace(stage_of(s, Wave, 1).output, shape=(1, 21))),
        "Wave 2 of one: a column of its output",
    ),
    "writing outside": (in_table("tiles", 1, True, OUT_COLUMN, lambda s, w: s.width), "writes outside"),
    "reading its own wave": (
        in_table("steps", 1, True, COLUMN, lambda s, w: w.output.start),
        "Wave 2 of one reads a column",
    ),
    "reading a later stage": (
        in_table("steps", 0, False, COLUMN, lambda s, w: stage_of(s, Wave, 1).output.start),
        "Wave 1 of one reads a column that no earlier stage",
    ),
    "reading outside": (in_table("steps", 2, False, COLUMN, lambda s, w: -(-s.width // 8) * 8), "reads outside"),
    "an epilogue that is not there": (in_table("tiles", 0, False, EPILOGUE, lambda s, w: 0), "unknown epilogue"),
    "a tile twice": (lambda s: with_stage(s, Wave, 1, first_tile=0), "Wave 2 of one does not begin at tile"),
    "a tile left out": (
        lambda s: with_stage(s, Wave, -1, end_tile=stage_of(s, Wave, -1).end_tile - 1),
        "Wave 2 of two: a column",
    ),
    "operands that nobody wrote": (
        lambda s: with_stage(wider(s), Apply, operands=(Span(s.width, (20,)), s.inputs[0])),
        "Apply s reads a column that no earlier stage",
    ),
    "operands that are overwritten": (
        lambda s: with_stage(s, Apply, output=s.inputs[0], operands=(s.inputs[0],)),
        "Apply s reads a column that it writes",
    ),
    "constants that are not there": (
        lambda s: with_stage(s, Apply, operands=("k", s.inputs[0])),
        r"The constants \['k'\]",
    ),
    "a short index": (lambda s: with_stage(s, Gather, index=stage_of(s, Gather).index[:-1]), "its index does not"),
    "an index outside": (lambda s: with_stage(s, Gather, index=stage_of(s, Gather).index + s.width), "its index does"),
    "an output that nobody wrote": (
        lambda s: replace(wider(s), outputs=(Span(s.width, (8,)),)),
        "Output 0 has a column",
    ),
    "an output outside": (lambda s: replace(s, outputs=(Span(s.width - 1, (20,)),)), "reaches outside"),
    "an input outside": (lambda s: replace(s, inputs=(Span(-1, (20,)),)), "reaches outside"),
    "inputs that overlap": (lambda s: replace(s, inputs=(*s.inputs, Span(19, (1,)))), "Two inputs share"),
}


@pytest.mark.parametrize("layout", [COMPACT, UNIFORM])
def test_the_example_has_every_kind_of_stage(layout):
    schedule = example(layout)
    assert {type(stage) for stage in schedule.stages} == {Wave, Apply, Gather}
    assert [s.phase for s in schedule.stages if isinstance(s, Wave)] == [1, 2, 1, 2]


@pytest.mark.parametrize("layout", [COMPACT, UNIFORM])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_schedule_that_is_wrong_is_refused(layout, fault):
    change, message = FAULTS[fault]
    with pytest.raises(InputError, match=message):
        change(example(layout))


def test_padding_may_be_read_by_uniform_tables_alone():
    def change(schedule: Schedule) -> Schedule:
        return in_table("steps", 2, False, COLUMN, lambda s, w: s.width - 32)(wider(schedule))

    change(example(UNIFORM))
    with pytest.raises(InputError, match="Wave 1 of two reads a column that no earlier stage has written"):
        change(example(COMPACT))
