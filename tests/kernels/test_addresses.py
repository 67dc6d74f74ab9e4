"""Memory safety of every kernel on Triton's interpreter: each launch touches what its tables say, each once, and no
program what another one stores (`addresses`). Faults put in by hand show that this finds them.
"""

from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from hrt.capture.torch_export import capture
from hrt.kernels.derivative_streams import Streams
from hrt.kernels.launch import Config, NetworkList, TileList
from hrt.kernels.precisions import NAMES, PRECISIONS, epilogue_of
from hrt.kernels.step_tables import END_GROUP
from hrt.kernels.tuning import bucket_of
from hrt.runtime.cuda_graphs import Bucket
from hrt.runtime.cuda_program import CudaProgram
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.schedule import Wave

from addresses import judged, put_fault
from helpers import MIXED, hierarchical
from step_cases import NO_EPILOGUE, OPS, random_tables, with_epilogue

SCHEDULES, SOON = 100, 8  # all of them, and those of `make test`
WORKSPACES = (torch.float32, torch.float16, torch.bfloat16)
SECOND = Streams(((), (0,), (1,), (0, 0)))
NETWORKS = (torch.nn.Tanh, torch.nn.GELU, torch.nn.SiLU, torch.nn.ReLU, torch.nn.Softplus)


class Scaled(torch.nn.Module):
    """Outputs in units: gains and shifts in the last wave."""

    def __init__(self, net, outputs, generator):
        super().__init__()
        self.net = net
        self.gain = torch.nn.Buffer(torch.rand(outputs, generator=generator) + 1)
        self.shift = torch.nn.Buffer(torch.randn(outputs, generator=generator))

    def forward(self, x):
        return self.net(x) * self.gain + self.shift


def random_program(seed):
    """A network of random H-matrices, all storage types mixed."""
    rng, g = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    sizes = [int(n) for n in rng.integers(1, 80, int(rng.integers(2, 5)))]
    activation = NETWORKS[int(rng.integers(len(NETWORKS)))]
    layers = [layer for a, b in pairwise(sizes) for layer in (torch.nn.Linear(a, b), activation())]
    net = torch.nn.Sequential(*layers[:-1])
    net = Scaled(net, sizes[-1], g) if rng.random() < 0.5 else net
    return hierarchical(capture(net, [torch.zeros(2, sizes[0])]), seed, storages=MIXED), sizes[0]


def run_network(seed):
    """A network as a session runs it: any precision, either kernel, with or without derivatives."""
    rng = np.random.default_rng(seed)
    program, width = random_program(seed)
    names = ["d0", "d0d0"] if rng.random() < 0.3 else []
    precision = PRECISIONS[int(rng.integers(len(PRECISIONS)))]
    served = CudaProgram(program, None, precision, densify=bool(rng.random() < 0.2), derivatives=names)
    batch = int(rng.choice([1, 2, 5, 16, 17, 33]))
    kernel = served.kernels[int(rng.integers(len(served.kernels)))]
    Bucket(served, bucket_of(batch), kernel=kernel, capture=False).run([torch.randn(batch, width)], batch)


def run_tables(seed):
    """Random tables in one form or another, whole or cut, any workspace, with an epilogue, values or streams."""
    rng = np.random.default_rng(seed)
    form = ("row", "swapped", "batch")[seed % 3]
    streams = SECOND if form != "row" and rng.random() < 0.4 else Streams()
    storages = tuple(MIXED[k] for k in rng.permutation(4)[: int(rng.integers(1, 5))])
    tables = random_tables(seed, storages, longest=int(rng.integers(1, 15)))
    epilogue = epilogue_of(*OPS[NAMES[int(rng.integers(len(NAMES)))]]) if rng.random() < 0.5 else NO_EPILOGUE
    batch = int(rng.choice([1, 3] if form == "row" else [4, 12, 16, 20, 64])) * streams.rows
    workspace = torch.randn(batch, 136).to(WORKSPACES[int(rng.integers(3))])
    parts = int(rng.choice([0, 6, 12]))
    tiles = rng.permutation(len(tables.tiles))
    listed = TileList.build(with_epilogue(tables, epilogue), tiles, epilogue, parts, streams=streams)
    listed.run(workspace, Config(form, 1 if form == "row" else int(rng.choice([16, 32]))))


@pytest.mark.parametrize(
    "seed", [pytest.param(k, marks=[pytest.mark.slow] if k >= SOON else []) for k in range(SCHEDULES)]
)
def test_random_schedules(seed):
    with judged() as watch:
        (run_tables if seed % 2 else run_network)(seed)
    assert watch.launches and not watch.faults, watch.faults[:5]


def network_list(seed=1):
    """Tables of a network of two layers, its waves' tiles and its epilogue."""
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(5, 20), torch.nn.Tanh(), torch.nn.Linear(20, 3))
    program = hierarchical(capture(net, [torch.zeros(2, 5)]), seed, storages=MIXED, ordered=False)
    schedule = build_schedule(program, tile_rows=16, step_columns=16, unit=8)
    waves = [range(s.first_tile, s.end_tile) for s in schedule.stages if isinstance(s, Wave)]
    return schedule, waves, epilogue_of("tanh", {})


def run_one_launch():
    """20 rows in blocks of 16: the last block has rows beyond the batch."""
    schedule, waves, epilogue = network_list()
    workspace = torch.zeros(20, schedule.width)
    NetworkList.build(schedule.tables, waves, epilogue).run(workspace, Config("swapped", 16))


def test_rows_beyond_the_batch_read_a_row_of_their_own_block():
    """Row 0 is another program's to write."""
    with judged() as watch:
        run_one_launch()
    assert not watch.faults, watch.faults[:5]


def run_list(change=lambda listed: listed, width=136, parts=0):
    """Tables with a bias, runs of int8 with and without scales; `change` gets the list that is launched."""
    tables = random_tables(0, (torch.float32, torch.int8), longest=14)
    listed = TileList.build(tables, range(len(tables.tiles)), NO_EPILOGUE, parts)
    changed = change(listed)
    vars(listed).update(vars(changed))  # the same object, so that its footprint is known
    listed.run(torch.randn(20, width), Config("swapped", 16))


def entry(place, *at, by):
    """A change of one number of a list that a launch looks up."""

    def change(listed):
        lists = [t.clone() for t in listed.lists]
        lists[place][at] += by
        return replace(listed, lists=tuple(lists))

    return change


def without_sentinel(listed):
    return replace(listed, lists=(*listed.lists[:-1], listed.lists[-1][:-1]))


def one_slot_more(listed):
    finish = listed.finish.clone()
    finish[-1, END_GROUP] += 1
    return replace(listed, finish=finish)


def test_without_a_fault_in_them_the_same_lists_are_right():
    for parts in (0, 12):
        with judged() as watch:
            run_list(parts=parts)
        assert len(watch.launches) == 1 + (parts > 0) and not watch.faults


@pytest.mark.parametrize(
    ("text", "wrong", "run"),
    [
        ("inside = rows < batch", "inside = rows <= batch", run_list),
        ("inside = rows < batch", "inside = rows <= batch", partial(run_list, parts=12)),
        ("written = place < length", "written = place <= length", run_list),
        ("columns + step + 1)", "columns + step + 2)", run_list),
        ("mask=place + offset >= place, other=1.0", "mask=place >= 0, other=1.0", run_list),
        ("mask=written & (place + bias >= place)", "mask=written", run_list),
        ("source + slot * ROWS", "source + (slot + 1) * ROWS", partial(run_list, parts=12)),
        ("* (ROWS * COLUMNS)  #", "* (ROWS * COLUMNS) + 1  #", run_list),
        ("tl.where(inside, rows, first)", "tl.where(inside, rows, 0)", run_one_launch),
        ("tl.where(inside, rows, first)", "rows", run_one_launch),
    ],
)
def test_a_fault_in_a_kernel_is_found(text, wrong, run, tmp_path, monkeypatch):
    put_fault(text, wrong, tmp_path, monkeypatch)
    with judged() as watch:
        run()
    assert watch.faults


@pytest.mark.parametrize(
    ("fault", "run"),
    [
        ("a run one step too long", partial(run_list, entry(1, 0, 1, by=1))),
        ("a run one step too short", partial(run_list, entry(1, 0, 1, by=-1))),
        ("weights beyond their buffer", partial(run_list, entry(2, -1, 0, by=100))),
        ("weights one tile on", partial(run_list, entry(2, 1, 0, by=1))),
        ("scales of another group", partial(run_list, entry(3, 0, 2, by=1))),
        ("an output one column on", partial(run_list, entry(0, 0, 0, by=1))),
        ("a bias beyond the biases", partial(run_list, entry(0, 0, 2, by=100))),
        ("a column beyond the row", partial(run_list, entry(4, -2, by=64))),
        ("columns without their sentinel", partial(run_list, without_sentinel)),
        ("one part too many in the second pass", partial(run_list, one_slot_more, parts=12)),
        ("rows that are too short", partial(run_list, width=60)),
    ],
)
def test_a_fault_in_a_table_is_found(fault, run):
    with judged() as watch:
        run()
    assert watch.faults, fault


def test_tiles_that_wait_for_each_other_in_one_launch_are_found():
    schedule, waves, epilogue = network_list()
    with judged() as watch:
        TileList.build(schedule.tables, [t for wave in waves for t in wave], epilogue, 0).run(
            torch.zeros(4, schedule.width), Config("swapped", 16)
        )
    assert any("another program stores" in fault for fault in watch.faults)
