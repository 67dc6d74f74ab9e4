"""Backends: a table that anybody may add a row to; "auto", what is missing, and devices that are not there."""

import numpy as np
import pytest
import torch

import hrt
from hrt.runtime import BACKENDS, Backend, Session, TorchSession, open_session

from models import linear_program

SEEN = []


class Constant(Session):
    """A third party's session."""

    device, resident_bytes = torch.device("cpu"), 0

    def __init__(self, request):
        SEEN.append((request.device, request.precision))

    def run(self, inputs):
        return (np.full((len(inputs[0]), 2), 7.0, np.float32),)


@pytest.fixture
def program():
    return linear_program(torch.ones(2, 3))


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_torch_is_there(backend, program):
    assert isinstance(open_session(program, backend), TorchSession)


@pytest.mark.parametrize("backend", ["Torch", "", "tensorrt", None, 5])
def test_an_unknown_backend_names_those_that_are_known(backend, program):
    with pytest.raises(hrt.BackendError, match="auto, cuda, native, onnxruntime, torch"):
        open_session(program, backend)


def test_a_backend_that_is_missing_says_what_it_lacks(program, monkeypatch):
    monkeypatch.setitem(BACKENDS, "abacus", Backend("nowhere:at_all", lambda: "No beads were found."))
    with pytest.raises(hrt.BackendError, match=r"abacus.*No beads were found\..*backend='torch'"):
        open_session(program, "abacus")


def test_a_third_partys_backend_is_named_by_string_and_opened(program, monkeypatch, tmp_path):
    SEEN.clear()
    monkeypatch.setitem(BACKENDS, "constant", Backend(f"{__name__}:Constant"))
    hrt.CompressedModel(program, hrt.Certificate(1.0, "layers", ())).save(tmp_path / "m.hrt")
    model = hrt.load(tmp_path / "m.hrt", backend="constant", device="somewhere")
    assert model.predict(np.zeros((4, 3))).tolist() == [[7.0, 7.0]] * 4
    assert model.predict(torch.zeros(4, 3, dtype=torch.float64)).dtype == torch.float64
    assert SEEN == [("somewhere", "tf32x3")]


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "meta", "cpu:x", 3.5])
def test_a_device_that_is_not_there(device, program):
    with pytest.raises(hrt.BackendError, match="Device"):
        open_session(program, "torch", device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(program):
    with pytest.raises(hrt.BackendError, match="cuda"):
        open_session(program, device="cuda")
