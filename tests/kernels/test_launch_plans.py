"""Launches of every batch bucket, without a device: grids, integers, pitches and alignment (`launch_claims`), and the
addresses of programs at the far end of workspaces and weights that no memory holds (`addresses`).
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hrt.capture.torch_export import capture
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.kernels import launch
from hrt.kernels.derivative_streams import MOST_ROWS
from hrt.kernels.launch import Config, NetworkList, TileList
from hrt.kernels.precisions import WORKSPACE
from hrt.kernels.step_tables import NONE, StepTables
from hrt.kernels.tuning import LARGEST_BUCKET, SHARED, Key, candidates, rule
from hrt.runtime.cuda_program import CudaProgram
from hrt.schedule.choose_layout import layouts

from addresses import judged, put_fault
from helpers import MIXED, hierarchical
from launch_claims import MOST_BLOCKS, Call, dense_tables, launch_faults, read_faults, recorded
from models import linear_program
from step_cases import NO_EPILOGUE

BUCKETS = [1 << k for k in range(LARGEST_BUCKET.bit_length())]
LARGE = (16_384, 65_536)  # outputs and inputs of the largest layer
PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "ieee": torch.float32}


def pitch_of(tables):
    """As `CudaProgram` has it: columns, to a multiple of 16."""
    tiles, steps = tables.numbers
    width = max((tiles[:, 0] + tiles[:, 1]).max(), (steps[:, 0] + steps[:, 1]).max())
    return -(-int(width) // 16) * 16


def calls_of(tables, key, config):
    """The launches of one layer in one bucket."""
    workspace = torch.empty(key.batch, pitch_of(tables), dtype=WORKSPACE[key.precision], device="meta")
    with recorded() as calls:
        listed = TileList.build(tables, range(len(tables.tiles)), NO_EPILOGUE, config.parts(key.batch))
        listed.run(workspace, config, key.precision)
    return calls


@pytest.mark.parametrize("precision", ["bf16", "tf32"])
def test_the_largest_layer_in_every_bucket(precision):
    """Every weight tile that is tried, every bucket, one row a point: a table of what would be launched (-s)."""
    print(f"\n16,384 x 65,536 in {precision}: weight tile, bucket, form, grid, y of its limit, rows x pitch over 2^31,")
    print("numbers of partial sums")
    for layout in layouts(precision):
        side = layout["tile_rows"], layout["step_columns"]
        tables = dense_tables(*LARGE, side, PRECISION[precision], layout["unit"])
        assert not read_faults(tables, WORKSPACE[precision].itemsize)
        for bucket in BUCKETS:
            key = Key("sm_90", "step", precision, str(PRECISION[precision])[6:], *side, bucket)
            config = rule(key)
            calls = calls_of(tables, key, config)
            assert not [f for call in calls for f in launch_faults(call)]
            first = calls[0]
            size = bucket * first.arguments["pitch"] / 2**31
            cut = bucket * first.arguments["target_pitch"] if len(calls) > 1 else 0
            row = f"{config.form:8} {first.grid!s:>14} {first.grid[1] / MOST_BLOCKS[1]:7.2%} {size:6.2f} {cut:9}"
            print(f"{side[0]:4} x {side[1]:2} {bucket:6} {row}")


ARCHITECTURES = tuple(SHARED)
CROWDED = [Config("swapped", 16), Config("batch", 128), Config("swapped", 16, programs=1 << 28)]


@st.composite
def layers(draw):
    """A layer, a bucket up to the largest, and a configuration that the rule or the tuner may give to it."""
    precision = draw(st.sampled_from(tuple(PRECISION)))
    layout = draw(st.sampled_from(layouts(precision)))
    side = layout["tile_rows"], layout["step_columns"]
    storage = draw(st.sampled_from([PRECISION[precision], torch.int8]))
    streams = 1 << draw(st.integers(0, MOST_ROWS.bit_length() - 1))
    arch, bucket = draw(st.sampled_from(ARCHITECTURES)), draw(st.sampled_from(BUCKETS))
    key = Key(arch, "step", precision, str(storage)[6:], *side, bucket, streams)
    config = draw(st.sampled_from(candidates(key)))
    assume(-(-key.batch // config.block) <= MOST_BLOCKS[1])  # more: `test_more_rows_than_one_grid_has_blocks_for`
    size = st.integers(1, 20_000)
    return dense_tables(draw(size), draw(size), side, storage, layout["unit"]), key, config


@settings(max_examples=50)
@given(layers())
def test_layers_in_every_bucket_and_configuration(case):
    """The whole grid covers every row, no more than a block beyond; nothing that a GPU refuses."""
    tables, key, config = case
    calls = calls_of(tables, key, config)
    assert not [f for call in calls for f in launch_faults(call)], (key, config)
    assert not read_faults(tables, WORKSPACE[key.precision].itemsize)


@pytest.mark.xfail(not hasattr(launch, "MOST_BLOCKS"), reason="launches are not split: grid y above 65,535")
@pytest.mark.parametrize("rows", [1 << 20, 1 << 24, (1 << 24) + 1])
@pytest.mark.parametrize(
    "config", [Config("swapped", 16), Config("batch", 128), Config("swapped", 16, programs=1 << 28)]
)
def test_more_rows_than_one_grid_has_blocks_for(rows, config):
    """`max_batch` may be as large as memory allows; each row is some program's, once."""
    tables = dense_tables(40, 200, (32, 32), torch.float32, 4)
    workspace = torch.empty(rows, 240, device="meta")
    with recorded() as calls:
        TileList.build(tables, [0, 1], NO_EPILOGUE, config.parts(rows)).run(workspace, config)
        NetworkList.build(tables, [[0, 1]], NO_EPILOGUE).run(workspace, config)
    assert not [f for call in calls for f in launch_faults(call)]
    for kernel in {c.kernel for c in calls}:
        parts = [c for c in calls if c.kernel == kernel]
        assert sum(c.arguments["batch"] for c in parts) == rows
        assert all(c.arguments["batch"] <= c.rows < c.arguments["batch"] + c.arguments["BLOCK"] for c in parts)


def small_network():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(20, 300), torch.nn.Tanh(), torch.nn.Linear(300, 5))
    return hierarchical(capture(net, [torch.zeros(2, 20)]), 0, storages=MIXED, ordered=False)


def large_layer():
    """16,384 x 65,536 in 64 blocks of rank 2."""
    rows, columns = (n // 8 for n in LARGE)
    blocks = [(rows * i, rows, columns * j, columns) for i in range(8) for j in range(8)]
    u, vt = torch.ones(rows, 2), torch.ones(2, columns)
    return linear_program(HMatrix(LARGE, tuple(Leaf(*place, u=u, vt=vt) for place in blocks)))


@pytest.mark.parametrize("precision", ["bf16", "tf32", "tf32x3"])
@pytest.mark.parametrize(("make", "names"), [(small_network, []), (small_network, ["d0", "d0d0"]), (large_layer, [])])
def test_every_bucket_launches_what_was_compiled_when_the_session_opened(precision, make, names, monkeypatch):
    """What opening compiles on one row is what all rows of each bucket launch, in every form that was opened."""
    served = CudaProgram(make(), None, precision, densify=False, derivatives=names)
    execute, forms = CudaProgram.execute, []
    monkeypatch.setattr(
        CudaProgram, "execute", lambda self, *a, **options: (forms.append(a[1:]), execute(self, *a, **options))
    )
    with recorded() as opened:
        served.warm_up(LARGEST_BUCKET)
    compiled = {c.specialization for c in opened}
    assert {bucket for bucket, _ in forms} == set(BUCKETS)
    assert not read_faults(served.plan.tables, served.dtype.itemsize)
    for bucket, kernel in list(forms):
        workspace = torch.empty(bucket * served.point_rows, served.pitch, dtype=served.dtype, device="meta")
        with recorded() as calls:
            served.execute(workspace, bucket, kernel)
        assert calls and not [f for call in calls for f in launch_faults(call)]
        assert {c.specialization for c in calls} <= compiled


FAR_ROWS, FAR_WIDTH, FAR_WEIGHTS = 65_536, 81_920, 1 << 33  # 10 GB of float16 workspace, 16 GB of weights
FAR_KERNELS = ("step", "cut", "network")


def run_far(kernel):
    """The last block of rows of two tiles at the far end of everything."""
    width, whole = FAR_WIDTH, 256
    tiles = [[64, 16, 0, 1, NONE, NONE], [width - 16, 15, 1, 6, NONE, NONE]]
    columns = [0, width - 64, 16, width - 48, 0, width - 32]
    offsets = [0, *(FAR_WEIGHTS - whole * k for k in range(5, 0, -1))]
    steps = torch.tensor([[column, 16, offset, 0, NONE] for column, offset in zip(columns, offsets, strict=True)])
    weights = torch.empty(FAR_WEIGHTS, dtype=torch.float16, device="meta")
    tables = StepTables(torch.tensor(tiles).int(), steps, (weights,), torch.zeros(0), 16, 16, 8)
    workspace = torch.empty(FAR_ROWS, width, dtype=torch.float16, device="meta")
    with judged(block=FAR_ROWS // 16 - 1) as watch:
        if kernel == "network":
            NetworkList.build(tables, [[0], [1]], NO_EPILOGUE).run(workspace, Config("swapped", 16), "fp16")
        else:
            listed = TileList.build(tables, [0, 1], NO_EPILOGUE, 4 if kernel == "cut" else 0)
            listed.run(workspace, Config("swapped", 16), "fp16")
    assert len(watch.launches) == 1 + (kernel == "cut")
    return watch


@pytest.mark.parametrize("kernel", FAR_KERNELS)
def test_addresses_beyond_two_to_the_31(kernel):
    watch = run_far(kernel)
    assert not watch.faults, watch.faults[:5]
    stored = watch.launches[-1].elements("target" if kernel == "step" else "workspace", "store")
    assert stored.max() == FAR_ROWS * FAR_WIDTH - 2 and len(stored) == 16 * (16 + 15)


@pytest.mark.parametrize(
    ("kernel", "text", "wrong"),
    [
        ("step", "safe = tl.where(inside, rows, 0).to(tl.int64)", "safe = tl.where(inside, rows, 0)"),
        ("step", "rows.to(tl.int64)[:, None]", "rows[:, None]"),
        ("cut", "safe = tl.where(inside, rows, 0).to(tl.int64)", "safe = tl.where(inside, rows, 0)"),
        ("network", "rows, first).to(tl.int64)", "rows, first)"),
        ("step", "tl.load(starts + buffer) * ", "tl.load(starts + buffer).to(tl.int32) * "),
    ],
)
def test_an_offset_in_32_bits_is_found(kernel, text, wrong, tmp_path, monkeypatch):
    put_fault(text, wrong, tmp_path, monkeypatch)
    assert run_far(kernel).faults


def test_what_a_gpu_refuses_is_found():
    numbers = torch.zeros(64, dtype=torch.int16)
    sound = {"BLOCK": 16, "num_warps": 4, "pitch": 32, "workspace": numbers}
    assert not launch_faults(Call("step_kernel", (2**31 - 1, 65_535), sound))
    for grid, change, fault in (
        ((1, 65_536), {}, "grid y is 65536"),
        ((2**31, 1), {}, "grid x"),
        ((0,), {}, "grid x is 0"),
        ((1,), {"pitch": 24}, "pitch is 24"),
        ((1,), {"num_warps": 64}, "64 warps"),
        ((1,), {"workspace": numbers[4:]}, "workspace begins"),
        ((1,), {"batch": 2**31}, "no int32"),
        ((2**31 - 1,), {}, "their numbers are int32"),
    ):
        assert any(fault in line for line in launch_faults(Call("network_kernel", grid, sound | change))), fault
    tables = dense_tables(16, 32, (16, 16), torch.int8, 4)
    assert not read_faults(tables, 4)
    shifted = tables.steps.clone()
    shifted[0, 0] = 4
    assert read_faults(replace(tables, steps=shifted), 2)
    assert read_faults(dense_tables(16, 32, (16, 8), torch.int8, 4), 4)
