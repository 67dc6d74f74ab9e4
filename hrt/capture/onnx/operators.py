"""How ONNX operators are said in the op table: one small function each, which asks the builder for what it needs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hrt.capture.builder import runs
from hrt.capture.onnx.builder import ROWS, OnnxBuilder
from hrt.capture.onnx.choices import CHOICES, Lowering, listed
from hrt.capture.onnx.convolutions import CONVOLUTIONS
from hrt.program.op_table import TABLE

UNARY = {row.onnx: name for name, row in TABLE.items() if row.onnx and row.arity == 1 and row.derivative is not None}
MOST_SLICES = 64  # that a list of places is said as; a longer one is a `gather`
BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Max": "maximum", "Min": "minimum"}


def _number(b: OnnxBuilder, x: Sequence[str], position: int) -> np.ndarray | None:
    """The numbers of an operand that may be left out; None where it is, or is no constant."""
    return b.known.get(x[position]) if len(x) > position and x[position] else None


def _exponent(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> dict[str, Any]:
    exponent = _number(b, x, 1)
    if exponent is None or exponent.size != 1:
        raise b.fail("its exponent is no single constant")
    return {"exponent": float(exponent.reshape(()))}


def _bounds(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> dict[str, Any]:
    bounds = {"low": _number(b, x, 1), "high": _number(b, x, 2)}
    return {k: None if v is None else float(v) for k, v in bounds.items()}


# What the table's ops of one argument ask for beside it.
ATTRIBUTES: dict[str, Callable[[OnnxBuilder, Sequence[str], Mapping[str, Any]], dict[str, Any]]] = {
    "gelu": lambda b, x, t: {"approximate": t.get("approximate", b"none").decode()},
    "leaky_relu": lambda b, x, t: {"slope": float(t.get("alpha", 0.01))},
    "elu": lambda b, x, t: {"alpha": float(t.get("alpha", 1.0))},
    "softplus": lambda b, x, t: {"beta": 1.0},
    "clamp": _bounds,
    "power": _exponent,
}


def _unary(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    op = UNARY[b.at.op_type]
    b.emit(op, x[:1], b.out, **(ATTRIBUTES[op](b, x, t) if op in ATTRIBUTES else {}))


def _binary(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    if len(x) != 2:
        raise b.fail(f"it has {len(x)} operands; expected two")
    b.emit(BINARY[b.at.op_type], [b.operand(n) for n in x], b.out)


def _matmul(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    weight = _number(b, x, 1)
    if weight is not None and weight.ndim == 2 and x[0] in b.example:
        b.linear(x[0], weight.T, None, b.out)
    else:
        b.emit("matmul", [b.operand(n) for n in x], b.out)


def _gemm(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    weight, bias = _number(b, x, 1), _number(b, x, 2)
    if weight is None or t.get("transA", 0) or (len(x) > 2 and x[2] and bias is None) or x[0] not in b.example:
        raise b.fail("expected a value times a constant matrix, plus a constant")
    weight = float(t.get("alpha", 1.0)) * (weight if t.get("transB", 0) else weight.T).astype(np.float64)
    if bias is not None:
        bias = float(t.get("beta", 1.0)) * np.broadcast_to(bias.astype(np.float64).reshape(-1), (weight.shape[0],))
    b.linear(x[0], weight, bias, b.out)


def _shaped(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    value = b.example[x[0]]
    if b.at.op_type == "Flatten":
        if t.get("axis", 1) != 1:
            raise b.fail("it flattens the batch")
        shape = [-1]
    elif b.at.op_type == "Reshape":
        target = b.integers(x[1], "dimensions")
        if target[:1] != [-1] and (target[:1] != [0] or t.get("allowzero", 0)):
            raise b.fail(f"its first dimension is {target[:1]}, and so the batch is not kept")
        target = [value.shape[k] if v == 0 and not t.get("allowzero", 0) else v for k, v in enumerate(target)]
        shape = target[1:]
    else:
        axes = listed(b, x, t, "axes", 1)
        size = value.ndim + (len(axes) if b.at.op_type == "Unsqueeze" else 0)
        axes = sorted(a % size for a in axes) or [k for k in range(1, value.ndim) if value.shape[k] == 1]
        if 0 in axes:
            raise b.fail("it moves the batch")
        for a in axes if b.at.op_type == "Unsqueeze" else reversed(axes):
            value = value.unsqueeze(a) if b.at.op_type == "Unsqueeze" else value.squeeze(a)
        shape = list(value.shape[1:])
    try:
        shape = list(value.reshape(ROWS, *shape).shape[1:])
    except RuntimeError:
        raise b.fail("its dimensions do not fit a batch of any size") from None
    b.emit("reshape", x[:1], b.out, shape=shape)


def _transpose(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    ndim = b.example[x[0]].ndim
    perm = list(t.get("perm", range(ndim)[::-1]))
    if perm[0] != 0:
        raise b.fail("it moves the batch")
    b.emit("transpose", x[:1], b.out, axes=[k - ndim for k in perm[1:]])


def _slice(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    starts, ends = b.integers(x[1], "starts"), b.integers(x[2], "ends")
    axes = listed(b, x, {}, "axes", 3) or list(range(len(starts)))
    steps = listed(b, x, {}, "steps", 4) or [1] * len(starts)
    value = x[0]
    for k, (start, stop, axis, step) in enumerate(zip(starts, ends, axes, steps, strict=True)):
        if step < 1:
            raise b.fail("its steps go backwards")
        length = b.example[value].shape[b.axis(axis, value)]
        bounds = {"start": max(-length, min(start, length)), "stop": max(-length, min(stop, length)), "step": step}
        value = b.emit("slice", [value], b.out if k == len(starts) - 1 else None, axis=b.axis(axis, value), **bounds)


def _split(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    axis = b.axis(t.get("axis", 0), x[0])
    length, count = b.example[x[0]].shape[axis], len(b.at.output)
    even = [-(-length // count)] * (count - 1)
    sizes = listed(b, x, t, "split", 1) or [*even, length - sum(even)]
    start = 0
    for name, size in zip(b.at.output, sizes, strict=True):
        b.emit("slice", x[:1], name, axis=axis, start=start, stop=start + size, step=1)
        start += size


def _gather(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    """Constant indices: slices, side by side; a single number drops the dimension."""
    if x[0] not in b.example:
        raise b.fail("its indices depend on an input")
    axis, index = b.axis(t.get("axis", 0), x[0]), b.known.get(x[1])
    if index is None or index.ndim > 1:
        raise b.fail("expected a constant vector of indices, or one index")
    length = b.example[x[0]].shape[axis]
    wanted = [int(i) % length for i in index.reshape(-1)]
    if not wanted or any(not -length <= int(i) < length for i in index.reshape(-1)):
        raise b.fail(f"its indices reach outside the {length} numbers that there are")
    ranges = runs(wanted)
    if len(ranges) > MOST_SLICES:
        b.emit("gather", [x[0], b.constant(f"{b.out}.places", np.asarray(wanted))], b.out, axis=axis)
        return
    name = b.out if index.ndim and len(ranges) == 1 else None
    pieces = [b.emit("slice", x[:1], name, axis=axis, start=i, stop=j, step=1) for i, j in ranges]
    if len(pieces) > 1:
        b.emit("concat", pieces, b.out, axis=axis)
    elif not index.ndim:
        b.emit("reshape", pieces, b.out, shape=list(b.example[pieces[0]].squeeze(axis).shape[1:]))


def _concat(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    first = next(n for n in x if n in b.example)
    if any(n not in b.example for n in x):
        raise b.fail("it joins a constant; expected values that depend on an input")
    b.emit("concat", list(x), b.out, axis=b.axis(t["axis"], first))


def _layer_norm(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    axis = b.axis(t.get("axis", -1), x[0])
    shape = list(b.example[x[0]].shape[axis:])
    inputs = [x[0], *(b.operand(n) for n in x[1:] if n)]
    b.emit("layer_norm", inputs, b.out, shape=shape, eps=float(t.get("epsilon", 1e-5)))


LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    "MatMul": _matmul,
    "Gemm": _gemm,
    **CONVOLUTIONS,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _shaped),
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Gather": _gather,
    **CHOICES,
    "LayerNormalization": _layer_norm,
    "Einsum": lambda b, x, t: b.emit("einsum", [b.operand(n) for n in x], b.out, equation=t["equation"].decode()),
}
