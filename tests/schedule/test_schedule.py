"""hrt.schedule.schedule: no schedule that is wrong gets through, and the fault is named by stage and tile."""

from dataclasses import replace

import pytest
import torch

from hrt.errors import InputError
from hrt.kernels.step_tables import COLUMN, END_STEP, EPILOGUE, FIRST_STEP, OUT_COLUMN, WEIGHT_OFFSET
from hrt.program.program import Node, Program, Value
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.schedule import Apply, Gather, Schedule, Span, Wave, validate

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


@pytest.mark.parametrize("layout", [COMPACT, UNIFORM])
class TestValidator:
    def test_the_example_is_valid_and_has_every_kind_of_stage(self, layout):
        schedule = example(layout)
        validate(schedule)
        assert {type(stage) for stage in schedule.stages} == {Wave, Apply, Gather}
        assert [s.phase for s in schedule.stages if isinstance(s, Wave)] == [1, 2, 1, 2]

    def test_two_writers(self, layout):
        schedule = example(layout)
        wave = stage_of(schedule, Wave, 1)
        column = int(schedule.tables.tiles[wave.first_tile, OUT_COLUMN])
        tile = wave.end_tile - 1
        with pytest.raises(InputError, match=r"Wave 2 of one: tile \d+ .*writers"):
            with_table(schedule, "tiles", tile, OUT_COLUMN, column)

    def test_no_writer(self, layout):
        schedule = example(layout)
        wave = stage_of(schedule, Wave, 1)
        with pytest.raises(InputError, match=r"Wave 2 of one.*0 writers, expected 1"):
            with_stage(schedule, Wave, 1, output=replace(wave.output, shape=(1, 21)))

    def test_writing_outside_the_workspace(self, layout):
        schedule = example(layout)
        tile = stage_of(schedule, Wave, 1).end_tile - 1
        with pytest.raises(InputError, match=f"Wave 2 of one: tile {tile} writes outside"):
            with_table(schedule, "tiles", tile, OUT_COLUMN, schedule.width)

    def test_reading_what_the_wave_writes(self, layout):
        schedule = example(layout)
        wave = stage_of(schedule, Wave, 1)
        step = int(schedule.tables.tiles[wave.end_tile - 1, FIRST_STEP])
        with pytest.raises(InputError, match=f"Wave 2 of one: tile {wave.end_tile - 1} .*its own wave writes"):
            with_table(schedule, "steps", step, COLUMN, wave.output.start)

    def test_reading_what_a_later_stage_writes(self, layout):
        schedule = example(layout)
        wave, later = stage_of(schedule, Wave, 0), stage_of(schedule, Wave, 1)
        step = int(schedule.tables.tiles[wave.first_tile, FIRST_STEP])
        with pytest.raises(InputError, match=f"Wave 1 of one: tile {wave.first_tile} .*later stage writes"):
            with_table(schedule, "steps", step, COLUMN, later.output.start)

    def test_reading_what_nobody_writes(self, layout):
        schedule = example(layout)
        schedule = replace(schedule, width=schedule.width + 64)
        tile = stage_of(schedule, Wave, 2).first_tile
        step = int(schedule.tables.tiles[tile, FIRST_STEP])
        with pytest.raises(InputError, match=f"Wave 1 of two: tile {tile} .*no earlier stage has written"):
            with_table(schedule, "steps", step, COLUMN, schedule.width - 32)

    def test_reading_outside_the_workspace(self, layout):
        schedule = example(layout)
        tile = stage_of(schedule, Wave, 2).first_tile
        step = int(schedule.tables.tiles[tile, FIRST_STEP])
        with pytest.raises(InputError, match=f"tile {tile} reads outside"):
            with_table(schedule, "steps", step, COLUMN, -(-schedule.width // 8) * 8)

    def test_an_epilogue_that_is_not_there(self, layout):
        schedule = example(layout)
        with pytest.raises(InputError, match="Wave 1 of one: tile 0 names an epilogue"):
            with_table(schedule, "tiles", 0, EPILOGUE, 0)

    def test_tables_spoilt_in_place_are_found_with_their_stage(self, layout):
        schedule = example(layout)
        tile = stage_of(schedule, Wave, 1).first_tile
        schedule.tables.tiles[tile, END_STEP] -= 1
        with pytest.raises(InputError, match=f"Wave 2 of one: Tile {tile + 1}: its run does not begin"):
            validate(schedule)

    def test_offsets_spoilt_in_place(self, layout):
        schedule = example(layout)
        schedule.tables.steps[-1, WEIGHT_OFFSET] = 2**31 - 2**10
        with pytest.raises(InputError, match=r"Wave 2 of two: Tile .* out of bounds"):
            validate(schedule)

    def test_columns_spoilt_in_place(self, layout):
        schedule = example(layout)
        schedule.tables.steps[0, COLUMN] -= schedule.tables.unit // 2 or schedule.width
        with pytest.raises(InputError, match=r"Wave 1 of one: Tile 0: a step"):
            validate(schedule)

    def test_waves_that_leave_out_tiles(self, layout):
        schedule = example(layout)
        with pytest.raises(InputError, match="Wave 2 of one begins at tile 0"):
            with_stage(schedule, Wave, 1, first_tile=0)
        with pytest.raises(InputError, match=r"The waves end at tile \d+"):
            with_stage(schedule, Wave, -1, end_tile=stage_of(schedule, Wave, -1).end_tile - 1)

    def test_operands_that_nobody_wrote(self, layout):
        schedule = replace(example(layout), width=example(layout).width + 20)
        late = schedule.width - 20
        with pytest.raises(InputError, match="Apply s reads a column that no earlier stage"):
            with_stage(schedule, Apply, operands=(Span(late, (20,)), schedule.inputs[0]))

    def test_operands_that_are_overwritten(self, layout):
        schedule = example(layout)
        with pytest.raises(InputError, match="Apply s reads a column that it writes"):
            with_stage(schedule, Apply, output=schedule.inputs[0], operands=(schedule.inputs[0],))

    def test_constants_that_are_not_there(self, layout):
        schedule = example(layout)
        with pytest.raises(InputError, match="Apply s reads the constants"):
            with_stage(schedule, Apply, operands=("k", schedule.inputs[0]))

    def test_an_index_that_does_not_fit(self, layout):
        schedule = example(layout)
        index = stage_of(schedule, Gather).index
        with pytest.raises(InputError, match="Gather x for a: its index"):
            with_stage(schedule, Gather, index=index[:-1])
        with pytest.raises(InputError, match="Gather x for a: its index"):
            with_stage(schedule, Gather, index=index + schedule.width)

    def test_an_output_that_nobody_wrote(self, layout):
        schedule = replace(example(layout), width=example(layout).width + 8)
        with pytest.raises(InputError, match="Output 0 has a column"):
            replace(schedule, outputs=(Span(schedule.width - 8, (8,)),))

    def test_spans_outside_the_workspace(self, layout):
        schedule = example(layout)
        with pytest.raises(InputError, match="span of output reaches outside"):
            replace(schedule, outputs=(Span(schedule.width - 1, (20,)),))
        with pytest.raises(InputError, match="span of input reaches outside"):
            replace(schedule, inputs=(Span(-1, (20,)),))

    def test_inputs_that_overlap(self, layout):
        schedule = example(layout)
        with pytest.raises(InputError, match="Two inputs share column"):
            replace(schedule, inputs=(*schedule.inputs, Span(19, (1,))))
