"""Whole numbers and truth values as inputs: what they are for the network, and what predict then takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import hrt
from hrt.calibration.samples import given_inputs
from hrt.capture.network import call_for
from hrt.capture.onnx.file import read_onnx
from hrt.export.onnx import open_runtime

from zoo import Apply, mlp

G = torch.Generator().manual_seed(0)
X = torch.rand(256, 2, generator=G)
WHICH = torch.randint(0, 3, (256,), generator=G)
MASK = torch.rand(256, 2, generator=G) > 0.5


class Switched(nn.Module):
    """One of two networks, by a whole number of shape (batch,); `~` refuses floats."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = mlp(2, 12, 2), mlp(2, 12, 2)

    def forward(self, which: Tensor, x: Tensor) -> Tensor:
        if which.is_floating_point():
            raise TypeError("expected whole numbers")
        return torch.where((which == 2)[:, None], self.a(x), self.b(x))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = mlp(2, 12, 2)

    def forward(self, mask: Tensor, x: Tensor) -> Tensor:
        return torch.where(mask, self.net(x), x)


@pytest.fixture(scope="module")
def switched() -> hrt.CompressedModel:
    return hrt.compress(Switched(), inputs=(WHICH, X), tol=1e-2, progress=False)


@pytest.fixture(scope="module")
def masked() -> hrt.CompressedModel:
    return hrt.compress(Masked(), inputs=(MASK, X), tol=1e-2, progress=False)


def test_kinds_are_kept_and_the_answers_are_right(switched, masked, tmp_path):
    for model, net, given, kind in ((switched, Switched(), (WHICH, X), "int"), (masked, Masked(), (MASK, X), "bool")):
        model.save(tmp_path / "net.hrt")
        loaded = hrt.load(tmp_path / "net.hrt")
        assert [v.kind for v in loaded.program.inputs] == [kind, "float"]
        y = loaded.predict(given)
        with torch.no_grad():
            expected = net(*given)
        assert torch.equal(y, model.predict(given)) and (y - expected).norm() <= 1e-2 * expected.norm()
        hrt.export_onnx(model, tmp_path / "net.onnx")
        session = open_runtime(str(tmp_path / "net.onnx"))
        feed = {v.name: x.numpy() for v, x in zip(session.get_inputs(), given, strict=True)}  # of the types they have
        np.testing.assert_allclose(session.run(None, feed)[0], y.numpy(), rtol=1e-5, atol=1e-6)
        assert [v.kind for v in read_onnx(tmp_path / "net.onnx").inputs] == [kind, "float"]


def test_whole_numbers_come_in_any_type_that_holds_them(switched):
    expected = switched.predict((WHICH, X))
    for which in (WHICH.int(), WHICH.float(), WHICH.to(torch.uint8), WHICH[:, None][:, 0]):
        assert torch.equal(switched.predict((which, X)), expected)
    for which in (WHICH.numpy(), WHICH.numpy().astype(np.int16), WHICH.double().numpy()):
        assert np.array_equal(switched.predict((which, X.numpy())), expected.numpy())
    assert np.array_equal(switched.predict((WHICH.tolist(), X.tolist())), expected.numpy())


def test_truth_values_may_be_zeros_and_ones(masked):
    expected = masked.predict((MASK, X))
    assert torch.equal(masked.predict((MASK.float(), X)), expected)
    assert torch.equal(masked.predict((MASK.long(), X)), expected)
    assert np.array_equal(masked.predict((MASK.numpy(), X.numpy())), expected.numpy())


@pytest.mark.parametrize(
    ("name", "first", "words"),
    [
        ("switched", WHICH + 0.5, r"Found \d\.5 in an input.*whole numbers"),
        ("switched", MASK[:, 0], "torch.bool"),
        ("masked", 2 * MASK.long(), "Found 2 in an input.*truth values, or 0 and 1"),
    ],
)
def test_other_numbers_are_refused(name, first, words, request):
    with pytest.raises(hrt.InputError, match=words):
        request.getfixturevalue(name).predict((first, X))


def test_whole_numbers_are_floats_for_a_network_that_runs_on_floats():
    model = hrt.compress(mlp(2, 8, 1), inputs=torch.randint(0, 50, (64, 2), generator=G), tol=1e-2, progress=False)
    assert [v.kind for v in model.program.inputs] == ["float"]
    assert model.predict(np.array([[0.5, 1.5]])).shape == (1, 1)


def test_a_network_of_floats_refuses_truth_values():
    with pytest.raises(hrt.InputError, match="does not run on inputs"):
        hrt.compress(mlp(2, 8, 1), inputs=MASK, progress=False)


def test_derivatives_by_them_are_refused(switched):
    assert switched.predict((WHICH, X), derivatives=["d1"])[1].shape == (256, 2)
    with pytest.raises(hrt.InputError, match="by the input 'which', which holds whole numbers"):
        switched.predict((WHICH, X), derivatives=["d0"])


def test_a_way_in_which_samples_meet_is_not_taken():
    """As floats of shape (batch, 1) the numbers would be broadcast against other samples."""
    net = Apply(lambda v: v)
    net.forward = lambda z, x: torch.where((z == 2)[:, None], x, -x)  # type: ignore[method-assign]
    rows, call = call_for(net, given_inputs((WHICH, X)))
    assert rows[0].shape == (256,) and call.kinds == ("float", "float")


def test_onnx_answers_the_same(switched, masked, tmp_path):
    for model, given in ((switched, (WHICH, X)), (masked, (MASK, X))):
        hrt.export_onnx(model, tmp_path / "net.onnx", inputs=given)
        hrt.export_onnx(model, tmp_path / "net.onnx")
