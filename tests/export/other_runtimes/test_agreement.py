"""Exported graphs in ONNX Runtime, OpenVINO and onnxruntime-web answer as float64 and `predict` do."""

from functools import cache

import numpy as np
import onnx
import pytest
import torch

import hrt
from hrt.capture.torch_export import capture
from hrt.export.onnx import check_onnx, export_onnx, open_runtime, relative, to_onnx
from hrt.export.other_runtimes import check_openvino, open_openvino, web
from hrt.perf.networks.burgers import burgers_points, load_burgers
from hrt.perf.networks.operators import log_kernel, operator_network, reaction_diffusion_green

import pinn as burgers
from helpers import MIXED, densified, hierarchical, random_hmatrix
from models import linear_model, mixed_model
from zoo import ZOO

POINTS = 384


def onnxruntime(proto, inputs):
    return open_runtime(proto).run(None, {v.name: x for v, x in zip(proto.graph.input, inputs, strict=True)})


RUN = {
    "onnxruntime": onnxruntime,
    "openvino": lambda proto, inputs: open_openvino(proto).run(inputs),
    "web": lambda proto, inputs: web.run_web(proto, [inputs])[0],
}
CHECKS = {"onnxruntime": check_onnx, "openvino": check_openvino, "web": web.check_web}


@pytest.fixture(params=["onnxruntime", "openvino", pytest.param("web", marks=pytest.mark.slow)])
def runtime(request) -> str:
    """npm's registry is not there everywhere: `make web` installs what "web" needs and runs it."""
    if request.param == "web" and not web.installed(web.home()):
        pytest.skip("onnxruntime-web is not installed; make web installs it and runs this")
    return request.param


def model_of(program) -> hrt.CompressedModel:
    return hrt.CompressedModel(program, hrt.Certificate(1e-2, "layers", ()))


@cache
def zoo_programs(name):
    """A network of the zoo as it is, and with random H-matrices of every storage type."""
    inputs = ZOO[name].inputs(5)
    program = capture(ZOO[name].build(torch.float64), inputs)
    return inputs, (program, hierarchical(program, 3, storages=MIXED))


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_network_of_the_zoo(name, runtime):
    """float32 in another order of sums: not much further from float64 than torch's own float32."""
    inputs, programs = zoo_programs(name)
    arrays = [x.float().numpy() for x in inputs]
    for program in programs[1:] if runtime == "web" else programs:  # Node starts once per graph
        proto = to_onnx(model_of(program))
        onnx.checker.check_model(proto, full_check=True)
        single = model_of(program).predict(tuple(arrays))
        single = single if isinstance(single, tuple) else (single,)
        for y, s, e in zip(RUN[runtime](proto, arrays), single, densified(program).run(inputs), strict=True):
            allowed = 8 * np.linalg.norm(s - e.numpy()) + 2e-6 * np.linalg.norm(e)
            assert y.shape == tuple(e.shape) and y.dtype == np.float32
            assert np.linalg.norm(y - e.numpy()) <= allowed


@pytest.fixture(scope="module")
def networks():
    """Networks, compressed, each with float32 rows and what the dense one makes of them in float64. Of all unit vectors
    an operator makes its columns, so that its error there is the certificate's own Frobenius error.
    """
    operator = operator_network(log_kernel(POINTS))
    cases = {
        "pinn": (load_burgers(), burgers.compressed(), burgers_points(1024, 77)),
        "operator": (operator, hrt.compress(operator, tol=1e-3, progress=False), torch.eye(POINTS)),
    }
    with torch.no_grad():
        return {k: (model, x.numpy(), net.double()(x.double()).numpy()) for k, (net, model, x) in cases.items()}


@pytest.mark.parametrize("which", ["pinn", "operator"])
def test_compressed_networks_agree_with_predict_and_keep_their_bound(networks, which, runtime):
    model, x, expected = networks[which]
    proto = to_onnx(model)
    for rows in (1, 7, len(x)):
        (y,) = RUN[runtime](proto, [x[:rows]])
        assert relative(y, model.predict(x[:rows])) <= 1e-5
    assert relative(y, expected) <= model.certificate.tol


@pytest.mark.parametrize("rows", [1, 4096])
def test_derivatives_are_those_of_torch_func(rows, runtime):
    case, proto = burgers.case(rows), to_onnx(burgers.compressed().differentiated(burgers.DERIVATIVES))
    case.check(RUN[runtime](proto, [case.x.numpy()]))


def test_derivatives_rounded_to_bfloat16_would_be_seen():
    case = burgers.case(4096)
    exact = [e.float().numpy() for e in case.expected]
    for k, name in enumerate(burgers.OUTPUTS):
        rounded = case.expected[k].bfloat16().float().numpy()
        with pytest.raises(AssertionError, match=name):
            case.check([*exact[:k], rounded, *exact[k + 1 :]])


@pytest.mark.parametrize("seed", range(12))
def test_random_matrices_of_every_storage_type(seed, runtime):
    g = np.random.default_rng(seed)
    m, n = (int(k) for k in g.integers(1, 200, 2))
    model = linear_model(random_hmatrix(seed, m, n, depth=4, storages=MIXED))
    CHECKS[runtime](to_onnx(model), model, g.standard_normal((33, n)))


def test_a_graph_that_is_wrong_is_refused(runtime):
    several = mixed_model()
    assert list(CHECKS[runtime](to_onnx(several), several)) == ["y2", "h3"]
    right, wrong = linear_model(torch.randn(8, 8)), linear_model(torch.randn(8, 8))
    with pytest.raises(hrt.HrtError, match=r"differs from predict by .*Expected at most 1e-05"):
        CHECKS[runtime](to_onnx(wrong), right)
    with pytest.raises(hrt.HrtError, match=r"has shape \(1, 9\) in .*Expected \(1, 8\)"):
        CHECKS[runtime](to_onnx(linear_model(torch.randn(9, 8))), right)
    broken = to_onnx(right)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(hrt.HrtError, match=r"not valid ONNX|OpenVINO refuses|onnxruntime-web cannot run"):
        CHECKS[runtime](broken, right)


def test_numbers_that_are_not_finite_are_no_agreement():
    """max(0, nan) is 0 in Python: a graph that answers NaN must not pass for that."""
    right, wrong = linear_model(torch.eye(8)), linear_model(torch.full((8, 8), float("nan")))
    with pytest.raises(hrt.HrtError, match=r"differs from predict by .*nan"):
        check_onnx(to_onnx(wrong), right)
    both = np.array([1.0, np.nan, np.inf])
    assert relative(both, both) == 0 and relative(np.array([2.0, np.nan, np.inf]), both) == 1
    for other in (-both, np.zeros(3), both[[1, 0, 2]]):
        assert not relative(other, both) <= 1e-5 and not relative(both, other) <= 1e-5


@pytest.mark.parametrize("storage", ["float32", "auto"])
@pytest.mark.parametrize("which", ["pinn", "log-kernel", "reaction-diffusion"])
@pytest.mark.slow
def test_the_file_takes_little_more_than_what_is_stored(which, storage, tmp_path):
    kernels = {"log-kernel": log_kernel, "reaction-diffusion": reaction_diffusion_green}
    net = load_burgers() if which == "pinn" else operator_network(kernels[which](1024))
    inputs = burgers_points(4000, 1) if which == "pinn" else None
    model = hrt.compress(net, inputs=inputs, tol=1e-3, storage=storage, progress=False)
    export_onnx(model, tmp_path / "net.onnx")
    text = 12_000  # graph and certificate, which .hrt files deflate
    assert (tmp_path / "net.onnx").stat().st_size <= 1.10 * model.nbytes + text
