"""A program gives the network's own answers, closely and in every column, or it is refused."""

import pytest
import torch
from torch import Tensor, nn

import hrt
from hrt.capture import network as network_module
from hrt.capture.network import captured_network, unwrapped
from hrt.capture.torch_export import exported
from hrt.capture.torch_graph import program_of, roundings

ROWS = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
CALLS: list[str] = []


@torch.library.custom_op("hrt_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """An operator of a user's, which must not be carried out while a network is read."""
    CALLS.append("doubled")
    return 2 * x


doubled.register_fake(lambda x: torch.empty_like(x))


def distributed(net: nn.Module) -> nn.Module:
    """The net as one of a group of one process."""
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(net)


@pytest.fixture
def no_group_afterwards():
    """Ends the group that a test may have made."""
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Net(nn.Module):
    """A small network around a function of its first layer, its outputs scaled column by column."""

    def __init__(self, between=torch.tanh, scales=(1.0, 1.0)) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.between = nn.Linear(3, 16), nn.Linear(16, 2), between
        self.register_buffer("scales", torch.tensor(scales))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x))) * self.scales


@pytest.mark.parametrize(
    "wrap",
    [torch.compile, nn.DataParallel, distributed, lambda net: torch.compile(distributed(net)), lambda net: net],
    ids=["compiled", "data parallel", "distributed", "compiled distributed", "plain"],
)
def test_a_wrapped_network_is_the_network_inside(wrap, no_group_afterwards):
    net = Net()
    captured = captured_network(wrap(net), (ROWS,))
    assert unwrapped(wrap(net)) is net and sorted(captured.program.weights) == ["a.weight", "b.weight"]
    assert sorted(hrt.compress(wrap(net), progress=False).program.weights) == ["a.weight", "b.weight"]


def under(context):
    """`tanh` inside a region of the graph."""

    def between(x: Tensor) -> Tensor:
        with context():
            return torch.tanh(x)

    return between


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (1e-4, 1e-4), (1.0, 1e-4)])
@pytest.mark.parametrize("inputs", [True, False])
def test_a_wrong_program_is_refused_however_small_its_outputs_and_whatever_its_type(dtype, scales, inputs, monkeypatch):
    net, rows = Net(scales=scales).to(dtype), (ROWS,) if inputs else None
    right = captured_network(net, rows).program

    def wrong(graph, carries=False) -> hrt.program.program.Program:
        program = program_of(graph)
        column = torch.tensor([1.0, 1.005])  # one column is off by half a per cent
        return program.with_constants({"scales": program.constants["scales"] * column})

    monkeypatch.setattr(network_module, "program_of", wrong)
    assert right.weights
    with pytest.raises(hrt.CaptureError, match="disagrees with the network on output 0"):
        captured_network(net, rows)


def test_rounding_that_changes_the_answers_is_named() -> None:
    net = Net(lambda x: torch.tanh((1e-7 * x).half().float() * 1e7))
    with pytest.raises(hrt.CaptureError, match="own rounding: the network computes in float16 in its forward"):
        captured_network(net, (ROWS,))


@pytest.mark.parametrize(
    "context",
    [torch.enable_grad, torch.no_grad, lambda: torch.autocast("cpu", dtype=torch.bfloat16)],
    ids=["enable_grad", "no_grad", "autocast"],
)
def test_regions_are_read_as_if_they_stood_in_the_graph(context) -> None:
    net, plain = Net(under(context)), Net()
    program = captured_network(net, (ROWS,)).program
    expected = captured_network(plain, (ROWS,)).program
    assert [n.op for n in program.nodes] == [n.op for n in expected.nodes]
    assert torch.equal(program.run([ROWS])[0], expected.run([ROWS])[0])


def test_modules_that_compute_in_less_than_float32_are_named() -> None:
    net = Net(under(lambda: torch.autocast("cpu", dtype=torch.bfloat16)))
    assert roundings(exported(Net(), (ROWS,))) == {}
    assert roundings(exported(net.half(), (ROWS,))) == {"a": "float16", "": "float16", "b": "float16"}


def test_a_vmap_leaves_torch_as_it_was() -> None:
    weights = torch.randn(4, 3, 16)
    net = Net(lambda x: torch.func.vmap(lambda w: torch.sort(x[:, :3] @ w)[0])(weights).mean(0))
    with pytest.raises(hrt.CaptureError, match="cannot be captured") as caught:
        captured_network(net, (ROWS,))
    assert type(caught.value) is hrt.CaptureError
    assert torch._C._functorch.maybe_current_level() is None
    torch.rand(2)


def test_operators_of_others_are_not_carried_out() -> None:
    net = Net(lambda x: torch.tanh(x) * doubled(net.b.weight[0]))
    graph = exported(net, (ROWS,))
    CALLS.clear()
    with pytest.raises(
        hrt.CaptureError, match=r"Op doubled in .* cannot be captured: it is no operator of ATen"
    ) as caught:
        program_of(graph)
    assert type(caught.value) is hrt.CaptureError and not CALLS


def test_no_file_is_touched_for_a_constant(tmp_path) -> None:
    graph, path = exported(Net(lambda x: torch.tanh(x) + torch.arange(16.0)), (ROWS,)), tmp_path / "numbers"
    node = next(n for n in graph.graph.nodes if "arange" in str(n.target))
    node.target, node.args, node.kwargs = torch.ops.aten.from_file.default, (str(path), True, 16), {}  # makes a file
    with pytest.raises(hrt.CaptureError, match="from_file"):
        program_of(graph)
    assert not path.exists()


def test_a_network_gets_inputs_of_the_type_that_it_runs_with() -> None:
    net = Net(lambda x: torch.tanh(x.float()))
    net.a.bfloat16()  # takes bfloat16 rows alone
    captured = captured_network(net, (ROWS,))
    assert captured.answers is not None and captured.answers.unrounded([ROWS]) is not None
    assert captured.roundings["a"] == "bfloat16"


def test_a_number_made_of_weights_is_folded() -> None:
    """.item() and .tolist() of what does not depend on the input, and arithmetic on it."""
    net = Net()
    net.between = lambda x: torch.tanh(x) * (2.0 * net.a.weight.sum().item() + net.a.bias.tolist()[0])
    program = captured_network(net, (ROWS,)).program
    assert torch.allclose(program.run([ROWS.double()])[0].float(), net(ROWS.float()), rtol=1e-4, atol=1e-6)


def sloped(x: torch.Tensor, backward: bool = False) -> torch.Tensor:
    """The derivative of tanh by autograd."""
    with torch.enable_grad():
        x = x.clone().requires_grad_()
        total = torch.tanh(x).sum()
        if not backward:
            return torch.autograd.grad(total, x)[0]
        total.backward()
        assert x.grad is not None
        return x.grad


def of_rows(transform):
    return torch.func.vmap(transform(lambda v: torch.tanh(v).sum()))


DIFFERENTIATES = r": it differentiates inside its forward \(by {}.*ask for its derivatives by compress\(.*derivatives="
FOLLOWED = {
    "autograd": sloped,
    "backward": lambda x: sloped(x, backward=True),
    "twice": lambda x: torch.func.grad(lambda w: torch.func.grad(lambda v: torch.tanh(v).sum())(w).square().sum())(x),
    "grad": lambda x: torch.func.grad(lambda v: torch.tanh(v).sum())(x),
    "grad of rows": of_rows(torch.func.grad),
    "data": lambda x: x.data * 2,
}
HABITS = {
    "jacrev of rows": (of_rows(torch.func.jacrev), DIFFERENTIATES.format(".*torch.func")),
    "jacfwd of rows": (of_rows(torch.func.jacfwd), DIFFERENTIATES.format("torch.func, forward")),
    "float": (lambda x: x * float(x.max()), "Op max|makes a Python number"),
    "numpy": (lambda x: torch.from_numpy(x.detach().numpy()), "leaves torch for numpy; use torch's functions"),
    "branch": (lambda x: x if x.sum() > 0 else -x, "Op sum|a branch of a tensor's values"),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_steps_that_torch_export_does_not_see_are_followed(name) -> None:
    """Derivatives inside a forward and .data, for any batch, with weights under their own names."""
    net = Net(FOLLOWED[name])
    with torch.random.fork_rng():
        program = captured_network(net, (ROWS,)).program
    assert {"a.weight", "b.weight"} <= program.weights.keys()
    for count in (1, 2, 7):
        x = torch.rand(count, ROWS.shape[1], generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            expected = net(x)
        assert torch.allclose(program.run([x.double()])[0].float(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", HABITS)
def test_habits_that_cannot_be_traced_are_named(name) -> None:
    function, words = HABITS[name]
    with pytest.raises(hrt.CaptureError, match=words):
        captured_network(Net(function), (ROWS,))


def quantized(dynamic: bool) -> torch.nn.Module:
    net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(5, 4)).eval()
    if dynamic:
        return torch.ao.quantization.quantize_dynamic(net, {torch.nn.Linear})
    net.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")  # type: ignore[assignment]
    prepared = torch.ao.quantization.prepare(net)
    prepared(torch.rand(8, 5))
    return torch.ao.quantization.convert(prepared)


MODULES = {
    "scripted": (lambda: torch.jit.script(torch.nn.Linear(5, 4)), "TorchScript in the network .*state_dict"),
    "traced": (lambda: torch.jit.trace(torch.nn.Linear(5, 4), torch.rand(2, 5)), "TorchScript in the network"),
    "scripted inside": (
        lambda: torch.nn.Sequential(torch.nn.Linear(5, 4), torch.jit.script(torch.nn.Tanh())),
        "TorchScript in 1 ",
    ),
    "dynamic": (lambda: quantized(True), "quantized module in 1 .*before quantization"),
    "static": (lambda: quantized(False), "quantized module in 1 .*before quantization"),
}


@pytest.mark.parametrize("rows", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_modules_that_torch_export_does_not_read_are_named(name, rows) -> None:
    make, words = MODULES[name]
    with pytest.raises(hrt.CaptureError, match=words):
        captured_network(make(), (torch.rand(8, 5),) if rows else None)


@pytest.mark.skipif(hasattr(torch.Tensor, "refine_names"), reason="this torch has tensors with named dimensions")
def test_named_dimensions_are_refused_as_what_they_are() -> None:
    net = Net(lambda x: getattr(x, "refine_names")("N", "C").mean("C"))  # noqa: B009
    with pytest.raises(hrt.CaptureError, match=r"names the dimensions of tensors.*by number"):
        captured_network(net, (ROWS,))
