"""ATen's operators: what is said in the op table, and what is refused by op, module and remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrt.capture.torch_export import capture, guess_example
from hrt.capture.weights import check_weights
from hrt.errors import CaptureError, InputError

from zoo import ZOO, mlp


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
    "conv2d": (
        lambda m, x: F.conv2d(torch.ones(1, 1, 2, 2, dtype=x.dtype), x.reshape(-1, 1, 2, 2)),
        ("Op conv2d in 1 (Probe)", "kernel depends on the input"),
    ),
    "fft": (lambda m, x: torch.fft.rfft(x).sqrt().abs(), ("Op sqrt in 1", "complex numbers")),
    "sort": (lambda m, x: x.sort(1)[0], ("Op sort in 1", "outside the op table")),
    "factored": (
        lambda m, x: torch.linalg.svdvals(x.reshape(-1, 2, 2)),
        ("Op linalg_svdvals in 1", "factors a matrix"),
    ),
    "power": (lambda m, x: x.abs() ** x, ("Op pow in 1", "for a positive base write (y * x.log()).exp()")),
    "noise": (
        lambda m, x: x + torch.randn_like(x),
        ("Op randn_like in 1", "it draws random numbers; draw them outside"),
    ),
    "near": (lambda m, x: torch.logcumsumexp(x, 1), ("Op logcumsumexp in 1 (Probe)", "near to it: logsumexp")),
    "softmax_over_batch": (lambda m, x: x.softmax(0), ("Op softmax in 1", "samples would depend on each other")),
    "largest_of_all": (lambda m, x: x / x.max(), ("Op max in 1", "samples would depend on each other")),
    "count_that_varies": (lambda m, x: x[x > 0], ("Op", "in 1")),
    "bits": (lambda m, x: x * (x.long() & 1), ("Op bitwise_and in 1", "bits")),
    "many_largest": (lambda m, x: x.repeat(1, 9).topk(9)[0], ("Op topk in 1", "at most 8")),
    "drawn_slopes": (lambda m, x: F.rrelu(x, training=True), ("Op rrelu in 1",)),
    "active_attention": (
        lambda m, x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.5),
        ("Op scaled_dot_product_attention in 1", "net.eval()"),
    ),
    "random": (lambda m, x: x + torch.rand(4), ("Op rand in 1", "random")),
    "active_dropout": (lambda m, x: F.dropout(x), ("Op dropout in 1", "net.eval()", "training=self.training")),
    "batch_statistics": (lambda m, x: F.batch_norm(x, None, None, training=True), ("Op batch_norm in 1", "batch")),
    "as_halves": (lambda m, x: x.view(torch.float16), ("Op view in 1", "another type")),
    "jumping_softplus": (lambda m, x: F.softplus(x, 1, 2), ("Op softplus in 1", "threshold")),
    # samples that depend on each other
    "transpose": (lambda m, x: x.T @ x, ("Op matmul in 1", "sums over the batch")),
    "mean_over_batch": (lambda m, x: x - x.mean(0), ("Op mean in 1", "samples would depend on each other")),
    "sum_of_all": (lambda m, x: x / x.sum(), ("Op sum in 1", "samples would depend on each other")),
    "concat_batch": (lambda m, x: torch.cat([x, x]), ("Output cat", "(2*s", "the batch as dimension 0")),
    "repeat_batch": (lambda m, x: x.repeat(2, 1), ("Output repeat", "(2*s", "the batch as dimension 0")),
    "copies_mixed": (lambda m, x: x.repeat(3, 1).view(-1, 3, 4), ("Op view in 1", "keep the batch whole")),
    "copies_met": (lambda m, x: x.repeat(3, 1) + x.repeat_interleave(3, 0), ("Op add in 1", "in different places")),
    "flip_batch": (lambda m, x: x.flip(0), ("Op flip in 1", "samples would depend on each other")),
    "first_row": (lambda m, x: x * x[0], ("Op select in 1", "samples would depend on each other")),
    "einsum_over_batch": (lambda m, x: torch.einsum("bi,bj->ij", x, x), ("Op einsum in 1", "bi,bj->ij")),
    "matmul_over_batch": (lambda m, x: torch.matmul(x[:, 0], x[:, 1]), ("Op matmul in 1", "sums over the batch")),
    "points_into_batch": (
        lambda m, x: m.linear(x[:, :, None].expand(-1, 4, 4).reshape(-1, 4)),
        ("Output linear", "(4*s", "the batch as dimension 0", "y.reshape(x.shape[0], ...)"),
    ),
    "leading_axis": (lambda m, x: m.linear(x)[None], ("Output unsqueeze", "batch as dimension 0", "y.transpose(0, 1)")),
    "moved_softmax": (lambda m, x: torch.softmax(x.T, -1).T, ("Op softmax in 1", "along the batch")),
    "cumsum_over_batch": (lambda m, x: x.cumsum(0), ("Op cumsum in 1", "along the batch")),
    "spread_over_batch": (lambda m, x: x / x.std(0), ("Op std in 1", "along the batch")),
    "norm_over_batch": (lambda m, x: x / x.norm(dim=0), ("Op linalg_vector_norm in 1", "along the batch")),
    "moved_mean": (lambda m, x: x - torch.stack([x, x.sin()]).mean(1), ("Op mean in 1", "along the batch")),
    "shifted": (lambda m, x: (x.T[:, :, None] * x[:, None]).mean(0), ("Op mul in 1", "only the batch may vary")),
    "stack_over_batch": (
        lambda m, x: torch.bmm(x.T[:, None], x.T[:, :, None])[:, 0],
        ("Op bmm in 1", "sums over the batch"),
    ),
    "batch_split": (
        lambda m, x: x[:, None].expand(-1, 3, 4).transpose(0, 1).reshape(-1, 4).reshape(-1, 3, 4),
        ("Op reshape in 1", "samples", "keep the batch whole"),
    ),
    "batch_size": (lambda m, x: x / x.shape[0], ("Op div in 1", "batch size")),
    "masked_columns": (lambda m, x: x[:, torch.arange(4) > 1], ("Op index in 1", "only the batch may vary")),
    "pairs": (lambda m, x: x[:, 0] * x[:, :1], ("Op mul in 1", "only the batch may vary")),
    # weights that depend on the input, answers that do not
    "hypernetwork": (lambda m, x: F.linear(x[:, None], x[:, None] * m.vector), ("in 1",)),
    "no_output": (lambda m, x: None, ("does not depend on its input",)),
    "constant_output": (lambda m, x: (x, m.vector), ("does not depend on its input",)),
    "memory": (count_calls, ("calls", "no memory")),
    # what torch.export itself refuses
    "control_flow": (branch, ("in 1 (Probe)", "test_aten.py", "if x.sum() > 0:", "must not depend on the data")),
    "branch_on_a_mask": (
        lambda m, x: x if torch.any(x > 0) else -x,
        ("if torch.any(mask)", "torch.where(mask, f(x), x)"),
    ),
    "packed": (
        lambda m, x: torch.nn.utils.rnn.pack_padded_sequence(x[..., None], [4] * x.shape[0], batch_first=True).data,
        ("in 1 (Probe)", "pack_padded_sequence", "sequences of one length"),
    ),
    "fixed_batch": (lambda m, x: x + torch.ones(3, 4), ("could not trace Sequential", "dimension of any size")),
    "loop": (
        lambda m, x: torch.stack([m.linear(row) for row in x]),
        ("in 1.linear (Linear)", "loops over its rows", "torch.vmap"),
    ),
    "length": (lambda m, x: x * len(x), ("it fixes the number of rows", "len(x)")),
    "counted_rows": (lambda m, x: x + torch.arange(x.shape[0])[:, None], ("Op unsqueeze in 1", "numbers of the rows")),
    "every_other_row": (lambda m, x: x[torch.arange(0, x.shape[0], 2)], ("Op arange in 1", "take_along_dim")),
    "windows_of_rows": (lambda m, x: x.unfold(0, 2, 1)[..., 0], ("Op unfold in 1", "along the batch")),
    "wrong_width": (lambda m, x: m.linear(x[:, :3]), ("1.linear (Linear)", "('batch', 4)")),
    "derivative": (
        lambda m, x: torch.autograd.grad(m.linear(x).sum(), x)[0],
        ("in 1 (Probe)", "autograd.grad", "with torch.enable_grad():"),
    ),
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
            assert "Rewrite it, or keep that part outside the compressed network" in message and len(message) < 400
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
        before = [dict(m.__dict__) for m in net.modules()]
        with pytest.raises(CaptureError):
            capture(net, [torch.zeros(2, 4)])
        assert [m.__dict__ for m in net.modules()] == before


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
            expected = expected.reshape(batch, *expected.shape[-1:]) if name == "squeeze" else expected
            (y,) = program.run([x])
            torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)


def test_a_sum_over_an_axis_of_a_constant_alone_is_in_it():
    """Tensor trains begin with such an axis, of size 1; what is left is a weight."""
    stack = torch.rand(2, 3, 4)
    program = capture(probe(lambda m, x: torch.einsum("pij,bj->bi", stack, x)), [torch.zeros(2, 4)])
    assert [node.op for node in program.nodes] == ["linear"]
    torch.testing.assert_close(program.constants[program.nodes[0].inputs[1]].float(), stack.sum(0))
