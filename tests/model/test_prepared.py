"""Certified derivatives are ready when a model is made, so that the first call takes no longer than others."""

import pytest
import torch
from torch import nn

import hrt
from hrt.model import model as module

NAMES = ["d0", "d1"]


@pytest.fixture(scope="module")
def models():
    """With certified derivatives and without."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    box = hrt.Box([0, 0], [1, 1])
    return [hrt.compress(net, inputs=box, tol=0.05, derivatives=d, progress=False) for d in (NAMES, None)]


@pytest.fixture
def no_derivation(monkeypatch):
    """Every network that is differentiated from here on."""
    calls, real = [], module.differentiate
    monkeypatch.setattr(module, "differentiate", lambda *a: calls.append(a) or real(*a))
    return calls


def test_a_compressed_model_differentiates_nothing_at_its_first_call(models, no_derivation):
    models[0].predict(torch.rand(5, 2), derivatives=NAMES)
    assert not no_derivation


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_loaded_model_has_done_it_when_it_was_loaded(models, backend, tmp_path, no_derivation):
    models[0].save(tmp_path / "net.hrt")
    loaded = hrt.load(tmp_path / "net.hrt", backend=backend)
    assert len(no_derivation) == 1
    x = torch.rand(5, 2)
    answers = loaded.predict(x, derivatives=NAMES)
    assert len(no_derivation) == 1
    for y, expected in zip(answers, models[0].predict(x, derivatives=NAMES), strict=True):
        assert torch.allclose(y, expected, atol=1e-5)


def test_loading_does_nothing_where_no_derivatives_were_certified(models, tmp_path, no_derivation):
    models[1].save(tmp_path / "net.hrt")
    hrt.load(tmp_path / "net.hrt")
    assert not no_derivation


def test_a_file_cannot_ask_for_much_work(models, tmp_path, monkeypatch, no_derivation):
    monkeypatch.setattr(module, "PREPARED", 1)
    models[0].save(tmp_path / "net.hrt")
    assert hrt.load(tmp_path / "net.hrt").certificate.derivatives == tuple(NAMES)
    assert not no_derivation
