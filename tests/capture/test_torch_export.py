"""Capture: the Program is the network, for every network of the zoo and every exported program."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrt.capture.torch_export import capture, guess_example
from hrt.errors import CaptureError, InputError
from hrt.program.program import Program

from zoo import PROGRAMS, TORCH, ZOO, Apply, Entry, digest, mlp

EVERY_NETWORK = pytest.mark.parametrize("entry", [pytest.param(e, id=name) for name, e in ZOO.items()])


@dataclass(frozen=True)
class Captured:
    """A capture, the network it was made of, and all that might have changed in between."""

    program: Program
    net: nn.Module
    before: dict[str, tuple[Any, Any]]
    random: tuple[Tensor, Tensor]
    hook: Any


@cache
def record(name: str) -> Captured:
    net = ZOO[name].build().train()
    next(net.children(), net).eval()  # a mixed state, as fine-tuning scripts leave it
    hook = net.register_forward_hook(lambda module, args, output: None)
    before, random = _state(net), torch.random.get_rng_state()
    program = capture(net, ZOO[name].inputs(2))
    return Captured(program, net, before, (random, torch.random.get_rng_state()), hook)


def captured(name: str) -> Program:
    return record(name).program


def leaves(y: Any) -> list[Tensor]:
    if isinstance(y, Tensor):
        return [y]
    return [leaf for part in (y.values() if isinstance(y, dict) else y) for leaf in leaves(part)]


def answers(entry: Entry, batch: int, dtype: torch.dtype) -> list[Tensor]:
    """What the network itself says; its inputs are copies, for those that work in place."""
    with torch.no_grad():
        return leaves(entry.build(dtype).eval()(*(x.clone() for x in entry.inputs(batch, dtype))))


def assert_close(outputs: Any, expected: Any, tol: float) -> None:
    for y, r in zip(outputs, expected, strict=True):
        assert y.shape == r.shape
        assert (y.double() - r.double()).norm() <= tol * r.double().norm()


class TestZoo:
    @EVERY_NETWORK
    def test_is_the_network(self, entry: Entry) -> None:
        """In float64 for several batches, in float32, and in the network's own type to its rounding."""
        program = captured(entry.name)
        for batch in (1, 7):
            assert_close(program.run(entry.inputs(batch)), answers(entry, batch, torch.float64), 1e-10)
        single = program.run(entry.inputs(7, torch.float32), dtype=torch.float32)
        assert all(y.dtype == torch.float32 for y in single)
        assert_close(single, answers(entry, 7, torch.float32), 1e-4)
        dtype = next((p.dtype for p in entry.build().parameters()), torch.float32)
        outputs = program.run(entry.inputs(7, dtype))
        assert_close(outputs, answers(entry, 7, dtype), max(1e-10, 200 * torch.finfo(dtype).eps))

    @EVERY_NETWORK
    def test_rows_do_not_touch_and_there_may_be_none(self, entry: Entry) -> None:
        program, x = captured(entry.name), entry.inputs(5)
        single = [program.run([v[k : k + 1] for v in x]) for k in range(5)]
        outputs = program.run(x)
        assert_close(outputs, [torch.cat(rows) for rows in zip(*single, strict=True)], 1e-12)
        assert [y.shape for y in program.run(entry.inputs(0))] == [(0, *y.shape[1:]) for y in outputs]

    @EVERY_NETWORK
    def test_shapes_are_those_computed(self, entry: Entry) -> None:
        program = captured(entry.name)
        seen = {v.name: v.shape for v in program.inputs}

        def check(node: Any, arguments: tuple[Any, ...]) -> None:
            for name, argument in zip(node.inputs, arguments, strict=True):
                assert tuple(argument.shape) == ((3, *seen[name]) if name in seen else program.constants[name].shape)
            seen[node.name] = node.shape

        outputs = program.run(entry.inputs(3), observe=check)
        assert [tuple(y.shape[1:]) for y in outputs] == [program.shape_of(name) for name in program.outputs]

    @EVERY_NETWORK
    def test_header_survives_json(self, entry: Entry) -> None:
        program, x = captured(entry.name), entry.inputs(3)
        again = Program.from_header(json.loads(json.dumps(program.to_header(), allow_nan=False)), program.constants)
        assert again.to_header() == program.to_header()
        for y, r in zip(again.run(x), program.run(x), strict=True):
            assert torch.equal(y, r)

    @EVERY_NETWORK
    def test_is_the_program_that_it_was(self, entry: Entry) -> None:
        record = json.loads(PROGRAMS.read_text())
        if record["torch"] != TORCH or entry.name not in record["digests"]:
            pytest.skip("not recorded; another torch gives its graphs other names")
        assert digest(captured(entry.name)) == record["digests"][entry.name]

    @EVERY_NETWORK
    def test_products_with_constants_are_linear_nodes(self, entry: Entry) -> None:
        program = captured(entry.name)
        assert len(program.linear_nodes) == entry.linear
        for node in program.linear_nodes:
            weight = program.constants[node.inputs[1]]
            assert (weight.shape[0], weight.shape[1]) == (node.shape[-1], _width(program, node.inputs[0]))

    @EVERY_NETWORK
    def test_constants_are_float64_and_its_own(self, entry: Entry) -> None:
        program, net = captured(entry.name), record(entry.name).net
        pointers = {t.data_ptr() for t in (*net.parameters(), *net.buffers()) if t.numel()}
        for constant in program.constants.values():
            assert isinstance(constant, Tensor)
            assert constant.dtype == torch.float64
            assert constant.is_contiguous()
            assert not constant.requires_grad
            assert constant.data_ptr() not in pointers
            assert constant.untyped_storage().nbytes() == 8 * constant.numel()
        assert {name for n in program.nodes for name in n.inputs} >= set(program.constants)

    @EVERY_NETWORK
    def test_network_is_left_as_it_was(self, entry: Entry) -> None:
        made = record(entry.name)
        after = _state(made.net)
        assert list(after) == list(made.before)
        for key, (value, copy) in made.before.items():
            assert after[key][0] is value, key
            assert not isinstance(value, Tensor) or torch.equal(value, copy), key
        assert torch.equal(*made.random)
        x = entry.inputs(2, next((p.dtype for p in made.net.parameters()), torch.float32))
        with torch.no_grad():  # it still runs, on plain tensors
            assert all(type(y) is Tensor for y in leaves(made.net(*(v.clone() for v in x))))


def _width(program: Program, name: str) -> int:
    return program.shape_of(name)[-1]


def _state(net: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Every attribute of every module, with a copy of its numbers."""
    state: dict[str, tuple[Any, Any]] = {}
    for path, module in net.named_modules():
        for key, value in module.__dict__.items():
            state[f"{path}.{key}"] = (value, value.detach().clone() if isinstance(value, Tensor) else None)
            for name, item in value.items() if isinstance(value, dict) else ():
                state[f"{path}.{key}.{name}"] = (item, item.detach().clone() if isinstance(item, Tensor) else None)
    return state


class TestNames:
    @pytest.mark.parametrize(
        ("name", "weights"),
        [
            ("mlp_tanh", ["0.weight", "2.weight", "4.weight"]),
            ("Nested", ["body.0.0.weight", "shared.0.weight", "heads.0.weight", "heads.1.weight"]),
            ("weight_norm_old", ["0.weight", "2.weight", "3.weight"]),
            ("weight_norm_parametrized", ["0.weight", "2.weight", "3.weight"]),
            ("spectral_norm", ["0.weight", "2.weight", "4.weight"]),
            ("ParameterProducts", ["W", "V", "w"]),
            ("FourierFeatures", ["B", "net.0.weight", "net.2.weight"]),
            ("PODDeepONet", ["branch.0.weight", "branch.2.weight", "modes"]),
            ("DeepONetGrid", ["branch.0.weight", "branch.2.weight", "weight"]),
            ("GridMixing", ["left", "right", "heads", "out.weight", "laplacian"]),
        ],
    )
    def test_weights_keep_their_names(self, name: str, weights: list[str]) -> None:
        assert list(captured(name).weights) == weights

    def test_shared_module_is_one_weight(self) -> None:
        assert [len(nodes) for nodes in captured("Nested").weights.values()] == [1, 2, 1, 1]

    def test_shared_parameter_is_one_weight(self) -> None:
        # and the transposed decoder is another matrix
        assert [len(nodes) for nodes in captured("TiedWeights").weights.values()] == [2, 1]

    def test_shared_normalised_module_is_one_weight(self) -> None:
        layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        program = capture(nn.Sequential(layer, nn.Tanh(), layer), [torch.zeros(2, 4)])
        assert [len(nodes) for nodes in program.weights.values()] == [2]

    def test_modules_of_nodes_are_paths(self) -> None:
        program = captured("Nested")
        assert [n.module for n in program.linear_nodes] == ["body.0.0", "body.1.0", "body.3.0", "heads.0", "heads.1"]
        assert set(n.module for n in captured("siren").nodes if n.op == "sin") == {"0", "1", "2"}

    def test_parameters_may_be_called_like_nodes(self) -> None:
        class Awkward(nn.Module):
            def __init__(self):
                super().__init__()
                self.x, self.linear_0, self.tanh_0 = (nn.Parameter(torch.rand(3, 3)) for _ in range(3))

            def forward(self, x):
                return torch.tanh(x @ self.x @ self.linear_0) @ self.tanh_0 + F.linear(x, self.x)

        net = Awkward().double()
        x = torch.rand(4, 3, dtype=torch.float64)
        assert_close(capture(net, [x]).run([x]), [net(x).detach()], 1e-12)

    def test_inputs_may_be_called_like_nodes(self) -> None:
        class Awkward(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(4, 4)

            def forward(self, linear_0, linear):
                return self.linear(linear_0) * linear

        net, x = Awkward().double(), torch.rand(2, 3, 4, dtype=torch.float64)
        program = capture(net, tuple(x))
        assert [v.name for v in program.inputs] == ["linear_0", "linear"]
        assert_close(program.run(tuple(x)), [net(*x).detach()], 1e-12)

    def test_bias_of_a_product_is_fused(self) -> None:
        program = captured("ParameterProducts")
        assert program.linear_nodes[0].inputs[1:] == ("W", "b")
        assert [n.op for n in program.nodes].count("add") == 1  # the output's, after the product with a vector


class TestShapes:
    def test_dictionary_comes_back_in_its_order(self) -> None:
        net, program = ZOO["DictOutputs"].build(torch.float64), captured("DictOutputs")
        x = ZOO["DictOutputs"].inputs(3)
        u, p, same = program.run(x)
        assert_close([u, p, same], [v.detach() for v in (net(*x)["u"], net(*x)["p"], x[0])], 1e-12)

    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
    def test_no_elements(self) -> None:
        for net, width in ((nn.Linear(0, 5), 0), (nn.Linear(5, 0), 5), (nn.Linear(0, 0), 0)):
            program = capture(net, [torch.zeros(2, width)])
            (y,) = program.run([torch.zeros(3, width)])
            assert y.shape == (3, net.out_features)
            assert_close([y], [net.double()(torch.zeros(3, width, dtype=torch.float64)).detach()], 0)

    def test_numpy_example(self) -> None:
        net = mlp(3, 4, 1)
        assert capture(net, [torch.zeros(2, 3).numpy()]).to_header() == capture(net, [torch.zeros(9, 3)]).to_header()


def exported(name: str, dim: Any = None) -> torch.export.ExportedProgram:
    entry = ZOO[name]
    shapes = tuple({0: dim or torch.export.Dim("batch")} for _ in entry.shapes)
    with torch.no_grad():
        return torch.export.export(entry.build().eval(), entry.inputs(4, torch.float32), dynamic_shapes=shapes)


class TestExportedProgram:
    @pytest.mark.parametrize("name", ["DeepONetSum", "weight_norm_parametrized", "normalized"])
    def test_is_the_network(self, name: str) -> None:
        entry = ZOO[name]
        program = capture(exported(name), ())
        assert list(program.weights) == list(captured(name).weights)
        assert_close(program.run(entry.inputs(5)), answers(entry, 5, torch.float64), 1e-10)

    @pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's own, about itself
    @pytest.mark.parametrize("name", ["ModifiedMLP", "HardBoundary", "normalized", "mlp_mish"])
    def test_decomposed(self, name: str) -> None:
        entry = ZOO[name]
        program = capture(exported(name).run_decompositions(), ())
        assert len(program.linear_nodes) == entry.linear
        assert_close(program.run(entry.inputs(5)), answers(entry, 5, torch.float64), 1e-10)

    @pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")
    def test_decomposed_beyond_the_table_says_so(self) -> None:
        net, x = nn.Sequential(nn.Identity(), Apply(lambda x: x.sort(1)[0])), torch.zeros(2, 4)
        graph = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        with pytest.raises(CaptureError, match=r"sort in 1 \(Apply\).*Do not call run_decompositions"):
            capture(graph.run_decompositions(), ())

    def test_automatic_batch(self) -> None:
        entry = ZOO["mlp_relu"]
        program = capture(exported("mlp_relu", torch.export.Dim.AUTO), ())
        assert_close(program.run(entry.inputs(5)), answers(entry, 5, torch.float64), 1e-10)

    def test_fixed_batch(self) -> None:
        entry = ZOO["mlp_relu"]
        fixed = torch.export.export(entry.build(), entry.inputs(4, torch.float32))
        with pytest.raises(CaptureError, match=r"fixed batch of 4. Export with dynamic_shapes"):
            capture(fixed, ())

    def test_two_batches(self) -> None:
        class Both(nn.Module):
            def forward(self, x, y):
                return x * 2, y * 3

        x = torch.zeros(4, 2)
        two = ({0: torch.export.Dim("first")}, {0: torch.export.Dim("second")})
        with pytest.raises(CaptureError, match=r"Input 'y'.*Expected one torch\.export\.Dim"):
            capture(torch.export.export(Both(), (x, torch.zeros(5, 2)), dynamic_shapes=two), ())

    def test_varying_width(self) -> None:
        net = Apply(lambda x: x * 2)
        dynamic = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("width")},)
        with pytest.raises(CaptureError, match=r"Input 'x' was exported with the shape .* all other dimensions fixed"):
            capture(torch.export.export(net, (torch.zeros(4, 5),), dynamic_shapes=dynamic), ())

    def test_whole_numbers_as_input(self) -> None:
        x = torch.zeros(4, 2, dtype=torch.int64)
        net = torch.export.export(Apply(lambda x: x * 0.5), (x,), dynamic_shapes=({0: torch.export.Dim("b")},))
        program = capture(net, ())
        assert program.inputs[0].kind == "int"
        assert torch.equal(program.run((torch.tensor([[3, 4]]),))[0], torch.tensor([[1.5, 2.0]], dtype=torch.float64))

    def test_training_mode(self) -> None:
        net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5)).train()
        graph = torch.export.export(net, (torch.zeros(4, 2),), dynamic_shapes=({0: torch.export.Dim("batch")},))
        with pytest.raises(CaptureError, match=r"Op dropout in 1 \(Dropout\).*net\.eval\(\)"):
            capture(graph, ())

    def test_weights_without_numbers(self) -> None:
        graph = exported("mlp_relu")
        graph.state_dict["2.weight"].data[0, 0] = torch.nan
        with pytest.raises(InputError, match=r"'2\.weight' holds 1 NaN"):
            capture(graph, ())

    def test_example(self) -> None:
        assert [tuple(x.shape) for x in guess_example(exported("DeepONetSum"))] == [(2, 10), (2, 2)]


class TestGuessExample:
    @pytest.mark.parametrize(
        ("name", "width"),
        [
            ("mlp_tanh", 3),
            ("siren", 2),
            ("FourierFeatures", 2),
            ("NormalizedBoundary", 2),
            ("Periodic", 2),
            ("normalized", 4),
            ("ParameterProducts", 3),
            ("PODDeepONet", 10),
            ("bfloat16", 2),
        ],
    )
    def test_width(self, name: str, width: int) -> None:
        net = ZOO[name].build()
        before = {k: v.clone() for k, v in net.state_dict().items()}
        training = [m.training for m in net.modules()]
        (x,) = guess_example(net)
        assert x.shape == (2, width)
        assert [m.training for m in net.modules()] == training
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

    @pytest.mark.parametrize("name", ["DeepONetSum", "mixer"])
    def test_says_when_it_cannot(self, name: str) -> None:
        with pytest.raises(InputError, match=r"cannot be guessed \(.+\)\. Pass inputs="):
            guess_example(ZOO[name].build())


def test_an_order_of_products_that_asks_for_the_batch_is_left_out(monkeypatch):
    """As opt_einsum chooses one where it is installed."""

    class Chooses:
        @staticmethod
        def contract_path(equation, *operands, optimize):
            raise AssertionError("it would compare sizes, the batch's too")

    module = vars(torch.backends.opt_einsum)["m"]  # torch stands a wrapper before it
    monkeypatch.setattr(module, "_opt_einsum", Chooses)
    monkeypatch.setattr(module, "is_available", lambda: True)
    monkeypatch.setattr(module, "enabled", True)
    net = Apply(lambda x: torch.einsum("bi,ij,jk->bk", x, torch.ones(4, 3), torch.ones(3, 2)))
    assert capture(net, [torch.zeros(2, 4)]).outputs
    with pytest.raises(AssertionError, match="compare sizes"):
        net(torch.zeros(2, 4))
