"""Derivatives as programs: against torch.func in float64 for every op and network, and in every way to run them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations_with_replacement
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import hrt
from hrt.capture.torch_export import capture
from hrt.certificate.certificate import Certificate
from hrt.cli.main import main, one_each
from hrt.derivatives.differentiate import closure, differentiate
from hrt.derivatives.jet_rules import RULES, STACK_LEAVES
from hrt.export.onnx.exporter import export_onnx
from hrt.model.model import CompressedModel
from hrt.perf.networks import burgers as timing
from hrt.perf.networks.burgers import burgers_points, load_burgers
from hrt.perf.networks.deeponet import DeepONet
from hrt.perf.networks.neuralfoil import load_neuralfoil
from hrt.perf.networks.taylor_pass import by_jvp
from hrt.program.op_table import TABLE
from hrt.program.program import Node, Program, Value
from hrt.schedule.build_schedule import build_schedule
from hrt.schedule.run_reference import execute

from derivative_reference import Function, reference
from helpers import hierarchical, noise, random_hmatrix
from models import linear_model, mixed_model
from op_cases import ACTIVATIONS, CASES, DOMAINS, A, C
from zoo import ZOO, mlp

EXACT = 1e-10  # relative to the largest, float64


def layer_norm(a: Sequence[Tensor], t: Mapping[str, Any]) -> Tensor:
    """(z - mean) / sqrt(variance + eps), scaled and shifted. Torch 2.13 differentiates its own function wrongly, in
    forward mode twice and in reverse mode three times; this is the oracle.
    """
    axes = tuple(range(-len(t["shape"]), 0))
    centred = a[0] - a[0].mean(axes, keepdim=True)
    y = centred / torch.sqrt((centred * centred).mean(axes, keepdim=True) + t["eps"])
    return y * a[1] + a[2] if len(a) == 3 else y * a[1] if len(a) == 2 else y


def check(program: Program, inputs: Sequence[Tensor], names: Sequence[str], f: Function | None = None) -> None:
    """Values and derivatives of the program in float64 are those of f, by default the program's own function."""
    sizes = [x[0].numel() for x in inputs]
    flat = torch.cat([x.reshape(len(x), -1) for x in inputs], 1).double()

    def run(z: Tensor) -> tuple[Tensor, ...]:
        parts = z.split(sizes)
        return tuple(
            y[0] for y in program.run([p.reshape(1, *v.shape) for p, v in zip(parts, program.inputs, strict=True)])
        )

    outputs = differentiate(program, names).program.run(inputs)
    count = len(program.outputs)
    expected = [y.detach() for y in program.run(inputs)]
    with patch.dict(TABLE, layer_norm=replace(TABLE["layer_norm"], torch=layer_norm)):
        for text in names:
            expected += [y.detach() for y in reference(f or run, flat, text)]
    for k, (y, e) in enumerate(zip(outputs, expected, strict=True)):
        assert y.shape == e.shape
        limit = EXACT * float(e.abs().max()) if e.numel() else 0.0
        where = "value" if k < count else names[k // count - 1]
        assert not y.numel() or float((y - e).abs().max()) <= limit + 1e-14, where


@pytest.mark.parametrize("name", ZOO)
def test_of_every_network_of_the_zoo(name: str) -> None:
    e = ZOO[name]
    program, inputs = capture(e.build(), e.inputs(2)), [x * 0.9 + 0.05 for x in e.inputs(3)]
    n = sum(x[0].numel() for x in inputs)
    names = list(dict.fromkeys(["d0", f"d{n - 1}", "d0d0", f"d0d{n - 1}", f"d{n // 2}d{n - 1}d0"])) if n else []
    check(program, inputs, names)
    check(hierarchical(program, seed=1), inputs, names[:3])


def test_every_op_has_a_rule() -> None:
    assert set(RULES) == set(TABLE)


def curved(op: str, arguments: Sequence[Tensor], attrs: dict) -> Program:
    """op on values that bend: where an argument has a batch it is 1.6 + sin(W x + b), of three coordinates x, or in the
    middle of the op's domain, else it is that constant.
    """
    generator = torch.Generator().manual_seed(len(op))
    low, high = DOMAINS.get(op, (0.6, 2.6))
    constants: dict = {
        "up": torch.tensor((low + high) / 2).double(),
        "wide": torch.tensor(0.45 * (high - low)).double(),
    }
    nodes, names = [], []
    for k, a in enumerate(arguments):
        names.append(f"a{k}")
        if not a.ndim or len(a) != BATCH:
            constants[f"a{k}"] = a
            continue
        shape, size = tuple(a.shape[1:]), a[0].numel()
        constants[f"w{k}"] = torch.randn(size, 3, generator=generator, dtype=torch.float64)
        constants[f"b{k}"] = torch.randn(size, generator=generator, dtype=torch.float64)
        nodes += [
            Node(f"l{k}", "linear", ("x", f"w{k}", f"b{k}"), (size,), {}),
            Node(f"s{k}", "sin", (f"l{k}",), (size,), {}),
            Node(f"v{k}", "mul", (f"s{k}", "wide"), (size,), {}),
            Node(f"u{k}", "add", (f"v{k}", "up"), (size,), {}),
            Node(f"a{k}", "reshape", (f"u{k}",), shape, {"shape": list(shape)}),
        ]
    shape = tuple(TABLE[op].torch(arguments, attrs).shape[1:])
    nodes.append(Node("y", op, tuple(names), shape, attrs))
    return Program((Value("x", (3,)),), tuple(nodes), ("y",), constants)


BATCH = len(A)
LAYER_NORMS = [
    ("layer_norm", (A,), {"shape": [4], "eps": 1e-5}),
    ("layer_norm", (A, C[:4]), {"shape": [4], "eps": 0.1}),
    ("layer_norm", (A, A[0], A[1]), {"shape": [3, 4], "eps": 1e-5}),
]
OPS = [(name, arguments, attrs) for name, arguments, attrs, _ in CASES if name != "carried"] + LAYER_NORMS
OPS += [(p.values[0].name, (A,), p.values[1]) for p in ACTIVATIONS]


@pytest.mark.parametrize(("op", "arguments", "attrs"), OPS, ids=[f"{op}-{k}" for k, (op, *_) in enumerate(OPS)])
def test_of_every_op_to_the_third_order(op: str, arguments: tuple, attrs: dict) -> None:
    x = torch.rand(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    names = ["d1", "d0d2", "d0d0d0", "d0d0d1", "d1d2d2", "d0d1d2"]
    check(curved(op, arguments, attrs), [x], names)


def test_of_every_op_means_every_op() -> None:
    assert {op for op, *_ in OPS} == set(TABLE) - {"carried"}  # whose derivative is refused by name: test_carried.py


@pytest.mark.parametrize(("op", "arguments", "attrs"), LAYER_NORMS)
def test_the_layer_norm_written_out_is_torchs(op: str, arguments: tuple, attrs: dict) -> None:
    """In value and first derivative, where torch's own is right."""
    x, *others = arguments
    answers = []
    for function in (layer_norm, TABLE[op].torch):
        z = x.clone().requires_grad_()
        y = function((z, *others), attrs)
        answers.append((y.detach(), *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), z)))
    torch.testing.assert_close(*answers, rtol=1e-10, atol=1e-10)


class AllenCahn(nn.Module):
    """u = x^2 cos(pi x) + t (1 - x^2) N(x, t): a PINN with its initial and boundary values built in."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(2, 24, 24, 24, 1)

    def forward(self, p: Tensor) -> Tensor:
        x, t = p[:, :1], p[:, 1:]
        return x**2 * torch.cos(math.pi * x) + t * (1 - x**2) * self.net(p)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make()


def neuralfoil() -> nn.Module:
    try:
        return load_neuralfoil("xxsmall")
    except FileNotFoundError as error:
        pytest.skip(str(error))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]], list[str]]] = {
    "burgers": (load_burgers, [(2,)], ["d0", "d1", "d0d0", "d0d1", "d1d1", "d0d0d1"]),
    "allen-cahn": (lambda: seeded(AllenCahn), [(2,)], ["d1", "d0d0", "d0d1", "d0d0d0"]),
    "fourier": (lambda: ZOO["FourierFeatures"].build(), [ZOO["FourierFeatures"].shapes[0]], ["d0", "d1d1", "d0d1"]),
    "deeponet": (lambda: seeded(DeepONet), [(128,), (1,)], ["d128", "d128d128", "d0", "d0d128", "d3d127"]),
    "neuralfoil": (neuralfoil, [(25,)], ["d0", "d24", "d18d18", "d0d24"]),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_of_networks_that_are_used(name: str) -> None:
    """Against the module itself, not its capture."""
    make, shapes, names = NETWORKS[name]
    net = make().double()
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.rand(4, *s, generator=generator, dtype=torch.float64) for s in shapes]

    def f(z: Tensor) -> tuple[Tensor, ...]:
        return (net(*(p[None] for p in z.split([s[0] for s in shapes])))[0],)

    check(capture(net, [x[:2] for x in inputs]), inputs, names, f)


@pytest.mark.parametrize("name", ["burgers", "allen-cahn", "deeponet"])
def test_in_float32_within_what_rounding_may_do(name: str) -> None:
    """At most 16 times what roundings of half an ulp do at random: functions of a runtime err by a few ulps."""
    make, shapes, names = NETWORKS[name]
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.rand(16, *s, generator=generator) for s in shapes]
    program = capture(make(), [x[:2] for x in inputs])
    derived = differentiate(program, names).program
    exact, limits = derived.run(inputs), noise(derived, inputs)
    for backend in ("torch", "onnxruntime"):
        outputs = model_of(program, backend).predict(tuple(inputs), derivatives=names)
        for y, e, limit in zip(outputs, exact, limits, strict=True):
            assert y.dtype == torch.float32
            assert float((y - e).norm()) <= 16 * limit, backend


def model_of(program: Program, backend: str = "torch") -> CompressedModel:
    return CompressedModel(program, Certificate(1e-3, "layers", ()), backend=backend)


@st.composite
def networks(draw: st.DrawFn) -> Program:
    """A random network: layers, elementwise ops, skips and products, dense or hierarchical."""
    smooth = ["tanh", "sin", "sigmoid", "gelu", "silu", "softplus", "atan", "erf", "mish"]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    width, inputs = draw(st.integers(1, 9)), draw(st.integers(1, 3))
    attrs = {"gelu": {"approximate": "tanh"}, "softplus": {"beta": 2.0}}
    constants: dict = {}
    nodes: list[Node] = []

    def linear(name: str, x: str, m: int, n: int) -> str:
        weight = torch.randn(m, n, generator=generator, dtype=torch.float64) / n**0.5
        constants[f"{name}.w"] = random_hmatrix(len(nodes), m, n) if draw(st.booleans()) else weight
        constants[f"{name}.b"] = torch.randn(m, generator=generator, dtype=torch.float64)
        nodes.append(Node(name, "linear", (x, f"{name}.w", f"{name}.b"), (m,), {}))
        return name

    values = [linear("first", "x", width, inputs)]
    for k in range(draw(st.integers(1, 5))):
        kind, x = draw(st.sampled_from(["layer", "curve", "curve", "mul", "add", "sub", "div"])), values[-1]
        if kind == "layer":
            values.append(linear(f"n{k}", x, width, width))
            continue
        op = draw(st.sampled_from(smooth)) if kind == "curve" else kind
        other = draw(st.sampled_from(values))
        if kind == "div":  # by 1.5 + sin: never zero
            constants["offset"] = torch.tensor(1.5, dtype=torch.float64)
            nodes.append(Node(f"s{k}", "sin", (other,), (width,), {}))
            nodes.append(Node(f"o{k}", "add", (f"s{k}", "offset"), (width,), {}))
            other = f"o{k}"
        arguments = (x,) if kind == "curve" else (x, other)
        nodes.append(Node(f"n{k}", op, arguments, (width,), attrs.get(op, {})))
        values.append(f"n{k}")
    return Program((Value("x", (inputs,)),), tuple(nodes), (values[-1],), constants)


@settings(max_examples=40, deadline=None)
@given(program=networks(), seed=st.integers(0, 1000))
def test_of_random_networks(program: Program, seed: int) -> None:
    x = torch.rand(2, *program.inputs[0].shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    n = x.shape[1]
    names = ["".join(f"d{k}" for k in i) for r in (1, 2, 3) for i in combinations_with_replacement(range(n), r)]
    check(program, [x], names)


class TestProgram:
    def test_a_layer_of_many_leaves_is_one_product_for_all(self) -> None:
        e = ZOO["mlp_tanh"]
        program = capture(e.build(), e.inputs(2))
        weight = next(n.inputs[1] for n in program.linear_nodes[1:])
        shape = program.constants[weight].shape
        leaves = max((random_hmatrix(k, *shape, depth=5) for k in range(9)), key=lambda h: len(h.leaves))
        assert len(leaves.leaves) > STACK_LEAVES
        program = program.with_constants({weight: leaves})
        derived = differentiate(program, ["d0", "d0d0"]).program
        assert [n.shape[0] for n in derived.linear_nodes if n.inputs[1] == weight] == [3]
        check(program, e.inputs(3), ["d0", "d0d0", "d0d1"])

    def test_structural_zeros_cost_nothing(self) -> None:
        program = capture(nn.Linear(3, 5), [torch.rand(2, 3)])
        derived = differentiate(program, ["d1", "d0d2"]).program
        assert [n.op for n in derived.nodes if n.op == "linear"] == ["linear"]
        _, first, second = derived.run([torch.rand(4, 3)])
        assert torch.equal(first, program.constants[program.nodes[0].inputs[1]][:, 1].double().expand(4, 5))
        assert torch.equal(second, torch.zeros(4, 5, dtype=torch.float64))

    def test_only_what_is_needed_is_carried(self) -> None:
        assert closure([(0, 1)]) == ((0,), (1,), (0, 1))
        assert closure([(2, 2, 5)]) == ((2,), (5,), (2, 2), (2, 5), (2, 2, 5))

    def test_outputs_stand_derivative_by_derivative(self) -> None:
        program = mixed_model().program
        derived = differentiate(program, ["d0", "d7"]).program
        assert derived.outputs == ("y2", "h3", "d0_y2", "d0_h3", "d7_y2", "d7_h3")

    @pytest.mark.parametrize("name", ["mlp_gelu", "DeepONetEinsum", "mixer", "Outputs"])
    def test_lowers_to_a_schedule_as_it_is(self, name: str) -> None:
        """What the GPU's backend runs, here by its oracle on the CPU."""
        e = ZOO[name]
        derived = differentiate(hierarchical(capture(e.build(), e.inputs(2)), seed=2), ["d0", "d0d1"]).program
        schedule = build_schedule(derived, tile_rows=16, step_columns=16, unit=4)
        for y, expected in zip(execute(schedule, e.inputs(3)), derived.run(e.inputs(3)), strict=True):
            torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-13)


class TestMistakes:
    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (["dx"], "'dx'"),
            ([""], "''"),
            (["d2"], "'d2' of a network of 2"),
            (["d0d1", "d1d0"], "'d1d0' more than once"),
            ("d0", "'d0'"),
            ([0], r"\(0,\)"),
            (5, "derivatives=5"),
            (np.array("d0"), "d0"),
            (["d" + "9" * 5000], "'d9999"),
        ],
    )
    def test_names_that_are_none(self, names: list, words: str) -> None:
        with pytest.raises(hrt.InputError, match=rf"Found .*{words}.*Expected"):
            linear_model(torch.rand(3, 2)).predict(np.zeros((1, 2)), derivatives=names)

    def test_an_order_that_no_network_needs_is_refused_before_anything_grows(self) -> None:
        model = hrt.compress(torch.nn.Sequential(torch.nn.Linear(1, 1)), tol=1e-3, progress=False)
        with pytest.raises(hrt.InputError, match="Found the order 60"):
            model.predict(np.zeros((1, 1), np.float32), derivatives=["d0" * 60])

    def test_an_order_beyond_the_table_names_the_op(self) -> None:
        program = capture(mlp(2, 4, 1), [torch.rand(2, 2)])
        with pytest.raises(hrt.DerivativeError, match=r"order 4 of the op tanh \(node .*Expected at most order 3"):
            differentiate(program, ["d0d0d0d0"])
        linear = capture(nn.Linear(2, 3), [torch.rand(2, 2)])
        assert not differentiate(linear, ["d0d0d0d0"]).program.run([torch.rand(1, 2)])[1].any()

    def test_kinks_are_named_once_they_matter(self) -> None:
        net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh())
        derived = differentiate(capture(net, [torch.rand(2, 2)]), ["d0d0"])
        assert derived.kinks == ("relu (1)",)
        assert differentiate(capture(mlp(2, 3, 1), [torch.rand(2, 2)]), ["d0"]).kinks == ()

    def test_equal_arguments_of_a_maximum_share_the_derivative(self) -> None:
        node = Node("y", "maximum", ("x", "c"), (2,), {})
        program = Program((Value("x", (2,)),), (node,), ("y",), {"c": torch.tensor([0.0, 3.0])})
        x = torch.tensor([[0.0, 4.0]], dtype=torch.float64)
        assert differentiate(program, ["d0", "d1"]).program.run([x])[1].tolist() == [[0.5, 0.0]]


class TestPredict:
    @pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
    @pytest.mark.parametrize("rows", [0, 1, 300])
    def test_shapes_and_order(self, backend: str, rows: int) -> None:
        model = model_of(hierarchical(capture(mlp(2, 16, 16, 3), [torch.rand(2, 2)]), seed=4), backend)
        x = np.random.default_rng(0).random((rows, 2))
        outputs = model.predict(x, derivatives=["d1", "d0d0"])
        exact = differentiate(model.program, ["d1", "d0d0"]).program.run([torch.from_numpy(x)])
        assert len(outputs) == 3
        for y, e in zip(outputs, exact, strict=True):
            assert y.shape == (rows, 3) and y.dtype == np.float64 and y.flags.owndata
            assert np.linalg.norm(y - e.numpy()) <= 1e-4 * max(float(e.norm()), 1e-30)
        again = model.predict(x, derivatives=("d1", "d0d0"))
        assert all(np.array_equal(a, b) for a, b in zip(outputs, again, strict=True))
        assert model.differentiated(["d1", "d0d0"]) is model.differentiated(("d1", "d0d0"))  # one session for both

    def test_several_outputs_are_tuples_like_the_value(self) -> None:
        model, x = mixed_model(), (np.random.rand(3, 7), np.random.rand(3, 5))
        value = model.predict(x)
        outputs = model.predict(x, derivatives=["d11"])
        assert [len(part) for part in outputs] == [2, 2]
        assert all(np.allclose(a, b, rtol=1e-5) for a, b in zip(outputs[0], value, strict=True))
        assert [y.shape for y in outputs[1]] == [y.shape for y in value]

    def test_no_derivative_is_the_value_in_a_tuple(self) -> None:
        model, x = linear_model(torch.rand(3, 2)), np.random.rand(4, 2)
        (value,) = model.predict(x, derivatives=[])
        assert np.array_equal(value, model.predict(x))

    def test_parts_of_max_batch(self) -> None:
        program = capture(mlp(2, 8, 1), [torch.rand(2, 2)])
        x = torch.rand(9, 2)
        whole = model_of(program).predict(x, derivatives=["d0"])
        parts = CompressedModel(program, Certificate(1e-3, "layers", ()), max_batch=4, backend="torch")
        for a, b in zip(whole, parts.predict(x, derivatives=["d0"]), strict=True):
            torch.testing.assert_close(a, b)


class TestExport:
    @pytest.fixture
    def artifact(self, tmp_path):
        net = seeded(lambda: mlp(2, 12, 12, 1))
        path = tmp_path / "net.hrt"
        hrt.compress(net, inputs=torch.rand(400, 2), tol=1e-2, progress=False).save(path)
        return path

    def test_outputs_are_named_and_right(self, artifact, tmp_path) -> None:
        path = tmp_path / "net.onnx"
        export_onnx(artifact, path, derivatives=["d0", "d0d1"])
        graph = onnx.load(path).graph
        name = graph.output[0].name
        assert [o.name for o in graph.output] == [name, f"d0_{name}", f"d0d1_{name}"]
        ort = pytest.importorskip("onnxruntime")
        x = np.random.default_rng(1).random((6, 2)).astype(np.float32)
        outputs = ort.InferenceSession(str(path)).run(None, {graph.input[0].name: x})
        program = hrt.load(artifact).program
        f = lambda z: (program.run([z[None]])[0][0],)  # noqa: E731
        for y, text in zip(outputs[1:], ["d0", "d0d1"], strict=True):
            (e,) = reference(f, torch.from_numpy(x).double(), text)
            assert y.shape == e.shape == (6, 1)
            assert np.linalg.norm(y - e.numpy()) <= 1e-4 * float(e.norm())

    def test_on_the_command_line(self, artifact, tmp_path, capsys) -> None:
        x, y = tmp_path / "x.npy", tmp_path / "y.npz"
        np.save(x, np.random.rand(3, 2))
        assert main(["predict", str(artifact), "--derivatives", "d0", "d1", "d0d0", str(x), "-o", str(y)]) == 0
        outputs = np.load(y)
        expected = hrt.load(artifact).predict(np.load(x), derivatives=["d0", "d1", "d0d0"])
        name = hrt.load(artifact).program.outputs[0]
        assert outputs.files == [name, f"d0_{name}", f"d1_{name}", f"d0d0_{name}"]
        assert all(np.array_equal(outputs[n], e) for n, e in zip(outputs.files, expected, strict=True))
        assert main(["predict", str(artifact), str(x), "--derivatives", "d9"]) == 2
        assert "Found the derivative 'd9'" in capsys.readouterr().err

    def test_names_end_where_a_file_begins(self) -> None:
        words = ["predict", "n.hrt", "--derivatives", "d0", "d1", "data.npy", "d2"]
        spread = ["predict", "n.hrt", "--derivatives", "d0", "--derivatives", "d1", "data.npy", "d2"]
        assert one_each(words) == spread
        assert one_each(["info", "d0"]) == ["info", "d0"]


class TestTiming:
    def test_all_ways_of_torch_say_the_same(self) -> None:
        net, x = load_burgers().double().requires_grad_(False), burgers_points(7, 1).double()
        first, *others = (way(net, x) for way in (timing.reverse, timing.functional_reverse, by_jvp))
        for answers in others:
            for y, e in zip(answers, first, strict=True):
                torch.testing.assert_close(y, e, rtol=1e-10, atol=1e-10)

    def test_what_is_timed_is_what_torch_says(self) -> None:
        net = load_burgers().requires_grad_(False)
        model, x = model_of(capture(net, [torch.rand(2, 2)]), "onnxruntime"), burgers_points(64, 1)
        exact = timing.reverse(load_burgers().double(), x.double())
        for y, e in zip(model.predict(x, derivatives=timing.DERIVATIVES), exact, strict=True):
            assert y.shape == e.shape and float((y - e).norm()) <= 1e-3 * float(e.norm())
