"""Capture: the Program is the network, for every network of the zoo; what cannot be said is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hrt
from hrt.capture.torch_export import capture, check_weights, guess_example, input_count
from hrt.errors import CaptureError, InputError
from hrt.program.program import Program

from zoo import ZOO, Entry, mlp

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


def assert_close(found: Any, expected: Any, tol: float) -> None:
    for y, r in zip(found, expected, strict=True):
        assert y.shape == r.shape
        assert (y.double() - r.double()).norm() <= tol * r.double().norm()


class TestZoo:
    @EVERY_NETWORK
    @pytest.mark.parametrize("batch", [1, 3, 7])
    def test_float64_is_the_network(self, entry: Entry, batch: int) -> None:
        assert_close(captured(entry.name).run(entry.inputs(batch)), answers(entry, batch, torch.float64), 1e-10)

    @EVERY_NETWORK
    def test_float32_is_the_network(self, entry: Entry) -> None:
        x = entry.inputs(7, torch.float32)
        found = captured(entry.name).run(x, dtype=torch.float32)
        assert all(y.dtype == torch.float32 for y in found)
        assert_close(found, answers(entry, 7, torch.float32), 1e-4)

    @EVERY_NETWORK
    def test_own_type_is_the_network_within_its_rounding(self, entry: Entry) -> None:
        dtype = next((p.dtype for p in entry.build().parameters()), torch.float32)
        found = captured(entry.name).run(entry.inputs(7, dtype))
        assert_close(found, answers(entry, 7, dtype), max(1e-10, 200 * torch.finfo(dtype).eps))

    @EVERY_NETWORK
    def test_empty_batch(self, entry: Entry) -> None:
        program = captured(entry.name)
        shapes = [(0, *y.shape[1:]) for y in program.run(entry.inputs(3))]
        assert [tuple(y.shape) for y in program.run(entry.inputs(0))] == shapes

    @EVERY_NETWORK
    def test_rows_do_not_touch(self, entry: Entry) -> None:
        program, x = captured(entry.name), entry.inputs(5)
        single = [program.run([v[k : k + 1] for v in x]) for k in range(5)]
        assert_close(program.run(x), [torch.cat(rows) for rows in zip(*single, strict=True)], 1e-12)

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
    found: dict[str, tuple[Any, Any]] = {}
    for path, module in net.named_modules():
        for key, value in module.__dict__.items():
            found[f"{path}.{key}"] = (value, value.detach().clone() if isinstance(value, Tensor) else None)
            for name, item in value.items() if isinstance(value, dict) else ():
                found[f"{path}.{key}.{name}"] = (item, item.detach().clone() if isinstance(item, Tensor) else None)
    return found


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
            ("GridMixing", ["left", "right", "out.weight", "laplacian"]),
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
        class Awkward(Probe):
            def forward(self, linear_0, linear):
                return self.linear(linear_0) * linear

        net, x = Awkward(torch.abs).double(), torch.rand(2, 3, 4, dtype=torch.float64)
        program = capture(net, tuple(x))
        assert [v.name for v in program.inputs] == ["linear_0", "linear"]
        assert_close(program.run(tuple(x)), [net(*x).detach()], 1e-12)

    def test_bias_of_a_product_is_fused(self) -> None:
        program = captured("ParameterProducts")
        assert program.linear_nodes[0].inputs[1:] == ("W", "b")
        assert [n.op for n in program.nodes].count("add") == 1  # the output's, after the product with a vector


# --- refusals


class Probe(nn.Module):
    """Calls a function on itself and its inputs, one module below the network."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function
        self.linear, self.lstm = nn.Linear(4, 4), nn.LSTM(4, 4, batch_first=True)
        self.conv, self.softmax = nn.Conv2d(1, 1, 1), nn.Softmax(-1)
        self.register_buffer("calls", torch.zeros(()))
        self.vector = nn.Parameter(torch.rand(4))

    def forward(self, *xs):
        return self.function(self, *xs)


def probe(function: Callable) -> nn.Module:
    return nn.Sequential(nn.Identity(), Probe(function))


def count_calls(m: Probe, x: Tensor) -> Tensor:
    m.calls += 1
    return x * m.calls


def branch(m: Probe, x: Tensor) -> Tensor:
    if x.sum() > 0:
        return m.linear(x)
    return x


REFUSED: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "cumsum": (lambda m, x: torch.cumsum(x, 1), ("Op cumsum in 1 (Probe)", "outside the op table")),
    "softmax": (lambda m, x: m.softmax(x), ("Op softmax in 1.softmax (Softmax)", "outside the op table")),
    "conv2d": (lambda m, x: m.conv(x[:, None, None]), ("Op conv2d in 1.conv (Conv2d)", "outside the op table")),
    "lstm": (lambda m, x: m.lstm(x[:, None])[0], ("in 1.lstm (LSTM)", "without the batch")),
    "fft": (lambda m, x: torch.fft.rfft(x).abs(), ("Op fft_rfft in 1",)),
    "sort": (lambda m, x: x.sort(1)[0], ("Op sort in 1",)),
    "where": (lambda m, x: torch.where(x > 0, x, 0.1 * x), ("Op gt in 1",)),
    "floor_division": (lambda m, x: x // 2, ("Op div in 1", "it rounds")),
    "rounded_division": (lambda m, x: torch.div(x, 2, rounding_mode="floor"), ("Op div in 1", "rounds")),
    "random": (lambda m, x: x + torch.rand(4), ("Op rand in 1", "random")),
    "random_like": (lambda m, x: x + torch.randn_like(x), ("Op randn_like in 1",)),
    "active_dropout": (lambda m, x: F.dropout(x), ("Op dropout in 1", "net.eval()", "training=self.training")),
    "batch_statistics": (lambda m, x: F.batch_norm(x, None, None, training=True), ("Op batch_norm in 1", "batch")),
    "to_integers": (lambda m, x: x * x.long(), ("Op to in 1", "torch.int64")),
    "as_integers": (lambda m, x: x * x.view(torch.int32), ("Op view in 1", "torch.int32")),
    "as_halves": (lambda m, x: x.view(torch.float16), ("Op view in 1", "another type")),
    "complex": (lambda m, x: (x * 1j).real, ("Op mul in 1", "complex")),
    "jumping_softplus": (lambda m, x: F.softplus(x, 1, 2), ("Op softplus in 1", "threshold")),
    "maximum_norm": (lambda m, x: x.norm(p=torch.inf, dim=1), ("Op linalg_vector_norm in 1", "order")),
    # samples that depend on each other
    "transpose": (lambda m, x: x.T @ x, ("Op permute in 1", "moves the batch")),
    "moved_batch": (lambda m, x: x[:, :, None].permute(1, 0, 2), ("Op permute in 1", "batch")),
    "transposed_batch": (lambda m, x: x.t(), ("in 1", "batch")),
    "mean_over_batch": (lambda m, x: x - x.mean(0), ("Op mean in 1", "samples would depend on each other")),
    "sum_of_all": (lambda m, x: x / x.sum(), ("Op sum in 1", "samples would depend on each other")),
    "concat_batch": (lambda m, x: torch.cat([x, x]), ("Op cat in 1", "batch")),
    "stack_batch": (lambda m, x: torch.stack([x, x]), ("Op stack in 1", "batch")),
    "repeat_batch": (lambda m, x: x.repeat(2, 1), ("Op repeat in 1", "repeats the batch")),
    "flip_batch": (lambda m, x: x.flip(0), ("Op flip in 1", "samples would depend on each other")),
    "first_row": (lambda m, x: x * x[0], ("Op select in 1", "samples would depend on each other")),
    "einsum_over_batch": (lambda m, x: torch.einsum("bi,bj->ij", x, x), ("Op einsum in 1", "bi,bj->ij")),
    "matmul_over_batch": (lambda m, x: torch.matmul(x[:, 0], x[:, 1]), ("Op matmul in 1", "sums over the batch")),
    "points_into_batch": (
        lambda m, x: m.linear(x[:, :, None].expand(-1, 4, 4).reshape(-1, 4)),
        ("Op reshape", "batch"),
    ),
    "leading_axis": (lambda m, x: m.linear(x)[None], ("Op unsqueeze in 1", "batch as dimension 0")),
    "batch_size": (lambda m, x: x / x.shape[0], ("Op div in 1", "batch size")),
    "masked_columns": (lambda m, x: x[:, torch.arange(4) > 1], ("Op index in 1", "only dimension 0 may vary")),
    "pairs": (lambda m, x: x[:, 0] * x[:, :1], ("Op mul in 1", "only dimension 0 may vary")),
    # weights that depend on the input, answers that do not
    "hypernetwork": (lambda m, x: F.linear(x[:, None], x[:, None] * m.vector), ("in 1",)),
    "no_output": (lambda m, x: None, ("does not depend on its input",)),
    "constant_output": (lambda m, x: (x, m.vector), ("does not depend on its input",)),
    "memory": (count_calls, ("calls", "no memory")),
    # what torch.export itself refuses
    "control_flow": (branch, ("in 1 (Probe)", "test_capture.py", "if x.sum() > 0:", "must not depend on the data")),
    "fixed_batch": (lambda m, x: x + torch.ones(3, 4), ("could not trace Sequential", "dimension of any size")),
    "wrong_width": (lambda m, x: m.linear(x[:, :3]), ("1.linear (Linear)", "('batch', 4)")),
    "derivative": (lambda m, x: torch.autograd.grad(m.linear(x).sum(), x)[0], ("in 1 (Probe)", "autograd.grad")),
}


class TestRefusals:
    @pytest.mark.parametrize("name", REFUSED)
    def test_names_the_op_the_module_and_a_remedy(self, name: str, capfd: pytest.CaptureFixture[str]) -> None:
        function, words = REFUSED[name]
        with pytest.raises(CaptureError) as caught:
            capture(probe(function), [torch.zeros(2, 4)])
        message = str(caught.value)
        assert [w for w in words if w not in message] == [], message
        if message.startswith("Op "):
            assert "Rewrite it with ops of the table (linear, tanh, " in message
            assert "keep that part outside" in message
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize("net", [None, "net", torch.tanh, nn.Linear, {"weight": torch.zeros(2)}])
    def test_no_network(self, net: Any) -> None:
        with pytest.raises(CaptureError, match=r"Expected an nn\.Module"):
            capture(net, [torch.zeros(2, 4)])

    def test_missing_input(self) -> None:
        with pytest.raises(CaptureError, match=r"missing a required argument: 'x'"):
            capture(ZOO["DeepONetSum"].build(), [torch.zeros(2, 10)])

    def test_scalar_input(self) -> None:
        with pytest.raises(InputError, match=r"Expected \(batch, \.\.\.\)"):
            capture(mlp(2, 2), [torch.tensor(1.0)])

    @pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("name", ["body.0.0.weight", "heads.1.bias"])
    def test_weights_without_numbers(self, name: str, value: float) -> None:
        net = ZOO["Nested"].build()
        with torch.no_grad():
            dict(net.named_parameters())[name].view(-1)[3 % 2] = value
        for attempt in (
            lambda: capture(net, [torch.zeros(2, 4)]),
            lambda: check_weights(net),
            lambda: guess_example(net),
        ):
            with pytest.raises(InputError, match=f"{name!r} holds 1 NaN or infinite"):
                attempt()

    def test_plain_tensor_without_numbers(self) -> None:
        net = ZOO["PlainTensorFeatures"].build()
        net.frequencies[1] = torch.nan
        with pytest.raises(InputError, match=r"'frequencies' holds 1 NaN"):
            capture(net, [torch.zeros(2, 2)])

    def test_constant_that_overflows(self) -> None:
        with pytest.raises(InputError, match=r"vector.*NaN or infinite"):
            capture(probe(lambda m, x: x * torch.log(m.vector - m.vector)), [torch.zeros(2, 4)])

    def test_meta_device(self) -> None:
        with torch.device("meta"):
            net = mlp(2, 4, 1)
        for attempt in (
            lambda: capture(net, [torch.zeros(2, 2)]),
            lambda: check_weights(net),
            lambda: guess_example(net),
        ):
            with pytest.raises(InputError, match=r"'0\.weight' is on the meta device.*Load the weights"):
                attempt()

    def test_lazy_layer(self) -> None:
        with pytest.raises(InputError, match=r"'0\.weight' has no shape yet"):
            capture(nn.Sequential(nn.LazyLinear(3)), [torch.zeros(2, 2)])

    def test_works_in_place_on_nothing_of_the_network(self) -> None:
        net = probe(count_calls).double()  # float64 on the CPU: capture has no reason to copy
        with pytest.raises(CaptureError):
            capture(net, [torch.zeros(2, 4)])
        assert net[1].calls == 0

    def test_failed_capture_leaves_the_network_as_it_was(self) -> None:
        net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Dropout(), Probe(branch)).train()
        before = _state(net)
        with pytest.raises(CaptureError):
            capture(net, [torch.zeros(2, 4)])
        assert {k: v[0] for k, v in _state(net).items()} == {k: v[0] for k, v in before.items()}


# --- operators without a network of their own

SAID: dict[str, Callable] = {
    "column_assignment": lambda m, x: _assigned(x),
    "in_place_input": lambda m, x: m.linear(x.mul_(2)) + x,
    "in_place_alias": lambda m, x: (lambda h: h + h.relu_())(m.linear(x)),
    "tensordot": lambda m, x: torch.tensordot(x, m.linear.weight, dims=([1], [0])),
    "inner": lambda m, x: torch.inner(x, m.linear.weight),
    "vecdot": lambda m, x: torch.linalg.vecdot(x, m.linear(x)),
    "baddbmm": lambda m, x: torch.baddbmm(x[:, :, None], x[:, :, None], x[:, None, :1]),
    "quadratic_form": lambda m, x: torch.einsum("bi,ij,bj->b", x, m.linear.weight, x),
    "outer_with_constant": lambda m, x: torch.einsum("bi,j->bij", x, m.vector),
    "implicit_einsum": lambda m, x: torch.einsum("ab,bc", x, m.linear.weight),
    "einsum_weight_first": lambda m, x: torch.einsum("oi,bi->bo", m.linear.weight, x),
    "einsum_vector": lambda m, x: torch.einsum("bi,i->b", x, m.vector),
    "einsum_three_values": lambda m, x: torch.einsum("bi,bj,bi->bj", x, x.sin(), x.cos()),
    "einsum_diagonal": lambda m, x: torch.einsum("bii->bi", x[:, :, None] * x[:, None]),
    "normalize": lambda m, x: F.normalize(x, dim=1) + F.cosine_similarity(x, m.linear(x))[:, None],
    "norm": lambda m, x: x.norm(dim=1, keepdim=True) + torch.linalg.norm(x, dim=-1, keepdim=True),
    "diff_roll_flip": lambda m, x: (
        torch.diff(x, dim=1) + x.roll(1, 1)[:, 1:] + x.flip(1)[:, :3] + x.roll(-2, -1)[:, :3]
    ),
    "index_select": lambda m, x: torch.index_select(x, 1, torch.tensor([2, 1, 1, 3])),
    "lerp": lambda m, x: torch.lerp(x, x.sin(), 0.3),
    "glu": lambda m, x: F.glu(x),
    "tile": lambda m, x: torch.column_stack([x[:, 0], x.tile(1, 2)]) * torch.arange(9, dtype=x.dtype),
    "meshgrid": lambda m, x: x + torch.meshgrid(torch.arange(4.0), torch.arange(2.0), indexing="ij")[0][:, 0],
    "clamp_by_tensors": lambda m, x: x.clamp(m.vector * 0.2, m.vector) + x.clamp(min=m.vector),
    "constant_grid": lambda m, x: x * torch.linspace(0, 1, 4, dtype=x.dtype) ** 0.3,  # in the type of the values
    "mask": lambda m, x: x * torch.tensor([True, False, True, True]) + x * torch.tensor([1, 2, 3, 4]),
    "squeeze": lambda m, x: x[:, None, :, None].squeeze() * x[:, None].squeeze(1),
    "scaled_sum": lambda m, x: torch.add(x, x.cos(), alpha=0.3) - torch.sub(m.vector, x, alpha=2),
    "constant_base": lambda m, x: torch.pow(m.vector + 1, x) + x.abs() ** m.vector[0],
    "transposed_const": lambda m, x: (m.linear.weight @ x[:, :, None]).squeeze(-1) @ m.linear.weight[:, :3],
    "layer_norm_by_hand": lambda m, x: (
        (x - x.mean(1, True)) / torch.sqrt(((x - x.mean(1, True)) ** 2).mean(1, True) + 1e-5)
    ),
}


def _assigned(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 0] = 0.0
    y[:, 1] = y[:, 2] * 2
    y[:, 2:] = torch.tensor([3.0, 4.0])
    return y


class TestOperators:
    @pytest.mark.parametrize("name", SAID)
    def test_is_said_in_the_table(self, name: str) -> None:
        torch.manual_seed(3)
        net = probe(SAID[name])
        program = capture(net, [torch.zeros(2, 4)])
        for batch in (1, 5):
            x = torch.rand(batch, 4, dtype=torch.float64) - 0.4
            with torch.no_grad():
                expected = net.double()(x.clone())
            # a squeeze of everything loses a batch of one; the Program keeps it
            assert_close(
                program.run([x]),
                [expected.reshape(batch, *expected.shape[-1:]) if name == "squeeze" else expected],
                1e-10,
            )

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


# --- exported programs


def exported(name: str, dim: Any = None) -> torch.export.ExportedProgram:
    entry = ZOO[name]
    shapes = tuple({0: dim or torch.export.Dim("batch")} for _ in entry.shapes)
    with torch.no_grad():
        return torch.export.export(entry.build().eval(), entry.inputs(4, torch.float32), dynamic_shapes=shapes)


class TestExportedProgram:
    @pytest.mark.parametrize("name", ["mlp_gelu", "DeepONetSum", "weight_norm_parametrized", "normalized", "Outputs"])
    def test_is_the_network(self, name: str) -> None:
        entry = ZOO[name]
        program = capture(exported(name), ())
        assert list(program.weights) == list(captured(name).weights)
        assert_close(program.run(entry.inputs(5)), answers(entry, 5, torch.float64), 1e-10)

    @pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")  # torch's own, about itself
    @pytest.mark.parametrize("name", ["mlp_silu", "siren", "ModifiedMLP", "HardBoundary", "normalized", "TiedWeights"])
    def test_decomposed(self, name: str) -> None:
        entry = ZOO[name]
        program = capture(exported(name).run_decompositions(), ())
        assert len(program.linear_nodes) == entry.linear
        assert_close(program.run(entry.inputs(5)), answers(entry, 5, torch.float64), 1e-10)

    @pytest.mark.filterwarnings("ignore:.isinstance.treespec:FutureWarning")
    def test_decomposed_beyond_the_table_says_so(self) -> None:
        with pytest.raises(CaptureError, match=r"in 1 \(Mish\).*Do not call run_decompositions"):
            capture(exported("mlp_mish").run_decompositions(), ())

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
        net = Probe(lambda m, x: x * 2)
        dynamic = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("width")},)
        with pytest.raises(
            CaptureError, match=r"Input 'xs_0' was exported with the shape .* all other dimensions fixed"
        ):
            capture(torch.export.export(net, (torch.zeros(4, 5),), dynamic_shapes=(dynamic,)), ())

    def test_whole_numbers_as_input(self) -> None:
        x = torch.zeros(4, 2, dtype=torch.int64)
        net = torch.export.export(Probe(lambda m, x: x * 0.5), (x,), dynamic_shapes=(({0: torch.export.Dim("b")},),))
        with pytest.raises(CaptureError, match=r"int64.*Expected floats"):
            capture(net, ())

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

    def test_example_and_input_count(self) -> None:
        graph = exported("DeepONetSum")
        assert [tuple(x.shape) for x in guess_example(graph)] == [(2, 10), (2, 2)]
        assert input_count(graph) == 2
        assert input_count(mlp(2, 2)) is None


class TestGuessExample:
    @pytest.mark.parametrize(
        ("name", "width"),
        [
            ("mlp_tanh", 3),
            ("siren", 2),
            ("FourierFeatures", 2),
            ("NormalizedBoundary", 2),
            ("HardBoundary", 2),
            ("Periodic", 2),
            ("normalized", 4),
            ("weight_norm_old", 3),
            ("ParameterProducts", 3),
            ("PODDeepONet", 10),
            ("float64", 2),
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

    @pytest.mark.parametrize("name", ["DeepONetSum", "DeepONetManyPoints", "mixer"])
    def test_says_when_it_cannot(self, name: str) -> None:
        with pytest.raises(InputError, match=r"cannot be guessed \(.+\)\. Pass inputs="):
            guess_example(ZOO[name].build())


def test_errors_are_exported() -> None:
    assert issubclass(hrt.CaptureError, hrt.HrtError)
    assert hrt.CaptureError is CaptureError
    assert hrt.InputError is InputError
