"""Every op of the table as small cases: shared by the tests of the op table, Taylor rules and derivatives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hrt.program.carried import OPSET, encoded
from hrt.program.op_table import TABLE, Op
from hrt.program.program import Node, Program, Value

# For every elementwise row: attributes to test it with, where its kinks are, and the interval it is defined on.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "gelu": [{"approximate": "none"}, {"approximate": "tanh"}],
    "leaky_relu": [{"slope": 0.01}, {"slope": 0.3}, {"slope": -2.5}],
    "elu": [{"alpha": 1.0}, {"alpha": 0.3}, {"alpha": 2.0}],
    "softplus": [{"beta": 1.0}, {"beta": 5.0}],
    "clamp": [{"low": -0.5, "high": 1.25}, {"low": None, "high": 1.0}, {"low": -1.0, "high": None}],
    "power": [{"exponent": 2.0}, {"exponent": 3.0}, {"exponent": 1.5}, {"exponent": -1.0}],
}


POSITIVE = {"log", "sqrt", "reciprocal"}

# Where the others are defined, without the ends; sinc is tested near 0 by itself, where torch's own gradient cancels
DOMAINS = {
    "asin": (-0.999, 0.999),
    "acos": (-0.999, 0.999),
    "atanh": (-0.999, 0.999),
    "acosh": (1.001, 12),
    "tan": (-1.55, 1.55),
}


ACTIVATIONS = [
    pytest.param(op, attrs, id=f"{op.name}-{'-'.join(map(str, attrs.values()))}".rstrip("-"))
    for op in TABLE.values()
    if op.derivative is not None
    for attrs in SETTINGS.get(op.name, [{}])
]


def kinks(op: Op, attrs: Mapping[str, Any]) -> list[float]:
    if op.name == "clamp":
        return [v for v in attrs.values() if v is not None]
    return [0.0] if op.name in {"relu", "leaky_relu", "elu", "abs"} else []


def grid(op: Op, attrs: Mapping[str, Any], n: int = 4001) -> Tensor:
    """A dense grid where the op is smooth."""
    positive = op.name in POSITIVE or (op.name == "power" and attrs["exponent"] in (1.5, -1.0))
    low, high = DOMAINS.get(op.name, (1e-2 if positive else -12, 12))
    x = torch.linspace(low, high, n, dtype=torch.float64)
    x = x[x.abs() > 0.5] if op.name == "sinc" else x
    return x[torch.stack([(x - k).abs() > 1e-9 for k in kinks(op, attrs)]).all(0)] if kinks(op, attrs) else x


# The rows that are not elementwise in one argument, each against plain torch.
A, B = torch.rand(5, 3, 4, dtype=torch.float64) + 0.5, torch.rand(5, 3, 4, dtype=torch.float64) + 0.5


W, C = torch.rand(6, 4, dtype=torch.float64), torch.rand(6, dtype=torch.float64)


# 5 samples, 2 channels, 6 x 7: F.unfold is torch's own im2col, of one padding per axis.
IMAGE = torch.rand(5, 2, 6, 7, dtype=torch.float64)
WINDOW = {"kernel": [3, 2], "stride": [2, 1], "dilation": [1, 3], "padding": [1, 2, 1, 2]}
PAIRS = torch.stack([A[..., :-1], A[..., 1:]], 2).permute(0, 3, 1, 2).flatten(2)
UNFOLDED = F.unfold(IMAGE, (3, 2), (1, 3), (1, 2), (2, 1)).mT.reshape(5, 3, 8, 12)


def sorting_model(width: int) -> bytes:
    """The last of three axes in ascending order, as an ONNX model."""
    count = onnx.numpy_helper.from_array(np.array([width]), "k")
    nodes = [onnx.helper.make_node("TopK", ["x", "k"], ["y", "places"], axis=-1, largest=0)]
    ports = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 3, width]) for n in "xy"]
    graph = onnx.helper.make_graph(nodes, "part", ports[:1], ports[1:], [count])
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


SORTED = {"name": "sort", "values": 1, "shape": [3, 4]}
SORTED |= {"model": encoded(sorting_model(4), lambda x: x.sort(-1)[0])}
A32 = A.float().double()  # what is carried computes in float32

CASES: list[tuple[str, tuple[Tensor, ...], dict[str, Any], Tensor]] = [
    ("linear", (A, W), {}, torch.einsum("bni,oi->bno", A, W)),
    ("linear", (A[:, 0], W, C), {}, A[:, 0] @ W.T + C),
    ("add", (A, B[:, :1]), {}, A + B[:, :1]),
    ("sub", (A, C[:4]), {}, A - C[:4]),
    ("mul", (A, B), {}, A * B),
    ("div", (A, B), {}, A / B),
    ("step", (A - 1,), {"at_zero": 1.0}, torch.where(A >= 1, 1.0, 0.0).double()),
    ("step", ((A - 1).relu(),), {"at_zero": 0.5}, torch.where(A > 1, 1.0, 0.5).double()),
    ("floor", (3 * A,), {}, (3 * A) // 1),
    ("round", (3 * A,), {}, (3 * A + 0.5) // 1),
    ("fmod", (3 * A, B), {}, torch.from_numpy(np.fmod(3 * A.numpy(), B.numpy()))),
    ("fmod", (3 * A, torch.tensor(0.7, dtype=torch.float64)), {}, (3 * A).remainder(0.7)),
    ("atan2", (A - 1, B - 1), {}, torch.complex(B - 1, A - 1).angle()),
    ("where", ((A > B).double(), A, B[:, :1]), {}, torch.where(A > B, A, B[:, :1])),
    (
        "where",
        (torch.tensor([1.0, 0, 0, 1]).double(), A, C[:4]),
        {},
        torch.cat([A[..., :1], C[1:3].expand(5, 3, 2), A[..., 3:]], -1),
    ),
    ("maximum", (A, B), {}, torch.where(A > B, A, B)),
    ("minimum", (A, B), {}, torch.where(A > B, B, A)),
    ("concat", (A, B[:, :2]), {"axis": -2}, torch.cat([A, B[:, :2]], 1)),
    ("slice", (A,), {"axis": -1, "start": 1, "stop": 4, "step": 2}, A[:, :, 1:4:2]),
    ("slice", (A,), {"axis": -2, "start": 0, "stop": 2, "step": 1}, A[:, :2]),
    ("reshape", (A,), {"shape": [2, 6]}, A.view(5, 2, 6)),
    ("reshape", (A[:, 0, 0],), {"shape": []}, A[:, 0, 0]),
    ("transpose", (A,), {"axes": [-1, -2]}, A.mT),
    ("expand", (A[:, :1],), {"shape": [3, 4]}, A[:, :1].expand(5, 3, 4)),
    ("repeat", (C[:4], A), {"shape": [3, 4]}, C[:4].expand(5, 3, 4)),
    ("patches", (IMAGE,), WINDOW, UNFOLDED),
    ("patches", (A,), {"kernel": [2], "stride": [1], "dilation": [1], "padding": [0, 0]}, PAIRS),
    ("gather", (A, torch.tensor([2.0, 0, 0, 1]).double()), {"axis": -2}, A[:, [2, 0, 0, 1]]),
    ("sum", (A,), {"axes": [-1, -2], "keep": False}, A.flatten(1).sum(1)),
    ("mean", (A,), {"axes": [-2], "keep": True}, A.sum(1, keepdim=True) / 3),
    ("amax", (A,), {"axes": [-1, -2], "keep": False}, A.flatten(1).max(1)[0]),
    ("amax", (A,), {"axes": [-2], "keep": True}, A.max(1, keepdim=True)[0]),
    ("amin", (A,), {"axes": [-1], "keep": False}, A.min(2)[0]),
    ("logsumexp", (A,), {"axes": [-1, -2], "keep": False}, A.exp().flatten(1).sum(1).log()),
    ("logsumexp", (A,), {"axes": [-2], "keep": True}, A.exp().sum(1, keepdim=True).log()),
    ("softmax", (A,), {"axis": -2}, A.exp() / A.exp().sum(1, keepdim=True)),
    ("log_softmax", (A,), {"axis": -1}, A - A.exp().sum(2, keepdim=True).log()),
    ("cumsum", (A,), {"axis": -1}, A @ torch.ones(4, 4).double().triu()),
    ("matmul", (A, B.mT), {}, torch.einsum("bni,bmi->bnm", A, B)),
    ("einsum", (A, B), {"equation": "bni,bnj->bij"}, A.mT @ B),
    ("layer_norm", (A, C[:4], W[0]), {"shape": [4], "eps": 1e-5}, F.layer_norm(A, [4], C[:4], W[0])),
    ("carried", (A32,), SORTED, A32.sort(-1)[0]),
]


Case = tuple[str, Sequence[Tensor], Mapping[str, Any]]


def program_of(case: Case) -> tuple[Program, list[Tensor]]:
    """One node; what has a batch is an input, the rest constants."""
    op, arguments, attrs = case
    names, rows = [f"a{k}" for k in range(len(arguments))], len(max(arguments, key=lambda a: a.ndim))
    is_value = [a.ndim > 0 and len(a) == rows for a in arguments]
    values = [Value(n, tuple(a.shape[1:])) for n, a, v in zip(names, arguments, is_value, strict=True) if v]
    constants = {n: a for n, a, v in zip(names, arguments, is_value, strict=True) if not v}
    shape = tuple(TABLE[op].torch(arguments, attrs).shape[1:])
    program = Program(tuple(values), (Node("y", op, tuple(names), shape, attrs),), ("y",), constants)
    return program, [a for a, v in zip(arguments, is_value, strict=True) if v]
