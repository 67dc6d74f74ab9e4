"""The bound over a box: never exceeded by any point, reached where it can be, absent with a reason elsewhere."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hrt
from hrt.calibration.moments import evaluate
from hrt.capture.torch_export import capture
from hrt.certificate import output_bound as bounds
from hrt.certificate.certificate import BOX_BOUND
from hrt.certificate.output_bound import RULES, output_bound
from hrt.program.dense_view import DenseView, stored
from hrt.program.op_table import TABLE
from hrt.program.program import Node, Program, Value

from helpers import MIXED, hierarchical
from zoo import ACTIVATIONS, ZOO, Apply, mlp
from zoo import captured as zoo_program

POINTS = 5000
FLAT = (
    *("AdaptiveTanh", "AssignedColumns", "Branches", "DeepONetEinsum", "DeepONetGrid", "Ensemble"),
    *("FourierFeatures", "HardBoundary", "LearnedSlope", "MaterializedConstants", "PirateNet"),
    *("RMSNormalized", "TiedWeights", "no_outputs", "siren"),
)


def captured(net: nn.Module, *widths: int) -> Program:
    return capture(net, [torch.rand(2, n, dtype=torch.float64) for n in widths])


def compressed(program: Program, tol: float) -> Program:
    changed = {k: hrt.compress_matrix(program.constants[k], tol=tol, storage="auto") for k in program.weights}
    return stored(program.with_constants(changed))


def worst(program: Program, other: Program, boxes, seed: int = 0) -> Tensor:
    """max |f - f_h| of every output column over random points, the corners, and points near the centre, less what the
    float64 of this oracle may itself be off by.
    """
    g = torch.Generator().manual_seed(seed)
    corners = list(itertools.islice(itertools.product((0.0, 1.0), repeat=sum(b.width for b in boxes)), 256))
    unit = torch.rand(POINTS, len(corners[0]), generator=g, dtype=torch.float64)
    unit = torch.cat([unit, torch.tensor(corners, dtype=torch.float64), 0.5 + 0.02 * (unit[:500] - 0.5)])
    points = []
    for part, b in zip(unit.split([b.width for b in boxes], 1), boxes, strict=True):
        low, high = torch.tensor(b.low, dtype=torch.float64), torch.tensor(b.high, dtype=torch.float64)
        points.append(torch.minimum(low + (high - low) * part, high))
    y, found = evaluate(program, points), evaluate(other, points, DenseView(other).constants)
    return ((y - found).abs() - 1e-12 * (1 + y.abs() + found.abs())).amax(0).clamp_min(0)


def holds(program: Program, other: Program, boxes, seed: int = 0) -> Tensor | None:
    """The bound, after checking it; None where there is none."""
    found = bound(program, other, boxes).per_output
    if found is None:
        return None
    limit = torch.tensor(found, dtype=torch.float64)
    assert bool((worst(program, other, boxes, seed) <= limit).all())
    return limit


def bound(program: Program, other: Program, boxes) -> bounds.OutputBound:
    return output_bound(DenseView(program), DenseView(other), boxes)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(bounds, "MAX_BOXES", 24)


def test_every_op_has_a_rule():
    assert set(RULES) == set(TABLE)


@pytest.mark.parametrize("name", FLAT)
def test_holds_on_every_network_with_flat_inputs(name, quick):
    e = ZOO[name]
    program = zoo_program(name)
    boxes = [hrt.Box([0.2] * s[0], [0.35] * s[0]) for s in e.shapes]
    for other in (compressed(program, 3e-2), hierarchical(program, seed=3, storages=MIXED)):
        limit = holds(program, other, boxes)
        assert limit is not None or name == "RMSNormalized", "the box is small: the bound must be finite"


SHAPED = {"mixer": (6, 3), "SetNetwork": (5, 3), "GridMixing": (4, 6), "Shapes": (3, 4), "normalized": (4,)}
SHAPED |= {"SmallUNet": (1, 6, 6), "convolutions_1d": (2, 9)}


@pytest.mark.parametrize("name", SHAPED)
def test_holds_with_tokens_products_and_normalisation(name, quick):
    shape, n = SHAPED[name], math.prod(SHAPED[name])
    net = ZOO[name].build().eval()
    program = captured(net if len(shape) == 1 else nn.Sequential(nn.Unflatten(1, shape), net), n)
    low = torch.linspace(0.1, 0.6, n).tolist()
    for tol, width in ((1e-2, 1e-3), (0.3, 1e-3), (0.1, 0.2)):
        limit = holds(program, compressed(program, tol), [hrt.Box(low, [v + width for v in low])])
        assert limit is not None and bool(torch.isfinite(limit).all())


def test_a_step_is_known_where_neither_network_crosses_it(quick):
    program = Program((Value("x", (2,)),), (Node("y", "step", ("x",), (2,), {"at_zero": 0.0}),), ("y",), {})
    assert holds(program, program, [hrt.Box([0.1, -2.0], [1.0, -1.0])]).tolist() == pytest.approx([0, 0], abs=1e-12)


BINARY = {
    **{name: ((5,), {}, (5,)) for name in ("add", "sub", "mul", "div", "maximum", "minimum")},
    "concat": ((5,), {"axis": -1}, (10,)),
    "matmul": ((2, 2), {}, (2, 2)),
    "einsum": ((2, 3), {"equation": "bij,bij->bi"}, (2,)),
    "sum": ((2, 3), {"axes": [-1], "keep": True}, (2, 1)),
    "mean": ((2, 3), {"axes": [-1, -2], "keep": False}, ()),
    "slice": ((5,), {"axis": -1, "start": 0, "stop": 5, "step": 2}, (3,)),
    "transpose": ((2, 3), {"axes": [-1, -2]}, (3, 2)),
    "expand": ((3, 1), {"shape": [3, 2]}, (3, 2)),
    "layer_norm": ((6,), {"shape": [6], "eps": 1e-5}, (6,)),
    "patches": ((2, 4), {"kernel": [3], "stride": [1], "dilation": [1], "padding": [1, 0]}, (3, 6)),
}


@pytest.mark.parametrize("op", BINARY)
@pytest.mark.parametrize("rows", ["all", "one"])
def test_every_rule_alone_holds_where_its_arguments_are_off_by_little(op, rows, quick):
    """op(W x + b, V x + c) with small errors in all rows of W and V, or in one: |x - y| alone would be far too wide."""
    shape, attrs, out = BINARY[op]
    size = math.prod(shape)
    arity = 1 if op == "layer_norm" else TABLE[op].arity or 2
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        constants, errors, nodes = {}, {}, []
        for k in range(arity):
            w, e = (torch.randn(size, 3, generator=g, dtype=torch.float64) for _ in range(2))
            if rows == "one":
                e[1:] = 0
            constants |= {f"w{k}": w, f"b{k}": 4 + 3 * torch.randn(size, generator=g, dtype=torch.float64).abs()}
            errors[f"w{k}"] = w + 1e-3 * e
            nodes += [
                Node(f"l{k}", "linear", ("x", f"w{k}", f"b{k}"), (size,), {}),
                Node(f"a{k}", "reshape", (f"l{k}",), shape, {"shape": list(shape)}),
            ]
        nodes.append(Node("y", op, tuple(f"a{k}" for k in range(arity)), out, attrs))
        program = Program((Value("x", (3,)),), tuple(nodes), ("y",), constants)
        other, boxes = program.with_constants(errors), [hrt.Box([0.1] * 3, [0.4] * 3)]
        limit = holds(program, other, boxes, seed)
        assert limit is not None and float(limit.max()) < 30 * float(worst(program, other, boxes).max())


@pytest.mark.usefixtures("quick")
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    widths=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    tol=st.floats(1e-6, 0.9),
    size=st.floats(1e-6, 3),
    gain=st.floats(0.3, 4),
    seed=st.integers(0, 10**6),
    residual=st.booleans(),
)
def test_holds_on_random_networks(widths, activation, tol, size, gain, seed, residual):
    widths[0] = min(widths[0], 4)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if ACTIVATIONS[activation]().__class__ is nn.PReLU:
            widths[1:-1] = [16] * len(widths[1:-1])
        net = mlp(*widths, activation=ACTIVATIONS[activation]).double()
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(gain)
        low = torch.randn(widths[0]).double()
    program = captured(Gated(net) if residual else net, widths[0])
    boxes = [hrt.Box(low.tolist(), (low + size).tolist())]
    for other in (compressed(program, tol), hierarchical(program, seed=seed, storages=MIXED)):
        limit = holds(program, other, boxes, seed)
        if activation in ("tanh", "relu", "sigmoid", "siren") or activation.startswith("gelu"):
            assert limit is not None


class Gated(nn.Module):
    """A gate and a quotient around a network, so that values meet again."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x):
        y, s = self.net(x), x.sum(1, keepdim=True)
        quotient = y * y / (2 + torch.cos(s))
        return torch.cat([y * torch.sigmoid(s) + quotient, torch.maximum(y, s) - torch.minimum(y, s)], 1)


@pytest.mark.parametrize("activation", [torch.tanh, torch.sin, torch.relu])
def test_is_finite_and_useful_for_networks_of_smooth_and_kinked_activations(activation):
    torch.manual_seed(0)
    program = captured(mlp(2, 24, 24, 1, activation=lambda: Apply(activation)).double(), 2)
    other = compressed(program, 1e-2)
    boxes = [hrt.Box([-0.1, 0.0], [0.1, 0.2])]
    limit = holds(program, other, boxes)
    assert limit is not None and float(limit.max()) <= 2 * float(worst(program, other, boxes).max())


@pytest.mark.parametrize("tol", [1e-4, 1e-2, 0.5])
def test_is_reached_at_a_corner_by_a_single_layer(tol):
    g = torch.Generator().manual_seed(4)
    net = nn.Linear(7, 9).double()
    with torch.no_grad():
        net.weight.copy_(torch.randn(9, 7, generator=g))
    program = captured(net, 7)
    other = compressed(program, tol)
    boxes = [hrt.Box([-1.0, 0, 2, -3, 0.5, 0, -9], [1.0, 0.1, 4, -1, 0.5, 8, 1])]
    found = bound(program, other, boxes).per_output
    w, h = program.constants, DenseView(other).constants
    (node,) = program.linear_nodes
    for i, limit in enumerate(found or ()):
        # the largest of |E_i x + db_i| over the corners, in exact fractions
        exact = [[Fraction(v) for v in c[node.inputs[1]][i].tolist()] for c in (w, h)]
        shift = Fraction(w[node.inputs[2]][i].item()) - Fraction(h[node.inputs[2]][i].item())
        corners = zip(*exact, boxes[0].low, boxes[0].high, strict=True)
        ends = [sorted(((a - b) * Fraction(low), (a - b) * Fraction(high))) for a, b, low, high in corners]
        reached = max(abs(shift + sum(v[k] for v in ends)) for k in (0, 1))
        assert reached <= Fraction(limit) and limit == pytest.approx(float(reached), rel=1e-9)


def test_a_point_gives_the_difference_there():
    program = captured(mlp(3, 16, 16, 2).double(), 3)
    other, x = compressed(program, 1e-1), [0.3, 0.1, 0.7]
    found = bound(program, other, [hrt.Box(x, x)])
    there = torch.tensor([x], dtype=torch.float64)
    expected = (evaluate(program, [there]) - evaluate(other, [there], DenseView(other).constants)).abs()[0]
    assert found.per_output == pytest.approx(expected.tolist(), rel=1e-9) and found.boxes == 1


def test_more_boxes_are_never_worse(monkeypatch):
    program = captured(mlp(2, 16, 16, 2).double(), 2)
    other, found = compressed(program, 1e-1), []
    for count in (1, 8, 64, 512):
        monkeypatch.setattr(bounds, "MAX_BOXES", count)
        found.append(max(bound(program, other, [hrt.Box([-2, -2], [2, 2])]).per_output or (math.inf,)))
    assert all(b <= a for a, b in itertools.pairwise(found)) and found[-1] < 0.7 * found[0]


class TestReasons:
    program, box = captured(mlp(3, 8, 2), 3), (hrt.Box([0] * 3, [1] * 3),)

    def test_an_op_without_a_rule_is_named(self, monkeypatch):
        monkeypatch.delitem(RULES, "tanh")
        assert bound(self.program, self.program, self.box).reason == "no rule for op tanh"

    def test_large_layers_are_skipped(self, monkeypatch):
        monkeypatch.setattr(bounds, "MAX_SIDE", 7)
        assert "8 x 3, larger than 7" in bound(self.program, self.program, self.box).reason

    def test_a_range_that_leaves_the_domain_names_the_place(self):
        program = captured(nn.Sequential(nn.Linear(3, 2), Apply(torch.log)).double(), 3)
        found = bound(program, compressed(program, 0.5), (hrt.Box([-9] * 3, [9] * 3),))
        assert found.per_output is None and "log" in found.reason


class TestCompress:
    def test_states_what_is_proven_over_the_box(self):
        torch.manual_seed(1)
        net = mlp(2, 24, 24, 2)
        model = hrt.compress(net, inputs=hrt.Box([0, 0], [0.5, 0.5]), tol=1e-2, progress=False)
        c = model.certificate
        limit, found = c.guaranteed[BOX_BOUND], c.measured["max_abs_error"]
        assert len(limit) == 2 and all(0 < b <= a for a, b in zip(limit, found, strict=True))
        (statement,) = c.statements
        norm = math.hypot(*limit)  # a statement has six digits, rounded up
        assert norm <= statement.bound <= norm * (1 + 1e-5) and statement.verdict == "holds"
        assert "no_output_bound" not in c.context and "guaranteed: every output within" in model.report(verbose=True)
        program = captured(net, 2)
        assert bool((worst(program, model.program, [hrt.Box([0, 0], [0.5, 0.5])]) <= torch.tensor(limit)).all())

    def test_says_when_the_bound_is_vacuous(self, quick):
        torch.manual_seed(1)
        net = mlp(4, 32, 32, 32, 32, 1, activation=nn.SiLU)
        model = hrt.compress(net, inputs=hrt.Box([-9] * 4, [9] * 4), tol=5e-2, progress=False)
        (statement,) = model.certificate.statements
        assert statement.verdict == "vacuous" and statement.bound >= model.certificate.measured["output_rms"][0]
        assert "vacuous" in model.report(verbose=True)

    def test_says_why_there_is_none_for_samples(self):
        model = hrt.compress(mlp(2, 12, 1), inputs=torch.rand(400, 2), tol=1e-1, progress=False)
        assert model.certificate.guaranteed == {} and "samples" in model.certificate.context["no_output_bound"]
        assert "guaranteed over a box of inputs: nothing (the inputs are samples" in model.report(verbose=True)
