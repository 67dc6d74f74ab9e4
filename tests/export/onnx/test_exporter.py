"""ONNX export: every network of the zoo, every storage type and ordering, against float64 and predict."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import hrt
from hrt.capture.torch_export import capture
from hrt.cli.main import main
from hrt.errors import HrtError
from hrt.export.onnx.check import check_onnx, open_runtime
from hrt.export.onnx.exporter import OPSETS, export_onnx, to_onnx
from hrt.program.program import Node, Program, Value

from helpers import hierarchical, random_hmatrix
from models import linear_model, mixed_model


def model_of(program) -> hrt.CompressedModel:
    return hrt.CompressedModel(program, hrt.Certificate(1e-2, "layers", ()))


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset(opset):
    model = mixed_model()
    proto = to_onnx(model, opset)
    assert proto.opset_import[0].version == opset
    assert max(check_onnx(proto, model).values()) <= 1e-5
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2), torch.nn.GELU("tanh"))
    program = capture(net, [torch.zeros(2, 3)])
    check_onnx(to_onnx(model_of(program), opset), model_of(program))


def test_narrow_weights_keep_their_bytes():
    h = random_hmatrix(1, 200, 200, storages=(torch.int8,), ordered=False)
    proto = to_onnx(linear_model(h))
    held = sum(len(t.raw_data) for t in proto.graph.initializer)
    assert held <= 1.1 * h.nbytes, "float32 scales and indices are all that comes on top"
    kinds = {t.data_type for t in proto.graph.initializer if len(t.raw_data) > 100}
    assert onnx.TensorProto.INT8 in kinds


def test_the_file_carries_names_batch_and_certificate(tmp_path):
    model = mixed_model()
    export_onnx(model, tmp_path / "net.onnx")
    proto = onnx.load(tmp_path / "net.onnx")
    assert [v.name for v in proto.graph.input] == [v.name for v in model.program.inputs]
    assert all(v.type.tensor_type.shape.dim[0].dim_param == "batch" for v in proto.graph.input)
    properties = {p.key: p.value for p in proto.metadata_props}
    assert float(properties["hrt.tol"]) == model.certificate.tol and "layers" in properties["hrt.certificate"]


def test_outputs_keep_their_names_whatever_a_layer_is_made_of():
    for ordered in (False, True):
        h = random_hmatrix(3, 40, 30, ordered=ordered)
        model = linear_model(h)
        proto = to_onnx(model)
        assert [v.name for v in proto.graph.output] == ["y"]
        check_onnx(proto, model)
    twice = Program((Value("x", (30,)),), model.program.nodes, ("y", "x", "y"), model.program.constants)
    proto = to_onnx(model_of(twice))
    names = [v.name for v in proto.graph.output]
    assert names[0] == "y" and len(set(names)) == 3 and "x" not in names
    check_onnx(proto, model_of(twice))


def test_external_data_stands_beside_the_graph(tmp_path):
    model = linear_model(torch.randn(64, 64))
    export_onnx(model, tmp_path / "net.onnx", external=True)
    assert (tmp_path / "net.onnx.data").stat().st_size >= 64 * 64 * 4
    session = open_runtime(str(tmp_path / "net.onnx"))
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    assert np.allclose(y, model.predict(x), rtol=1e-5, atol=1e-5)


def test_a_graph_that_one_message_cannot_hold_is_checked_and_written_in_two_files(tmp_path, monkeypatch):
    model = mixed_model()
    monkeypatch.setattr("hrt.export.onnx.check.MESSAGE_BYTES", 100)
    export_onnx(model, tmp_path / "net.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    written = onnx.load(tmp_path / "net.onnx")
    assert max(check_onnx(written, model).values()) <= 1e-5
    assert [t.name for t in written.graph.initializer] == [t.name for t in to_onnx(model).graph.initializer]


def test_external_data_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    model = linear_model(torch.randn(64, 64))
    export_onnx(model, tmp_path / "net.onnx", external=True)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(before) == {"net.onnx", "net.onnx.data"}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hrt.export.onnx.exporter.os.fsync", full)
    with pytest.raises(hrt.InputError, match="No space left"):
        export_onnx(linear_model(torch.randn(64, 64)), tmp_path / "net.onnx", external=True)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_external_data_goes_where_a_link_leads(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    model = linear_model(torch.randn(64, 64))
    export_onnx(model, tmp_path / "b" / "real.onnx")
    (tmp_path / "a" / "link.onnx").symlink_to(tmp_path / "b" / "real.onnx")
    export_onnx(model, tmp_path / "a" / "link.onnx", external=True)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["real.onnx", "real.onnx.data"]
    assert open_runtime(str(tmp_path / "b" / "real.onnx")).get_inputs()


@pytest.mark.parametrize("inputs", [np.zeros((0, 8)), np.full((2, 8), np.nan), "abc"])
def test_a_check_on_nothing_is_refused(tmp_path, inputs):
    with pytest.raises(hrt.InputError, match=r"Found (no rows|inputs that are no numbers)"):
        export_onnx(linear_model(torch.randn(8, 8)), tmp_path / "n.onnx", inputs=inputs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mixed", "burgers_like"])
def test_a_function_per_layer(name, tmp_path):
    if name == "mixed":
        model = mixed_model()
    else:
        net = torch.nn.Sequential(torch.nn.Linear(2, 30), torch.nn.Tanh(), torch.nn.Linear(30, 1))
        model = model_of(hierarchical(capture(net, [torch.zeros(2, 2)]), 3))
    plain, proto = to_onnx(model), to_onnx(model, functions=True)
    layers = [n for n in proto.graph.node if n.domain == "hrt"]
    linear = [n for n in model.program.nodes if n.op == "linear"]
    assert len(layers) == len(proto.functions) == len(linear) and len(proto.graph.node) < len(plain.graph.node)
    assert {n.op_type for n in layers} == {f.name for f in proto.functions}
    assert all(n.domain == "" for f in proto.functions for n in f.node)
    assert max(check_onnx(proto, model).values()) <= 1e-5
    export_onnx(model, tmp_path / "net.onnx", functions=True)
    assert len(onnx.load(tmp_path / "net.onnx").functions) == len(linear)


def test_a_graph_that_is_wrong_leaves_no_file(tmp_path, monkeypatch):
    model = linear_model(torch.randn(8, 8))
    wrong = linear_model(torch.randn(8, 8))
    monkeypatch.setattr("hrt.export.onnx.exporter.to_onnx", lambda *_, **__: to_onnx(wrong))
    with pytest.raises(hrt.HrtError, match="ONNX Runtime differs from predict"):
        export_onnx(model, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported(tmp_path):
    model = linear_model(torch.randn(8, 8))
    with pytest.raises(hrt.InputError, match="Found opset 17"):
        export_onnx(model, tmp_path / "net.onnx", opset=17)
    with pytest.raises(hrt.InputError, match="Found the derivative 'd8'"):
        export_onnx(model, tmp_path / "net.onnx", derivatives=["d8"])
    with pytest.raises(hrt.InputError, match="does not exist"):
        export_onnx(model, tmp_path / "nowhere" / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_onnxruntime_backend_predicts(tmp_path):
    model = mixed_model()
    model.save(tmp_path / "m.hrt")
    served = hrt.load(tmp_path / "m.hrt", backend="onnxruntime")
    rng = np.random.default_rng(0)
    for batch in (0, 1, 3, 257):
        x = tuple(rng.standard_normal((batch, *v.shape)) for v in model.program.inputs)
        for a, b in zip(served.predict(x), model.predict(x), strict=True):
            assert a.shape == b.shape and a.dtype == b.dtype
            assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b)
    with pytest.raises(hrt.BackendError, match="runs on the CPU"):
        hrt.load(tmp_path / "m.hrt", backend="onnxruntime", device="cuda")


def test_the_command_line_exports(tmp_path, capsys):
    mixed_model().save(tmp_path / "m.hrt")
    arguments = ["export", str(tmp_path / "m.hrt"), "-o", str(tmp_path / "m.onnx")]
    assert main(arguments) == 0 and "checked by ONNX Runtime" in capsys.readouterr().out
    assert main(arguments) == 2 and "exists and was kept" in capsys.readouterr().err
    assert main([*arguments, "--force", "--opset", "3"]) == 2 and "Found opset 3" in capsys.readouterr().err
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"), full_check=True)


def test_int8_weights_do_not_make_the_runtime_quantize_activations():
    """A dense int8 layer on (batch, rows, n): through DequantizeLinear ONNX Runtime would answer 1e-3 off."""
    dense = torch.randint(-127, 128, (64, 64), dtype=torch.int8)
    scale = torch.rand(64).bfloat16()
    h = hrt.HMatrix((64, 64), (hrt.Leaf(0, 64, 0, 64, dense=dense, scale=scale),))
    nodes = (Node("y", "linear", ("x", "w"), (6, 64), {}),)
    model = model_of(Program((Value("x", (6, 64)),), nodes, ("y",), {"w": h}))
    assert max(check_onnx(to_onnx(model), model).values()) <= 1e-6


def test_a_row_whose_terms_cancel_is_no_wrong_graph_but_a_wrong_graph_is():
    torch.manual_seed(0)  # two of 25 seeds happen upon a row where float32 in torch is exact to its last digits
    layer = nn.Linear(256, 1, bias=False)
    w = layer.weight.detach().double()[0]
    x = torch.rand(256, dtype=torch.float64) + 1
    x = (x - w * ((x @ w) * (1 - 1e-6) / (w @ w))).float()[None]
    model = hrt.compress(layer, inputs=torch.rand(64, 256), tol=1e-6)
    limit = np.finfo(np.float32).eps * float((x[0].double() * w).abs().sum())
    assert abs(float(layer(x).detach())) < limit * 1e4, "the terms of this row must cancel"
    check_onnx(to_onnx(model), model, x)
    other = hrt.compress(nn.Linear(256, 1, bias=False), inputs=torch.rand(64, 256), tol=1e-6)
    with pytest.raises(HrtError, match="differs from predict"):
        check_onnx(to_onnx(other), model, x)
