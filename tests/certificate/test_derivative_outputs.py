"""What is said of every output of a network with derivatives among them: bounded as what, or not at all, and where."""

import json
import math
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from google.protobuf import text_format
from torch import Tensor, nn
from tritonclient.grpc.model_config_pb2 import ModelConfig

import hrt
from hrt.certificate.derivative_outputs import UNBOUNDED, VALUE, held_as, limits
from hrt.cli.main import main
from hrt.export.onnx.exporter import export_onnx, to_onnx

from models import linear_program
from sobolev_cases import exact, relative, rows, seeded
from zoo import mlp

TOL = 1e-2


class TwoHeads(nn.Module):
    """Two outputs, a kink."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.u, self.v = mlp(2, 16, 16), nn.Linear(16, 1), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.body(x))
        return self.u(h), self.v(torch.relu(h))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    """Nowhere near zero: an export compares single rows."""
    made = seeded(lambda: mlp(2, 16, 16, 1))
    with torch.no_grad():
        made[-1].bias += 1  # type: ignore[index, operator]
    return made


@pytest.fixture(scope="module")
def held(net) -> hrt.CompressedModel:
    """Compressed for u, u_x and u_xt."""
    return hrt.compress(net, inputs=rows(800, 1), tol=TOL, derivatives=["d0", "d0d1"], progress=False)


@pytest.fixture(scope="module")
def alone(net) -> hrt.CompressedModel:
    """Compressed for u alone."""
    return hrt.compress(net, inputs=rows(800, 1), tol=TOL, progress=False)


def metadata(proto: onnx.ModelProto) -> dict[str, str]:
    return {p.key: p.value for p in proto.metadata_props}


class TestHeldAs:
    def test_the_value_of_a_network_that_was_not_differentiated(self, alone) -> None:
        (u,) = alone.program.outputs
        assert held_as(alone.certificate, [u]) == {u: VALUE}
        assert limits(alone.certificate, [u]) == {u: alone.certificate.estimated["output_error_upper_99"]}

    def test_derivatives_in_any_spelling_are_those_of_the_certificate(self, held) -> None:
        (u,) = held.program.outputs
        served = held.differentiated(["d1d0", "d0", "d1"])
        names = served.program.outputs
        assert names == (u, f"d1d0_{u}", f"d0_{u}", f"d1_{u}")
        expected = dict(zip(names, [VALUE, "d0d1", "d0", UNBOUNDED], strict=True))
        assert held_as(served.certificate, names) == served.certificate.context["outputs"] == expected
        figures = held.certificate.estimated["derivative_error_upper_99"]
        value = held.certificate.estimated["output_error_upper_99"]
        found = limits(served.certificate, names)
        assert list(found.values()) == [value, figures["d0d1"], figures["d0"], UNBOUNDED]
        assert all(v == UNBOUNDED or 0 < v <= TOL for v in found.values())

    def test_with_weights_alone_held_nothing_is_bounded(self, net) -> None:
        model = hrt.compress(net, tol=TOL, progress=False).differentiated(["d0"])
        assert set(held_as(model.certificate, model.program.outputs).values()) == {UNBOUNDED}
        assert set(limits(model.certificate, model.program.outputs).values()) == {UNBOUNDED}

    def test_a_derivative_of_a_derivative_is_not_taken_for_one_that_is_bounded(self, held) -> None:
        (u,) = held.program.outputs
        twice = held.differentiated(["d0"]).differentiated(["d0"])
        found = list(held_as(twice.certificate, twice.program.outputs).values())
        assert found == [VALUE, "d0", "d0", UNBOUNDED], "u, its d0, d0 of u again, and d0 of d0"
        assert len(twice.program.outputs) == 4 and twice.program.outputs[-1] == f"d0_d0_{u}"

    def test_several_outputs_and_kinks(self) -> None:
        model = hrt.compress(seeded(TwoHeads), inputs=rows(400, 1), tol=TOL, derivatives=["d1"], progress=False)
        served = model.differentiated(["d0", "d1"])
        found = list(held_as(served.certificate, served.program.outputs).values())
        assert found == [VALUE, VALUE, UNBOUNDED, UNBOUNDED, "d1", "d1"]
        (kink,) = served.certificate.context["kinks"]
        assert kink.startswith("relu")


class TestWhereItTravels:
    def test_the_limits_hold_on_fresh_points(self, net, held) -> None:
        """What is exported beside the numbers is true of them."""
        x = rows(2000, 99).float()
        served = held.differentiated(["d1d0", "d0"])
        found, wanted = served.predict(x), exact(net, x.double(), ["d0d1", "d0"])
        for y, e, limit in zip(found, wanted, limits(served.certificate, served.program.outputs).values(), strict=True):
            assert isinstance(limit, float) and relative(y, e) <= limit

    def test_onnx_metadata_with_bounded_derivatives(self, held, tmp_path: Path) -> None:
        export_onnx(held, tmp_path / "net.onnx", derivatives=["d0", "d1"])
        proto = onnx.load(tmp_path / "net.onnx")
        texts, figures = metadata(proto), held.certificate.estimated
        expected = [figures["output_error_upper_99"], figures["derivative_error_upper_99"]["d0"], UNBOUNDED]
        names = [v.name for v in proto.graph.output]
        assert list(json.loads(texts["hrt.error_upper_99"]).items()) == list(zip(names, expected, strict=True))
        carried = json.loads(texts["hrt.certificate"])
        for section, field in (
            ("measured", "derivative_error"),
            ("measured", "derivative_runtime_error"),
            ("estimated", "derivative_error_upper_99"),
        ):
            assert carried[section][field] == getattr(held.certificate, section)[field]
        assert list(carried["context"]["outputs"].values()) == [VALUE, "d0", UNBOUNDED]

    def test_onnx_metadata_keeps_to_the_names_of_the_graph(self) -> None:
        """An output that is an input, and one that comes twice, have other names there."""
        program = replace(linear_program(torch.ones(3, 3)), outputs=("y", "x", "y"))
        certificate = hrt.Certificate(1e-3, "output", (), {}, {"output_error_upper_99": 1e-4})
        proto = to_onnx(hrt.CompressedModel(program, certificate))
        names = {v.name: "0.0001 of 2 outputs together" for v in proto.graph.output}
        assert json.loads(metadata(proto)["hrt.error_upper_99"]) == names and len(names) == 3

    @pytest.mark.parametrize("backend", ["onnxruntime", "hrt"])
    def test_tritons_configuration(self, held, alone, backend, tmp_path: Path) -> None:
        for model, name, last in ((held, "held", "d0"), (alone, "alone", None)):
            folder = hrt.export_repository(model, tmp_path, name=name, backend=backend, derivatives=["d1", "d0"])
            config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
            found = json.loads(config.parameters["hrt.error_upper_99"].string_value)
            expected = model.certificate.estimated["derivative_error_upper_99"][last] if last else UNBOUNDED
            assert list(found) == [t.name for t in config.output]
            assert list(found.values())[1:] == [UNBOUNDED, expected]

    @pytest.mark.parametrize("server", ["mlserver", "ray"])
    def test_the_artifact_that_is_served(self, held, server, tmp_path: Path, capsys) -> None:
        folder = hrt.export_repository(held, tmp_path, name="m", server=server, derivatives=["d0d1", "d1"])
        served = hrt.load(folder / "model.hrt")
        _, first, second = served.program.outputs
        assert limits(served.certificate, [first, second]) == {
            first: held.certificate.estimated["derivative_error_upper_99"]["d0d1"],
            second: UNBOUNDED,
        }
        assert served.certificate == held.differentiated(["d0d1", "d1"]).certificate
        assert main(["info", str(folder / "model.hrt")]) == 0
        out = capsys.readouterr().out
        assert f"not bounded: {second}; the tolerance was not asked for" in out and "d0d1: measured" in out
        assert "not bounded" not in held.report()

    @pytest.mark.parametrize(
        "value, text",
        [(1e-4, "0.0001 of 2 outputs together"), (None, UNBOUNDED), (math.inf, UNBOUNDED), (math.nan, UNBOUNDED)],
    )
    def test_a_limit_of_several_outputs_is_not_said_of_one_and_what_is_no_limit_of_none(self, value, text) -> None:
        """A small output beside a large one may miss by far more than both together do."""
        figures = {"output_error_upper_99": value, "derivative_error_upper_99": {"d0": value}}
        outputs = {"a": VALUE, "b": VALUE, "d0_a": "d0", "d0_b": "d0"}
        certificate = hrt.Certificate(1e-3, "output", (), {}, figures, {}, {"outputs": {**outputs, "d1_a": UNBOUNDED}})
        assert limits(certificate, [*outputs, "d1_a"]) == {**dict.fromkeys(outputs, text), "d1_a": UNBOUNDED}
