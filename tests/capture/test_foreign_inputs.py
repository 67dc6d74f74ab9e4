"""Inputs that are no plain tensors, and steps in which samples meet or numbers decide: taken, or refused by name."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

import hrt

from zoo import mlp

X = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))


class Labelled(Tensor):
    """As PINA's LabelTensor: columns by label."""

    def extract(self, labels):
        return self[:, [self.labels.index(label) for label in labels]].as_subclass(Tensor)


class Space(Counter):
    """As torchphysics': a dictionary that cannot be copied as one."""

    def copy(self):
        raise TypeError("unhashable type: 'Space'")


class Points:
    """As torchphysics' Points: one tensor that knows its space."""

    def __init__(self, data: Tensor, space: Space):
        self.space, self._t = space, data

    @property
    def as_tensor(self) -> Tensor:
        return self._t


class OfPoints(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.space, self.net = Space(x=2, t=1), mlp(3, 12, 1)

    def forward(self, points: Points) -> Points:
        if points.space != self.space:
            raise ValueError("another space")
        return Points(self.net(points.as_tensor), Space(u=1))


class Inside(OfPoints):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Points(x, self.space)).as_tensor


LABELLED = set(vars(Labelled))  # a trace leaves it as it is


def labelled(x: Tensor) -> Labelled:
    made = x.as_subclass(Labelled)
    made.labels = ["x", "y", "t"]
    return made


def test_objects_around_one_tensor_are_opened():
    net = OfPoints()
    model = hrt.compress(net, inputs=Points(X, net.space), tol=1e-2, progress=False)
    assert [v.name for v in model.program.inputs] == ["points"]
    expected = net.net(X).detach()
    assert (model.predict(X) - expected).norm() <= 1e-2 * expected.norm()


def test_objects_may_be_made_inside_and_dictionaries_of_ones_own_be_held():
    net = Inside()
    model = hrt.compress(net, inputs=X, tol=1e-2, progress=False)
    assert (model.predict(X) - net(X).detach()).norm() <= 1e-2 * net(X).norm()
    assert net.space == Space(x=2, t=1)


def test_subclasses_of_tensors_are_tensors_to_a_network_that_takes_those():
    net = mlp(3, 12, 1)
    model = hrt.compress(net, inputs=labelled(X), tol=1e-2, progress=False)
    assert torch.equal(model.predict(labelled(X)), model.predict(X))


class ByLabels(nn.Module):
    """Columns by label. inside: of tensors that it labels itself."""

    def __init__(self, *, inside: bool):
        super().__init__()
        self.linear, self.inside = nn.Linear(2, 4), inside

    def forward(self, x: Tensor) -> Tensor:
        x = labelled(x) if self.inside else x
        return torch.tanh(self.linear(x.extract(["t", "x"])))


@pytest.mark.parametrize("inside", [True, False])
def test_columns_are_read_by_label(inside):
    net = ByLabels(inside=inside)
    model = hrt.compress(net, inputs=X if inside else labelled(X), tol=1e-2, progress=False)
    expected = net(labelled(X)).detach()
    assert (model.predict(X) - expected).norm() <= 1e-2 * expected.norm()
    assert set(vars(Labelled)) == LABELLED


class Inner(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.first, self.part = nn.Linear(3, 4), Inner(function)

    def forward(self, x: Tensor) -> Tensor:
        return self.part(torch.tanh(self.first(x)))


REFUSED = {
    "columns by label": (lambda x: x.extract(["x"]), r"no attribute 'extract', which Net asks.*part.*plain tensors"),
    "as many rows as are positive": (lambda x: x[x[:, 0] > 0], r"Op index in part \(Inner\)"),
    "rows by number": (lambda x: x[torch.nonzero(x[:, 0])[:, 0]], r"Op nonzero in part \(Inner\)"),
    "a branch": (lambda x: x if x.sum() > 0 else -x, r"part \(Inner\).*a branch of a tensor's values.*torch.maximum"),
    "softmax over the batch": (lambda x: torch.softmax(x, 0), r"Op softmax in part \(Inner\).*along the batch"),
    "the batch's mean": (lambda x: x - x.mean(0), r"Op mean in part \(Inner\).*along the batch"),
    "batch statistics": (nn.BatchNorm1d(4, track_running_stats=False), r"Op batch_norm in part.function.*net.eval\(\)"),
    "a spectrum over the batch": (lambda x: torch.fft.rfft(x, n=x.shape[0], dim=0).real, "batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_op_module_and_remedy(name):
    function, words = REFUSED[name]
    with pytest.raises(hrt.CaptureError, match=words):
        hrt.compress(Net(function), inputs=X, progress=False)


def test_complex_inputs_are_refused():
    with pytest.raises(hrt.InputError, match=r"complex64.*Expected real numbers"):
        hrt.compress(Net(torch.tanh), inputs=X.to(torch.complex64), progress=False)
