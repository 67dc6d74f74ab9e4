"""ONNX files of strangers: what asks for much work is refused soon, and damage is named or changes nothing."""

import os
import random
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import hrt
from hrt.capture.onnx.file import opened, read_onnx
from hrt.errors import CaptureError

from forked import assert_cheap
from mutations import change_bytes, worst

OPSETS = [helper.make_opsetid("", 20), helper.make_opsetid("l", 1)]


def network(
    nodes: list, constants: dict | None = None, functions: list | None = None, width: int = 3
) -> onnx.ModelProto:
    """x (N, width) to y (N, 3)."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", n]) for name, n in (("x", width), ("y", 3))]
    numbers = [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], numbers)
    return helper.make_model(graph, opset_imports=OPSETS, functions=functions or [])


def loop() -> onnx.ModelProto:
    """As many rounds as an int64 holds, on constants alone."""
    kinds = (TensorProto.INT64, TensorProto.BOOL, TensorProto.FLOAT)
    values = [helper.make_tensor_value_info(n, k, []) for n, k in zip(("i", "c", "v"), kinds, strict=True)]
    results = [helper.make_tensor_value_info(n, k, []) for n, k in (("d", TensorProto.BOOL), ("w", TensorProto.FLOAT))]
    nodes = [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Identity", ["v"], ["w"])]
    body = helper.make_graph(nodes, "body", values, results)
    constants = {"rounds": np.int64(2**62), "go": np.bool_(True), "start": np.float32(0)}
    turns = helper.make_node("Loop", [*constants], ["r"], body=body)
    return network([turns, helper.make_node("Add", ["x", "r"], ["y"])], constants)


def functions(calls: int, depth: int, last: str = "") -> onnx.ModelProto:
    """Each function calls the next so many times; `last` the function of that name, or no other."""
    made = []
    for k in range(depth):
        op = f"F{k + 1}" if k < depth - 1 else last or "Tanh"
        names = ["a", *(f"t{j}" for j in range(calls - 1)), "b"]
        domain = "" if op == "Tanh" else "l"
        body = [helper.make_node(op, [names[j]], [names[j + 1]], domain=domain) for j in range(calls)]
        made.append(helper.make_function("l", f"F{k}", ["a"], ["b"], body, OPSETS))
    return network([helper.make_node("F0", ["x"], ["y"], domain="l")], functions=made)


def doubled(op: str, first: str, count: int, **attributes: int) -> onnx.ModelProto:
    """A value, or a constant, joined to itself again and again."""
    names = [first, *(f"t{k}" for k in range(count))]
    nodes = [helper.make_node(op, [a, a], [b], **attributes) for a, b in pairwise(names)]
    last = helper.make_node("ReduceSum", [names[-1], "axes"], ["s"])
    return network(
        [*nodes, last, helper.make_node("Add", ["x", "s"], ["y"])], {"c": np.ones((1, 3), "f4"), "axes": [1]}
    )


def folded(op: str, constants: dict, **attributes: int) -> onnx.ModelProto:
    """An operator on constants, whose numbers are then added up."""
    nodes = [
        helper.make_node(op, [*constants], ["q"], **attributes),
        helper.make_node("ReduceSum", ["q"], ["r"], keepdims=0),
        helper.make_node("Add", ["x", "r"], ["y"]),
    ]
    return network(nodes, constants)


BESIDE = {"save_as_external_data": True, "location": "w", "size_threshold": 0}
MANY = np.int64([10**5, 10**5])
TWO = {"x": np.ones(50_000, "f4")}
BOMBS: dict[str, Callable[[], onnx.ModelProto]] = {
    "a loop": loop,
    "calls of calls": lambda: functions(10, 8),
    "deep calls": lambda: functions(1, 500),
    "a recursion": lambda: functions(1, 1, last="F0"),
    "a recursion over two": lambda: functions(2, 2, last="F0"),
    "values side by side": lambda: doubled("Concat", "x", 40, axis=1),
    "constants side by side": lambda: doubled("Concat", "c", 60, axis=1),
    "a range": lambda: folded("Range", {"a": np.float32(0), "b": np.float32(1e10), "c": np.float32(1)}),
    "zeros": lambda: folded("ConstantOfShape", {"shape": MANY}),
    "an expansion": lambda: folded("Expand", {"one": np.ones((1, 1), "f4"), "shape": MANY}),
    "tiles": lambda: folded("Tile", {"one": np.ones((1, 1), "f4"), "repeats": MANY}),
    "a margin": lambda: folded("Pad", {"one": np.ones((1, 1), "f4"), "pads": np.int64([0, 0, 10**5, 10**5])}),
    "a broadcast": lambda: folded("Add", {"a": np.ones((60_000, 1), "f4"), "b": np.ones((1, 60_000), "f4")}),
    "a product": lambda: folded("MatMul", {"a": np.ones((60_000, 1), "f4"), "b": np.ones((1, 60_000), "f4")}),
    "a gather": lambda: folded("Gather", {"a": np.ones((1, 60_000), "f4"), "b": np.zeros(60_000, "i8")}),
    "a wide input": lambda: network([helper.make_node("Tanh", ["x"], ["y"])], width=10**10),
    "an outer product": lambda: network(
        [helper.make_node("Einsum", ["x", "w"], ["y"], equation="ij,k->ijk")], {"w": np.zeros(10**7, "f4")}
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_few_bytes_that_ask_for_much_are_refused_soon_and_cheaply(case, tmp_path):
    path = tmp_path / "bomb.onnx"
    onnx.save(BOMBS[case](), path)

    def refuses() -> None:
        with pytest.raises(CaptureError):
            read_onnx(path)

    assert_cheap(refuses, path)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "weights in a pipe", "a constant in a pipe"])
def test_what_is_no_file_is_not_waited_for(kind, tmp_path):
    path = tmp_path / "net.onnx"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(np.eye(3, dtype="f4")))
        inner = kind == "a constant in a pipe"
        numbers = {} if inner else {"w": np.eye(3, dtype="f4")}
        proto = network([*([constant] if inner else []), helper.make_node("MatMul", ["x", "w"], ["y"])], numbers)
        onnx.save(proto, path, **BESIDE, convert_attribute=inner)
        (tmp_path / "w").unlink()
        os.mkfifo(tmp_path / "w")
    with pytest.raises(CaptureError, match=r"(net\.onnx|w) is a (folder|device)\. Expected a file"):
        hrt.compress(path, tol=1e-2, progress=False)


def test_numbers_that_lie_beside_the_file_are_not_read_again_and_again(tmp_path):
    count, path = 100, tmp_path / "net.onnx"
    onnx.save(network([helper.make_node("Add", ["x", "c0"], ["y"])], {"c0": np.zeros(1 << 18, "f4")}), path, **BESIDE)
    proto = onnx.load(path, load_external_data=False)
    for k in range(1, count):
        proto.graph.initializer.append(proto.graph.initializer[0])
        proto.graph.initializer[k].name = f"c{k}"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(CaptureError, match=f"reads {count << 20} bytes of files with {1 << 20}"):
        read_onnx(path)


def test_a_runtime_is_given_no_more_rows_at_once_than_fit(tmp_path):
    """Values of 300,000 numbers a row: a thousand rows at once would take over two gigabytes."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("ReduceMean", ["r", "axes"], ["m"]),
        helper.make_node("Add", ["x", "m"], ["y"]),
    ]
    path = tmp_path / "wide.onnx"
    onnx.save(network(nodes, {"w": np.ones((3, 300_000), "f4"), "axes": [1]}), path)

    def answers() -> None:
        _, runtime, _ = opened(path)
        assert runtime is not None and runtime.flat([torch.rand(1000, 3)]).shape == (1000, 3)

    assert_cheap(answers, path)


@cache
def originals() -> tuple[bytes, ...]:
    """An MLP as torch's exporters write it, and one of each of the other operators."""
    g = np.random.default_rng(0)
    w = [g.standard_normal(shape).astype("f4") for shape in ((8, 3), (8,), (8, 3), (3,), (4, 6), (6,))]
    dense = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h"], transB=1),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w1"], ["m"]),
        helper.make_node("Add", ["m", "b1"], ["y"]),
    ]
    shaped = [
        helper.make_node("Constant", [], ["two"], value=numpy_helper.from_array(np.int64([0, 3, 1]))),
        helper.make_node("Reshape", ["x", "two"], ["r"]),
        helper.make_node("Concat", ["r", "r"], ["c"], axis=2),
        helper.make_node("Transpose", ["c"], ["p"], perm=[0, 2, 1]),
        helper.make_node("LayerNormalization", ["p", "scale"], ["l"], axis=-1),
        helper.make_node("Slice", ["l", "zero", "one", "one"], ["s"]),
        helper.make_node("Squeeze", ["s", "one"], ["q"]),
        helper.make_node("Split", ["q", "parts"], ["e", "f"], axis=1),
        helper.make_node("Concat", ["f", "e"], ["d"], axis=1),
        helper.make_node("Range", ["start", "stop", "step"], ["numbers"]),
        helper.make_node("Mul", ["d", "numbers"], ["y"]),
    ]
    numbers = {"scale": np.ones(3, "f4"), "zero": np.int64([0]), "one": np.int64([1]), "parts": np.int64([1, 2])}
    ends = {"start": np.float32(1), "stop": np.float32(4), "step": np.float32(1)}
    reduced = [
        helper.make_node("Gather", ["x", "order"], ["g"], axis=1),
        helper.make_node("Einsum", ["g", "v"], ["e"], equation="bi,ij->bj"),
        helper.make_node("ReduceMean", ["e", "axis"], ["a"]),
        helper.make_node("Softplus", ["a"], ["o"]),
        helper.make_node("Clip", ["g", "start", "stop"], ["k"]),
        helper.make_node("Mul", ["k", "o"], ["y"]),
    ]
    extra = {"order": np.int64([2, 0, 1]), "v": w[2][:3], "axis": np.int64([1])}
    protos = (
        network(dense, {"w0": w[0], "b0": w[1], "w1": w[2], "b1": w[3]}),
        network(shaped, {**numbers, **ends}),
        network(reduced, {**extra, **ends}),
        functions(2, 3),
    )
    return tuple(proto.SerializeToString() for proto in protos)


def damaged(chance: random.Random) -> bytes:
    """Bytes of the file, or words and numbers of its graph."""
    data = chance.choice(originals())
    if chance.random() < 0.4:
        return change_bytes(data, chance)
    proto = onnx.load_from_string(data)
    for _ in range(chance.choice([1, 1, 2])):
        node, other = chance.choice(proto.graph.node), chance.choice(proto.graph.node)
        numbers = chance.choice(proto.graph.initializer or [TensorProto()])
        kind = chance.randrange(8)
        if kind == 0:
            node.op_type = chance.choice([other.op_type, "Loop", "If", "Expand", "Pow", "Sum", "Dropout", "Cast"])
        elif kind == 1 and node.input:
            node.input[chance.randrange(len(node.input))] = chance.choice([*other.input, *other.output, ""])
        elif kind == 2 and node.attribute:
            attribute = chance.choice(node.attribute)
            attribute.CopyFrom(helper.make_attribute(attribute.name, chance.choice([-1, 7, 2**40, 0.5, "x", [1, 2]])))
        elif kind == 3:
            numbers.dims[:] = [chance.choice([0, 1, 2, 7, 2**40]) for _ in range(chance.randrange(4))]
        elif kind == 4 and numbers.raw_data:
            numbers.raw_data = change_bytes(numbers.raw_data, chance)
        elif kind == 5:
            numbers.data_type = chance.randrange(24)
        elif kind == 6:
            dims = chance.choice([*proto.graph.input, *proto.graph.output]).type.tensor_type.shape.dim
            if dims:
                chance.choice(dims).dim_value = chance.choice([0, 1, 2, 4, 10**10, -1])
        else:
            node.input.append(chance.choice([*other.input, *other.output]))
    return proto.SerializeToString()


def judged(path: Path) -> str:
    """The exact answer is that of onnx's own reference, where that runs what is left of the file."""
    try:
        program, runtime, _ = opened(path)
    except CaptureError:
        return "refused"
    generator = torch.Generator().manual_seed(0)
    x = [torch.rand(4, *v.shape, generator=generator, dtype=torch.float64) for v in program.inputs]
    answers = program.run(x)
    if runtime is not None:
        runtime.flat(x)  # does not end this process, or take long
    kinds = {v.name: helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type) for v in onnx.load(path).graph.input}
    given = {v.name: t.numpy().astype(kinds[v.name]) for v, t in zip(program.inputs, x, strict=True)}
    try:
        with np.errstate(all="ignore"):
            expected = ReferenceEvaluator(onnx.load(path)).run(None, given)
    except Exception:
        return "answers, and onnx does not"
    for a, b in zip(answers, expected, strict=True):
        b = np.asarray(b, dtype=np.float64)
        size = max(1.0, float(np.abs(b).max(initial=0.0)))
        assert not np.isfinite(b).all() or np.allclose(a.numpy(), b, rtol=1e-2, atol=1e-3 * size), "another answer"
    return "answers"


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_every_damaged_file_is_refused_or_answers(count, tmp_path):
    print(worst(count, damaged, judged, tmp_path / "net.onnx"))
