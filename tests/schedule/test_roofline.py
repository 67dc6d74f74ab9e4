"""The roofline's arithmetic: counted by hand on tiny schedules, and what must hold on any."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrt import HMatrix
from hrt.hmatrix.hmatrix import Leaf
from hrt.kernels.precisions import WORKSPACE
from hrt.kernels.step_tables import STEP_FIELDS, TILE_FIELDS
from hrt.program.program import Node, Program, Value
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.ports import boundary
from hrt.schedule.roofline import CHIPS, Chip, Load, dense_work, schedule_floor, work_of

from helpers import random_hmatrix
from models import as_int8, linear_program, mixed_model

H100, H200 = CHIPS["h100"], CHIPS["h200"]
ONE = Chip("one", "none", 1.0, dict.fromkeys(WORKSPACE, 1.0), 1, "made up", launch_s=0.0)  # seconds are bytes or flops
TILE, STEP = 4 * TILE_FIELDS, 4 * STEP_FIELDS  # bytes of table per tile and per step


def tiny(dtype=torch.float32, **orders) -> HMatrix:
    """(8, 8): rank 2 over columns 0-3, dense over columns 4-7 of rows 0-3, nothing elsewhere."""
    u, vt = torch.ones(8, 2, dtype=dtype), torch.ones(2, 4, dtype=dtype)
    low = Leaf(0, 8, 0, 4, u=u, vt=vt)
    none = Leaf(4, 4, 4, 4, u=torch.ones(4, 0, dtype=dtype), vt=torch.ones(0, 4, dtype=dtype))
    return HMatrix((8, 8), (low, Leaf(0, 4, 4, 4, dense=torch.ones(4, 4, dtype=dtype)), none), **orders)


def random_dense(m: int, n: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(m + n)).to(dtype)


class TestWorkCountedByHand:
    def test_compact_schedule(self):
        first, second = work_of(build_schedule(linear_program(tiny())))
        # T = X V^T: one tile of 2 rows, one step over 4 columns
        assert first == Load("y wave 1", 4 * 2 * 4 + TILE + STEP, 4 + 2, 8)
        # Y: rows 0-3 from T and from columns 4-7, rows 4-7 from T alone
        assert second == Load("y wave 2", 4 * (8 * 2 + 4 * 4) + 2 * TILE + 3 * STEP, (2 + 4) + 8, 8 * 2 + 16)

    def test_uniform_schedule_counts_padding(self):
        first, second = work_of(build_schedule(linear_program(tiny()), tile_rows=4, step_columns=4))
        assert first == Load("y wave 1", 4 * 16 + TILE + STEP, 4 + 2, 16)
        # columns of T are padded to 4, the least that a step reads
        assert second == Load("y wave 2", 4 * 3 * 16 + 2 * TILE + 3 * STEP, (4 + 4) + 8, 48)

    def test_floor_from_loads(self):
        work = (Load("a", 100, 3, 10), Load("b", 7, 2, 1000))
        floor = schedule_floor(work, 5, "bf16", ONE)
        # the first is bound by its 130 bytes, the second by its 10,000 operations
        assert (floor.bytes, floor.flops, floor.ideal_s, floor.seconds) == (157, 10_100, 10_130.0, 10_130.0)

    def test_weights_count_in_their_own_type(self):
        wide, narrow = (work_of(build_schedule(linear_program(tiny(t)))) for t in (torch.float32, torch.bfloat16))
        saved = [a.fixed_bytes - b.fixed_bytes for a, b in zip(wide, narrow, strict=True)]
        assert saved == [2 * 8, 2 * 32]

    def test_orderings_at_the_ends_are_part_of_the_copies(self):
        order = torch.arange(8).flip(0)
        ordered = work_of(build_schedule(linear_program(tiny(row_order=order, col_order=order))))
        assert ordered == work_of(build_schedule(linear_program(tiny())))

    def test_orderings_between_layers_are_gathers_of_their_own(self):
        order = torch.arange(8).flip(0)
        weights = {"a": tiny(), "b": tiny(col_order=order)}
        nodes = (Node("u", "linear", ("x", "a"), (8,), {}), Node("v", "linear", ("u", "b"), (8,), {}))
        work = work_of(build_schedule(Program((Value("x", (8,)),), nodes, ("v",), weights)))
        gathers = [load for load in work if load.name.startswith("gather")]
        assert [(g.fixed_bytes, g.columns, g.products) for g in gathers] == [(4 * 8, 16, 0)]

    def test_bias_counts_once(self):
        bare, biased = (
            work_of(build_schedule(linear_program(tiny(), bias), tile_rows=4, step_columns=4))
            for bias in (None, torch.ones(8))
        )
        assert [b.fixed_bytes - a.fixed_bytes for a, b in zip(bare, biased, strict=True)] == [0, 4 * 8]

    def test_rows_of_one_value_share_weights_but_not_products(self):
        w = random_dense(4, 4)

        def work(*shape: int) -> Load:
            node = Node("y", "linear", ("x", "w"), (*shape, 4), {})
            (load,) = work_of(build_schedule(Program((Value("x", (*shape, 4)),), (node,), ("y",), {"w": w})))
            return load

        one, three = work(), work(3)
        assert three.products == 3 * one.products
        assert three.columns == 3 * one.columns
        assert three.fixed_bytes - one.fixed_bytes == 2 * (TILE + STEP)

    def test_other_ops_read_operands_and_constants_and_write_once(self):
        nodes = (Node("s", "mul", ("x", "x"), (4,), {}), Node("y", "add", ("s", "c"), (4,), {}))
        program = Program((Value("x", (4,)),), nodes, ("y",), {"c": torch.ones(4)})
        mul, add = work_of(build_schedule(program))
        assert mul == Load("mul s", 0, 4 + 4, 0)  # the same operand twice is read once
        assert add == Load("add y", 16, 4 + 4, 0)

    def test_scales_of_int8_weights_count(self):
        leaf = as_int8(tiny().leaves[1])
        schedule = build_schedule(linear_program(HMatrix((4, 4), (Leaf(0, 4, 0, 4, leaf.dense, scale=leaf.scale),))))
        (load,) = work_of(schedule)
        assert load.fixed_bytes == schedule.tables.weight_bytes + TILE + STEP == 16 + 2 * 4 + TILE + STEP


class TestDense:
    @pytest.mark.parametrize("precision", WORKSPACE)
    @pytest.mark.parametrize("batch", [1, 300])
    def test_schedule_of_a_dense_layer_is_the_dense_floor_up_to_tables(self, precision, batch):
        m, n = 128, 96
        schedule = build_schedule(
            linear_program(random_dense(m, n, WORKSPACE[precision])), tile_rows=32, step_columns=32
        )
        works = work_of(schedule), dense_work(m, n, precision)
        floor, dense = (schedule_floor(work, batch, precision, H200) for work in works)
        assert floor.bytes == dense.bytes + schedule.tables.nbytes - schedule.tables.weight_bytes
        assert floor.flops == dense.flops and floor.ideal_s == pytest.approx(dense.ideal_s, rel=0.05)

    def test_by_hand(self):
        floor = schedule_floor(dense_work(3, 5, "bf16"), 7, "bf16", ONE)
        assert (floor.bytes, floor.flops) == (2 * (15 + 7 * 8), 2 * 7 * 15)
        assert dense_work(3, 5, "tf32", bias=True)[0].fixed_bytes == 4 * (15 + 3)


class TestAnySchedule:
    @pytest.mark.parametrize("tile", [{}, {"tile_rows": 16, "step_columns": 16, "unit": 4}])
    def test_bytes_hold_all_weights_and_flops_all_weights(self, tile):
        schedule = build_schedule(linear_program(random_hmatrix(3, 70, 50)), **tile)
        floor = schedule_floor(work_of(schedule), 1, "ieee", H200)
        assert floor.bytes >= schedule.tables.weight_bytes
        assert floor.flops == 2 * schedule.tables.weight_bytes // 4

    def test_every_stage_that_is_launched_is_one_load(self):
        schedule = build_schedule(mixed_model(0).program, tile_rows=16, step_columns=16, unit=4)
        _, _, folded = boundary(schedule)
        assert len(work_of(schedule)) == len([s for s in schedule.stages if s.output.size and id(s) not in folded])

    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 2**32 - 1),
        m=st.integers(1, 60),
        n=st.integers(1, 60),
        precision=st.sampled_from(list(WORKSPACE)),
        batches=st.lists(st.integers(1, 1 << 20), min_size=2, max_size=2),
        tile=st.sampled_from([(8, 8, 4), (16, 8, 8), (32, 16, 4)]),
    )
    def test_more_rows_never_take_less_and_padding_only_adds(self, seed, m, n, precision, batches, tile):
        rows, columns, unit = tile
        program = linear_program(random_hmatrix(seed, m, n))
        work = work_of(build_schedule(program, tile_rows=rows, step_columns=columns, unit=unit))
        few, many = (schedule_floor(work, b, precision, H100) for b in sorted(batches))
        assert few.bytes <= many.bytes and few.flops <= many.flops
        assert few.ideal_s <= many.ideal_s and few.seconds <= many.seconds
        assert many.seconds == pytest.approx(many.ideal_s + len(work) * H100.launch_s)
        lower = max(many.bytes / H100.copy_bytes_per_s, many.flops / H100.matmul_flops[precision])
        assert many.ideal_s >= lower * (1 - 1e-12)
        compact = sum(load.products for load in work_of(build_schedule(program)))
        assert compact <= sum(load.products for load in work)
