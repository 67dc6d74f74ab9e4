"""Orderings at a network's inputs and outputs: part of the copies in and out, only where nothing else is touched."""

import pytest
import torch

from hrt.capture.torch_export import capture
from hrt.kernels.reference import run_steps
from hrt.program.op_table import TABLE
from hrt.program.program import Node, Program, Value
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.ports import boundary
from hrt.schedule.run_reference import epilogue_function, execute, read, write
from hrt.schedule.schedule import Apply, Gather, Schedule, Wave

from helpers import MIXED, hierarchical, random_hmatrix
from models import linear_program
from zoo import SOME_OF_THE_ZOO, ZOO


def run_through_ports(schedule: Schedule, inputs):
    """What the GPU backend does, in plain torch: inputs through entries, what is left of the stages, then exits.

    Columns that no entry fills are NaN, so that a number taken from one shows.
    """
    entries, exits, folded = boundary(schedule)
    batch = inputs[0].shape[0]
    work = torch.full((batch, schedule.width), float("nan"), dtype=torch.float64)
    work[:, torch.from_numpy(schedule.padding)] = 0
    for port in entries:
        flat = inputs[port.number].reshape(batch, -1)
        work[:, torch.from_numpy(port.span.columns)] = flat if port.index is None else flat[:, port.index]
    functions = [epilogue_function(e) for e in schedule.epilogues]
    for stage in schedule.stages:
        if id(stage) in folded:
            continue
        if isinstance(stage, Wave):
            run_steps(work, schedule.tables, stage.first_tile, stage.end_tile, functions)
        elif isinstance(stage, Gather):
            work[:, torch.from_numpy(stage.output.columns)] = work[:, stage.index.long()]
        elif isinstance(stage, Apply):
            constants = schedule.constants
            operands = [constants[s].double() if isinstance(s, str) else read(work, s) for s in stage.operands]
            write(work, stage.output, TABLE[stage.op].torch(operands, stage.attrs))
    outputs = []
    for port in exits:
        columns = torch.from_numpy(port.span.columns) if port.index is None else port.index
        outputs.append(work[:, columns].reshape(batch, *port.span.shape))
    return outputs


def same(schedule, inputs):
    for a, b in zip(run_through_ports(schedule, inputs), execute(schedule, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", [{}, {"tile_rows": 16, "step_columns": 16, "unit": 8}])
@pytest.mark.parametrize("seed", range(4))
def test_one_ordered_layer_has_no_gather_left(seed, layout):
    schedule = build_schedule(linear_program(random_hmatrix(seed, 40, 30, ordered=True)), **layout)
    _, _, folded = boundary(schedule)
    assert sum(isinstance(s, Gather) for s in schedule.stages) == 2 == len(folded)
    same(schedule, [torch.randn(3, 30, dtype=torch.float64)])


@pytest.mark.parametrize("layout", [{}, {"tile_rows": 16, "step_columns": 16, "unit": 8}])
@pytest.mark.parametrize("name", SOME_OF_THE_ZOO)
def test_every_network_of_the_zoo(name, layout):
    inputs = ZOO[name].inputs(3)
    program = capture(ZOO[name].build(torch.float64), inputs)
    program = hierarchical(program, 4, storages=MIXED, ordered=True)
    same(build_schedule(program, **layout), inputs)


def test_a_gather_into_columns_used_before_stays():
    """The second layer's ordered input takes the scratch columns of the first: it cannot be there from the start."""
    a, b = (random_hmatrix(k, 6, 20, ordered=True) for k in (1, 2))
    nodes = (Node("u", "linear", ("x", "a"), (6,), {}), Node("v", "linear", ("x", "b"), (6,), {}))
    schedule = build_schedule(Program((Value("x", (20,)),), nodes, ("u", "v"), {"a": a, "b": b}))
    entries, exits, folded = boundary(schedule)
    assert [e.index is None for e in entries] == [True, False] and all(e.index is not None for e in exits)
    assert [s.name for s in schedule.stages if isinstance(s, Gather) and id(s) not in folded] == ["x for v"]
    same(schedule, [torch.randn(3, 20, dtype=torch.float64)])


def test_an_input_that_is_read_as_it_is_stays():
    a = random_hmatrix(1, 20, 20, ordered=True)
    nodes = (Node("u", "linear", ("x", "a"), (20,), {}), Node("v", "add", ("u", "x"), (20,), {}))
    schedule = build_schedule(Program((Value("x", (20,)),), nodes, ("v", "u"), {"a": a}))
    entries, exits, _ = boundary(schedule)
    assert [e.index is None for e in entries] == [True, False]
    assert all(e.index is None for e in exits), "another stage reads what the gather writes"
    same(schedule, [torch.randn(3, 20, dtype=torch.float64)])
