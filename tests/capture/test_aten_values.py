"""ATen's operators that choose, compare, round, and look at a whole axis: what the Program says is what torch says."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hrt.capture.torch_export import capture
from hrt.program.program import Program

from zoo import Apply

SPECIAL = torch.tensor([[-2.5, -1.0, -0.5, 0.0], [0.5, 1.0, 1.5, 2.5], [0.25, 0.25, -0.25, 7.0]]).double()
SOME = torch.tensor([0.3, -0.2, 0.0, 1.5]).double()

ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "comparisons": lambda x: sum(
        2.0**k * c.to(x.dtype) for k, c in enumerate([x > 0.5, x >= 0.5, x < 0, x <= 0, x == 0.25, x != 1])
    ),
    "comparisons_of_values": lambda x: torch.stack([x > x.flip(1), x.ge(SOME), x > 0.5, x.eq(x.round())], 1).double(),
    "logic": lambda x: ((x > 0) & (x < 1) | ~(x > -1) ^ (x > 2)).to(x.dtype),
    "logic_of_numbers": lambda x: (
        torch.logical_and(x, SOME).double() + 2 * torch.logical_or(x, SOME).double() + 4 * torch.logical_not(x).double()
    ),
    "sum_of_masks": lambda x: ((x > 0) + (x > 1)).double() + (x > 0).sum(1, keepdim=True) + (x > 1) * x,
    "any_all": lambda x: (x > 0).any(1).double() + 2 * (x > 0).all(1).double(),
    "where": lambda x: torch.where(x > 0, x.sin(), 0.1 * x) + torch.where(SOME > 0, x, SOME),
    "where_protects": lambda x: torch.where(x > 0, torch.log(x), torch.sqrt(-x)),
    "masked_fill": lambda x: x.masked_fill(x < 0, -3.0) + x.masked_fill(torch.tensor([True, False, False, True]), 2.0),
    "infinite_fill": lambda x: x.masked_fill(x < -0.7, -math.inf).softmax(1),
    "rounding": lambda x: x.floor() + 10 * x.ceil() + 100 * x.trunc() + 1000 * x.round() + x.frac() + x.sign(),
    "remainder": lambda x: x.remainder(0.75) + x % -0.75 + x.fmod(0.75) + x.remainder(SOME + 2) + x.fmod(-0.6),
    "floor_division": lambda x: x // 0.3 + x.div(0.3, rounding_mode="trunc") + x.floor_divide(SOME - 3),
    "integers": lambda x: x * x.long() + x.to(torch.int32).to(x.dtype) + x.bool().to(x.dtype),
    "arcs": lambda x: torch.asin(x / 8) + torch.acos(x / 8) + torch.atanh(x / 8) + torch.asinh(x) + torch.acosh(x + 4),
    "angle": lambda x: torch.atan2(x, SOME) + torch.atan2(SOME, x) + torch.tan(x),
    "sinc": lambda x: torch.sinc(x),
    "logarithms": lambda x: torch.log2(x + 4) + torch.log10(x + 4) + torch.exp2(x) + torch.log1p(x + 3),
    "shrinks": lambda x: F.softshrink(x, 0.3) + F.hardshrink(x) + F.threshold(x, 0.4, -1.0) + F.rrelu(x, 0.1, 0.3),
    "logaddexp_hypot": lambda x: torch.logaddexp(x, SOME) + torch.hypot(x, SOME),
    "nan_to_num": lambda x: (
        torch.nan_to_num(torch.log(x), neginf=-9.0) + torch.nan_to_num(SOME / (x - x), nan=3.0, posinf=7.0, neginf=-2.0)
    ),
    "searchsorted": lambda x: (
        torch.searchsorted(SOME.sort()[0], x) + 9.0 * torch.bucketize(x, SOME.sort()[0], right=True)
    ),
}
AXES: dict[str, Callable[[Tensor], Tensor]] = {
    "extremes": lambda x: torch.stack([x.amax(1), x.amin(-1), x.max(1)[0], x.min(1).values, x.aminmax(dim=1)[0]], 1),
    "places": lambda x: torch.stack([x.argmax(1), x.max(1)[1], x.argmin(1), x.min(1).indices], 1) + 0 * x,
    "topk": lambda x: torch.cat([x.topk(2)[0], (x + SOME).topk(2)[1] + 0.0, x.topk(3, largest=False)[0]], 1),
    "moments": lambda x: torch.stack([x.var(1), x.std(1), x.var(1, correction=0), *torch.var_mean(x, 1)], 1),
    "standard": lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, unbiased=False, keepdim=True) + 0.1),
    "product": lambda x: torch.cat([x.prod(1, keepdim=True), x[:, :3].prod(1)[:, None], x[:, :1].prod(1, True)], 1),
    "cumsum": lambda x: x.cumsum(1) + x.flip(1).cumsum(-1),
    "softmax": lambda x: x.softmax(1) + F.log_softmax(3 * x, -1) + x.logsumexp(1, keepdim=True),
    "logsumexp_far": lambda x: torch.logsumexp(300 * x, 1) + F.log_softmax(300 * x, 1)[:, 0],
    "norms": lambda x: torch.stack([x.norm(p=p, dim=1) for p in (1, 2, 3, math.inf, -math.inf)], 1),
    "normalize": lambda x: F.normalize(x, p=1, dim=1) + F.rms_norm(x, [4], eps=1e-3) + F.rms_norm(x, (4,), SOME, 0.1),
    "distances": lambda x: (
        torch.cdist(x[:, :, None], SOME[:, None]).flatten(1) + torch.cdist(x[:, None], x[:, None])[:, 0]
    ),
}


SEND, RECEIVE = torch.tensor([0, 1, 2, 3, 3, 0, 1]), torch.tensor([1, 2, 3, 0, 0, 0, 2])
TABLE = torch.tensor([[0.3, 1.0], [-0.2, 2.0], [0.7, 0.5], [1.5, -1.0], [0.1, 0.2]]).double()


def messages(x: Tensor) -> Tensor:
    """(batch, 4 nodes, 2) along the edges of a fixed graph."""
    nodes = torch.stack([x, x.sin()], -1)
    return (nodes[:, SEND] * TABLE[:, 0].sum() - nodes[:, RECEIVE]).tanh()


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    "index_add": lambda x: torch.zeros(x.shape[0], 4, 2, dtype=x.dtype).index_add(1, RECEIVE, messages(x)).flatten(1),
    "index_put_adds_to_pairs": lambda x: torch.ops.aten.index_put(
        (x[:, :, None] - x[:, None]).sin(), [None, SEND, RECEIVE], messages(x)[..., 0], True
    ).flatten(1),
    "index_add_to_values": lambda x: x.index_add(1, RECEIVE, messages(x)[..., 0], alpha=0.5),
    "scatter_add": lambda x: (
        torch.zeros(x.shape[0], 4, 2, dtype=x.dtype)
        .scatter_add(1, RECEIVE[None, :, None].expand_as(messages(x)), messages(x))
        .flatten(1)
    ),
    "scatter_reduce": lambda x: x.scatter_reduce(1, RECEIVE.expand(x.shape[0], -1), messages(x)[..., 1], "sum"),
    "many_places": lambda x: x[:, (torch.arange(200) * 3) % 4],
    "places_in_a_grid": lambda x: x[:, torch.tensor([[0, 2], [3, 3], [1, 0]])].flatten(1),
    "lookup": lambda x: TABLE[(x.abs() * 2).long().clamp(max=4)].flatten(1),
    "embedding": lambda x: F.embedding((x.abs() * 2).long().clamp(max=4), TABLE).flatten(1),
    "one_hot": lambda x: F.one_hot((x.abs() * 2).long().clamp(max=4), 5).to(x.dtype).flatten(1),
    "gather": lambda x: x.gather(1, (x.abs() * 2).long().clamp(max=3)),
    "best_two": lambda x: (lambda top: (top[0].softmax(1) * x.sin().gather(1, top[1])).sum(1))((x + SOME).topk(2)),
    "interpolation": lambda x: interpolated(x),
    "entry_of_every_row": lambda x: x[torch.arange(x.shape[0]), x.argmax(1)][:, None],
    "entry_of_every_row_by_length": lambda x: x[torch.arange(len(x)), x.argmax(1)][:, None],
    "rows_of_every_row": lambda x: (
        torch.stack([x, x.sin()], -1)[torch.arange(x.shape[0]), (x.sum(1) * 2).long().clamp(-4, 3)]
        + x.view(-1, 2, 2)[torch.arange(0, x.shape[0]), :, (x[:, 0] > 0).long()]
        + x.view(-1, 2, 2)[torch.arange(x.shape[0]), torch.tensor(1)]
    ),
    "windows": lambda x: torch.stack([x, x.sin()], 1).unfold(2, 2, 2).sum(-1).flatten(1) + x.unfold(1, 3, 1)[:, 0, :1],
    "scatter": lambda x: torch.zeros_like(x).scatter(1, (x + SOME).topk(2)[1], x.topk(2)[0].softmax(1)),
    "scatter_number": lambda x: x.scatter(1, (x + SOME).argmax(1, keepdim=True), -1.0),
    "scatter_add_to_values": lambda x: x.scatter_add(1, x.abs().long().clamp(max=3), x.sin()),
    "gather_repeated": lambda x: (
        torch.stack([x, x.sin()], -1).gather(1, x.abs().long().clamp(max=3)[..., None].expand(-1, -1, 2)).flatten(1)
    ),
    "scatter_repeated": lambda x: (
        torch.stack([x, x.sin()], -1)
        .scatter_add(1, x.abs().long().clamp(max=3)[..., None].expand(-1, -1, 2), torch.stack([x, x], -1))
        .flatten(1)
    ),
    "two_lists": lambda x: x.view(-1, 2, 2)[:, [0, 1, 1], [1, 1, 0]] + x.view(-1, 2, 2)[:, :, [0]].flatten(1)[:, :1],
    "assigned": lambda x: assigned(x),
    "diagonals": lambda x: (
        x.view(-1, 2, 2).diagonal(dim1=1, dim2=2) + x.view(-1, 2, 2).tril(-1).sum(1) + x.view(-1, 2, 2).triu().sum(2)
    ),
    "bilinear": lambda x: F.bilinear(
        x[:, :3],
        x[:, :2],
        TABLE[:6].to(x.dtype).flatten()[:6].view(1, 3, 2) * SOME[1:3, None, None].to(x.dtype),
        SOME[:2].to(x.dtype),
    ),
}


def assigned(x: Tensor) -> Tensor:
    """To lists of places on two axes, and where a mask says so."""
    y = torch.zeros_like(x).view(-1, 2, 2)
    y[:, [0, 1], [1, 1]] = x[:, :2].exp()
    y[:, 0, [0]] = 3.0
    y[x.view(-1, 2, 2) > 1] = -1.0
    y[(x > 0.2).view(-1, 2, 2)] = 0.0
    return y.flatten(1)


def interpolated(x: Tensor) -> Tensor:
    knots, values = torch.linspace(-3, 8, 6, dtype=x.dtype), TABLE.flatten()[:6]
    k = torch.searchsorted(knots, x.clamp(-2.9, 7.9)) - 1
    t = (x - knots[k]) / (knots[k + 1] - knots[k])
    return values[k] * (1 - t) + values[k + 1] * t


def agrees(function: Callable[[Tensor], Tensor], x: Tensor) -> Program:
    program = capture(Apply(function).double(), [torch.zeros(2, *x.shape[1:])])
    expected = function(x).double()
    for rows in (slice(None), slice(1, 2)):
        (y,) = program.run([x[rows]])
        torch.testing.assert_close(y, expected[rows], rtol=1e-11, atol=1e-12, equal_nan=True)
    return program


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise(name: str) -> None:
    agrees(ELEMENTWISE[name], SPECIAL)


@pytest.mark.parametrize("name", AXES)
def test_along_an_axis(name: str) -> None:
    agrees(AXES[name], SPECIAL)


@pytest.mark.parametrize("name", PLACES)
def test_by_places(name: str) -> None:
    agrees(PLACES[name], SPECIAL.clamp(-3, 7))


def test_a_graph_is_gathered_not_multiplied() -> None:
    """As many numbers as there are edges, not nodes times edges."""
    program = agrees(PLACES["index_add"], SPECIAL)
    assert not program.weights and {"gather"} <= {n.op for n in program.nodes}


class Constants(nn.Module):
    """Distances to centres whose rows are the batch, and a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.rand(30, 4))
        self.register_buffer("mesh", torch.eye(4).add(torch.ones(4).diag(1)[:4, :4]).to_sparse())
        self.plain = torch.eye(4)[[1, 2, 3, 0]].to_sparse()

    def forward(self, x: Tensor) -> Tensor:
        nodes = torch.sparse.mm(self.mesh, x.T).T + (self.plain.to(x.dtype) @ x.T).T
        return torch.cat([torch.cdist(x, self.centres), nodes], 1)


def test_rows_that_are_the_batch() -> None:
    net = Constants().double()
    before = (net.mesh, net.plain)
    program = capture(net, [torch.zeros(2, 4)])
    with torch.no_grad():
        torch.testing.assert_close(program.run([SPECIAL])[0], net(SPECIAL), rtol=1e-11, atol=1e-12)
    assert net.mesh is before[0] and net.plain is before[1]


@pytest.mark.parametrize("name", ["lookup", "embedding"])
def test_tables_are_in_reach_of_the_planner(name: str) -> None:
    program = agrees(PLACES[name], SPECIAL.clamp(-3, 7))
    assert [tuple(program.constants[k].shape) for k in program.weights] == [(2, 5)]


class Attention(nn.Module):
    """Two heads over five tokens; kind: of the mask."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.query, self.both = nn.Linear(6, 8), nn.Linear(6, 16)
        self.register_buffer("seen", torch.rand(5, 5) > 0.3)
        self.seen.fill_diagonal_(True)

    def forward(self, x: Tensor) -> Tensor:
        heads = [t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (self.query(x), *self.both(x).chunk(2, -1))]
        mask = {
            "bool": self.seen,
            "float": torch.where(self.seen, 0.5, -math.inf),
            "value": x[:, None, None, :, 0] > -0.4,
            "bias": x[:, None, :, :5],
        }.get(self.kind)
        options = {"is_causal": self.kind == "causal", "scale": 0.3 if self.kind == "scaled" else None}
        y = F.scaled_dot_product_attention(*heads, attn_mask=mask, **options)
        return y.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("kind", ["plain", "causal", "scaled", "bool", "float", "value", "bias"])
def test_attention(kind: str) -> None:
    torch.manual_seed(0)
    net, x = Attention(kind).double(), torch.rand(3, 5, 6).double() - 0.5
    with torch.no_grad():
        program, expected = capture(net, [x]), net(x)
    torch.testing.assert_close(program.run([x])[0], expected, rtol=1e-11, atol=1e-12)
    assert {n.op for n in program.nodes} >= {"softmax", "matmul"}


def test_the_smallest_root_mean_square_is_that_of_the_networks_type() -> None:
    program, x = capture(nn.RMSNorm(4, elementwise_affine=False).eval(), [torch.zeros(2, 4)]), torch.full((1, 4), 1e-4)
    torch.testing.assert_close(program.run([x], dtype=torch.float32)[0], F.rms_norm(x, [4]))


@pytest.mark.parametrize("name", ["comparisons", "where", "remainder", "rounding"])
def test_jumps_are_where_float32_has_them(name: str) -> None:
    """Decimal bounds are rounded to the network's type before they are compared."""
    x = torch.tensor([[0.5, 0.1, 0.3, 0.75], [0.25, 0.7, 2.1, -0.6]])
    program = capture(Apply(ELEMENTWISE[name]), [torch.zeros(2, 4)])
    (y,) = program.run([x], dtype=torch.float32)
    torch.testing.assert_close(y, ELEMENTWISE[name](x).float(), rtol=1e-6, atol=1e-6)
