"""How ONNX operators are said in the op table: one small function each, which asks the reader for what it needs."""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from hrt.program.op_table import TABLE

if TYPE_CHECKING:
    from hrt.capture.onnx_file import Reader

UNARY = {row.onnx: name for name, row in TABLE.items() if row.onnx and row.arity == 1 and row.derivative is not None}
BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Max": "maximum", "Min": "minimum"}

Lowering = Callable[["Reader", Sequence[str], Mapping[str, Any]], object]


def _unary(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    op, attrs = UNARY[r.at.op_type], {}
    if op == "gelu":
        attrs = {"approximate": t.get("approximate", b"none").decode()}
    elif op == "leaky_relu":
        attrs = {"slope": float(t.get("alpha", 0.01))}
    elif op == "elu":
        attrs = {"alpha": float(t.get("alpha", 1.0))}
    elif op == "softplus":
        attrs = {"beta": 1.0}
    elif op == "clamp":
        bounds = [r.number(n) if n else None for n in [*x[1:], "", ""][:2]]
        low, high = (None if b is None else float(b) for b in bounds)
        attrs = {"low": low, "high": high}
    elif op == "power":
        exponent = r.number(x[1])
        if exponent is None or exponent.size != 1:
            raise r.fail("its exponent is no single constant")
        attrs = {"exponent": float(exponent.reshape(()))}
    r.emit(op, x[:1], r.out, **attrs)


def _binary(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    if len(x) != 2:
        raise r.fail(f"it has {len(x)} operands; expected two")
    r.emit(BINARY[r.at.op_type], [r.operand(n) for n in x], r.out)


def _matmul(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    weight = r.number(x[1])
    if weight is not None and weight.ndim == 2 and x[0] in r.example:
        r.linear(x[0], weight.T, None, r.out)
    else:
        r.emit("matmul", [r.operand(n) for n in x], r.out)


def _gemm(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    weight, bias = r.number(x[1]), r.number(x[2]) if len(x) > 2 and x[2] else None
    if weight is None or t.get("transA", 0) or (len(x) > 2 and x[2] and bias is None) or x[0] not in r.example:
        raise r.fail("expected a value times a constant matrix, plus a constant")
    weight = float(t.get("alpha", 1.0)) * (weight if t.get("transB", 0) else weight.T).astype(np.float64)
    if bias is not None:
        bias = float(t.get("beta", 1.0)) * np.broadcast_to(bias.astype(np.float64).reshape(-1), (weight.shape[0],))
    r.linear(x[0], weight, bias, r.out)


def _conv(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    weight, bias = r.number(x[1]), r.number(x[2]) if len(x) > 2 and x[2] else None
    ones = ("kernel_shape", "strides", "dilations")
    plain = all(set(t.get(k, [1])) == {1} for k in ones) and not any(t.get("pads", [])) and t.get("group", 1) == 1
    if weight is None or not plain or any(s != 1 for s in weight.shape[2:]):
        raise r.fail("only pointwise convolutions (kernel 1, stride 1, one group) are linear layers")
    last = [*range(-(weight.ndim - 2), 0), -(weight.ndim - 1)]
    moved = r.emit("transpose", x[:1], None, axes=last)
    y = r.linear(moved, weight.reshape(weight.shape[:2]), bias, None)
    r.emit("transpose", [y], r.out, axes=[-1, *range(-(weight.ndim - 1), -1)])


def _shaped(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    have = r.example[x[0]]
    if r.at.op_type == "Flatten":
        if t.get("axis", 1) != 1:
            raise r.fail("it flattens the batch")
        shape = [-1]
    elif r.at.op_type == "Reshape":
        target = r.integers(x[1], "dimensions")
        if target[:1] != [-1] and (target[:1] != [0] or t.get("allowzero", 0)):
            raise r.fail(f"its first dimension is {target[:1]}, and so the batch is not kept")
        target = [have.shape[k] if v == 0 and not t.get("allowzero", 0) else v for k, v in enumerate(target)]
        shape = target[1:]
    else:
        axes = list(t["axes"]) if "axes" in t else r.integers(x[1], "axes") if len(x) > 1 else []
        value = have
        size = have.ndim + (len(axes) if r.at.op_type == "Unsqueeze" else 0)
        axes = sorted(a % size for a in axes) or [k for k in range(1, have.ndim) if have.shape[k] == 1]
        if 0 in axes:
            raise r.fail("it moves the batch")
        for a in axes if r.at.op_type == "Unsqueeze" else reversed(axes):
            value = value.unsqueeze(a) if r.at.op_type == "Unsqueeze" else value.squeeze(a)
        shape = list(value.shape[1:])
    try:
        found = have.reshape(r.rows, *shape)
    except RuntimeError:
        raise r.fail("its dimensions do not fit a batch of any size") from None
    r.emit("reshape", x[:1], r.out, shape=list(found.shape[1:]))


def _transpose(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    ndim = r.example[x[0]].ndim
    perm = list(t.get("perm", range(ndim)[::-1]))
    if perm[0] != 0:
        raise r.fail("it moves the batch")
    r.emit("transpose", x[:1], r.out, axes=[k - ndim for k in perm[1:]])


def _slice(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    starts, ends = r.integers(x[1], "starts"), r.integers(x[2], "ends")
    axes = r.integers(x[3], "axes") if len(x) > 3 and x[3] else list(range(len(starts)))
    steps = r.integers(x[4], "steps") if len(x) > 4 and x[4] else [1] * len(starts)
    value = x[0]
    for k, (a, b, axis, step) in enumerate(zip(starts, ends, axes, steps, strict=True)):
        if step < 1:
            raise r.fail("its steps go backwards")
        length = r.example[value].shape[r.axis(axis, value)]
        bounds = {"start": max(-length, min(a, length)), "stop": max(-length, min(b, length)), "step": step}
        value = r.emit("slice", [value], r.out if k == len(starts) - 1 else None, axis=r.axis(axis, value), **bounds)


def _split(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    axis = r.axis(t.get("axis", 0), x[0])
    length, count = r.example[x[0]].shape[axis], len(r.at.output)
    even = [-(-length // count)] * (count - 1)
    sizes = (
        list(t["split"]) if "split" in t else r.integers(x[1], "sizes") if len(x) > 1 else [*even, length - sum(even)]
    )
    at = 0
    for name, size in zip(r.at.output, sizes, strict=True):
        r.emit("slice", x[:1], name, axis=axis, start=at, stop=at + size, step=1)
        at += size


def _gather(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    """Constant indices: slices, side by side; a single number drops the dimension."""
    if x[0] not in r.example:
        raise r.fail("its indices depend on an input")
    axis, index = r.axis(t.get("axis", 0), x[0]), r.known.get(x[1])
    if index is None or index.ndim > 1:
        raise r.fail("expected a constant vector of indices, or one index")
    length = r.example[x[0]].shape[axis]
    wanted = [int(i) % length for i in index.reshape(-1)]
    if not wanted or any(not -length <= int(i) < length for i in index.reshape(-1)):
        raise r.fail(f"its indices reach outside the {length} numbers that there are")
    cuts = [k for k in range(len(wanted) + 1) if k in (0, len(wanted)) or wanted[k] != wanted[k - 1] + 1]
    runs = [(wanted[a], wanted[b - 1] + 1) for a, b in pairwise(cuts)]
    last = r.out if index.ndim else None
    pieces = [r.emit("slice", x[:1], None, axis=axis, start=a, stop=b, step=1) for a, b in runs[:-1]]
    if pieces:
        pieces.append(r.emit("slice", x[:1], None, axis=axis, start=runs[-1][0], stop=runs[-1][1], step=1))
        r.emit("concat", pieces, last, axis=axis)
    else:
        piece = r.emit("slice", x[:1], last, axis=axis, start=runs[0][0], stop=runs[0][1], step=1)
        if not index.ndim:
            r.emit("reshape", [piece], r.out, shape=list(r.example[piece].squeeze(axis).shape[1:]))


def _concat(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    first = next(n for n in x if n in r.example)
    if any(n not in r.example for n in x):
        raise r.fail("it joins a constant; expected values that depend on an input")
    r.emit("concat", list(x), r.out, axis=r.axis(t["axis"], first))


def _reduce(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    axes = list(t["axes"]) if "axes" in t else r.integers(x[1], "axes") if len(x) > 1 and x[1] else []
    if not axes:
        raise r.fail("it reduces all dimensions, the batch too")
    op = {"ReduceSum": "sum", "ReduceMean": "mean"}[r.at.op_type]
    r.emit(op, x[:1], r.out, axes=[r.axis(a, x[0]) for a in axes], keep=bool(t.get("keepdims", 1)))


def _layer_norm(r: "Reader", x: Sequence[str], t: Mapping[str, Any]) -> None:
    axis = r.axis(t.get("axis", -1), x[0])
    shape = list(r.example[x[0]].shape[axis:])
    r.emit(
        "layer_norm", [x[0], *(r.operand(n) for n in x[1:] if n)], r.out, shape=shape, eps=float(t.get("epsilon", 1e-5))
    )


LOWERINGS: dict[str, Lowering] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(BINARY, _binary),
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _shaped),
    "Transpose": _transpose,
    "Slice": _slice,
    "Split": _split,
    "Concat": _concat,
    "Gather": _gather,
    **dict.fromkeys(("ReduceSum", "ReduceMean"), _reduce),
    "LayerNormalization": _layer_norm,
    "Einsum": lambda r, x, t: r.emit("einsum", [r.operand(n) for n in x], r.out, equation=t["equation"].decode()),
}
