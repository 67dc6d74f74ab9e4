"""How each op of the table is said in ONNX, opset 18 and newer: from the table where ONNX has one name for it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import TensorProto

from hrt.export.onnx.graph import Graph
from hrt.program.op_table import TABLE, Attrs

Lowering = Callable[[Graph, Sequence[str], Attrs, Sequence[int], str], str]  # ranks: dimensions of the inputs


def lower(g: Graph, op: str, inputs: Sequence[str], attrs: Attrs, ranks: Sequence[int], wanted: str) -> str:
    """The nodes of one op on named float32 inputs; the name of its result. Raises KeyError for an unknown op."""
    special = SPECIAL.get(op)
    if special is not None:
        return special(g, inputs, attrs, ranks, wanted)
    name = TABLE[op].onnx
    if name is None:
        raise KeyError(op)
    return g.add(name, inputs, wanted)


def _gelu(g: Graph, x: Sequence[str], t: Attrs, ranks: Sequence[int], wanted: str) -> str:
    if g.opset >= 20:
        return g.add("Gelu", x, wanted, approximate=t["approximate"])
    half = g.add("Mul", [x[0], g.number(0.5)])
    if t["approximate"] == "tanh":
        cube = g.add("Mul", [g.add("Mul", [x[0], x[0]]), x[0]])
        inner = g.add("Add", [x[0], g.add("Mul", [cube, g.number(0.044715)])])
        curve = g.add("Tanh", [g.add("Mul", [inner, g.number(math.sqrt(2 / math.pi))])])
    else:
        curve = g.add("Erf", [g.add("Mul", [x[0], g.number(1 / math.sqrt(2))])])
    return g.add("Mul", [half, g.add("Add", [curve, g.number(1.0)])], wanted)


def _softplus(g: Graph, x: Sequence[str], t: Attrs, ranks: Sequence[int], wanted: str) -> str:
    if t["beta"] == 1:
        return g.add("Softplus", x, wanted)
    beta = g.number(float(t["beta"]))
    return g.add("Div", [g.add("Softplus", [g.add("Mul", [x[0], beta])]), beta], wanted)


def _clamp(g: Graph, x: Sequence[str], t: Attrs, ranks: Sequence[int], wanted: str) -> str:
    low, high = ("" if t[k] is None or math.isinf(t[k]) else g.number(float(t[k])) for k in ("low", "high"))
    return g.add("Clip", [x[0], low, high], wanted) if low or high else g.add("Identity", x, wanted)


def _slice(g: Graph, x: Sequence[str], t: Attrs, ranks: Sequence[int], wanted: str) -> str:
    largest = torch.iinfo(torch.int64).max
    start = 0 if t["start"] is None else t["start"]
    stop = largest if t["stop"] is None else t["stop"]
    bounds = [g.integers([v], "index") for v in (start, stop, t["axis"], t["step"] or 1)]
    return g.add("Slice", [x[0], *bounds], wanted)


def _expand(g: Graph, x: Sequence[str], t: Attrs, ranks: Sequence[int], wanted: str) -> str:
    extra = 1 + len(t["shape"]) - ranks[0]
    value = x[0]
    if extra:  # new dimensions come behind the batch
        value = g.add("Unsqueeze", [value, g.integers([1 + k for k in range(extra)])])
    return g.add("Expand", [value, g.integers([1, *t["shape"]])], wanted)


def _step(g: Graph, x: Sequence[str], t: Attrs, ranks: Sequence[int], wanted: str) -> str:
    """1 for x > 0, at_zero for x = 0, else 0."""
    if t["at_zero"] in (0, 1):
        side = g.add("Greater" if t["at_zero"] == 0 else "GreaterOrEqual", [x[0], g.number(0.0)])
        return g.add("Cast", [side], wanted, to=TensorProto.FLOAT)
    right = g.add("Cast", [g.add("Greater", [x[0], g.number(0.0)])], to=TensorProto.FLOAT)
    return g.add("Where", [g.add("Equal", [x[0], g.number(0.0)]), g.number(float(t["at_zero"])), right], wanted)


def _reduction(name: str) -> Lowering:
    def nodes(g: Graph, x: Sequence[str], t: Attrs, ranks: Sequence[int], wanted: str) -> str:
        return g.add(name, [x[0], g.integers(t["axes"], "axes")], wanted, keepdims=int(t["keep"]))

    return nodes


def _gather(g: Graph, x: Sequence[str], t: Attrs, ranks: Sequence[int], wanted: str) -> str:
    indices = g.add("Cast", [x[1]], to=TensorProto.INT64)
    return g.add("Gather", [x[0], indices], wanted, axis=t["axis"])


def _where(g: Graph, x: Sequence[str], t: Attrs, ranks: Sequence[int], wanted: str) -> str:
    return g.add("Where", [g.add("Cast", [x[0]], to=TensorProto.BOOL), *x[1:]], wanted)


def _sinc(g: Graph, x: Sequence[str], t: Attrs, ranks: Sequence[int], wanted: str) -> str:
    angle, zero = g.add("Mul", [x[0], g.number(math.pi)]), g.number(0.0)
    at_zero = g.add("Equal", [angle, zero])
    safe = g.add("Where", [at_zero, g.number(1.0), angle])
    return g.add("Where", [at_zero, g.number(1.0), g.add("Div", [g.add("Sin", [safe]), safe])], wanted)


def _atan2(g: Graph, x: Sequence[str], t: Attrs, ranks: Sequence[int], wanted: str) -> str:
    """atan(y / x), half a turn further where x < 0; ONNX has no operator for it. Zero over zero is an angle of 0."""
    (rise, run), zero, half = x, g.number(0.0), g.number(math.pi)
    nothing = g.add("And", [g.add("Equal", [rise, zero]), g.add("Equal", [run, zero])])
    slope = g.add("Atan", [g.add("Where", [nothing, zero, g.add("Div", [rise, run])])])
    turn = g.add("Where", [g.add("Less", [rise, zero]), g.add("Neg", [half]), half])
    return g.add("Add", [slope, g.add("Where", [g.add("Less", [run, zero]), turn, zero])], wanted)


def _along(name: str) -> Lowering:
    return lambda g, x, t, ranks, wanted: g.add(name, x, wanted, axis=t["axis"])


def _layer_norm(g: Graph, x: Sequence[str], t: Attrs, ranks: Sequence[int], wanted: str) -> str:
    scale = list(x[1:2]) or [g.constant(torch.ones(tuple(t["shape"])), "scale")]
    attributes: dict[str, Any] = {"axis": -len(t["shape"]), "epsilon": float(t["eps"])}
    return g.add("LayerNormalization", [x[0], *scale, *x[2:]], wanted, **attributes)


SPECIAL: dict[str, Lowering] = {
    "silu": lambda g, x, t, ranks, wanted: g.add("Mul", [x[0], g.add("Sigmoid", x)], wanted),
    "gelu": _gelu,
    "softplus": _softplus,
    "clamp": _clamp,
    "leaky_relu": lambda g, x, t, ranks, wanted: g.add("LeakyRelu", x, wanted, alpha=float(t["slope"])),
    "elu": lambda g, x, t, ranks, wanted: g.add("Elu", x, wanted, alpha=float(t["alpha"])),
    "power": lambda g, x, t, ranks, wanted: g.add("Pow", [x[0], g.number(float(t["exponent"]))], wanted),
    "concat": lambda g, x, t, ranks, wanted: g.add("Concat", x, wanted, axis=t["axis"]),
    "einsum": lambda g, x, t, ranks, wanted: g.add("Einsum", x, wanted, equation=t["equation"]),
    "slice": _slice,
    "reshape": lambda g, x, t, ranks, wanted: g.add("Reshape", [x[0], g.integers([0, *t["shape"]])], wanted),
    "transpose": lambda g, x, t, ranks, wanted: g.add(
        "Transpose", x, wanted, perm=[0, *(ranks[0] + k for k in t["axes"])]
    ),
    "expand": _expand,
    "repeat": lambda g, x, t, ranks, wanted: g.add("Expand", [x[0], g.batched_shape(x[1], t["shape"], wanted)], wanted),
    "step": _step,
    "sum": _reduction("ReduceSum"),
    "mean": _reduction("ReduceMean"),
    "amax": _reduction("ReduceMax"),
    "amin": _reduction("ReduceMin"),
    "logsumexp": _reduction("ReduceLogSumExp"),
    "softmax": _along("Softmax"),
    "log_softmax": _along("LogSoftmax"),
    "cumsum": lambda g, x, t, ranks, wanted: g.add("CumSum", [x[0], g.integers([t["axis"]], "axis")], wanted),
    "gather": _gather,
    "where": _where,
    "fmod": lambda g, x, t, ranks, wanted: g.add("Mod", x, wanted, fmod=1),
    "atan2": _atan2,
    "sinc": _sinc,
    "layer_norm": _layer_norm,
}
