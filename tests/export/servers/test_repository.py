"""Model repositories: what is written, what it means to the server, and what is refused, leaving nothing."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yaml
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig, ModelInstanceGroup

import hrt
from hrt.cli.main import main
from hrt.export.onnx.check import relative
from hrt.export.servers import repository, triton_backend
from hrt.export.servers.open_inference import Signature, Tensor
from hrt.export.servers.repository import export_repository, install_triton_backend
from hrt.export.servers.triton_backend import TritonPythonModel, open_model, run_together
from hrt.export.servers.triton_config import Settings, render_config
from hrt.program.program import Node, Program, Value

from models import linear_model, linear_program, mixed_model


@pytest.fixture
def model() -> hrt.CompressedModel:
    return mixed_model()


@pytest.fixture
def smooth() -> hrt.CompressedModel:
    """Inputs x (7,) and z (5,), outputs y (3,) and h (16,): y = C h, h = tanh(A x + B z). No derivative is zero."""
    t = torch.Generator().manual_seed(0)
    a, b = torch.randn(16, 7, generator=t) / 4, torch.randn(16, 5, generator=t) / 4
    constants = {"a": a, "b": b, "c": hrt.HMatrix.from_dense(torch.randn(3, 16, generator=t), torch.float16)}
    nodes = (
        Node("ax", "linear", ("x", "a"), (16,), {}),
        Node("bz", "linear", ("z", "b"), (16,), {}),
        Node("sum", "add", ("ax", "bz"), (16,), {}),
        Node("h", "tanh", ("sum",), (16,), {}),
        Node("y", "linear", ("h", "c"), (3,), {}),
    )
    program = Program((Value("x", (7,)), Value("z", (5,))), nodes, ("y", "h"), constants)
    return hrt.CompressedModel(program, hrt.Certificate(1e-3, "layers", ()))


def config_of(folder: Path) -> ModelConfig:
    return text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def inputs_of(model, rows: int, seed: int = 0):
    g = np.random.default_rng(seed)
    return tuple(g.standard_normal((rows, *v.shape), dtype=np.float32) for v in model.program.inputs)


class TestTriton:
    def test_the_configuration_says_what_was_meant(self, model, tmp_path):
        folder = hrt.export_repository(model, tmp_path / "models", name="burgers", instances=3, max_batch=256)
        assert folder == tmp_path / "models" / "burgers"
        assert sorted(contents(folder)) == [".hrt-files", "1", "1/model.onnx", "config.pbtxt"]
        config = config_of(folder)
        assert (config.name, config.backend, config.platform) == ("burgers", "onnxruntime", "onnxruntime_onnx")
        assert config.max_batch_size == 256
        assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [("x", 11, [7]), ("z", 11, [5])]
        assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [("y2", 11, [3]), ("h3", 11, [40])]
        assert list(config.dynamic_batching.preferred_batch_size) == [64, 256]
        assert 0 < config.dynamic_batching.max_queue_delay_microseconds <= 10_000
        (group,) = config.instance_group
        assert (group.count, group.kind) == (3, ModelInstanceGroup.KIND_CPU)
        assert float(config.parameters["hrt.tol"].string_value) == model.certificate.tol
        assert config.parameters["hrt.promise"].string_value == "output"
        together = "0.0002 of 2 outputs together"
        assert json.loads(config.parameters["hrt.error_upper_99"].string_value) == {"y2": together, "h3": together}
        assert [w.batch_size for w in config.model_warmup] == [1, 64]
        for warmup in config.model_warmup:
            assert {k: (v.data_type, list(v.dims), v.zero_data) for k, v in warmup.inputs.items()} == {
                "x": (11, [7], True),
                "z": (11, [5], True),
            }
        assert not config.HasField("optimization"), "nothing on a CPU may change the arithmetic"

    def test_the_graph_has_the_names_and_types_of_the_configuration(self, model, tmp_path):
        folder = export_repository(model, tmp_path, name="m")
        graph, config = onnx.load(folder / "1" / "model.onnx").graph, config_of(folder)
        for values, tensors in ((graph.input, config.input), (graph.output, config.output)):
            assert [v.name for v in values] == [t.name for t in tensors]
            for v, t in zip(values, tensors, strict=True):
                assert v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
                assert v.type.tensor_type.shape.dim[0].dim_param == "batch"
                assert [d.dim_value for d in v.type.tensor_type.shape.dim[1:]] == list(t.dims)

    def test_accelerators_stay_in_float32(self, model, tmp_path):
        folder = export_repository(model, tmp_path, name="gpu", device="gpu")
        config = config_of(folder)
        assert config.instance_group[0].kind == ModelInstanceGroup.KIND_GPU
        (cuda,) = config.optimization.execution_accelerators.gpu_execution_accelerator
        assert (cuda.name, dict(cuda.parameters)) == ("cuda", {"use_tf32": "0"})
        folder = export_repository(model, tmp_path, name="trt", device="gpu", accelerator="tensorrt")
        first, second = config_of(folder).optimization.execution_accelerators.gpu_execution_accelerator
        assert (first.name, dict(first.parameters)) == ("tensorrt", {"precision_mode": "FP32"})
        assert (second.name, dict(second.parameters)) == ("cuda", {"use_tf32": "0"})

    def test_the_native_backend_serves_the_artifact_itself(self, model, tmp_path):
        model.save(tmp_path / "net.hrt")
        for k, given in enumerate((model, tmp_path / "net.hrt", str(tmp_path / "net.hrt"))):
            folder = export_repository(given, tmp_path / "models", name=f"m{k}", backend="hrt")
            assert sorted(contents(folder)) == [".hrt-files", "1", "1/model.hrt", "config.pbtxt"]
            assert (folder / "1" / "model.hrt").read_bytes() == (tmp_path / "net.hrt").read_bytes()
            config = config_of(folder)
            assert (config.backend, config.platform) == ("hrt", "")
            assert [t.name for t in config.output] == ["y2", "h3"]

    def test_a_network_for_gpus_is_placed_there(self, tmp_path):
        model = linear_model(torch.randn(3, 2), target="cuda")
        folder = export_repository(model, tmp_path, name="m", backend="hrt")
        config = config_of(folder)
        assert config.instance_group[0].kind == ModelInstanceGroup.KIND_GPU
        assert not config.HasField("optimization"), "the certificate's precision holds there"

    def test_small_batches_and_single_numbers(self, tmp_path):
        program = Program((Value("x", ()),), (Node("y", "tanh", ("x",), (), {}),), ("y",), {})
        model = hrt.CompressedModel(program, hrt.Certificate(1e-3, "layers", ()))
        config = config_of(export_repository(model, tmp_path, name="m", max_batch=5))
        assert list(config.input[0].dims) == [1] and config.input[0].HasField("reshape")
        assert list(config.input[0].reshape.shape) == []
        assert list(config.dynamic_batching.preferred_batch_size) == [5]
        assert [w.batch_size for w in config.model_warmup] == [1, 5]

    def test_strange_names_survive(self):
        name = 'b "ü"\n\\ 雪\t{'
        text = render_config(
            Signature((Tensor(name, (2, 3)),), (Tensor("y", (1,)),)),
            Settings("m", "hrt", 8, 1, "cpu"),
            {"hrt.tol": name},
        )
        config = text_format.Parse(text, ModelConfig())
        assert config.input[0].name == name and list(config.input[0].dims) == [2, 3]
        assert config.parameters["hrt.tol"].string_value == name and name in config.model_warmup[0].inputs


class TestOtherServers:
    def test_mlserver(self, model, tmp_path):
        folder = export_repository(model, tmp_path, name="m", server="mlserver", instances=2, max_batch=99)
        assert sorted(contents(folder)) == [".hrt-files", "model-settings.json", "model.hrt", "settings.json"]
        settings = json.loads((folder / "model-settings.json").read_text())
        assert (
            settings["name"] == "m" and settings["implementation"] == "hrt.export.servers.mlserver_runtime.HrtRuntime"
        )
        assert (folder / settings["parameters"]["uri"]).is_file()
        assert settings["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 7]}
        assert settings["max_batch_size"] > 1 and settings["max_batch_time"] > 0
        assert settings["parameters"]["extra"] == {"max_batch": 99, "workers": 2}
        assert json.loads((folder / "settings.json").read_text())["parallel_workers"] == 2

    def test_ray(self, model, tmp_path):
        folder = export_repository(model, tmp_path, name="m", server="ray", instances=2)
        assert sorted(contents(folder)) == [".hrt-files", "application.py", "model.hrt", "serve.yaml"]
        config = yaml.safe_load((folder / "serve.yaml").read_text())
        (application,) = config["applications"]
        assert application["import_path"] == "application:app" and application["name"] == "m"
        scaling = application["deployments"][0]["autoscaling_config"]
        assert scaling["min_replicas"] == 2 < scaling["max_replicas"]
        compile((folder / "application.py").read_text(), "application.py", "exec")

    @pytest.mark.parametrize("server", ["mlserver", "ray"])
    def test_the_artifact_is_the_one_given(self, model, tmp_path, server):
        model.save(tmp_path / "net.hrt")
        folder = export_repository(tmp_path / "net.hrt", tmp_path / "models", name="m", server=server)
        assert (folder / "model.hrt").read_bytes() == (tmp_path / "net.hrt").read_bytes()
        x = inputs_of(model, 3)
        for a, b in zip(hrt.load(folder / "model.hrt").predict(x), model.predict(x), strict=True):
            assert np.array_equal(a, b)


class TestDerivatives:
    """Behind the outputs, derivative by derivative those of every output: x has coordinates 0 to 6, z 7 to 11."""

    NAMES = ("d8", "d0d8")
    OUTPUTS = ("y", "h", "d8_y", "d8_h", "d0d8_y", "d0d8_h")

    @pytest.mark.parametrize("backend", ["onnxruntime", "hrt"])
    def test_triton_has_them_as_outputs_that_are_those_of_predict(self, smooth, tmp_path, backend):
        smooth.save(tmp_path / "net.hrt")
        given = smooth if backend == "onnxruntime" else tmp_path / "net.hrt"
        folder = export_repository(given, tmp_path / "models", name="m", backend=backend, derivatives=self.NAMES)
        config = config_of(folder)
        assert [(t.name, list(t.dims)) for t in config.output] == list(zip(self.OUTPUTS, [[3], [16]] * 3, strict=True))
        assert [(t.name, list(t.dims)) for t in config.input] == [("x", [7]), ("z", [5])]
        threads = torch.get_num_threads()
        found = open_model(folder / "1", 1)(x := inputs_of(smooth, 9))
        torch.set_num_threads(threads)
        self.check(found, smooth, x)

    @pytest.mark.parametrize("server", ["mlserver", "ray"])
    def test_other_servers_serve_an_artifact_with_them(self, smooth, tmp_path, server):
        smooth.save(tmp_path / "net.hrt")
        folder = export_repository(
            tmp_path / "net.hrt", tmp_path / "models", name="m", server=server, derivatives=self.NAMES
        )
        x = inputs_of(smooth, 5)
        self.check(hrt.load(folder / "model.hrt").predict(x), smooth, x)
        if server == "mlserver":
            outputs = json.loads((folder / "model-settings.json").read_text())["outputs"]
            assert [t["name"] for t in outputs] == list(self.OUTPUTS)
            assert outputs[4] == {"name": "d0d8_y", "datatype": "FP32", "shape": [-1, 3]}
        else:
            text = (folder / "application.py").read_text()
            assert all(repr(name) in text for name in self.OUTPUTS)

    def check(self, found, model, x):
        value, *derived = model.predict(x, derivatives=self.NAMES)
        expected = [*value, *(y for part in derived for y in part)]
        assert len(found) == len(expected) == 6
        for y, e in zip(found, expected, strict=True):
            assert y.shape == e.shape and np.abs(e).min() > 0, "no zeros"
            assert relative(y, e) <= 1e-5, "as checked when an ONNX file is written"

    def test_the_weights_are_held_once(self, smooth, tmp_path):
        smooth.save(tmp_path / "net.hrt")
        folder = export_repository(smooth, tmp_path, name="m", server="ray", derivatives=["d0", "d0d0"])
        again = hrt.load(folder / "model.hrt")
        matrices = [k for k, c in smooth.program.constants.items() if isinstance(c, hrt.HMatrix)]
        assert [k for k, c in again.program.constants.items() if isinstance(c, hrt.HMatrix)] == matrices
        assert again.certificate == smooth.differentiated(["d0", "d0d0"]).certificate

    @pytest.mark.parametrize("server", ["triton", "mlserver", "ray"])
    @pytest.mark.parametrize("names", [["d12"], ["d0", "d0"], "d0", ["dx"]])
    def test_names_that_are_none_leave_nothing(self, model, tmp_path, server, names):
        with pytest.raises(hrt.InputError, match=r"Found .*Expected"):
            export_repository(model, tmp_path / "models", name="m", server=server, derivatives=names)
        assert contents(tmp_path) == {}

    def test_no_derivatives_are_the_value_alone(self, model, tmp_path):
        folder = export_repository(model, tmp_path, name="m", derivatives=[])
        assert [t.name for t in config_of(folder).output] == ["y2", "h3"]


MISTAKES = [
    ({"name": ""}, "name ''"),
    ({"name": "."}, "name '.'"),
    ({"name": ".."}, r"name '\.\.'"),
    ({"name": "a/b"}, "name 'a/b'"),
    ({"name": "a\\b"}, "name"),
    ({"name": "../up"}, "name"),
    ({"name": "/tmp/x"}, "name"),
    ({"name": "a\0b"}, "name"),
    ({"name": "a b"}, "name"),
    ({"name": ".hidden"}, "name"),
    ({"name": "a" * 129}, "name"),
    ({"name": "name\n"}, "name"),
    ({"name": 5}, "name 5"),
    ({"server": "bentoml"}, "server 'bentoml'. Expected one of triton, mlserver, ray"),
    ({"server": None}, "server None"),
    ({"backend": "tensorflow"}, "backend 'tensorflow' for triton"),
    ({"server": "ray", "backend": "onnxruntime"}, "backend 'onnxruntime' for ray"),
    ({"max_batch": 0}, "max_batch 0"),
    ({"max_batch": 2.5}, "max_batch 2.5"),
    ({"instances": -1}, "instances -1"),
    ({"instances": True}, "instances True"),
    ({"device": "tpu"}, "device 'tpu'"),
    ({"server": "mlserver", "device": "gpu"}, "device 'gpu' for mlserver"),
    ({"accelerator": "openvino", "device": "gpu"}, "accelerator 'openvino'"),
    ({"accelerator": "tensorrt"}, "accelerator 'tensorrt'"),
    ({"accelerator": "tensorrt", "device": "gpu", "backend": "hrt"}, "accelerator 'tensorrt'"),
]


class TestWhatIsRefused:
    @pytest.mark.parametrize("options, message", MISTAKES, ids=[repr(o) for o, _ in MISTAKES])
    def test_options(self, model, tmp_path, options, message):
        with pytest.raises(hrt.InputError, match=message):
            export_repository(model, tmp_path / "models", **{"name": "m", **options})
        assert contents(tmp_path) == {}

    @pytest.mark.parametrize("server", ["triton", "mlserver", "ray"])
    def test_a_path_that_is_no_model(self, tmp_path, server):
        (tmp_path / "text.hrt").write_text("not a network")
        before = contents(tmp_path)
        for path in ("text.hrt", "missing.hrt", "."):
            with pytest.raises(hrt.ArtifactError):
                export_repository(tmp_path / path, tmp_path / "models", name="m", server=server)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("server", ["triton", "mlserver", "ray"])
    def test_a_folder_that_exists_is_kept_unless_forced(self, model, tmp_path, server):
        export_repository(model, tmp_path, name="m", server=server)
        before = contents(tmp_path)
        with pytest.raises(hrt.InputError, match="exists and was kept"):
            export_repository(linear_model(torch.randn(3, 2)), tmp_path, name="m", server=server)
        assert contents(tmp_path) == before
        (tmp_path / "m" / "2").mkdir()
        (tmp_path / "m" / "2" / "model.plan").write_text("years of work")
        with pytest.raises(hrt.InputError, match=r"it holds 2/model\.plan, which hrt did not write"):
            export_repository(linear_model(torch.randn(3, 2)), tmp_path, name="m", server="triton", force=True)
        assert (tmp_path / "m" / "2" / "model.plan").read_text() == "years of work"
        (tmp_path / "m" / "2" / "model.plan").unlink()
        export_repository(linear_model(torch.randn(3, 2)), tmp_path, name="m", server="triton", force=True)
        assert sorted(contents(tmp_path)) == ["m", "m/.hrt-files", "m/1", "m/1/model.onnx", "m/config.pbtxt"]
        assert [t.name for t in config_of(tmp_path / "m").input] == ["x"]

    @pytest.mark.parametrize("mark", ["config.pbtxt", "model-settings.json", "serve.yaml", ".hrt-files"])
    def test_somebody_elses_model_is_kept_even_if_forced(self, model, tmp_path, mark):
        (tmp_path / "m" / "1").mkdir(parents=True)
        (tmp_path / "m" / mark).write_text('name: "m"')
        (tmp_path / "m" / "1" / "model.plan").write_text("years of work")
        before = contents(tmp_path)
        with pytest.raises(hrt.InputError, match="not written by hrt, and was kept"):
            export_repository(model, tmp_path, name="m", force=True)
        assert contents(tmp_path) == before

    @pytest.mark.parametrize("kind", ["folder", "file", "link"])
    def test_what_is_not_ours_is_kept_even_if_forced(self, model, tmp_path, kind):
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter.tex").write_text("years of work")
        if kind == "file":
            (tmp_path / "m").write_text("years of work")
        elif kind == "link":
            (tmp_path / "m").symlink_to(tmp_path / "thesis")
        before = contents(tmp_path)
        with pytest.raises(hrt.InputError, match="not written by hrt, and was kept"):
            export_repository(model, tmp_path, name="thesis" if kind == "folder" else "m", force=True)
        assert contents(tmp_path) == before

    def test_folders_that_cannot_be_written(self, model, tmp_path):
        (tmp_path / "file").touch()
        for folder, message in (
            (tmp_path / "file", "is a file"),
            (tmp_path / "no" / "where", "does not exist"),
            (Path("/proc/hrt-models"), "cannot be written"),
            (Path("/proc/self"), "cannot be written"),
        ):
            with pytest.raises(hrt.InputError, match=message):
                export_repository(model, folder, name="m")
        assert sorted(contents(tmp_path)) == ["file"]

    def test_an_empty_tensor(self, tmp_path):
        with pytest.raises(hrt.InputError, match="no empty tensors"):
            export_repository(hrt.CompressedModel(linear_program(torch.zeros(0, 3)), mixed_model().certificate),
                              tmp_path / "models", name="m")  # fmt: skip
        assert contents(tmp_path) == {}

    def test_a_graph_that_fails_its_check(self, model, tmp_path, monkeypatch):
        wrong = mixed_model(seed=1)
        to_onnx = repository.to_onnx
        monkeypatch.setattr(repository, "to_onnx", lambda _: to_onnx(wrong))
        with pytest.raises(hrt.HrtError, match="differs from predict"):
            export_repository(model, tmp_path / "models", name="m")
        assert contents(tmp_path) == {}


class TestAtomicity:
    @pytest.mark.parametrize("force", [False, True])
    @pytest.mark.parametrize(
        "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError, KeyboardInterrupt]
    )
    def test_a_failure_half_way_leaves_nothing(self, model, tmp_path, monkeypatch, error, force):
        folder = tmp_path / "models"
        if force:
            export_repository(model, folder, name="m", backend="hrt")
        before = contents(tmp_path)

        def fails(served, target):
            (target / "1").mkdir()
            (target / "1" / "model.onnx").write_bytes(b"half")
            raise error

        monkeypatch.setattr(repository, "_write_triton", fails)
        expected = hrt.InputError if isinstance(error, OSError) else error
        with pytest.raises(
            expected, match="No space left.*Nothing was changed" if isinstance(error, OSError) else None
        ):
            export_repository(model, folder, name="m", force=force)
        assert contents(tmp_path) == before

    def test_an_old_folder_is_put_back_where_the_new_one_cannot_take_its_place(self, model, tmp_path, monkeypatch):
        export_repository(model, tmp_path, name="m", backend="hrt")
        before, rename, calls = contents(tmp_path), Path.rename, []

        def second_fails(self, target):
            calls.append(self)
            if len(calls) == 2:
                raise OSError(errno.EIO, "Input/output error")
            return rename(self, target)

        monkeypatch.setattr(Path, "rename", second_fails)
        with pytest.raises(hrt.InputError, match="Nothing was changed"):
            export_repository(model, tmp_path, name="m", force=True)
        assert len(calls) == 3 and contents(tmp_path) == before

    def test_a_process_that_is_killed_leaves_the_old_folder(self, model, tmp_path):
        export_repository(model, tmp_path, name="m", backend="hrt")
        before = contents(tmp_path / "m")
        program = (
            "import os, hrt, sys\nfrom hrt.export import repository\n"
            "repository._write_triton = lambda served, new: os._exit(9)\n"
            "repository.export_repository(sys.argv[1] + '/m/1/model.hrt', sys.argv[1], name='m', force=True)\n"
        )
        done = subprocess.run([sys.executable, "-c", program, os.fspath(tmp_path)], timeout=120)
        assert done.returncode == 9 and contents(tmp_path / "m") == before


class TestTritonBackend:
    def test_it_is_installed_as_a_python_based_backend(self, tmp_path):
        for name in ("hrt", "onnxruntime"):
            path = install_triton_backend(tmp_path, name)
            assert path == tmp_path / name / "model.py"
            assert path.read_bytes() == Path(triton_backend.__file__).read_bytes()
        with pytest.raises(hrt.InputError, match="exists and was kept"):
            install_triton_backend(tmp_path)
        install_triton_backend(tmp_path, force=True)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["hrt", "onnxruntime"]

    def test_what_is_refused(self, tmp_path):
        with pytest.raises(hrt.InputError, match="Found backend 'python'"):
            install_triton_backend(tmp_path, "python")
        (tmp_path / "onnxruntime").mkdir()
        (tmp_path / "onnxruntime" / "libtriton_onnxruntime.so").touch()
        (tmp_path / "onnxruntime" / "model.py").write_text("years of work")
        with pytest.raises(hrt.InputError, match="not written by hrt"):
            install_triton_backend(tmp_path, "onnxruntime", force=True)
        assert (tmp_path / "onnxruntime" / "model.py").read_text() == "years of work"

    @pytest.mark.parametrize("backend", ["hrt", "onnxruntime"])
    def test_several_requests_are_answered_as_one_batch(self, model, tmp_path, backend):
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

    def test_a_version_without_a_model(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"neither model\.hrt nor model\.onnx"):
            open_model(tmp_path, 1)

    def test_it_speaks_triton(self, model, tmp_path, monkeypatch):
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
        served.initialize(
            {"model_config": json.dumps(config), "model_repository": os.fspath(folder), "model_version": "1"}
        )
        x, z = inputs_of(model, 3)
        answers = served.execute([Asked({"x": x, "z": z}, ["h3"]), Asked({"x": x[:1], "z": z[:1]}, ["y2", "h3"])])
        ((first,), none), (second, _) = answers
        assert none is None and first.name == "h3" and [t.name for t in second] == ["y2", "h3"]
        assert np.allclose(first.values, model.predict((x, z))[1], rtol=1e-5, atol=1e-6)
        ((tensors, error),) = served.execute([Asked({"x": x[:, :2], "z": z}, ["h3"])])
        assert tensors == [] and error


class TestCommandLine:
    def test_it_writes_what_the_function_writes(self, model, tmp_path, capsys):
        model.save(tmp_path / "net.hrt")
        command = ["repository", str(tmp_path / "net.hrt"), str(tmp_path / "models"), "--name", "m"]
        assert main([*command, "--max-batch", "32", "--instances", "2"]) == 0
        assert "wrote" in capsys.readouterr().out
        config = config_of(tmp_path / "models" / "m")
        assert (config.max_batch_size, config.instance_group[0].count) == (32, 2)
        assert main(command) == 2 and "exists and was kept" in capsys.readouterr().err
        assert main([*command, "--force", "--derivatives", "d0", "d1d1", "--backend", "hrt"]) == 0
        found = [t.name for t in config_of(tmp_path / "models" / "m").output]
        assert found == ["y2", "h3", "d0_y2", "d0_h3", "d1d1_y2", "d1d1_h3"]
        assert main([*command, "--force", "--server", "ray"]) == 0
        assert (tmp_path / "models" / "m" / "serve.yaml").is_file()
        capsys.readouterr()
        assert main([*command[:-1], "../m"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("hrt: Found name '../m'") and error.count("\n") == 1

    def test_it_installs_the_backend(self, tmp_path, capsys):
        assert main(["triton-backend", str(tmp_path)]) == 0
        assert (tmp_path / "hrt" / "model.py").is_file()
        assert main(["triton-backend", str(tmp_path)]) == 2 and "was kept" in capsys.readouterr().err
