"""Model repositories: what is written, what it means to the server, and what is refused, leaving nothing."""

import json
import re
from importlib.util import find_spec
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
from hrt.export.servers import repository
from hrt.export.servers.open_inference import Signature, Tensor
from hrt.export.servers.repository import export_repository
from hrt.export.servers.server_files import Settings, triton_files
from hrt.export.servers.triton_backend import open_model
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
        signature = Signature((Tensor(name, (2, 3)),), (Tensor("y", (1,)),))
        text = triton_files(signature, Settings("m").resolved("bytes"), {"hrt.tol": name})["config.pbtxt"]
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


def test_names_of_ours_in_what_is_written_are_names_that_there_are(model, tmp_path):
    """The modules behind them cannot be imported outside their servers, so that nothing else would notice."""
    written = [export_repository(model, tmp_path, name=s, server=s) for s in ("triton", "mlserver", "ray")]
    text = "\n".join(p.read_text() for f in written for p in f.iterdir() if p.is_file() and p.suffix != ".hrt")
    dotted = re.findall(r'"(hrt\.[\w.]+)\.(\w+)"', text) + re.findall(r"from (hrt\.[\w.]+) import (\w+)", text)
    dotted = [(module, name) for module, name in dotted if module != "hrt"]
    assert sorted(name for _, name in dotted) == ["HrtRuntime", "build"]
    for module, name in dotted:
        spec = find_spec(module)
        assert spec is not None and re.search(rf"^(class|def) {name}\b", Path(spec.origin).read_text(), re.MULTILINE)


class TestDerivatives:
    """Behind the outputs, derivative by derivative those of every output: x has coordinates 0 to 6, z 7 to 11."""

    NAMES = ("d8", "d0d8")
    OUTPUTS = ("y", "h", "d8_y", "d8_h", "d0d8_y", "d0d8_h")

    @pytest.mark.parametrize(
        "server, backend", [("triton", "onnxruntime"), ("triton", "hrt"), ("mlserver", "hrt"), ("ray", "hrt")]
    )
    @pytest.mark.parametrize("given", ["model", "path"])
    def test_every_server_has_them_as_outputs_that_are_those_of_predict(self, smooth, tmp_path, server, backend, given):
        smooth.save(tmp_path / "net.hrt")
        source = smooth if given == "model" else tmp_path / "net.hrt"
        options = {"server": server, "backend": backend, "derivatives": self.NAMES}
        folder = export_repository(source, tmp_path / "models", name="m", **options)
        shapes = dict(zip(self.OUTPUTS, [[3], [16]] * 3, strict=True))
        if server == "triton":
            assert {t.name: list(t.dims) for t in config_of(folder).output} == shapes
        elif server == "mlserver":
            outputs = json.loads((folder / "model-settings.json").read_text())["outputs"]
            assert outputs == [{"name": n, "datatype": "FP32", "shape": [-1, *shape]} for n, shape in shapes.items()]
        else:
            assert all(repr(name) in (folder / "application.py").read_text() for name in self.OUTPUTS)
        threads = torch.get_num_threads()
        answers = open_model(folder / "1" if server == "triton" else folder, 1)(x := inputs_of(smooth, 9))
        torch.set_num_threads(threads)
        value, *derived = smooth.predict(x, derivatives=self.NAMES)
        for y, e in zip(answers, [*value, *(y for part in derived for y in part)], strict=True):
            assert y.shape == e.shape and np.abs(e).min() > 0, "no zeros"
            assert relative(y, e) <= 1e-5, "as checked when an ONNX file is written"

    def test_the_weights_are_held_once(self, smooth, tmp_path):
        smooth.save(tmp_path / "net.hrt")
        folder = export_repository(smooth, tmp_path, name="m", server="ray", derivatives=["d0", "d0d0"])
        again = hrt.load(folder / "model.hrt")
        matrices = [k for k, c in smooth.program.constants.items() if isinstance(c, hrt.HMatrix)]
        assert [k for k, c in again.program.constants.items() if isinstance(c, hrt.HMatrix)] == matrices
        assert again.certificate == smooth.differentiated(["d0", "d0d0"]).certificate

    @pytest.mark.parametrize("names", [["d12"], ["d0", "d0"], "d0", ["dx"]])
    def test_names_that_are_none_leave_nothing(self, model, tmp_path, names):
        with pytest.raises(hrt.InputError, match=r"Found .*Expected"):
            export_repository(model, tmp_path / "models", name="m", derivatives=names)
        assert contents(tmp_path) == {}

    def test_no_derivatives_are_the_value_alone(self, model, tmp_path):
        folder = export_repository(model, tmp_path, name="m", derivatives=[])
        assert [t.name for t in config_of(folder).output] == ["y2", "h3"]


class TestWhatIsRefused:
    @pytest.mark.parametrize("server", ["triton", "mlserver", "ray"])
    def test_what_is_no_model(self, tmp_path, server):
        (tmp_path / "text.hrt").write_text("not a network")
        before = contents(tmp_path)
        for path in ("text.hrt", "missing.hrt", "."):
            with pytest.raises(hrt.ArtifactError):
                export_repository(tmp_path / path, tmp_path / "models", name="m", server=server)
        with pytest.raises(hrt.InputError, match=r"Found int. Expected a compressed network or a path"):
            export_repository(5, tmp_path / "models", name="m", server=server)
        assert contents(tmp_path) == before

    def test_a_folder_that_is_there(self, model, tmp_path):
        export_repository(model, tmp_path, name="m", server="ray")
        before = contents(tmp_path)
        for options, message in (({"force": False}, "exists and was kept"), ({"max_batch": 0}, "max_batch 0")):
            with pytest.raises(hrt.InputError, match=message):
                export_repository(model, tmp_path, name="m", **options)
        assert contents(tmp_path) == before
        export_repository(linear_model(torch.randn(3, 2)), tmp_path, name="m")
        assert sorted(contents(tmp_path)) == ["m", "m/.hrt-files", "m/1", "m/1/model.onnx", "m/config.pbtxt"]

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


class TestCommandLine:
    def test_it_writes_what_the_function_writes(self, model, tmp_path, capsys):
        model.save(tmp_path / "net.hrt")
        command = ["repository", str(tmp_path / "net.hrt"), str(tmp_path / "models"), "--name", "m"]
        assert main([*command, "--max-batch", "32", "--instances", "2"]) == 0
        printed = capsys.readouterr().out
        config = config_of(tmp_path / "models" / "m")
        assert (config.max_batch_size, config.instance_group[0].count) == (32, 2)
        for tensor in (*config.input, *config.output):  # what a client asks for
            assert f" {tensor.name} ({', '.join(['batch', *map(str, tensor.dims)])})" in printed
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
