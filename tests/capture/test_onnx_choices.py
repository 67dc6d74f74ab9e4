"""ONNX operators that compare, round, choose or reduce; and every row of the op table, exported and read back."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from hrt.capture.onnx.file import read_onnx
from hrt.errors import CaptureError
from hrt.export.onnx.exporter import graph_of
from hrt.program.program import Program

from op_cases import ACTIVATIONS, CASES, A, Case, program_of

ALL: list[Case] = [(name, arguments, attrs) for name, arguments, attrs, _ in CASES]
ALL += [(p.values[0].name, (A * 0.4,), p.values[1]) for p in ACTIVATIONS]  # type: ignore[union-attr]


@pytest.mark.parametrize("case", ALL, ids=[f"{name}-{k}" for k, (name, *_) in enumerate(ALL)])
def test_what_is_exported_is_read_back(case: Case, tmp_path) -> None:
    program, inputs = program_of(case)
    onnx.save(graph_of(program), tmp_path / "op.onnx")
    again = read_onnx(tmp_path / "op.onnx")
    assert [v.shape for v in again.inputs] == [v.shape for v in program.inputs]
    torch.testing.assert_close(again.run(inputs)[0], program.run(inputs)[0], rtol=1e-6, atol=1e-6, equal_nan=True)


def read(tmp_path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], opset: int = 18) -> Program:
    """A graph of nodes from x (batch, 4) to y, read; and checked against onnx's own reference."""
    initializers = [onnx.numpy_helper.from_array(v, k) for k, v in constants.items()]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", ["batch", 4]), ("y", ["batch", "n"]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.save(proto, tmp_path / "g.onnx")
    program = read_onnx(tmp_path / "g.onnx")
    x = np.array([[-2.5, 0.5, 0.0, 1.5], [3.0, -1.0, 0.25, 7.75]], dtype=np.float32)
    (expected,) = ReferenceEvaluator(proto).run(None, {"x": x})
    (y,) = program.run([torch.from_numpy(x)])
    np.testing.assert_allclose(y.numpy(), expected, rtol=1e-6, atol=1e-6)
    return program


HALF, AXIS = np.array(0.5, dtype=np.float32), np.array([1], dtype=np.int64)
node = helper.make_node
MASKS = {
    **{op: [node(op, ["x", "half"], ["m"])] for op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")},
    "Not": [node("Less", ["x", "half"], ["l"]), node("Not", ["l"], ["m"])],
    **{
        op: [node("Less", ["x", "half"], ["l"]), node("Greater", ["x", "zero"], ["g"]), node(op, ["l", "g"], ["m"])]
        for op in ("And", "Or", "Xor")
    },
    "Cast": [node("Cast", ["x"], ["m"], to=TensorProto.BOOL)],
}
VALUES = {
    **{op: [node(op, ["x"], ["y"])] for op in ("Floor", "Ceil", "Round", "Sign", "Tan", "Asinh")},
    "Mod": [node("Mod", ["x", "half"], ["y"], fmod=1)],
    **{
        op: [node(op, ["x", "axis"], ["y"], keepdims=1)]
        for op in ("ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp")
    },
    "Integers": [node("Cast", ["x"], ["n"], to=TensorProto.INT64), node("Cast", ["n"], ["y"], to=TensorProto.FLOAT)],
    **{op: [node(op, ["x"], ["y"], axis=-1)] for op in ("Softmax", "LogSoftmax")},
    "CumSum": [node("CumSum", ["x", "one"], ["y"])],
}
CONSTANTS = {"half": HALF, "zero": HALF * 0, "axis": AXIS, "one": np.array(1, dtype=np.int64)}


@pytest.mark.parametrize("name", MASKS)
def test_booleans_are_numbers_and_choose(name: str, tmp_path) -> None:
    infinite = {"low": np.array([-np.inf, 1, 2, 3], dtype=np.float32)}
    ends = [node("Where", ["m", "x", "low"], ["w"]), node("Softmax", ["w"], ["s"], axis=1)]
    ends += [node("Cast", ["m"], ["f"], to=TensorProto.FLOAT), node("Add", ["s", "f"], ["y"])]
    read(tmp_path, [*MASKS[name], *ends], CONSTANTS | infinite)


@pytest.mark.parametrize("name", VALUES)
def test_is_onnxs_reference(name: str, tmp_path) -> None:
    read(tmp_path, VALUES[name], CONSTANTS)


def test_softmax_before_opset_13_is_of_flattened_dimensions(tmp_path) -> None:
    read(tmp_path, [node("Softmax", ["x"], ["y"], axis=1)], {}, opset=12)
    column = [node("Unsqueeze", ["x"], ["u"], axes=[2]), node("Softmax", ["u"], ["s"], axis=1)]
    column.append(node("Squeeze", ["s"], ["y"], axes=[2]))
    read(tmp_path, column, {}, opset=12)


@pytest.mark.parametrize("op", ["Softmax", "ReduceMax", "CumSum"])
def test_rows_stay_apart(op: str, tmp_path) -> None:
    zero = CONSTANTS | {"batch": np.array([0], dtype=np.int64)}
    nodes = {
        "Softmax": node("Softmax", ["x"], ["y"], axis=0),
        "ReduceMax": node("ReduceMax", ["x", "batch"], ["y"]),
        "CumSum": node("CumSum", ["x", "batch"], ["y"]),
    }
    with pytest.raises(CaptureError, match="batch"):
        read(tmp_path, [nodes[op]], zero)
