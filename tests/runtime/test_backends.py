"""Backends: a table that anybody may add a row to; "auto", what is missing, and devices that are not there."""

import numpy as np
import pytest
import torch

import hrt
from hrt.runtime import BACKENDS, Backend, Session, TorchSession, backends, choose, open_session
from hrt.runtime.native_costs import EVERY

from models import linear_program

SEEN = []


class Constant(Session):
    """A third party's session."""

    backend, device, resident_bytes = "Constant", torch.device("cpu"), 0

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


class TestGeneratedC:
    """When "auto" takes it, and what it falls back to."""

    CERTIFIED = ("torch", "onnxruntime", "native")

    @pytest.fixture
    def asked(self, monkeypatch):
        """A compiler that is there, and what sessions were asked for."""
        requests = []

        def opened(request):
            requests.append(request)
            return Constant(request)

        monkeypatch.setitem(BACKENDS, "native", Backend(opened, on_cpu=True))
        monkeypatch.setattr(backends, "faster_up_to", lambda program: EVERY)
        return requests

    def test_it_is_first_where_it_is_certified_and_faster(self, asked):
        assert choose("auto", None, "cpu", self.CERTIFIED, 4)[0] == "native"
        assert choose("auto", None, "cpu", ("torch", "onnxruntime"), 4)[0] == "onnxruntime"
        assert choose("auto", "meta", "cpu", self.CERTIFIED, 4) == ("torch",)
        assert choose("auto", None, "cpu", self.CERTIFIED, 0)[0] == "onnxruntime"

    def test_without_a_compiler_all_is_as_before(self, asked, program, monkeypatch):
        monkeypatch.setitem(BACKENDS, "native", Backend("nowhere:at_all", lambda: "There is none."))
        assert choose("auto", None, "cpu", self.CERTIFIED, 4) == ("onnxruntime", "torch")
        assert "native" not in backends.on_cpu()

    def test_auto_does_not_wait_for_a_slow_compiler(self, asked, program, monkeypatch):
        open_session(program, "native")
        open_session(program, certified=self.CERTIFIED)
        assert [request.patience for request in asked] == [backends.PATIENT, backends.IMPATIENT]

        def slow(request):
            raise hrt.BackendError("took more than 3 seconds")

        monkeypatch.setitem(BACKENDS, "native", Backend(slow))
        assert open_session(program, certified=self.CERTIFIED).backend == "onnxruntime"
        assert isinstance(open_session(program, certified=("native",)), TorchSession)
        with pytest.raises(hrt.BackendError, match="3 seconds"):
            open_session(program, "native")

    def test_it_can_be_switched_off(self, program, monkeypatch):
        monkeypatch.setenv("HRT_NATIVE", "off")
        assert choose("auto", None, "cpu", self.CERTIFIED, 4) == ("onnxruntime", "torch")
        with pytest.raises(hrt.BackendError, match=r"HRT_NATIVE=off is set\. Use backend='torch'"):
            open_session(program, "native")

    def test_many_rows_are_left_to_another_where_that_is_faster(self, asked, program, monkeypatch):
        monkeypatch.setattr(backends, "faster_up_to", lambda program: 4)
        session = open_session(program, certified=self.CERTIFIED)
        assert session.backend == "Constant up to 4 rows, onnxruntime" and asked[0].native_rows == 4
        for rows, expected in ((1, 7.0), (4, 7.0), (5, 3.0), (100, 3.0)):
            x = np.ones((rows, 3), np.float32)
            assert (session.run([x])[0] == expected).all() and session.run([x])[0].shape == (rows, 2)
            session.run_as_given(x)  # memory is bound
            answer = session.run_as_given(x)
            assert answer is None if rows <= 4 else (answer == expected).all()

    def test_what_would_not_serve_is_not_verified(self, asked, program, monkeypatch):
        assert "native" in backends.serving(program)
        monkeypatch.setattr(backends, "faster_up_to", lambda program: 0)
        assert backends.serving(program) == [n for n in backends.on_cpu() if n != "native"]
