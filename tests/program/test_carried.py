"""Parts that are carried as ONNX models: what they compute, and what a stranger's file may not ask of them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from hrt.errors import DerivativeError
from hrt.program.carried import LARGEST, OPSET, check, encoded, run
from hrt.program.check_program import check_program
from hrt.program.program import Node, Program, Value, carried_nbytes, program_nbytes

from op_cases import SORTED, A


def attrs(nodes: Sequence[Any], *constants: Any, shape: Sequence[int] = (4,), opset: int = OPSET, **more: Any) -> dict:
    """Of a part that reads x (batch, 4)."""
    sizes = {"x": ["batch", 4], "y": ["batch", *shape]}
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in sizes.items()]
    tensors = [onnx.numpy_helper.from_array(np.asarray(c), f"c{k}") for k, c in enumerate(constants)]
    graph = helper.make_graph(list(nodes), "part", ports[:1], ports[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    text = b64encode(model.SerializeToString()).decode()
    return {"name": "part", "values": 1, "shape": list(shape), "model": text, **more}


def program(attributes: dict) -> Program:
    node = Node("y", "carried", ("x",), tuple(attributes["shape"]), attributes, "head")
    return Program((Value("x", (4,)),), (node,), ("y",), {})


def test_it_computes_in_any_type_and_for_any_number_of_rows() -> None:
    for x in (A, A.float(), A[:1], A[:0]):
        got = run([x], SORTED)
        assert got.dtype == x.dtype
        torch.testing.assert_close(got, x.float().sort(-1)[0].to(x.dtype), rtol=0, atol=0)


def test_its_slopes_are_those_of_the_function_that_it_was_made_of() -> None:
    x, weight = A.float().double().requires_grad_(), torch.rand(3, 4).double()
    (slope,) = torch.autograd.grad((run([x], SORTED) * weight).sum(), x)
    (expected,) = torch.autograd.grad((x.sort(-1)[0] * weight).sum(), x)
    torch.testing.assert_close(slope, expected)


def test_without_that_function_there_are_none() -> None:
    negative = attrs([helper.make_node("Neg", ["x"], ["y"])])
    x = torch.ones(2, 4, requires_grad=True)
    with pytest.raises(DerivativeError, match="part, which is carried"):
        run([x], negative).sum().backward()
    with pytest.raises(DerivativeError):
        torch.func.jacrev(lambda x: run([x], negative))(x)


def test_its_bytes_are_the_models() -> None:
    p = program(attrs([helper.make_node("Neg", ["x"], ["y"])]))
    check_program(p)
    assert carried_nbytes(p) == {"part (head)": program_nbytes(p)} and program_nbytes(p) > 50


def test_a_function_is_remembered_for_the_model() -> None:
    assert encoded(b"model", lambda x: x) == b64encode(b"model").decode()


HOSTILE = {
    "no base64": {**SORTED, "shape": [4], "model": "*"},
    "no model": {**SORTED, "shape": [4], "model": b64encode(b"model").decode()},
    "too long": {**SORTED, "shape": [4], "model": "A" * 4 * LARGEST},
    "no text": {**SORTED, "shape": [4], "model": 3},
    "other counts": attrs([helper.make_node("Neg", ["x"], ["y"])], values=0),
    "another shape": attrs([helper.make_node("Neg", ["x"], ["y"])], shape=[5]),
    "another opset": attrs([helper.make_node("Neg", ["x"], ["y"])], opset=18),
    "numbers without end": attrs(
        [
            helper.make_node("Unsqueeze", ["x", "c1"], ["x3"]),
            helper.make_node("Expand", ["x3", "c0"], ["wide"]),
            helper.make_node("ReduceMax", ["wide", "c1"], ["y"], keepdims=0),
        ],
        *([1, 1 << 40, 4], [1]),
    ),
    "rows by rows": attrs(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]),
            helper.make_node("MatMul", ["x", "t"], ["square"]),
            helper.make_node("MatMul", ["square", "x"], ["y"]),
        ]
    ),
    "an unknown size": attrs(
        [
            helper.make_node("NonZero", ["x"], ["places"]),
            helper.make_node("Cast", ["places"], ["numbers"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["numbers"], ["most"], keepdims=0),
            helper.make_node("Add", ["x", "most"], ["y"]),
        ]
    ),
    "other operators": attrs([helper.make_node("Evil", ["x"], ["y"])]),
    "other domains": attrs([helper.make_node("Evil", ["x"], ["y"], domain="com.evil")]),
    "a branch": attrs(
        [
            helper.make_node(  # type: ignore[arg-type]
                "If",
                ["c0"],
                ["y"],
                **{
                    k: helper.make_graph(
                        [helper.make_node("Neg", ["x"], [k])],
                        k,
                        [],
                        [helper.make_tensor_value_info(k, TensorProto.FLOAT, [None, 4])],
                    )
                    for k in ("then_branch", "else_branch")
                },
            )
        ],
        np.array(True),
    ),
}


MESSAGES = {
    **dict.fromkeys(("no base64", "no model", "no text", "other operators", "other domains"), "is no ONNX model"),
    "too long": "of 196,608 bytes",
    "other counts": "says nothing of them",
    "another shape": "does not fit its arguments",
    **dict.fromkeys(("another opset", "a branch"), "of its own"),
    "numbers without end": "numbers and",
    "rows by rows": "faster than the rows",
    "an unknown size": "not known beforehand",
}


@pytest.mark.parametrize("attributes", HOSTILE.values(), ids=HOSTILE)
def test_a_strangers_part_is_checked_before_it_runs(attributes: dict, request: pytest.FixtureRequest) -> None:
    with pytest.raises(ValueError, match=MESSAGES[request.node.callspec.id]):
        check_program(program(attributes))


def test_every_case_is_refused_for_what_it_is_about() -> None:
    assert MESSAGES.keys() == HOSTILE.keys()


def test_what_is_left_is_counted() -> None:
    numbers, products = check(SORTED, [(1, 3, 4)])
    assert 24 <= numbers <= 100 and products >= 12
