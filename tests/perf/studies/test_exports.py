"""The table of exports: what bytes go to, what is a fault, what it says of what is missing, where data are from."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch

import hrt
from hrt.export.onnx.check import open_runtime
from hrt.export.onnx.exporter import to_onnx
from hrt.perf.networks import qlknn
from hrt.perf.networks.deeponet import SENSORS, deeponet_inputs, train_deeponet
from hrt.perf.studies import exports, portable
from hrt.perf.studies.portable import DEFAULT, OPENVINO, ORT, WEB, Network, measure, parts_of

from helpers import MIXED, random_hmatrix
from models import linear_model, mixed_model


class TestPartsOfAFile:
    @pytest.mark.parametrize("kind", ["network", "matrix"])
    def test_every_byte_is_counted_once(self, kind):
        matrix = random_hmatrix(3, 120, 150, depth=4, storages=MIXED)
        proto = to_onnx(mixed_model() if kind == "network" else linear_model(matrix))
        parts = parts_of(proto)
        assert sum(parts.values()) == len(proto.SerializeToString())
        floats = [t for t in proto.graph.initializer if t.data_type != onnx.TensorProto.INT64]
        assert parts["numbers"] == sum(len(t.raw_data) for t in floats)
        names = "".join(s for n in proto.graph.node for s in (n.name, *n.input, *n.output))
        assert parts["node names"] == len(names.encode())
        assert all(v >= 0 for v in parts.values()), parts

    def test_each_part_is_what_is_gone_without_it(self):
        """Taken away field by field; the graph's own length prefix may lose a byte or two."""
        proto = to_onnx(linear_model(random_hmatrix(3, 120, 150, depth=4)))
        parts, size = parts_of(proto), proto.ByteSize()
        for field, names in (("metadata_props", ["certificate"]), ("node", ["node names", "node overhead"])):
            without = onnx.ModelProto()
            without.CopyFrom(proto)
            without.ClearField("metadata_props") if field == "metadata_props" else without.graph.ClearField("node")
            assert 0 <= size - without.ByteSize() - sum(parts[n] for n in names) <= 2


def row(**changes) -> portable.Row:
    fields = {
        "network": "net", "storage": "auto", "tol": 1e-3, "promise": "output", "dense_nbytes": 400, "nbytes": 90,
        "hrt_bytes": 100, "hrt_header": 10, "onnx_bytes": 105, "parts": {"numbers": 80, "node names": 25},
        "valid": "yes",
        "agreement": {ORT: {1: 1e-7, 7: 1e-6}}, "error": {"predict": 9e-4, ORT: 9e-4}, "missing": {}, "refused": {},
        "default_precision": "-", "seconds": 1.0,
    }  # fmt: skip
    return portable.Row(**{**fields, **changes})


class TestFaults:
    def test_none_where_all_holds(self):
        assert row().faults() == []

    @pytest.mark.parametrize(
        "changes, text",
        [
            ({"agreement": {ORT: {1: 1e-7, 7: 2e-5}}}, "onnxruntime differs from predict by 2.00e-05"),
            ({"agreement": {WEB: {1: float("nan"), 7: 0.0}}}, "onnxruntime-web differs from predict by nan"),
            ({"error": {"predict": 1.1e-3}}, "predict differs from the dense network by 1.10e-03"),
            ({"error": {OPENVINO: float("nan")}}, "openvino f32 differs from the dense network by nan"),
            ({"refused": {WEB: "onnxruntime-web cannot run it"}}, "onnxruntime-web cannot run it"),
            ({"valid": "no such op"}, "not valid ONNX: no such op"),
        ],
    )
    def test_what_breaks_a_promise(self, changes, text):
        (fault,) = row(**changes).faults()
        assert text in fault

    def test_openvinos_default_is_shown_only(self):
        shown = row(agreement={DEFAULT: {1: 1e-2}}, error={DEFAULT: 1e-2})
        assert shown.faults() == []


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(exports, "QUICK", exports.Options(rows=800, points=128, foil="xxsmall", steps=20))


class TestTheCommand:
    def test_prints_and_writes_all_figures(self, small, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("HRT_WEB", str(tmp_path / "nowhere"))  # Node has its own tests
        found = tmp_path / "made" / "found.json"
        arguments = ["--quick", "--only", "log-kernel", "--json", str(found), "--keep", str(tmp_path / "files")]
        assert exports.main(arguments) == 0
        said = capsys.readouterr().out
        assert "NOT RUN  onnxruntime-web: " in said and "python -m hrt.export.other_runtimes.web" in said
        rows = json.loads(found.read_text())["rows"]
        assert [r["storage"] for r in rows] == ["float32", "auto"]
        for r in rows:
            assert set(r["agreement"]) == {ORT, OPENVINO, DEFAULT} and set(r["agreement"][ORT]) == {"1", "7", "1024"}
            assert 0 < r["error"][ORT] <= 1e-3 and r["valid"] == "yes"
            assert r["onnx_bytes"] == (tmp_path / "files" / f"log-kernel-{r['storage']}.onnx").stat().st_size

    def test_says_how_to_get_a_network_that_is_missing(self, small, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv(qlknn.VARIABLE, str(tmp_path))
        assert exports.main(["--quick", "--only", "qlknn"]) == 0
        said = capsys.readouterr().out
        assert "qlknn" in said and "pip install --no-deps fusion-surrogates==0.4.7" in said

    def test_a_wrong_graph_is_status_1(self, small, tmp_path, capsys, monkeypatch):
        wrong = linear_model(torch.randn(128, 128))
        monkeypatch.setattr(portable.onnx, "load", lambda path: to_onnx(wrong))
        monkeypatch.setattr(portable, "RUNTIMES", {ORT: portable.RUNTIMES[ORT]})
        monkeypatch.setattr(exports, "RUNTIMES", portable.RUNTIMES)
        assert exports.main(["--quick", "--only", "log-kernel"]) == 1
        assert "BROKEN   log-kernel, auto: onnxruntime differs from predict by" in capsys.readouterr().out

    def test_help_teaches(self, capsys):
        with pytest.raises(SystemExit):
            exports.main(["--help"])
        said = capsys.readouterr().out
        for text in (
            "--quick",
            "python -m hrt.export.other_runtimes.web",
            "pip install --no-deps neuralfoil==0.3.3",
            "limit 1.10",
        ):
            assert text in said


def test_a_file_that_is_too_large_is_reported(capsys):
    console = exports.Console(width=200)
    assert exports.show([row(onnx_bytes=200)], {}, console)
    assert "OVER     net, auto: .onnx is 2.00 times .hrt; beside 80 bytes of numbers" in capsys.readouterr().out


def test_a_runtime_that_refuses_the_graph_is_no_success(capsys):
    assert not exports.show([row(refused={WEB: "onnxruntime-web cannot run it"})], {}, exports.Console(width=200))
    said = capsys.readouterr().out
    assert "REFUSED, see below" in said and "BROKEN   net, auto: onnxruntime-web cannot run it" in said


def test_the_frobenius_bound_is_seen_through_unit_vectors(tmp_path):
    """What is printed for an operator is the certificate's own figure, from the answers alone."""
    matrix = exports.log_kernel(96)
    network = exports.operator(lambda n: matrix, dataclasses.replace(exports.QUICK, points=96))
    found = measure("op", network, "float32", 1e-3, tmp_path)
    h = next(iter(hrt.load(tmp_path / "op-float32.hrt").program.constants.values()))
    error = np.linalg.norm(h.to_dense().numpy() - matrix.astype(np.float32)) / np.linalg.norm(matrix)
    assert found.promise == "layers"
    assert found.error["predict"] == pytest.approx(error, rel=1e-2) and found.error[ORT] == pytest.approx(
        error, rel=1e-2
    )


def test_rows_that_say_nothing_come_last():
    model = linear_model(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    x = np.array([[0, 0], [1, 0], [2, 3], [0, 4], [5, 6]], dtype=np.float32)
    (found,) = portable._telling(model, (x,))
    assert np.array_equal(found, x[[2, 4, 1, 3, 0]])


class TestQlknn:
    README = """## Input ranges

- QLKNN11D:

  ```
  {%s}
  ```

- QLKNN7D:

  ```
  {'Ati': {'min': 5.0, 'max': 150.0}}
  ```
"""

    @pytest.fixture
    def folder(self, tmp_path, monkeypatch):
        lines = ",\n  ".join(f"'{name}': {{'min': -{k + 1}.0, 'max': {k}.5}}" for k, name in enumerate(qlknn.INPUTS))
        (tmp_path / qlknn.RANGES).write_text(self.README % lines)
        onnx.save(to_onnx(linear_model(torch.randn(8, 10))), str(tmp_path / qlknn.MODEL))
        monkeypatch.setenv(qlknn.VARIABLE, str(tmp_path))
        return tmp_path

    def test_ranges_are_those_of_the_authors(self, folder):
        box = qlknn.qlknn_box()
        assert box.low == tuple(-k - 1.0 for k in range(10)) and box.high == tuple(k + 0.5 for k in range(10))
        x = qlknn.qlknn_inputs(4000, 3)
        assert x.shape == (4000, 10) and x.dtype == torch.float32
        width = np.subtract(box.high, box.low)
        assert (np.abs(x.numpy().min(0) - box.low) <= 0.01 * width).all()
        assert (np.abs(x.numpy().max(0) - box.high) <= 0.01 * width).all()
        assert not torch.equal(x, qlknn.qlknn_inputs(4000, 4))

    def test_other_inputs_are_refused(self, folder):
        with pytest.raises(ValueError, match=r"Found ranges of \('Ati',\) for QLKNN7D"):
            qlknn.qlknn_box("QLKNN7D")
        with pytest.raises(ValueError, match=r"Found ranges of \(\) for nothing"):
            qlknn.qlknn_box("nothing")

    def test_the_file_is_the_dense_network(self, folder):
        network = exports.qlknn(exports.Options(rows=50))
        (x,) = network.rows(5, 1)
        session = open_runtime(str(folder / qlknn.MODEL))
        (expected,) = session.run(None, {session.get_inputs()[0].name: x})
        assert np.array_equal(network.dense((x,))[0], expected) and network.source == str(folder / qlknn.MODEL)


class TestDeepONet:
    def test_learns(self):
        _, before = train_deeponet(steps=1)
        net, after = train_deeponet(steps=150)
        assert after < 0.5 * before and after < 0.3
        f, y = deeponet_inputs(4, 0)
        assert net(f, y).shape == (4, 1) and f.shape == (4, SENSORS)
        with torch.no_grad():
            assert torch.allclose(net(f, y)[:, 0], net.on_grid(f, y).diagonal(), atol=1e-5)

    def test_a_seed_fixes_it(self):
        a, b, c = (train_deeponet(seed, steps=3)[0].state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(a[k], b[k]) for k in a) and not torch.equal(a["branch.0.weight"], c["branch.0.weight"])


def test_the_network_is_judged_on_rows_that_calibration_never_saw():
    network = exports.pinn(exports.Options(rows=300))
    assert isinstance(network, Network)
    known = {tuple(r) for r in np.asarray(network.calibration)}
    assert not known & {tuple(r) for r in network.rows(1024, 77)[0]}
    assert not known & {tuple(r) for r in network.rows(4096, 2024)[0]}
