"""ONNX operators that compare, round, choose or look at a whole axis, said in the op table.

A boolean is a value of 0 and 1, as in graphs of torch (`hrt.capture.compositions`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from onnx import TensorProto

from hrt.capture.compositions import COMPARISONS, COMPOSED, LARGEST, LOGIC, remainder, trunc
from hrt.capture.onnx.builder import OnnxBuilder

Lowering = Callable[[OnnxBuilder, Sequence[str], Mapping[str, Any]], object]
COMPARED = {"Greater": "gt", "GreaterOrEqual": "ge", "Less": "lt", "LessOrEqual": "le", "Equal": "eq"}
LOGICAL = {"And": "and", "Or": "or", "Xor": "xor", "Not": "not"}
ROUNDED = {"Ceil": "ceil", "Sign": "sign"}
REDUCED = {"ReduceSum": "sum", "ReduceMean": "mean", "ReduceMax": "amax", "ReduceMin": "amin"}
REDUCED |= {"ReduceLogSumExp": "logsumexp"}
WHOLE = {getattr(TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)}
ALONG = {"Softmax": "softmax", "LogSoftmax": "log_softmax"}


def saying(b: OnnxBuilder) -> Callable[..., str]:
    """`b.emit` for compositions: operands are names, or numbers."""

    def say(op: str, *operands: Any, **attrs: Any) -> str:
        names = [b.constant("number", np.asarray(x)) if isinstance(x, (int, float)) else b.operand(x) for x in operands]
        return b.emit(op, names, None, **attrs)

    return say


def composed(composition: Callable[..., Any]) -> Lowering:
    """A lowering that says a composition of its operands, under the name of the node's output."""

    def lower(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
        b.rename(composition(saying(b), *(_number(b, name) for name in x)))

    return lower


def _number(b: OnnxBuilder, name: str) -> Any:
    """A constant of one number as that number."""
    constant = b.known.get(name)
    return float(constant.reshape(())) if constant is not None and constant.size == 1 else name


def listed(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any], key: str, position: int) -> list[int]:
    """Whole numbers that are an attribute in older opsets and an input in newer ones; none where both are missing."""
    if key in t:
        return list(t[key])
    return b.integers(x[position], key) if len(x) > position and x[position] else []


def _axes(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> list[int]:
    axes = listed(b, x, t, "axes", 1)
    if not axes:
        raise b.fail("it reduces all dimensions, the batch too")
    return [b.axis(a, x[0]) for a in axes]


def _reduce(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    b.emit(REDUCED[b.at.op_type], x[:1], b.out, axes=_axes(b, x, t), keep=bool(t.get("keepdims", 1)))


def _reduce_of(inner: Callable[..., Any], outer: Callable[..., Any] | None = None) -> Lowering:
    """A sum of `inner`, then `outer` of it."""

    def lower(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
        say, axes = saying(b), _axes(b, x, t)
        total = say("sum", inner(say, x[0]), axes=axes, keep=bool(t.get("keepdims", 1)))
        b.rename(outer(say, total) if outer else total)

    return lower


def _product(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    """Halves times halves."""
    value, say, axes = x[0], saying(b), _axes(b, x, t)
    for axis in axes:
        rest: list[str] = []
        while (size := b.example[value].shape[axis]) > 1:
            half = size // 2
            part = partial(say, "slice", value, axis=axis, step=1)
            rest += [part(start=size - 1, stop=size)] if size % 2 else []
            value = say("mul", part(start=0, stop=half), part(start=half, stop=2 * half))
        for other in rest:
            value = say("mul", value, other)
    value = say("sum", value, axes=axes, keep=bool(t.get("keepdims", 1)))  # of one number each
    b.rename(value)


def _along(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    last = b.example[x[0]].ndim - 1
    if b.opset < 13 and t.get("axis", 1) not in (-1, last):
        raise b.fail(f"before opset 13 it flattens the dimensions from {t.get('axis', 1)} on; expected the last alone")
    b.emit(ALONG[b.at.op_type], x[:1], b.out, axis=b.axis(t.get("axis", -1), x[0]))


def _cumulated(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    if t.get("exclusive", 0) or t.get("reverse", 0):
        raise b.fail("it leaves an entry out, or counts from the end")
    (axis,) = b.integers(x[1], "axis")
    b.emit("cumsum", x[:1], b.out, axis=b.axis(axis, x[0]))


def _mod(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    if t.get("fmod", 0):
        b.emit("fmod", [b.operand(n) for n in x], b.out)
    else:
        composed(remainder)(b, x, t)


def _where(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    for name in x[1:]:
        if name in b.known and b.known[name].dtype.kind == "f":
            b.known[name] = np.clip(b.known[name], -LARGEST, LARGEST)
    b.emit("where", [b.operand(n) for n in x], b.out)


def _expanded(b: OnnxBuilder, x: Sequence[str], t: Mapping[str, Any]) -> None:
    target, shape = b.integers(x[1], "dimensions"), b.example[x[0]].shape
    if len(target) > len(shape) or (len(target) == len(shape) and target[0] != 1):
        raise b.fail("it repeats the batch")
    sample = np.broadcast_shapes(shape[1:], tuple(target[1:] if len(target) == len(shape) else target))
    b.emit("expand", x[:1], b.out, shape=[int(n) for n in sample])


def cast(b: OnnxBuilder, x: Sequence[str], kind: int) -> None:
    """To booleans, or whole numbers; the other types are left as they are."""
    say = saying(b)
    if kind == TensorProto.BOOL:
        b.rename(COMPARISONS["ne"](say, x[0], 0))
    elif kind in WHOLE:
        b.rename(trunc(say, x[0]))
    else:
        raise b.fail(f"it casts to {TensorProto.DataType.Name(kind)}; expected a type of numbers")


CHOICES: dict[str, Lowering] = {
    **{name: composed(COMPARISONS[c]) for name, c in COMPARED.items()},
    **{name: composed(LOGIC[c]) for name, c in LOGICAL.items()},
    **{name: composed(COMPOSED[c]) for name, c in ROUNDED.items()},
    **dict.fromkeys(REDUCED, _reduce),
    **dict.fromkeys(ALONG, _along),
    "ReduceProd": _product,
    "ReduceL1": _reduce_of(lambda say, x: say("abs", x)),
    "ReduceL2": _reduce_of(lambda say, x: say("power", x, exponent=2.0), lambda say, x: say("sqrt", x)),
    "ReduceSumSquare": _reduce_of(lambda say, x: say("power", x, exponent=2.0)),
    "Floor": lambda b, x, t: b.emit("floor", x[:1], b.out),
    "Round": lambda b, x, t: b.emit("round", x[:1], b.out),
    "CumSum": _cumulated,
    "Mod": _mod,
    "Where": _where,
    "Expand": _expanded,
}
