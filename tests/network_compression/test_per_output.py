"""Output columns of different units: each within the tolerance if asked for, and named if not."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import hrt
from hrt.calibration.moments import evaluate
from hrt.calibration.objective import Aim
from hrt.calibration.output_error import output_error
from hrt.capture.torch_export import capture

from zoo import mlp

TOL = 1e-2
PER_OUTPUT = "per_output_upper_99"
UNITS = (101325.0, 1e-3, 0.0)  # pressure in Pa, a mass fraction, a column that is always zero


class Units(nn.Module):
    """3 -> 32 -> 32 -> 3, tanh, each column in a unit of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = mlp(3, 32, 32, 3)

    def forward(self, x):
        return self.net(x) * torch.tensor(UNITS)


def rows(seed, count=2000):
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))


def errors(net, model, x):
    """Relative error of every column that is not zero."""
    y, z = net(x).detach().numpy(), np.asarray(model.predict(x.numpy()))
    return (np.linalg.norm(z - y, axis=0) / np.maximum(np.linalg.norm(y, axis=0), 1e-30))[:2]


@pytest.fixture(scope="module")
def net():
    return Units()


@pytest.fixture(scope="module")
def plain(net):
    """Compressed for the output as a whole, and the warnings that this gave."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = hrt.compress(net, inputs=rows(1), tol=TOL, progress=False)
    return model, [w for w in seen if issubclass(w.category, UserWarning) and "columns" in str(w.message)]


@pytest.fixture(scope="module")
def each(net):
    return hrt.compress(net, inputs=rows(1), tol=TOL, per_output=True, progress=False)


def test_without_it_columns_over_tol_are_named(net, plain):
    model, seen = plain
    assert errors(net, model, rows(2))[1] > TOL, "the case is too easy to tell"
    (remark,) = [r for r in model.certificate.context["remarks"] if "columns" in r]
    (warning,) = seen
    assert str(warning.message) == remark and warning.filename == __file__
    assert "1 of 3" in remark and ": 1 by" in remark and "per_output=True" in remark
    assert remark in " ".join(model.report().split())


def test_every_column_is_held_on_fresh_rows(net, plain, each):
    assert max(errors(net, each, rows(2, 20_000))) <= TOL
    assert plain[0].nbytes < each.nbytes < each.dense_nbytes / 3
    limits = each.certificate.estimated[PER_OUTPUT]
    assert 0 < max(limits[:2]) <= TOL and limits[2] == 0
    assert not any("columns" in r for r in each.certificate.context["remarks"])


def test_derivatives_are_held_by_columns_too(net):
    x = rows(3)
    model = hrt.compress(net, inputs=x, tol=3e-2, derivatives=["d0"], per_output=True, progress=False)
    fresh = rows(4, 5000)
    jacobian = torch.func.vmap(torch.func.jacfwd(net))(fresh)[:, :, 0].detach().numpy()
    value, slope = (np.asarray(v) for v in model.predict(fresh.numpy(), derivatives=["d0"]))
    assert max(errors(net, model, fresh)) <= 3e-2 and value.shape == slope.shape
    lost = np.linalg.norm(slope - jacobian, axis=0)[:2] / np.linalg.norm(jacobian, axis=0)[:2]
    assert max(lost) <= 3e-2


def test_it_needs_inputs(net):
    with pytest.raises(hrt.InputError, match=r"per_output.*Box"):
        hrt.compress(net, per_output=True, progress=False)


def test_fine_tuning_certifies_every_column(net, each):
    tuned = hrt.finetune(each, inputs=rows(1), teacher=net, tol=0.5, steps=4, batch=16, progress=False)
    assert len(tuned.certificate.estimated[PER_OUTPUT]) == 3


def test_moments_weigh_columns_by_their_size(net):
    """tr(L E R E^T) of a change of the last weight is the sum of the columns' squared relative errors."""
    program, x = capture(net, [rows(5, 64)]), [rows(5, 64).double()]
    aim = Aim.of(program, (), each=True)
    name = list(program.weights)[-1]
    change = 1e-6 * torch.randn(program.constants[name].shape, dtype=torch.float64)
    moments = aim.moments(x)[name]
    weight = program.constants[name].to(torch.float64) + change
    y, z = evaluate(program, x), aim.outputs(x, {name: weight})
    relative2 = ((z - y).square().sum(0) / y.square().sum(0))[:2].sum()
    # the scaling of the output layer's own columns makes `left` diagonal in expectation over the random signs
    predicted = (moments.left.diagonal() * ((change @ moments.second) * change).sum(1)).sum()
    assert float(predicted) == pytest.approx(float(relative2), rel=1e-3)


def test_a_columns_limit_is_that_of_the_column_alone():
    g = torch.Generator().manual_seed(0)
    y = torch.randn(50, 3, generator=g, dtype=torch.float64) * torch.tensor([1e-200, 1.0, 0.0], dtype=torch.float64)
    z = y * (1 + 1e-2 * torch.randn(50, 3, generator=g, dtype=torch.float64))
    e = output_error(y, z, each=True)
    for k in (0, 1):
        assert e.columns[k] == pytest.approx(output_error(y[:, k : k + 1], z[:, k : k + 1]).upper_99)
    assert e.columns[2] == 0 and e.limit == max(e.upper_99, *e.columns)
    assert output_error(y, z).columns == ()
