"""The certificate of an output says what was measured on the rows that were held back, and what to mind."""

import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import hrt
from hrt.calibration.moments import evaluate, layer_moments
from hrt.calibration.output_error import output_error
from hrt.capture.network import captured_network
from hrt.capture.onnx.file import opened
from hrt.model.packing import pack
from hrt.network_compression.compress import by_output
from hrt.network_compression.request import CompressionRequest
from hrt.network_compression.verify import Original, output_certificate
from hrt.program.dense_view import stored

from trained import inputs, made


def test_figures_are_those_of_the_held_out_rows() -> None:
    rows = torch.cat([inputs(100), inputs(100)[:20]]).double()
    request = CompressionRequest(0.1)
    original = Original.of(captured_network(made(), (rows,)), (rows,), request)
    program, split = original.program, original.split
    worse = {k: c * 1.01 if k == "last.weight" else c for k, c in program.constants.items()}
    best = stored(program.with_constants(worse))
    served = original.served_errors(best)
    moments = layer_moments(program, split.calibration)
    found = output_certificate(original, best, served, moments, request, ["mind"])
    expected = output_error(evaluate(program, split.held_out), evaluate(best, split.held_out))
    assert found.measured["output_error"] == pytest.approx(expected.value, rel=1e-12) and 0 < expected.value < 0.1
    limits = [e.upper_99 for e in served.values()]
    assert found.estimated["output_error_upper_99"] == max(limits) and min(limits) >= found.measured["output_error"]
    remarks = found.context["remarks"]
    assert "mind" in remarks and "20 of 120 rows repeat another and were left out" in remarks
    assert any("only 100 distinct" in r for r in remarks)
    assert found.runtimes == tuple(served)


class Cast(nn.Module):
    """A bfloat16 layer inside a float32 network, by casts or by autocast."""

    def __init__(self, autocast: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.autocast = nn.Linear(3, 32), nn.Linear(32, 2), autocast
        if not autocast:
            self.a.bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.autocast:
            return self.b(torch.tanh(self.a(x.bfloat16())).float())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inner = self.a(x)
        return self.b(torch.tanh(inner).float())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("traced", [False, True])
def test_the_reference_is_the_network_as_its_author_evaluates_it(autocast: bool, traced: bool) -> None:
    net = Cast(autocast).eval()
    rows, fresh = (torch.rand(1000, 3, generator=torch.Generator().manual_seed(k)) for k in range(2))
    batch = {0: torch.export.Dim("batch", min=1)}
    given = torch.export.export(net, (rows[:3],), dynamic_shapes=(batch,), strict=False) if traced else net
    with pytest.raises(hrt.ToleranceError, match=r"rounding allows.*bfloat16 in (a|l|its forward)"):
        hrt.compress(given, inputs=rows, tol=1e-4, progress=False)
    assert "bfloat16" in hrt.compress(given, tol=1e-4, progress=False).certificate.context["remarks"][0]
    tol = 8e-3
    model = hrt.compress(given, inputs=rows, tol=tol, progress=False)
    with torch.no_grad():
        theirs = net(fresh).double()
    assert float((model.predict(fresh) - theirs).norm() / theirs.norm()) <= tol
    difference = model.certificate.measured["capture_difference"]
    assert 1e-3 < difference <= model.certificate.measured["runtime_error"] * 1.5
    assert any("bfloat16" in remark for remark in model.certificate.context["remarks"])
    assert "own answers differ by" in model.report()


def test_a_float32_network_is_met_in_float64_and_its_bytes_stay() -> None:
    rows = inputs(300).double()
    request = CompressionRequest(1e-2)
    network = captured_network(made(), (rows,))
    alone = replace(network, answers=None)
    programs = [by_output(Original.of(n, (rows,), request), request) for n in (network, alone)]
    assert programs[0][1].measured["capture_difference"] < 1e-6 and not programs[0][1].context["remarks"][1:]
    assert "capture_difference" not in programs[1][1].measured
    first, second = (pack(program.constants)[0] for program, _ in programs)
    assert first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


class SmallColumn(nn.Module):
    """A large output beside a small one that is rounded to float16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.net(x)
        return torch.cat([1e4 * y[:, :1], y[:, 1:].half().float()], dim=1)


def test_the_rounding_of_a_small_column_counts_where_each_is_held_to_the_tolerance() -> None:
    net, rows = SmallColumn(), torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    request = CompressionRequest(1e-3)
    together, each = (
        Original.of(captured_network(net, (rows.double(),)), (rows.double(),), replace(request, per_output=value))
        for value in (False, True)
    )
    assert (together.capture_difference or 0.0) < 1e-6 and not together.rounding
    assert 1e-4 < (each.capture_difference or 0.0) < 1e-3 and "float16" in each.rounding
    with torch.no_grad():
        assert torch.equal(each.reference, net(each.split.held_out[0].float()).double())


@pytest.mark.parametrize(("tol", "dtype"), [(1e-2, torch.float32), (1e-6, torch.float64)])
def test_candidates_are_judged_in_float32_where_that_costs_little_of_the_tolerance(tol, dtype) -> None:
    rows = inputs(100).double()
    original = Original.of(captured_network(made(), (rows,)), (rows,), CompressionRequest(tol))
    assert original.replay.dtype == dtype
    exact = original.aim.outputs(original.split.search)
    assert original.aim.error(exact, original.replay.outputs({})).limit <= 0.01 * tol


@pytest.fixture(scope="module")
def cast_file(tmp_path_factory):
    """A float32 network of three layers that is cast to float16 and back between two of them, for batches of 1."""
    g = np.random.default_rng(0)
    shapes = {"w": (32, 3), "v": (32, 32), "u": (2, 32)}
    numbers = [numpy_helper.from_array(g.standard_normal(s).astype("f4") / s[1] ** 0.5, k) for k, s in shapes.items()]
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("Cast", ["t"], ["half"], "to_half", to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Gemm", ["wide", "v"], ["g"], transB=1),
        helper.make_node("Tanh", ["g"], ["s"]),
        helper.make_node("Gemm", ["s", "u"], ["y"], transB=1),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, n]) for name, n in (("x", 3), ("y", 2))]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], numbers)
    path = tmp_path_factory.mktemp("cast") / "cast.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), path)
    return path


@pytest.mark.parametrize("runtime", ["onnxruntime", "onnx.reference"])
def test_the_reference_of_an_onnx_file_is_what_a_runtime_answers(cast_file, runtime, monkeypatch):
    if runtime == "onnx.reference":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as where it is not installed
    rows, fresh = (torch.rand(1000, 3, generator=torch.Generator().manual_seed(k)) for k in range(2))
    with pytest.raises(hrt.ToleranceError, match=r"rounding allows.*float16 in to_half"):
        hrt.compress(cast_file, inputs=rows, tol=1e-5, progress=False)
    assert "float16 in to_half" in hrt.compress(cast_file, tol=1e-2, progress=False).certificate.context["remarks"][0]
    tol = 1e-3
    certificate = (model := hrt.compress(cast_file, inputs=rows, tol=tol, progress=False)).certificate
    program, answers, _ = opened(cast_file)
    assert answers is not None and certificate.context["reference"] == answers.runtime
    assert answers.runtime.startswith(runtime)
    theirs, ours = answers.flat([fresh]), program.run([fresh.double()])[0]
    assert float((model.predict(fresh).double() - theirs).norm() / theirs.norm()) <= tol
    difference = float((ours - theirs).norm() / theirs.norm())
    assert 1e-4 < difference == pytest.approx(certificate.measured["capture_difference"], rel=0.2)
    assert any("float16 in to_half" in remark for remark in certificate.context["remarks"])


def test_a_file_that_no_runtime_runs_is_judged_by_our_reading_and_says_so(cast_file, monkeypatch):
    monkeypatch.setattr("hrt.capture.onnx.file._by_reference", None)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    rows = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    certificate = hrt.compress(cast_file, inputs=rows, tol=1e-3, progress=False).certificate
    assert "reference" not in certificate.context and "capture_difference" not in certificate.measured
    assert any("no runtime here runs the network" in remark for remark in certificate.context["remarks"])
