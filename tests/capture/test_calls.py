"""Networks called with their own containers: captured, asked by name or in order, stored and exported so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import hrt
from hrt.calibration.samples import given_inputs
from hrt.capture.network import call_for, captured_network
from hrt.errors import CaptureError

from zoo import Apply, mlp

F, X = (torch.rand(64, n, generator=torch.Generator().manual_seed(n)) for n in (6, 2))


class Operator(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.branch, self.trunk = mlp(6, 12, 8), mlp(2, 12, 8)

    def joined(self, f: Tensor, x: Tensor) -> Tensor:
        return (self.branch(f) * self.trunk(x)).sum(-1, keepdim=True)


class TakesList(Operator):
    """As DeepXDE's operator networks do."""

    def forward(self, inputs):
        return self.joined(inputs[0], inputs[1])


class TakesKeywords(Operator):
    def forward(self, f, *, x, shift: bool = False):
        return self.joined(f, x) + (1 if shift else 0)


class TakesDictionary(Operator):
    def forward(self, batch):
        return {"u": self.joined(batch["f"], batch["x"]), "double": 2 * batch["x"]}


@dataclass(frozen=True)
class Batch:
    f: Any
    x: Any


class Pair(NamedTuple):
    f: Any
    x: Any


class TakesDataclass(Operator):
    def forward(self, batch: Batch):
        return Batch(self.joined(batch.f, batch.x), batch.x + 1)


class TakesNested(Operator):
    def forward(self, x, condition):
        (f,) = condition["functions"]
        return self.joined(f, x)


WAYS: dict[str, tuple[Callable[[], nn.Module], Any, list[Any], list[str]]] = {
    "list": (TakesList, [F, X], [(F, X), ([F, X],)], ["inputs_0", "inputs_1"]),
    "list in a tuple": (TakesList, ([F, X],), [[F, X], (F, X)], ["inputs_0", "inputs_1"]),
    "named tuple": (TakesList, Pair(F, X), [(F, X)], ["inputs_0", "inputs_1"]),
    "keywords": (TakesKeywords, {"x": X, "f": F}, [{"f": F, "x": X}, (F, X)], ["f", "x"]),
    "option": (TakesKeywords, {"f": F, "x": X, "shift": True}, [{"x": X, "f": F}, (F, X)], ["f", "x"]),
    "dictionary": (TakesDictionary, {"f": F, "x": X}, [{"x": X, "f": F}, (F, X), Batch(F, X)], ["f", "x"]),
    "dataclass": (TakesDataclass, Batch(F, X), [{"x": X, "f": F}, (F, X)], ["f", "x"]),
    "nested": (
        TakesNested,
        (X, {"functions": [F]}),
        [{0: X, 1: {"functions": [F]}}, (X, F)],
        ["x", "condition_functions_0"],
    ),
}
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


@cache
def model_of(way: str) -> hrt.CompressedModel:
    make, inputs, _, _ = WAYS[way]
    return hrt.compress(make(), inputs=inputs, tol=1e-2, progress=False)


def outputs(y: Any) -> tuple[Any, ...]:
    return y if isinstance(y, tuple) else (y,)


@EVERY_WAY
def test_the_answers_are_the_networks(way):
    make, inputs, _, _ = WAYS[way]
    samples, call = call_for(make(), given_inputs(inputs))
    program = captured_network(make(), samples, call).program
    arguments, keywords = call.arguments([x.float() for x in samples])
    y = make()(*arguments, **keywords)
    expected = [y] if isinstance(y, Tensor) else [*(y if isinstance(y, dict) else vars(y)).values()]
    expected = [y if isinstance(y, Tensor) else getattr(y, name) for name, y in zip("fx", expected, strict=False)]
    for a, e in zip(program.run(samples), expected, strict=True):
        assert (a - e).norm() <= 1e-5 * e.norm()


@EVERY_WAY
def test_predict_takes_the_same_structure_in_any_order_and_a_flat_tuple(way, tmp_path):
    _, inputs, others, names = WAYS[way]
    model = model_of(way)
    model.save(tmp_path / "net.hrt")
    loaded = hrt.load(tmp_path / "net.hrt")
    assert [v.name for v in loaded.program.inputs] == names
    expected = outputs(model.predict(inputs))
    for given in (inputs, *others):
        for y, e in zip(outputs(loaded.predict(given)), expected, strict=True):
            assert torch.equal(y, e)


@EVERY_WAY
def test_onnx_inputs_have_the_same_names(way, tmp_path):
    hrt.export_onnx(model_of(way), tmp_path / "net.onnx")
    assert [v.name for v in onnx.load(tmp_path / "net.onnx").graph.input] == WAYS[way][3]


def test_derivatives_are_asked_by_the_same_structure():
    model = model_of("keywords")
    by_name, flat = (model.predict(x, derivatives=["d0"])[1] for x in ({"x": X, "f": F}, (F, X)))
    assert torch.equal(by_name, flat)


def test_a_network_is_left_as_it_was():
    net = TakesList()
    before = dict(net.__dict__)
    hrt.compress(net, inputs=[F, X], tol=1e-2, progress=False)
    assert net.__dict__.keys() == before.keys() and "forward" not in vars(net)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"f": F}, r"Found inputs \['f'\]. Expected \['f'\], \['x'\]"),
        ({"f": F, "x": X, "y": X}, r"\['y'\]. Expected"),
        ({"f": F, "z": X}, r"\['z'\]. Expected"),
        ({"f": F, "x": {"a": X}}, r"\['x'\]\['a'\]. Expected"),
        ((F,), "Expected 2: f, x"),
    ],
)
def test_other_names_are_refused(given, words):
    with pytest.raises(hrt.InputError, match=words):
        model_of("dictionary").predict(given)


def test_names_that_no_network_takes_are_refused():
    with pytest.raises(hrt.InputError, match="does not run on inputs"):
        hrt.compress(TakesList(), inputs={"a": F, "b": X}, progress=False)


class Plain(Operator):
    def forward(self, f, x):
        return self.joined(f, x)


def test_a_network_of_two_inputs_is_not_given_one():
    with pytest.raises(
        hrt.InputError, match=r"It takes 2 inputs \(f, x\)\. Expected a tuple of as many arrays or boxes"
    ):
        hrt.compress(Plain(), inputs=torch.cat([F, X], 1), progress=False)


def test_exported_programs_and_onnx_files_are_given_inputs_by_name(tmp_path):
    names = {"f": F, "x": X}
    dims = {k: {0: torch.export.Dim("batch")} for k in names}
    graph = torch.export.export(Plain(), (F[:3], X[:3]), dynamic_shapes=dims)
    hrt.export_onnx(hrt.compress(graph, inputs=(F, X), tol=1e-2, progress=False), tmp_path / "net.onnx")
    for net in (graph, str(tmp_path / "net.onnx")):
        model = hrt.compress(net, inputs={"x": X, "f": F}, tol=1e-2, progress=False)
        assert torch.equal(model.predict({"x": X, "f": F}), model.predict((F, X)))
        assert model.nbytes == hrt.compress(net, inputs=(F, X), tol=1e-2, progress=False).nbytes
        with pytest.raises(hrt.InputError, match=r"Found inputs \['a', 'x'\]\. Expected \['f', 'x'\]"):
            hrt.compress(net, inputs={"a": F, "x": X}, progress=False)


def test_an_exported_program_of_a_dictionary():
    batch = torch.export.Dim("batch")
    shapes = {"batch": {"f": {0: batch}, "x": {0: batch}}}
    graph = torch.export.export(TakesDictionary(), ({"f": F[:3], "x": X[:3]},), dynamic_shapes=shapes)
    model = hrt.compress(graph, inputs=(F, X), tol=1e-2, progress=False)
    answers, expected = model.predict((F, X)), [*TakesDictionary()({"f": F, "x": X}).values()]
    assert (
        torch.cat([a - e for a, e in zip(answers, expected, strict=True)], 1).norm()
        <= 1e-2 * torch.cat(expected, 1).norm()
    )


def test_numbers_are_rows_of_a_scalar_where_the_network_takes_them_so():
    """A diffusion network takes times of shape (batch,)."""

    class Diffusion(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(6, 16, 2)

        def forward(self, x, t):
            phase = t[:, None] * torch.tensor([1.0, 2.0])
            return self.net(torch.cat([x, phase.sin(), phase.cos()], dim=-1))

    times = torch.rand(64, generator=torch.Generator().manual_seed(3))
    model = hrt.compress(Diffusion(), inputs=(X, times), tol=1e-2, derivatives=["d2"], progress=False)
    assert [v.shape for v in model.program.inputs] == [(2,), ()]
    assert model.predict((X, times)).shape == (64, 2)
    assert model.predict((X, times), derivatives=["d2"])[1].shape == (64, 2)
    assert np.allclose(model.predict((X[0].numpy(), np.float32(times[0]))), model.predict((X, times))[0], atol=1e-6)


def test_places_of_other_rows_are_no_samples() -> None:
    """The edges of a graph over the rows: it had been said that floats are no indices."""

    class Messages(nn.Module):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return torch.zeros_like(x).index_add(0, edges[1], x[edges[0]])

    given = (torch.rand(20, 3), torch.arange(40).reshape(20, 2) % 20)
    with pytest.raises(hrt.CaptureError, match=r"rows alone in forward at test_calls.*edge_index.*are a buffer"):
        hrt.compress(Messages(), inputs=given, progress=False)


class OneGraph(nn.Module):
    """Nodes (nodes, 2) and edges (2, edges) of one graph. numbers: of a kind that torch maps no function over."""

    def __init__(self, *, numbers: bool):
        super().__init__()
        self.linear, self.numbers = nn.Linear(2, 3), numbers

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        if nodes.ndim != 2:
            raise ValueError("one graph at a time")
        h = torch.tanh(self.linear(nodes))
        weights = torch.eye(4).to_sparse() if self.numbers else torch.eye(4)
        return torch.sparse.mm(weights, torch.zeros_like(h).index_add(0, edges[1] % 4, h[edges[0]]))


@pytest.mark.parametrize("numbers", [True, False])
def test_a_network_of_one_sample_is_given_samples_one_by_one(numbers: bool) -> None:
    net, generator = OneGraph(numbers=numbers), torch.Generator().manual_seed(0)
    given = torch.rand(5, 4, 2, generator=generator), torch.randint(-4, 4, (5, 2, 6), generator=generator)
    samples, call = call_for(net, given_inputs(given))
    assert call.bare == (True, True)
    program = captured_network(net, samples, call).program
    expected = torch.stack([net(*sample) for sample in zip(*given, strict=True)])
    torch.testing.assert_close(program.run(samples)[0].float(), expected)


class FirstRow(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)

    def forward(self, x: Tensor, points: Tensor) -> Tensor:
        return self.linear(x) @ self.linear(points[0]).T


def test_what_is_read_of_the_first_sample_must_be_that_of_all() -> None:
    net, x, points = FirstRow(), torch.rand(16, 2), torch.rand(16, 4, 2)
    shared = points[:1].expand(16, 4, 2)
    program = captured_network(net, (x.double(), shared.double())).program
    torch.testing.assert_close(program.run([x.double(), shared.double()])[0].float(), net(x, shared))
    with pytest.raises(CaptureError, match=r"Op select .*works along the batch"):
        captured_network(net, (x.double(), points.double()))


def test_a_branch_on_finite_numbers_is_that_of_finite_ones() -> None:
    def guarded(x: Tensor) -> Tensor:
        if not torch.isfinite(x).all() or torch.isnan(x.sin()).any():
            raise ValueError("not finite")
        return x.sin()

    x = torch.rand(4, 3, dtype=torch.float64)
    assert torch.equal(captured_network(Apply(guarded), (x,)).program.run([x])[0], x.sin())
