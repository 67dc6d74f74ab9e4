"""ONNX in: what hrt exports it reads back, what others export it reads or refuses by name."""

from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import hrt
from hrt.capture.onnx.file import read_onnx
from hrt.capture.torch_export import capture
from hrt.export.onnx.check import open_runtime
from hrt.export.onnx.exporter import export_onnx, to_onnx

from zoo import ZOO

FLOAT = TensorProto.FLOAT


def saved(path, nodes, constants, inputs=(("x", ("batch", 6)),), outputs=("y",), opset=20):
    """A file with these nodes; constants by name as arrays."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, FLOAT, list(s)) for n, s in inputs],
        [helper.make_tensor_value_info(o, FLOAT, ["batch", "m"]) for o in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(proto, str(path))
    return path


def node(op, inputs, output="y", **attributes):
    return helper.make_node(op, inputs, [output], **attributes)


def same_as_runtime(path, *inputs):
    session = open_runtime(str(path))
    feed = {i.name: x.astype(np.float32) for i, x in zip(session.get_inputs(), inputs, strict=True)}
    program = read_onnx(path)
    for y, e in zip(program.run([torch.from_numpy(x) for x in inputs]), session.run(None, feed), strict=True):
        assert tuple(y.shape) == e.shape and np.allclose(y.numpy(), e, rtol=1e-5, atol=1e-5)
    return program


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_what_is_exported_is_read_back(name, tmp_path):
    inputs = ZOO[name].inputs(5)
    program = capture(ZOO[name].build(torch.float64), inputs)
    path = tmp_path / "net.onnx"
    onnx.save(to_onnx(hrt.CompressedModel(program, hrt.Certificate(1e-2, "layers", ()))), str(path))
    again = read_onnx(path)
    for a, b in zip(again.run(inputs), program.run(inputs), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    empty = any(not c.numel() for c in program.constants.values())  # is written as rows of zeros
    assert empty or len(again.weights) == len(program.weights)


def test_gemm_with_factors_and_transposes(tmp_path):
    nodes = [
        node("Gemm", ["x", "a", "c"], "u", alpha=0.5, beta=2.0, transB=1),
        node("Relu", ["u"], "v"),
        node("Gemm", ["v", "b"]),
    ]
    program = same_as_runtime(
        saved(tmp_path / "n.onnx", nodes, {"a": random(4, 6), "b": random(4, 3), "c": random(4)}),
        random(5, 6).astype(np.float64),
    )
    assert [n.op for n in program.nodes] == ["linear", "relu", "linear"]


def test_matmul_and_add_become_one_layer(tmp_path):
    nodes = [node("MatMul", ["x", "a"], "u"), node("Add", ["u", "c"])]
    program = same_as_runtime(
        saved(tmp_path / "n.onnx", nodes, {"a": random(6, 4), "c": random(4)}), random(5, 6) * 1.0
    )
    assert [(n.op, len(n.inputs)) for n in program.nodes] == [("linear", 3)]


@pytest.mark.parametrize("space", [(7,), (4, 5)])
def test_pointwise_convolutions_are_layers(tmp_path, space):
    weight = random(3, 6, *[1] * len(space))
    nodes = [node("Conv", ["x", "w", "c"])]
    path = saved(tmp_path / "n.onnx", nodes, {"w": weight, "c": random(3)}, [("x", ("batch", 6, *space))])
    program = same_as_runtime(path, random(2, 6, *space).astype(np.float64))
    assert len(program.weights) == 1


def test_shapes_slices_and_constants(tmp_path):
    nodes = [
        node("Reshape", ["x", "two"], "r"),
        node("Transpose", ["r"], "t", perm=[0, 2, 1]),
        helper.make_node("Split", ["t", "sizes"], ["p", "q"], axis=1),
        node("Flatten", ["p"], "f"),
        node("Unsqueeze", ["f", "one"], "w"),
        node("Squeeze", ["w", "one"], "s"),
        node("Slice", ["s", "zero", "three", "one", "two_steps"], "l"),
        node("Sqrt", ["four"], "root"),
        node("Mul", ["l", "root"], "m"),
        node("ReduceMean", ["q", "last"], "n", keepdims=0),
        node("Concat", ["m", "n"], axis=-1),
    ]
    index = {k: np.array(v, np.int64) for k, v in {"two": [0, 2, 3], "sizes": [2, 1], "one": [1], "last": [-1]}.items()}
    index |= {"zero": np.array([0]), "three": np.array([3]), "two_steps": np.array([2])}
    program = same_as_runtime(
        saved(tmp_path / "n.onnx", nodes, {**index, "four": np.array([4.0], np.float32)}),
        random(3, 6).astype(np.float64),
    )
    assert all(n.op != "sqrt" for n in program.nodes), "what depends on constants alone is computed at once"


def test_constant_indices_are_slices(tmp_path):
    nodes = [
        node("Gather", ["x", "some"], "s", axis=1),
        node("Gather", ["x", "run"], "r", axis=-1),
        node("Gather", ["x", "one"], "o", axis=1),
        node("Unsqueeze", ["o", "axis"], "u"),
        node("Concat", ["s", "r", "u"], axis=1),
    ]
    index = {"some": np.array([3, 0, 1, -1]), "run": np.array([1, 2]), "one": np.array(4), "axis": np.array([1])}
    same_as_runtime(saved(tmp_path / "n.onnx", nodes, index), random(3, 6).astype(np.float64))


def test_a_file_is_compressed_exported_and_run(tmp_path):
    """The whole way: ONNX in, compressed under a bound, saved, loaded, ONNX out, ONNX Runtime."""
    torch.manual_seed(0)
    sizes = [10, 64, 64, 64, 8]
    layers = []
    for a, b in pairwise(sizes):
        layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers[:-1])
    program = capture(net, [torch.zeros(2, 10)])
    export_onnx(hrt.CompressedModel(program, hrt.Certificate(1e-3, "layers", ())), tmp_path / "in.onnx")
    x = torch.rand(2000, 10, generator=torch.Generator().manual_seed(1))
    model = hrt.compress(tmp_path / "in.onnx", inputs=x, tol=1e-2, progress=False)
    assert model.nbytes < model.dense_nbytes
    fresh = torch.rand(500, 10, generator=torch.Generator().manual_seed(2))
    y, exact = model.predict(fresh), net(fresh).detach()
    assert float((y - exact).norm() / exact.norm()) <= 1.2e-2
    model.save(tmp_path / "net.hrt")
    hrt.export_onnx(tmp_path / "net.hrt", tmp_path / "out.onnx")
    session = open_runtime(str(tmp_path / "out.onnx"))
    (exported,) = session.run(None, {session.get_inputs()[0].name: fresh.numpy()})
    assert np.linalg.norm(exported - y.numpy()) <= 1e-5 * np.linalg.norm(y.numpy())


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(hrt.CaptureError, match=r"nothing\.onnx cannot be read as ONNX"):
        read_onnx(tmp_path / "nothing.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x07not a protobuf")
    with pytest.raises(hrt.CaptureError, match="cannot be read as ONNX"):
        hrt.compress(tmp_path / "bad.onnx", tol=1e-2, progress=False)
    with pytest.raises(hrt.CaptureError, match=r"Expected a \.onnx file"):
        hrt.compress("net.bin", tol=1e-2, progress=False)
    old = saved(tmp_path / "old.onnx", [node("Relu", ["x"])], {}, opset=9)
    with pytest.raises(hrt.CaptureError, match=r"opset 9\. Expected 11 or newer"):
        read_onnx(old)
    loose = saved(tmp_path / "loose.onnx", [node("Relu", ["x"])], {}, [("x", ("batch", "n"))])
    with pytest.raises(hrt.CaptureError, match="-1: any"):
        read_onnx(loose)


def test_external_data_stays_in_its_folder(tmp_path):
    export_onnx(
        hrt.CompressedModel(capture(torch.nn.Linear(64, 64), [torch.zeros(2, 64)]), hrt.Certificate(1.0, "layers", ())),
        tmp_path / "n.onnx",
        external=True,
    )
    assert len(read_onnx(tmp_path / "n.onnx").weights) == 1
    proto = onnx.load(tmp_path / "n.onnx", load_external_data=False)
    for t in proto.graph.initializer:
        for entry in t.external_data:
            if entry.key == "location":
                entry.value = "../elsewhere.data"
    (tmp_path / "inner").mkdir()
    (tmp_path / "elsewhere.data").write_bytes((tmp_path / "n.onnx.data").read_bytes())
    onnx.save(proto, str(tmp_path / "inner" / "n.onnx"))
    with pytest.raises(hrt.CaptureError, match="cannot be read as ONNX"):
        read_onnx(tmp_path / "inner" / "n.onnx")
    (tmp_path / "n.onnx.data").unlink()
    with pytest.raises(hrt.CaptureError, match="cannot be read as ONNX"):
        read_onnx(tmp_path / "n.onnx")


def test_a_file_of_functions_is_read_like_one_without(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 2))
    model = hrt.CompressedModel(capture(net, [torch.zeros(2, 5)]), hrt.Certificate(1.0, "layers", ()))
    export_onnx(model, tmp_path / "plain.onnx")
    export_onnx(model, tmp_path / "functions.onnx", functions=True)
    plain, functions = (read_onnx(tmp_path / f"{name}.onnx") for name in ("plain", "functions"))
    x = torch.randn(4, 5, dtype=torch.float64)
    assert [n.op for n in functions.nodes] == [n.op for n in plain.nodes]
    assert torch.equal(functions.run([x])[0], plain.run([x])[0])


@pytest.mark.parametrize(
    "nodes, constants",
    [
        # constants that would take each other's names
        (
            [node("Gemm", ["x", "W", "b"], "fc", transB=1), node("Add", ["fc", "fc.bias"])],
            {"W": random(6, 6), "b": random(6), "fc.bias": 3 * random(6)},
        ),
        (
            [node("Add", ["x", "fc.bias"], "a"), node("Gemm", ["a", "W", "b"], "fc", transB=1), node("Tanh", ["fc"])],
            {"W": random(6, 6), "b": random(6), "fc.bias": 3 * random(6)},
        ),
        ([node("MatMul", ["x", "W"], "a"), node("Einsum", ["a", "W"], equation="bi,ij->bj")], {"W": random(6, 6)}),
        (
            [node("Gemm", ["x", "W", "b"], "fc"), node("Tanh", ["fc"], "fc.bias"), node("Add", ["fc", "fc.bias"])],
            {"W": random(6, 6), "b": random(6)},
        ),
    ],
)
def test_constants_keep_their_numbers_whatever_they_are_called(tmp_path, nodes, constants):
    same_as_runtime(saved(tmp_path / "n.onnx", nodes, constants), np.random.default_rng(1).standard_normal((5, 6)))


@pytest.mark.parametrize(
    "nodes, constants, message",
    [
        ([node("LSTM", ["x", "a", "a"], name="cell", hidden_size=4)], {"a": random(6, 4)}, r"'cell' \(LSTM\)"),
        ([node("Transpose", ["x"], perm=[1, 0])], {}, "it moves the batch"),
        ([node("Gemm", ["x", "x"], transB=1)], {}, "constant matrix"),
        ([node("ReduceSum", ["x"])], {}, "the batch too"),
        ([node("Concat", ["x", "x"], axis=0)], {}, "samples would depend on each other"),
        ([node("Add", ["x", "a"])], {"a": random(6, 4)}, "do not fit"),
        ([node("Identity", ["a"])], {"a": random(6, 4)}, "do not depend on an input"),
        (
            [node("Shape", ["x"], "n", end=1), node("Cast", ["n"], "f", to=FLOAT), node("Add", ["x", "f"])],
            {},
            "batch's size",
        ),
        ([node("NonZero", ["x"])], {}, r"\(NonZero\): the op table has nothing for it"),
        ([node("Cast", ["x"], "i", to=TensorProto.STRING), node("Cast", ["i"], to=FLOAT)], {}, "casts to STRING"),
        ([node("Dropout", ["x", "r", "t"])], {"r": np.float32(0.5), "t": np.array(True)}, "training mode"),
        ([node("RandomNormalLike", ["c"], "n"), node("Add", ["x", "n"])], {"c": random(6)}, "draws random numbers"),
        ([node("Einsum", ["x", "x"], equation="bi,cj->bj")], {}, "samples depend on each other"),
        ([node("Einsum", ["x", "x"], equation="bi,ci->bc")], {}, "samples depend on each other"),
        ([node("Einsum", ["R", "x"], equation="cb,bi->ci")], {"R": random(3, 3)}, "on how many there are"),
        ([node("Add", ["x", "c"])], {"c": random(3, 6)}, "samples depend on each other"),
        ([node("Reshape", ["x", "s"])], {"s": np.array([3, 6])}, "the batch is not kept"),
    ],
)
def test_what_cannot_be_said_is_refused_by_name(tmp_path, nodes, constants, message):
    path = saved(tmp_path / "n.onnx", nodes, constants)
    with pytest.raises(hrt.CaptureError, match=message):
        read_onnx(path)


def test_operators_of_other_domains_and_inputs_of_other_types_are_refused(tmp_path):
    path = saved(tmp_path / "n.onnx", [node("Tanh", ["x"], domain="my")], {})
    proto = onnx.load(path)
    proto.opset_import.append(helper.make_opsetid("my", 1))
    onnx.save(proto, path)
    with pytest.raises(hrt.CaptureError, match="of the domain 'my'"):
        read_onnx(path)
    body = helper.make_function("my", "Tanh", ["a"], ["z"], [node("Relu", ["a"], "z")], [helper.make_opsetid("", 20)])
    proto.functions.append(body)
    onnx.save(proto, path)
    x = np.random.default_rng(0).standard_normal((4, 6))
    assert np.array_equal(read_onnx(path).run([torch.from_numpy(x)])[0], np.maximum(x, 0))
    proto = onnx.load(saved(tmp_path / "i.onnx", [node("Identity", ["x"])], {}))
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(proto, tmp_path / "i.onnx")
    assert read_onnx(tmp_path / "i.onnx").inputs[0].kind == "int"
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.STRING
    onnx.save(proto, tmp_path / "i.onnx")
    with pytest.raises(hrt.CaptureError, match=r"of type STRING\. Expected real numbers"):
        read_onnx(tmp_path / "i.onnx")
