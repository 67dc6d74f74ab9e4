"""The backend that is copied into Triton: installed, asked for batches, and against a stand-in of Triton's module."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import hrt
from hrt.export.servers import triton_backend
from hrt.export.servers.repository import export_repository, install_triton_backend
from hrt.export.servers.triton_backend import TritonPythonModel, open_model, run_together

from models import mixed_model


@pytest.fixture(scope="module")
def model() -> hrt.CompressedModel:
    return mixed_model()


def inputs_of(model, rows: int, seed: int = 0):
    g = np.random.default_rng(seed)
    return tuple(g.standard_normal((rows, *v.shape), dtype=np.float32) for v in model.program.inputs)


def test_it_is_installed_as_a_python_based_backend(tmp_path):
    for name in ("hrt", "onnxruntime"):
        path = install_triton_backend(tmp_path, name)
        assert path == tmp_path / name / "model.py"
        assert path.read_bytes() == Path(triton_backend.__file__).read_bytes()
    with pytest.raises(hrt.InputError, match="exists and was kept"):
        install_triton_backend(tmp_path)
    install_triton_backend(tmp_path, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hrt", "onnxruntime"]


def test_what_the_installation_refuses(tmp_path):
    with pytest.raises(hrt.InputError, match="Found backend 'python'"):
        install_triton_backend(tmp_path, "python")
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "libtriton_onnxruntime.so").touch()
    (tmp_path / "onnxruntime" / "model.py").write_text("years of work")
    with pytest.raises(hrt.InputError, match="not written by hrt"):
        install_triton_backend(tmp_path, "onnxruntime", force=True)
    assert (tmp_path / "onnxruntime" / "model.py").read_text() == "years of work"


@pytest.mark.parametrize("backend", ["hrt", "onnxruntime"])
def test_several_requests_are_answered_as_one_batch(model, tmp_path, backend):
    folder = export_repository(model, tmp_path, name="m", backend=backend) / "1"
    threads = torch.get_num_threads()
    run = open_model(folder, 1)
    torch.set_num_threads(threads)
    requests = [inputs_of(model, rows, rows) for rows in (1, 4, 0, 2)]
    calls = []

    def counted(arrays):
        calls.append(len(arrays[0]))
        return run(arrays)

    for request, found in zip(requests, run_together(counted, requests), strict=True):
        for y, e in zip(found, model.predict(request), strict=True):
            assert y.shape == e.shape and np.allclose(y, e, rtol=1e-5, atol=1e-6)
    assert calls == [7]
    assert [len(y) for y in run_together(run, requests[:1])[0]] == [1, 1]


def test_a_version_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither model\.hrt nor model\.onnx"):
        open_model(tmp_path, 1)


def test_it_speaks_triton(model, tmp_path, monkeypatch):
    """Against a stand-in of Triton's module: only what was asked for comes back, and a bad batch ends nothing."""
    folder = export_repository(model, tmp_path, name="m", backend="onnxruntime")
    module = type(sys)("triton_python_backend_utils")

    class Array:
        def __init__(self, name, values):
            self.name, self.values = name, values

        def as_numpy(self):
            return self.values

    class Asked:
        def __init__(self, arrays, wanted):
            self.arrays, self.wanted = arrays, wanted

        def requested_output_names(self):
            return self.wanted

    module.Tensor, module.TritonError = Array, str
    module.InferenceResponse = lambda output_tensors=(), error=None: (list(output_tensors), error)
    module.get_input_tensor_by_name = lambda request, name: Array(name, request.arrays[name])
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", module)
    served = TritonPythonModel()
    config = {
        "input": [{"name": "x"}, {"name": "z"}],
        "output": [{"name": "y2"}, {"name": "h3"}],
        "instance_group": [{"count": 2}],
    }
    served.initialize({"model_config": json.dumps(config), "model_repository": os.fspath(folder), "model_version": "1"})
    x, z = inputs_of(model, 3)
    answers = served.execute([Asked({"x": x, "z": z}, ["h3"]), Asked({"x": x[:1], "z": z[:1]}, ["y2", "h3"])])
    ((first,), none), (second, _) = answers
    assert none is None and first.name == "h3" and [t.name for t in second] == ["y2", "h3"]
    assert np.allclose(first.values, model.predict((x, z))[1], rtol=1e-5, atol=1e-6)
    ((tensors, error),) = served.execute([Asked({"x": x[:, :2], "z": z}, ["h3"])])
    assert tensors == [] and error
