"""hrt.schedule: what is executed is the network, whatever its matrices, and no schedule that is wrong gets through."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hrt.capture.torch_export import capture
from hrt.errors import InputError
from hrt.hmatrix.hmatrix import HMatrix, Leaf
from hrt.kernels.step_tables import COLUMN, EPILOGUE, NONE, WEIGHT_OFFSET
from hrt.program.program import Node, Program, Value
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.run_reference import execute
from hrt.schedule.schedule import Apply, Epilogue, Gather, Schedule, Wave

from helpers import MIXED, constants_of, densified, hierarchical, random_hmatrix, random_inputs, rounding_bound

COMPACT: dict = {}
UNIFORM = [{"tile_rows": 16, "step_columns": 16, "unit": 8}, {"tile_rows": 5, "step_columns": 3, "unit": 1}]
LAYOUTS = [COMPACT, *UNIFORM]
EPS = 2.0**-52


def layer(weight: HMatrix | Tensor, bias: Tensor | None = None, lead: tuple[int, ...] = ()) -> Program:
    """One linear layer on (batch, *lead, n)."""
    m, n = weight.shape
    constants = {"w": weight} if bias is None else {"w": weight, "b": bias}
    node = Node("y", "linear", ("x", *constants), (*lead, m), {}, "layer")
    return Program((Value("x", (*lead, n)),), (node,), ("y",), constants)


def poisoned(schedule: Schedule, batch: int) -> Tensor:
    """A workspace that holds NaN wherever the schedule does not ask for zeros."""
    workspace = torch.full((batch, schedule.width), float("nan"), dtype=torch.float64)
    workspace[:, torch.from_numpy(schedule.padding)] = 0
    return workspace


def run(program: Program, inputs: tuple[Tensor, ...], layout: dict) -> tuple[Tensor, ...]:
    schedule = build_schedule(program, **layout)
    return execute(schedule, inputs, workspace=poisoned(schedule, inputs[0].shape[0]))


SIZES = st.one_of(st.integers(1, 12), st.sampled_from([13, 31, 61, 97, 127, 211, 293]), st.integers(1, 300))
MATRICES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32 - 1),
        "m": SIZES,
        "n": SIZES,
        "depth": st.integers(0, 4),
        "max_rank": st.sampled_from([0, 1, 6, 40]),
        "storages": st.sampled_from([(torch.float32,), MIXED]),
    }
)


def packed_bytes(h):
    """Bytes of all numbers and scales, as a schedule holds them."""
    return sum(leaf.nbytes for leaf in h.leaves)


class TestOneMatrix:
    @settings(max_examples=40, deadline=None)
    @given(MATRICES, st.sampled_from(LAYOUTS), st.booleans())
    def test_product_is_dense_product(self, matrix, layout, with_bias):
        h = random_hmatrix(**matrix)
        generator = torch.Generator().manual_seed(matrix["seed"])
        x = torch.randn(3, h.shape[1], generator=generator, dtype=torch.float64)
        bias = torch.randn(h.shape[0], generator=generator, dtype=torch.float64) if with_bias else None
        (y,) = run(layer(h, bias), (x,), layout)
        expected = x @ h.to_dense().T + (0 if bias is None else bias)
        assert ((y - expected).abs() <= rounding_bound(x, h, EPS, bias)).all()

    @settings(max_examples=25, deadline=None)
    @given(MATRICES, st.sampled_from(LAYOUTS))
    def test_float32_errs_by_float32_rounding(self, matrix, layout):
        h = random_hmatrix(**matrix)
        x = torch.randn(3, h.shape[1], generator=torch.Generator().manual_seed(0))
        (y,) = execute(build_schedule(layer(h), **layout), (x,), torch.float32)
        assert y.dtype == torch.float32
        assert ((y - x.double() @ h.to_dense().T).abs() <= rounding_bound(x, h, 2.0**-23)).all()

    @settings(max_examples=25, deadline=None)
    @given(MATRICES)
    def test_compact_packs_the_leaves_and_nothing_else(self, matrix):
        h = random_hmatrix(**matrix)
        schedule = build_schedule(layer(h))
        assert schedule.tables.weight_bytes == packed_bytes(h)
        assert not schedule.padding.any()

    @settings(max_examples=40, deadline=None)
    @given(MATRICES, st.sampled_from(UNIFORM), st.integers(1, 3))
    def test_uniform_keeps_its_promises(self, matrix, layout, lead):
        h = random_hmatrix(**matrix)
        schedule = build_schedule(layer(h, lead=(lead,)), **layout)
        tables, unit = schedule.tables, layout["unit"]
        assert (tables.steps[:, 1] == layout["step_columns"]).all()
        assert (tables.steps[:, COLUMN] % unit == 0).all()
        assert all(t.numel() % (layout["tile_rows"] * layout["step_columns"]) == 0 for t in tables.weights)
        spans = [*schedule.inputs, *schedule.outputs, *(s.output for s in schedule.stages)]
        assert all(s.start % unit == 0 for s in spans)
        if lead > 1:
            assert all(s.output.pitch % unit == 0 for s in schedule.stages if isinstance(s, Wave) and s.phase == 1)
        useful = sum(int(t.ne(0).sum()) * t.element_size() for t in tables.weights)
        held = sum(int(t.ne(0).sum()) * t.element_size() for leaf in h.leaves for t in leaf.tensors)
        assert useful == held, "every number is packed exactly once"

    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("m, n", [(0, 5), (5, 0), (0, 0)])
    def test_empty_matrices(self, layout, m, n):
        bias = torch.arange(m, dtype=torch.float64)
        x = torch.ones(2, n, dtype=torch.float64)
        for weight in (torch.zeros(m, n), random_hmatrix(0, m, n)):
            (y,) = run(layer(weight, bias), (x,), layout)
            assert torch.equal(y, bias.expand(2, m))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_plain_weights_are_the_one_leaf_case(self, layout):
        weight = torch.randn(37, 23, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        x = torch.randn(4, 23, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
        tensor, matrix = (
            build_schedule(layer(w), **layout) for w in (weight, HMatrix.from_dense(weight, weight.dtype))
        )
        assert torch.equal(tensor.tables.steps, matrix.tables.steps)
        assert all(torch.equal(a, b) for a, b in zip(tensor.tables.weights, matrix.tables.weights, strict=True))
        assert len([s for s in tensor.stages if isinstance(s, Wave)]) == 1
        (y,) = execute(tensor, (x,))
        assert torch.allclose(y, x @ weight.T, rtol=0, atol=1e-13)

    def test_weights_in_any_layout_or_integer_type(self):
        x = torch.ones(1, 3, dtype=torch.float64)
        strided = torch.arange(6.0).reshape(3, 2).T
        (y,) = run(layer(strided), (x,), COMPACT)
        assert torch.equal(y, x @ strided.double().T)
        (y,) = run(layer(torch.arange(6).reshape(2, 3), torch.arange(2)), (x,), COMPACT)
        assert y.tolist() == [[3.0, 13.0]]

    def test_leaves_over_the_same_columns_read_them_once(self):
        columns = [Leaf(r, 4, 0, 8, u=torch.ones(4, 2), vt=torch.ones(2, 8)) for r in (0, 4, 8)]
        schedule = build_schedule(layer(HMatrix((12, 8), tuple(columns))))
        first, second = (s for s in schedule.stages if isinstance(s, Wave))
        assert first.end_tile - first.first_tile == 1
        assert second.end_tile - second.first_tile == 3
        assert len(schedule.tables.steps) == 4

    def test_steps_share_the_rows_of_a_leaf(self):
        """Rows 0..8 of one U are cut by the dense leaves beside it: two tiles read two slices of one block."""
        u = Leaf(0, 8, 0, 4, u=torch.arange(8.0)[:, None], vt=torch.ones(1, 4))
        dense = [Leaf(r, 4, 4, 4, dense=torch.ones(4, 4)) for r in (0, 4)]
        schedule = build_schedule(layer(HMatrix((8, 8), (u, *dense))))
        offsets = schedule.tables.steps[:, WEIGHT_OFFSET].tolist()
        starts = schedule.tables.steps[schedule.tables.steps[:, 1] == 1][:, WEIGHT_OFFSET].tolist()
        assert len(starts) == 2 and starts[1] - starts[0] == 4
        assert len(set(offsets)) == len(offsets)

    def test_a_uniform_step_covers_several_leaves(self):
        """Eight leaves of rank 2 side by side need one step of 16 columns of T, not eight."""
        leaves = [Leaf(0, 16, c, 16, u=torch.ones(16, 2), vt=torch.ones(2, 16)) for c in range(0, 128, 16)]
        schedule = build_schedule(layer(HMatrix((16, 128), tuple(leaves))), tile_rows=16, step_columns=16, unit=8)
        first, second = (s for s in schedule.stages if isinstance(s, Wave))
        assert [s.end_tile - s.first_tile for s in (first, second)] == [1, 1]
        assert len(schedule.tables.steps) == 8 + 1


class TestBatch:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_nan_and_infinity_stay_in_their_row(self, layout):
        program = hierarchical(capture(network(), (torch.zeros(1, 30),)), 5, storages=MIXED)
        (x,) = random_inputs(program, 4)
        (clean,) = run(program, (x,), layout)
        x[1, 3], x[2, 29] = float("nan"), float("inf")
        (y,) = run(program, (x,), layout)
        assert torch.equal(y[[0, 3]], clean[[0, 3]])
        assert y[1].isnan().any()

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_a_bad_run_leaves_nothing_behind(self, layout):
        """Executors zero the workspace once: what a NaN run leaves in it must not reach the next run."""
        program = hierarchical(capture(network(), (torch.zeros(1, 30),)), 6, storages=MIXED)
        schedule = build_schedule(program, **layout)
        (x,) = random_inputs(program, 3)
        workspace = torch.zeros(3, schedule.width, dtype=torch.float64)
        (clean,) = execute(schedule, (x,), workspace=workspace)
        execute(schedule, (torch.full_like(x, float("nan")),), workspace=workspace)
        (again,) = execute(schedule, (x,), workspace=workspace)
        assert torch.equal(clean, again)
        assert (workspace[:, torch.from_numpy(schedule.padding)] == 0).all()

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_no_rows(self, layout):
        program = hierarchical(capture(network(), (torch.zeros(1, 30),)), 5)
        (y,) = execute(build_schedule(program, **layout), random_inputs(program, 0))
        assert y.shape == (0, 9)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 41), nn.Tanh(), nn.Linear(41, 41), nn.GELU(), nn.Linear(41, 9)).double()


class Residual(nn.Module):
    """Skips, tied weights, a concatenation, a slice, layer norm, an activation that may not be fused."""

    def __init__(self):
        super().__init__()
        self.first, self.tied, self.last = nn.Linear(17, 40), nn.Linear(40, 40), nn.Linear(97, 6)
        self.norm = nn.LayerNorm(40)

    def forward(self, x):
        h = torch.sin(self.first(x))
        z = self.tied(h)  # read twice: the activation is not fused
        h = h + torch.tanh(z) * z
        h = self.norm(self.tied(h) + h)
        h = torch.relu(self.tied(h))
        return self.last(torch.cat([x, h, h[:, ::1]], -1)), h[:, 3:20:2]


class Tokens(nn.Module):
    """Linear layers on (batch, tokens, features), along features and along tokens."""

    def __init__(self):
        super().__init__()
        self.up, self.mix, self.down = nn.Linear(10, 24), nn.Linear(7, 7), nn.Linear(24, 10)

    def forward(self, x):
        h = torch.tanh(self.up(x))
        h = h + self.mix(h.transpose(1, 2)).transpose(1, 2)
        return self.down(h).mean(1), h.reshape(x.shape[0], -1)


class DeepONet(nn.Module):
    """Two inputs, a product summed over features, and a value returned as it came."""

    def __init__(self):
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(33, 48), nn.GELU(), nn.Linear(48, 48))
        self.trunk = nn.Sequential(nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())

    def forward(self, u, y):
        b, t = self.branch(u), self.trunk(y)
        return torch.einsum("bi,bi->b", b, t)[:, None], (b * t).sum(-1, keepdim=True) + 1.5


NETWORKS = {
    "mlp": (network, [(30,)]),
    "residual": (Residual, [(17,)]),
    "tokens": (Tokens, [(7, 10)]),
    "deeponet": (DeepONet, [(33,), (2,)]),
}


def captured(name: str) -> Program:
    make, shapes = NETWORKS[name]
    torch.manual_seed(0)
    return capture(make().double(), tuple(torch.zeros(1, *s, dtype=torch.float64) for s in shapes))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NETWORKS)
class TestNetworks:
    def test_dense(self, name, layout):
        program = captured(name)
        inputs = random_inputs(program, 5)
        self.compare(run(program, inputs, layout), program.run(inputs))

    def test_hierarchical(self, name, layout):
        program = hierarchical(captured(name), 1, storages=MIXED, ordered=True)
        inputs = random_inputs(program, 5)
        self.compare(run(program, inputs, layout), densified(program).run(inputs))

    def compare(self, found, expected):
        assert len(found) == len(expected)
        for y, e in zip(found, expected, strict=True):
            assert y.shape == e.shape
            torch.testing.assert_close(y, e, rtol=1e-11, atol=1e-11)


class TestStages:
    def test_tied_weights_are_packed_once(self):
        program = captured("residual")
        single = sum(w.numel() * w.element_size() for name, w in program.constants.items() if name in program.weights)
        assert build_schedule(program).tables.weight_bytes == single

    def test_activations_are_fused_where_nobody_else_reads_the_layer(self):
        schedule = build_schedule(captured("mlp"))
        assert all(isinstance(stage, Wave) for stage in schedule.stages)
        assert [e.op for e in schedule.epilogues] == ["tanh", "gelu"]
        assert schedule.tables.tiles[:, EPILOGUE].unique().tolist() == [NONE, 0, 1]
        applied = [s.op for s in build_schedule(captured("residual")).stages if isinstance(s, Apply)]
        assert "tanh" in applied and "sin" not in applied and "relu" not in applied

    def test_an_activation_of_an_output_is_not_fused(self):
        w = torch.eye(2, dtype=torch.float64)
        nodes = (Node("y", "linear", ("x", "w"), (2,), {}), Node("z", "neg", ("y",), (2,), {}))
        program = Program((Value("x", (2,)),), nodes, ("y", "z"), {"w": w})
        x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
        assert [t.tolist() for t in run(program, (x,), COMPACT)] == [[[1.0, -2.0]], [[-1.0, 2.0]]]

    def test_only_the_first_of_two_activations_is_fused(self):
        w = torch.eye(2, dtype=torch.float64)
        nodes = tuple(
            Node(n, op, (i, *c), (2,), {})
            for n, op, i, c in (("y", "linear", "x", ("w",)), ("z", "neg", "y", ()), ("r", "relu", "z", ()))
        )
        program = Program((Value("x", (2,)),), nodes, ("r",), {"w": w})
        schedule = build_schedule(program)
        assert [type(s) for s in schedule.stages] == [Wave, Apply]
        assert schedule.epilogues == (Epilogue("neg", {}),)

    def test_the_same_activation_is_one_epilogue_and_another_attribute_is_another(self):
        net = nn.Sequential(
            nn.Linear(3, 3), nn.LeakyReLU(0.1), nn.Linear(3, 3), nn.LeakyReLU(0.2), nn.Linear(3, 3), nn.LeakyReLU(0.1)
        )
        program = capture(net, (torch.zeros(1, 3),))
        assert [e.attrs["slope"] for e in build_schedule(program).epilogues] == [0.1, 0.2]

    def test_orderings_of_neighbours_are_gathered_once(self):
        """Row order of one layer and column order of the next are one index; input and output need one each."""
        program = hierarchical(captured("mlp"), 0, ordered=True)
        gathers = [stage for stage in build_schedule(program).stages if isinstance(stage, Gather)]
        assert len(gathers) == 4

    def test_orderings_that_cancel_gather_nothing(self):
        order = np.random.default_rng(0).permutation(6)
        w = torch.ones(6, 6)
        first = HMatrix((6, 6), HMatrix.from_dense(w).leaves, order, None)
        second = HMatrix((6, 6), HMatrix.from_dense(w).leaves, None, order)
        nodes = (Node("y", "linear", ("x", "a"), (6,), {}), Node("z", "linear", ("y", "b"), (6,), {}))
        program = Program((Value("x", (6,)),), nodes, ("z",), {"a": first, "b": second})
        assert all(isinstance(stage, Wave) for stage in build_schedule(program).stages)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_columns_are_used_again(self, layout):
        """A deep network of equal layers needs no more columns than a shallow one."""
        widths = []
        for depth in (4, 12):
            layers = [nn.Linear(24, 24) if k % 2 == 0 else nn.Tanh() for k in range(2 * depth)]
            program = capture(nn.Sequential(*layers).double(), (torch.zeros(1, 24, dtype=torch.float64),))
            program = program.with_constants({k: random_hmatrix(3, 24, 24, ordered=True) for k in program.weights})
            widths.append(build_schedule(program, **layout).width)
            inputs = random_inputs(program, 2)
            torch.testing.assert_close(run(program, inputs, layout), densified(program).run(inputs))
        assert widths[0] == widths[1]

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_inputs_as_outputs_and_unused_inputs(self, layout):
        nodes = (Node("y", "linear", ("x", "w"), (3,), {}),)
        w = random_hmatrix(1, 3, 5, ordered=True)
        program = Program((Value("x", (5,)), Value("unused", (2, 2))), nodes, ("x", "y", "y"), {"w": w})
        inputs = random_inputs(program, 3)
        found = run(program, inputs, layout)
        for y, e in zip(found, densified(program).run(inputs), strict=True):
            torch.testing.assert_close(y, e, rtol=1e-12, atol=1e-12)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_columns_of_outputs_are_not_used_again(self, layout):
        names = "xabcd"
        nodes = tuple(Node(y, "linear", (x, "w"), (6,), {}) for x, y in pairwise(names))
        w = random_hmatrix(5, 6, 6, ordered=False)
        program = Program((Value("x", (6,)),), nodes, tuple(names), {"w": w})
        inputs = random_inputs(program, 2)
        torch.testing.assert_close(run(program, inputs, layout), densified(program).run(inputs))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_one_bias_behind_several_orderings(self, layout):
        constants = {k: random_hmatrix(seed, 6, 6, ordered=seed > 0) for seed, k in enumerate("uvw")}
        bias = torch.arange(6, dtype=torch.float64)
        nodes = tuple(Node(f"y{k}", "linear", ("x", k, "b"), (6,), {}) for k in "uvw")
        outputs = tuple(node.name for node in nodes)
        program = Program((Value("x", (6,)),), nodes, outputs, {**constants, "b": bias})
        inputs = random_inputs(program, 2)
        torch.testing.assert_close(run(program, inputs, layout), densified(program).run(inputs))

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_table_ops_of_constants(self, layout):
        """A linear layer of a constant has no columns to read and is left to the op table, H-matrix and all."""
        w = random_hmatrix(2, 3, 4)
        nodes = (
            Node("c", "linear", ("k", "w"), (3,), {}),
            Node("r", "repeat", ("k3", "x"), (3,), {"shape": [3]}),
            Node("s", "add", ("c", "r"), (3,), {}),
            Node("y", "add", ("x", "s"), (3,), {}),
        )
        constants = {"w": w, **constants_of(k=[[1, 2, 3, 4]], k3=[[5, 6, 7]])}
        program = Program((Value("x", (3,)),), nodes, ("y",), constants)
        inputs = random_inputs(program, 3)
        (y,) = run(program, inputs, layout)
        torch.testing.assert_close(y, inputs[0] + (constants["k"] @ w.to_dense().T) + constants["k3"])

    def test_a_program_without_layers(self):
        program = Program((Value("x", (3,)),), (Node("y", "sin", ("x",), (3,), {}),), ("y",), {})
        (x,) = random_inputs(program, 2)
        assert torch.equal(run(program, (x,), COMPACT)[0], torch.sin(x))

    def test_layout_does_not_depend_on_the_process(self):
        program = hierarchical(captured("residual"), 1, storages=MIXED)
        a, b = (build_schedule(program, **UNIFORM[0]) for _ in range(2))
        assert a.width == b.width and torch.equal(a.tables.steps, b.tables.steps)


class TestRefusals:
    @pytest.mark.parametrize(
        "sizes",
        [
            {"tile_rows": 16},
            {"step_columns": 16},
            {"unit": 8},
            {"tile_rows": 16, "step_columns": 12, "unit": 8},
            {"tile_rows": 0, "step_columns": 16},
            {"tile_rows": 16, "step_columns": 16, "unit": 0},
        ],
    )
    def test_sizes_that_do_not_fit(self, sizes):
        with pytest.raises(InputError, match="tile_rows"):
            build_schedule(layer(torch.zeros(2, 2)), **sizes)

    def test_a_weight_that_does_not_fit_its_input(self):
        node = Node("y", "linear", ("x", "w"), (2,), {}, "head")
        program = Program((Value("x", (4,)),), (node,), ("y",), {"w": torch.zeros(2, 3)})
        with pytest.raises(InputError, match=r"head.*\(2, 3\)"):
            build_schedule(program)

    def test_an_output_that_is_a_constant(self):
        program = Program((Value("x", (4,)),), (), ("c",), {"c": torch.zeros(2, 3)})
        with pytest.raises(InputError, match="constants"):
            build_schedule(program)
