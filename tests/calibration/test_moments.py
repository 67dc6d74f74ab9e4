"""Sampling, the split, and layer moments against their definitions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import hrt
from hrt.calibration.moments import layer_moments
from hrt.calibration.samples import Split, as_samples
from hrt.capture.torch_export import capture

from models import linear_program


def test_box_fills_its_bounds_evenly_and_repeats():
    (x,) = as_samples(hrt.Box([-1, 5], [1, 6]), seed=3, count=4096)
    assert x.shape == (4096, 2)
    assert bool((x >= torch.tensor([-1.0, 5.0])).all() and (x <= torch.tensor([1.0, 6.0])).all())
    counts = torch.histc(x[:, 0].float(), 16, -1, 1)
    assert float(counts.max() - counts.min()) <= 8, "a Sobol sequence fills sixteenths evenly; random points do not"
    assert torch.equal(x, as_samples(hrt.Box([-1, 5], [1, 6]), seed=3, count=4096)[0])
    assert not torch.equal(x, as_samples(hrt.Box([-1, 5], [1, 6]), seed=4, count=4096)[0])


def test_kinds_of_inputs():
    x = np.arange(6.0).reshape(3, 2)
    dataset = torch.utils.data.TensorDataset(torch.tensor(x), torch.zeros(3))
    for given in (x, torch.tensor(x), (x,), [torch.tensor(x)], dataset, x.tolist()):
        (found,) = as_samples(given)
        assert torch.equal(found, torch.tensor(x))
    a, b = as_samples((hrt.Box([0], [1]), hrt.Box([0, 0], [1, 2])), count=64)
    assert a.shape == (64, 1) and b.shape == (64, 2)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (torch.zeros(0, 2), "no rows"),
        (torch.ones(()), "shape"),
        (torch.tensor([[1.0, float("nan")]]), "NaN"),
        ((torch.ones(3, 1), torch.ones(4, 1)), "different numbers of rows: .3, 4."),
        ((hrt.Box([0], [1]), torch.ones(4, 1)), "boxes beside arrays"),
        (torch.ones(2, 2, dtype=torch.complex64), "complex64"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(inputs, words):
    with pytest.raises(hrt.InputError, match=words):
        as_samples(inputs)


@pytest.mark.parametrize("bounds", [([0], [0, 1]), ([1], [0]), ([0], [float("inf")]), ([], []), ([[0]], [[1]])])
def test_boxes_that_are_none_are_refused(bounds):
    with pytest.raises(hrt.InputError, match="Box"):
        hrt.Box(*bounds)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 101])
def test_parts_are_disjoint_and_complete(rows):
    x = torch.arange(float(rows)).reshape(rows, 1)
    split = Split.make((x,), seed=0)
    parts = [p[0].flatten() for p in (split.calibration, split.search, split.held_out)]
    assert all(len(p) for p in parts)
    if rows >= 4:
        assert torch.equal(torch.cat(parts).sort().values, x.flatten())
    elif rows > 1:
        assert torch.equal(parts[1], parts[2])
        assert torch.equal(torch.cat(parts[:2]).sort().values, x.flatten())


def test_moments_by_their_definition():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    x = torch.randn(5000, 3, dtype=torch.float64)  # more than one chunk
    program = capture(net, [x])
    moments = layer_moments(program, [x])
    hidden = net[1](net[0](x)).detach()
    m = moments["2.weight"]
    assert m.rows == 5000
    torch.testing.assert_close(m.mean, hidden.mean(0))
    torch.testing.assert_close(m.second, hidden.T @ hidden / 5000)
    torch.testing.assert_close(m.covariance, torch.cov(hidden.T, correction=0))
    # with one output and signs +-1, (J^T v)(J^T v)^T is J^T J itself: no sampling error
    y = net[2](hidden).detach().requires_grad_()
    (jacobian,) = torch.autograd.grad(net[4](net[3](y)).sum(), y)
    torch.testing.assert_close(m.left, jacobian.T @ jacobian / 5000)


def test_tied_weights_pool_their_uses():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.shared = nn.Linear(4, 4)

        def forward(self, x):
            return self.shared(torch.tanh(self.shared(x)))

    net = Tied().double()
    x = torch.randn(50, 4, dtype=torch.float64)
    m = layer_moments(capture(net, [x]), [x])["shared.weight"]
    inner = torch.tanh(net.shared(x)).detach()
    torch.testing.assert_close(m.second, (x.T @ x + inner.T @ inner) / 100)
    assert m.rows == 100


def test_moments_are_focusable_only_where_sensitivity_depends_on_the_input():
    torch.manual_seed(0)
    x = torch.randn(400, 6, dtype=torch.float64)
    linear, curved = nn.Linear(6, 5), nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
    for net, expected in ((linear, [False]), (curved, [True, False])):
        moments = layer_moments(capture(net.double(), [x]), [x])
        assert [m.is_focusable for m in moments.values()] == expected


def test_of_very_many_outputs_the_last_layer_feels_each_alike():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1100))
    first, last = layer_moments(capture(net, (torch.rand(3, 2),)), (torch.rand(30, 2, dtype=torch.float64),)).values()
    assert torch.equal(last.left, torch.eye(1100, dtype=torch.float64)), "signs of 30 rows span 30 directions"
    assert first.left.count_nonzero() == 16


def test_outputs_that_are_read_again_are_no_outputs_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.sum = nn.Linear(2, 1100), nn.Linear(1100, 1)

        def forward(self, x):
            y = self.wide(x)
            return y, self.sum(y)

    moments = layer_moments(capture(Twice(), (torch.rand(3, 2),)), (torch.rand(30, 2, dtype=torch.float64),))
    assert max(m.left.count_nonzero() for m in moments.values()) > 1100


def test_what_cannot_fit_into_memory_is_refused_beforehand(monkeypatch):
    program = linear_program(torch.ones(2, 3000))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=6 * 8 * 3000**2 - 1))
    with pytest.raises(hrt.InputError, match=r"up to 3,000 inputs.*0\.4 GiB are free"):
        layer_moments(program, [torch.rand(2, 3000)])
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=6 * 8 * 3000**2))
    assert set(layer_moments(program, [torch.rand(2, 3000, dtype=torch.float64)])) == {"w"}


class Within(nn.Module):
    """A network of one hidden layer between two given functions."""

    def __init__(self, activation, outer=lambda y: y):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.activation, self.outer = nn.Linear(4, 32), nn.Linear(32, 2), activation, outer

    def forward(self, x):
        return self.outer(self.b(self.activation(self.a(x))))


@pytest.mark.parametrize(
    "activation",
    [
        lambda h: 1 / (1 + torch.exp(-400 * h)),
        lambda h: torch.tanh(h / 0.0),
        lambda h: torch.sigmoid(torch.exp(1000 * h)),
    ],
    ids=["sigmoid", "sign", "step"],
)
def test_an_infinite_value_within_a_finite_network_leaves_the_moments_finite(activation):
    net, x = Within(activation), torch.randn(1000, 4, generator=torch.Generator().manual_seed(1))
    assert bool(net(x).isfinite().all())
    moments = layer_moments(capture(net, (x,)), (x.double(),))
    for m in moments.values():
        assert all(bool(t.isfinite().all()) for t in (m.mean, m.second, m.covariance, m.left))
    model = hrt.compress(net, inputs=x, tol=1e-2, progress=False)
    y = net.double()(x.double()).detach()
    assert float((model.predict(x) - y).norm() / y.norm()) <= 1e-2


def test_slopes_are_kept_beside_those_that_overflow():
    stable, by_hand = (Within(f) for f in (lambda h: torch.sigmoid(400 * h), lambda h: 1 / (1 + torch.exp(-400 * h))))
    x = torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert bool(torch.exp(-400 * stable.double().a(4 * x)).isinf().any()), "some overflow in float64"
    expected, actual = (layer_moments(capture(net.double(), (x,)), (4 * x,)) for net in (stable, by_hand))
    for name, m in expected.items():
        torch.testing.assert_close(actual[name].left, m.left)


def test_infinite_inputs_of_a_weight_are_named():
    net = Within(torch.exp, torch.sigmoid)
    net.b.weight.data.abs_()
    x = torch.full((100, 4), 1e4) * torch.rand(100, 1)
    net.a.weight.data.abs_()
    with pytest.raises(hrt.InputError, match=r"infinite values of exp.*b\.weight.*torch\.clamp"):
        hrt.compress(net, inputs=x, progress=False)
