"""ONNX files that are captured as torch captures networks: layers, batches that move, sizes, whole numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import hrt
from hrt.capture.onnx.file import opened, read_onnx
from hrt.export.onnx import open_runtime

ROWS = 3
AXIS = np.array(1)
INTS, FLOATS = TensorProto.INT64, TensorProto.FLOAT
Node = tuple[Any, ...]  # operator, operands, attributes; the last gives the output


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def places(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def file_of(
    path: Path, cases: Mapping[str, Sequence[Node]], shapes: Mapping[str, tuple], opset: int = 20, kind: int = FLOATS
) -> Path:
    """A file of an output for every case. "<": what the node before gave.  arrays: constants.  None: left out."""
    nodes, constants = [], []
    for case, steps in cases.items():
        for k, (op, operands, *attributes) in enumerate(steps):
            names = []
            for j, value in enumerate(operands):
                if isinstance(value, np.ndarray):
                    constants.append(numpy_helper.from_array(value, f"{case}.{k}.{j}"))
                    value = constants[-1].name
                names.append("" if value is None else f"{case}.{k - 1}" if value == "<" else value)
            output = case if k == len(steps) - 1 else f"{case}.{k}"
            nodes.append(helper.make_node(op, names, [output], f"{case}.{k}", **(attributes[0] if attributes else {})))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, ["batch", *s]) for n, s in shapes.items()],
        [helper.make_empty_tensor_value_info(case) for case in cases],
        constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(proto), path)
    return path


def check(path: Path, inputs: Mapping[str, np.ndarray]) -> hrt.program.Program:
    """Answers and the names of inputs and outputs are those of ONNX Runtime."""
    session, program = open_runtime(str(path)), read_onnx(path)
    expected = session.run(None, dict(inputs))
    answers = program.run([torch.from_numpy(x) for x in inputs.values()])
    names = [o.name for o in session.get_outputs()]
    assert program.outputs == tuple(names) and [v.name for v in program.inputs] == [*inputs]
    for name, y, e in zip(names, answers, expected, strict=True):
        assert tuple(y.shape) == e.shape, name
        np.testing.assert_allclose(y.numpy(), e, rtol=2e-5, atol=2e-5, err_msg=name)
    return program


COORDINATES = lambda mode: {"coordinate_transformation_mode": mode}  # noqa: E731
CONV = {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2], "strides": [2, 1]}
IMAGES: dict[str, Sequence[Node]] = {
    "max_pool": [("MaxPool", ["x"], {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [0, 1, 1, 1]})],
    "max_pool_ceil": [("MaxPool", ["x"], {"kernel_shape": [2, 2], "strides": [4, 4], "ceil_mode": 1})],
    "average_pool": [("AveragePool", ["x"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]})],
    "average_pool_counted": [
        ("AveragePool", ["x"], {"kernel_shape": [3, 3], "pads": [0, 1, 1, 1], "count_include_pad": 1})
    ],
    "same_upper": [("MaxPool", ["x"], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"})],
    "global_average": [("GlobalAveragePool", ["x"])],
    "global_max": [("GlobalMaxPool", ["x"])],
    "conv": [("Conv", ["x", numbers(8, 2, 3, 3), numbers(8)], {**CONV, "group": 2}), ("GlobalMaxPool", ["<"])],
    "conv_transpose": [
        ("ConvTranspose", ["x", numbers(4, 2, 3, 3)], {**CONV, "output_padding": [1, 0]}),
        ("GlobalMaxPool", ["<"]),
    ],
    "batch_norm": [
        ("BatchNormalization", ["x", numbers(4), numbers(4), numbers(4), np.abs(numbers(4))], {"epsilon": 1e-3})
    ],
    "instance_norm": [("InstanceNormalization", ["x", numbers(4), numbers(4)])],
    "nearest": [
        ("Resize", ["x", None, np.float32([1, 1, 2, 3])], {"nearest_mode": "floor", **COORDINATES("asymmetric")})
    ],
    "linear": [
        ("Shape", ["x"], {"end": 2}),
        ("Concat", ["<", places(5, 9)], {"axis": 0}),
        ("Resize", ["x", None, None, "<"], {"mode": "linear", **COORDINATES("align_corners")}),
    ],
    "half_pixel": [("Resize", ["x", None, np.float32([1, 1, 2, 2])], {"mode": "linear"})],
    "pad": [("Pad", ["x", places(0, 0, 1, 2, 0, 0, 0, 1), np.array(0.5, "f4")])],
    "reflect": [("Pad", ["x", places(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"})],
    "edge": [("Pad", ["x", places(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "edge"})],
    "depth_to_space": [("DepthToSpace", ["x"], {"blocksize": 2, "mode": "CRD"})],
    "space_to_depth": [("SpaceToDepth", ["x"], {"blocksize": 2})],
    "moved": [
        ("Transpose", ["x"], {"perm": [1, 2, 0, 3]}),
        ("MatMul", ["<", numbers(6, 5)]),
        ("Transpose", ["<"], {"perm": [2, 0, 1, 3]}),
    ],
    "sizes": [
        ("Shape", ["x"], {"end": 1}),
        ("Concat", ["<", places(24, -1)], {"axis": 0}),
        ("Reshape", ["x", "<"]),
    ],
    "zeros_of_the_batch": [
        ("Shape", ["x"]),
        ("ConstantOfShape", ["<"], {"value": numpy_helper.from_array(np.float32([2.5]))}),
        ("Add", ["x", "<"]),
    ],
    "prelu": [("PRelu", ["x", numbers(4, 1, 1)])],
    "selu": [("Selu", ["x"])],
    "hard_swish": [("HardSwish", ["x"])],
    "lp_norm": [("LpNormalization", ["x"], {"axis": 1})],
    "tile": [("Tile", ["x", places(1, 2, 1, 1)])],
    "backwards": [("Slice", ["x", places(-1), places(-9), places(3), places(-2)])],
    "log_sum": [("Abs", ["x"]), ("ReduceLogSum", ["<", places(1, 3)])],
}  # fmt: skip


def weights(kind: str, gates: int, directions: int) -> list[Any]:
    return [
        numbers(directions, gates * 3, 4),
        numbers(directions, gates * 3, 3, seed=1),
        numbers(directions, gates * 6, seed=2),
    ]


def recurrent(kind: str, gates: int, direction: str, **attributes: Any) -> Sequence[Node]:
    operands = weights(kind, gates, 2 if direction == "bidirectional" else 1)
    return [
        ("Transpose", ["s"], {"perm": [1, 0, 2]}),
        (kind, ["<", *operands], {"hidden_size": 3, "direction": direction, **attributes}),
        ("Transpose", ["<"], {"perm": [2, 0, 1, 3]}),
    ]


SEQUENCES: dict[str, Sequence[Node]] = {
    "lstm": recurrent("LSTM", 4, "forward"),
    "lstm_both": recurrent("LSTM", 4, "bidirectional"),
    "gru_reverse": recurrent("GRU", 3, "reverse", linear_before_reset=1),
    "rnn_relu": recurrent("RNN", 1, "forward", activations=["Relu"]),
    "one_sided": [("Unsqueeze", ["s", places(3)]), ("DFT", ["<", None, AXIS], {"onesided": 1})],
    "there_and_back": [
        ("Unsqueeze", ["s", places(3)]),
        ("DFT", ["<", None, AXIS]),
        ("Mul", ["<", numbers(5, 1, 1)]),
        ("DFT", ["<", None, AXIS], {"inverse": 1}),
    ],
    "top": [("Transpose", ["s"], {"perm": [0, 2, 1]}), ("ReduceMax", ["<", places(2)], {"keepdims": 0})],
}  # fmt: skip


def test_layers_of_images_and_sizes_are_those_of_the_runtime(tmp_path):
    program = check(file_of(tmp_path / "i.onnx", IMAGES, {"x": (4, 6, 6)}), {"x": numbers(ROWS, 4, 6, 6, seed=5)})
    assert {"conv.0.1", "moved.1.1"} <= program.constants.keys(), "weights have the file's names"


def test_recurrent_layers_and_transforms_are_those_of_the_runtime(tmp_path):
    check(file_of(tmp_path / "s.onnx", SEQUENCES, {"s": (5, 4)}), {"s": numbers(ROWS, 5, 4, seed=5)})


WHOLE: dict[str, Sequence[Node]] = {
    "embedded": [("Gather", [numbers(7, 4), "n"]), ("MatMul", ["<", numbers(4, 2)])],
    "hot": [("OneHot", ["n", places(7), np.float32([0.5, 2])], {"axis": 1})],
    "product": [("Cast", ["n"], {"to": FLOATS}), ("Mul", ["<", numbers(3)])],
    "quotient": [("Div", ["n", places(2)]), ("Cast", ["<"], {"to": FLOATS})],
}


def test_inputs_of_whole_numbers_are_compressed(tmp_path):
    path = file_of(tmp_path / "n.onnx", WHOLE, {"n": (3,)}, kind=INTS)
    rows = np.random.default_rng(0).integers(0, 7, (200, 3))
    assert check(path, {"n": rows}).inputs[0].kind == "int"
    model = hrt.compress(path, inputs=rows, tol=1e-3, progress=False)
    _, answers, _ = opened(path)
    assert answers is not None
    truth = torch.cat([y.reshape(200, -1) for y in answers.outputs([torch.from_numpy(rows)])], 1)
    y = torch.cat([torch.as_tensor(v).reshape(200, -1) for v in model.predict(rows)], 1)
    assert float((y - truth).norm() / truth.norm()) <= 1e-3


AS_IMAGE = ("Unsqueeze", ["s", places(1)])
REFUSED: dict[str, tuple[Sequence[Node], str]] = {
    "lengths": (
        [
            ("Transpose", ["s"], {"perm": [1, 0, 2]}),
            ("RNN", ["<", *weights("RNN", 1, 1)[:2], None, places(1, 2, 3).astype(np.int32)], {"hidden_size": 3}),
        ],
        r"\(RNN\): .*lengths of its own",
    ),
    "nearest": ([AS_IMAGE, ("Resize", ["<", None, np.float32([1, 1, 2, 2])])], r"\(Resize\): its mode"),
    "dilated": ([AS_IMAGE, ("AveragePool", ["<"], {"kernel_shape": [2, 2], "dilations": [2, 1]})], r"Pool\): .*steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_differs_from_torchs_layers_is_refused_by_name(name, tmp_path):
    steps, message = REFUSED[name]
    with pytest.raises(hrt.CaptureError, match=message):
        read_onnx(file_of(tmp_path / "r.onnx", {"y": steps}, {"s": (5, 4)}))


def test_values_of_too_many_numbers_are_refused(tmp_path):
    steps = [("Shape", ["s"], {"end": 1}), ("Concat", ["<", places(10**5, 10**5)], {"axis": 0})]
    steps += [("ConstantOfShape", ["<"]), ("ReduceSum", ["<", places(1)]), ("Transpose", ["<"], {"perm": [1, 0, 2]})]
    with pytest.raises(hrt.CaptureError, match="too many"):
        read_onnx(file_of(tmp_path / "r.onnx", {"y": steps}, {"s": (5, 4)}))
