"""ONNX operators as torch's functions, for files that are captured as torch captures networks (`replayed.py`).

A function takes the node's operands and attributes. Floats are float64 and whole numbers int64; a constant without
dimensions is a Python number. Operands at the places in `SIZES` are numpy arrays, whose entries may be symbols.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor

from hrt.capture.onnx.operands import FLOATING, WHOLE, Function, NodeError, given, ints, listed, tensor


def _cast(x: Sequence[Any], t: Mapping[str, Any]) -> Any:
    kinds = {TensorProto.BOOL: torch.bool, **dict.fromkeys(FLOATING, torch.float64)}
    kind = torch.int64 if t["to"] in WHOLE else kinds.get(t["to"])
    if kind is None:
        raise NodeError(f"it casts to {TensorProto.DataType.Name(t['to'])}; expected a type of numbers")
    return x[0].to(kind) if isinstance(x[0], Tensor) else tensor(x[0]).to(kind)


def _reduction(function: Callable[..., Tensor], before: Callable[..., Any] | None = None) -> Function:
    def reduced(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
        value, axes, keep = before(x[0]) if before else x[0], listed(x, t, "axes"), bool(t.get("keepdims", 1))
        if not axes:
            if t.get("noop_with_empty_axes", 0):
                return value
            axes = list(range(value.ndim))
        return function(value, axes, keep)

    return reduced


def _product(x: Tensor, axes: Sequence[int], keep: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _places(function: Callable[..., Tensor]) -> Function:
    return lambda x, t: function(x[0], dim=t.get("axis", 0), keepdim=bool(t.get("keepdims", 1)))


def _reshape(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    shape = ints(x[1])
    if not t.get("allowzero", 0):
        shape = [x[0].shape[k] if isinstance(n, int) and n == 0 else n for k, n in enumerate(shape)]
    return x[0].reshape(shape)


def _flatten(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    axis = t.get("axis", 1) % (x[0].ndim + 1)
    return x[0].flatten(axis) if axis == 1 else x[0].reshape(math.prod(x[0].shape[:axis]), -1)


def _unsqueeze(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    axes, y = listed(x, t, "axes") or [], x[0]
    for axis in sorted(a % (y.ndim + len(axes)) for a in axes):
        y = y.unsqueeze(axis)
    return y


def _squeeze(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    axes = listed(x, t, "axes")
    return x[0].squeeze() if axes is None else x[0].squeeze([a % x[0].ndim for a in axes])


def _slice(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    starts, ends = ints(x[1]), ints(x[2])
    axes = ints(x[3]) if given(x, 3) is not None else list(range(len(starts)))
    steps = ints(x[4]) if given(x, 4) is not None else [1] * len(starts)
    y = x[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            y = y[(slice(None),) * (axis % y.ndim) + (slice(start, end, step),)]
        else:
            places = range(*slice(start, max(end, -y.shape[axis] - 1), step).indices(y.shape[axis]))
            y = y.index_select(axis % y.ndim, torch.tensor(list(places)))
    return y


def _split(x: Sequence[Any], t: Mapping[str, Any]) -> Sequence[Tensor]:
    axis, sizes = t.get("axis", 0), listed(x, t, "split")
    return x[0].split(sizes if sizes else -(-x[0].shape[axis] // t["outputs"]), dim=axis)


def _expand(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    y, shape = tensor(x[0]), ints(x[1])
    y = y.reshape(*(1,) * (len(shape) - y.ndim), *y.shape)
    shape = [1] * (y.ndim - len(shape)) + shape
    return y.expand([n if isinstance(m, int) and m == 1 else m for n, m in zip(y.shape, shape, strict=True)])


def _gather(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    axis, index = t.get("axis", 0), x[1]
    if isinstance(index, int):
        return x[0].select(axis, index)
    data = tensor(x[0])
    return data[(slice(None),) * (axis % data.ndim) + (tensor(index),)]


def _gather_nd(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    if t.get("batch_dims", 0):
        raise NodeError("it gathers along leading dimensions together")
    return x[0][tuple(x[1].unbind(-1))]


def _scatter_nd(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    reduction = t.get("reduction", "none")
    if reduction not in ("none", "add"):
        raise NodeError(f"its reduction is {reduction!r}; expected none or add")
    return torch.index_put(x[0], tuple(x[1].unbind(-1)), tensor(x[2]), accumulate=reduction == "add")


def _scatter(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    reduction, axis = t.get("reduction", "none"), t.get("axis", 0)
    if reduction not in ("none", "add"):
        raise NodeError(f"its reduction is {reduction!r}; expected none or add")
    return (x[0].scatter_add if reduction == "add" else x[0].scatter)(axis, x[1], tensor(x[2]))


def _one_hot(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    (depth,), (off, on), axis = ints(x[1]), np.asarray(x[2]).tolist(), t.get("axis", -1)
    hot = torch.remainder(x[0], depth).long().unsqueeze(-1) == torch.arange(depth)
    return torch.where(hot, float(on), float(off)).movedim(-1, axis)


def _clip(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    low, high = t.get("min", given(x, 1)), t.get("max", given(x, 2))
    return x[0] if low is None and high is None else x[0].clamp(low, high)


def _dropout(x: Sequence[Any], t: Mapping[str, Any]) -> Any:
    if given(x, 2):
        raise NodeError("it is in training mode, and so drops values at random")
    return x[0]


def _div(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    whole = all(isinstance(v, int) or (isinstance(v, Tensor) and not v.is_floating_point()) for v in x)
    return torch.div(tensor(x[0]), x[1], rounding_mode="trunc" if whole else None)


def _pad(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    y, pads, mode = x[0], listed(x, t, "pads") or [], t.get("mode", "constant")
    value = 0.0 if given(x, 2) is None else float(np.asarray(x[2]).reshape(-1)[0])
    axes = [a % y.ndim for a in ints(x[3])] if given(x, 3) is not None else list(range(y.ndim))
    sides = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    if mode == "constant":
        first = min((axis for axis, both in sides.items() if any(both)), default=y.ndim)
        return F.pad(y, [n for axis in reversed(range(first, y.ndim)) for n in sides.get(axis, (0, 0))], value=value)
    modes: dict[str, Literal["reflect", "edge", "wrap"]] = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    for axis, (before, behind) in sides.items():
        if before or behind:
            places = np.pad(np.arange(int(y.shape[axis])), (before, behind), mode=modes[mode])
            y = y.index_select(axis, torch.from_numpy(places))
    return y


def _depth_to_space(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    n, (batch, channels, height, width) = t["blocksize"], x[0].shape
    if t.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x[0], n)
    y = x[0].reshape(batch, n, n, channels // n**2, height, width).permute(0, 3, 4, 1, 5, 2)
    return y.reshape(batch, channels // n**2, height * n, width * n)


def _space_to_depth(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    n, (batch, channels, height, width) = t["blocksize"], x[0].shape
    y = x[0].reshape(batch, channels, height // n, n, width // n, n).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(batch, channels * n**2, height // n, width // n)


def _gemm(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    a, b = (v.mT if t.get(key, 0) else v for v, key in zip(x[:2], ("transA", "transB"), strict=True))
    y = a @ b
    y = y if t.get("alpha", 1.0) == 1 else t["alpha"] * y
    return y if given(x, 2) is None else y + (x[2] if t.get("beta", 1.0) == 1 else t["beta"] * x[2])


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    return lambda x, t: reduce(function, map(tensor, x))


def _softmax(function: Callable[..., Tensor]) -> Function:
    def along(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
        if t["opset"] >= 13 or t.get("axis", 1) in (-1, x[0].ndim - 1):
            return function(x[0], dim=t.get("axis", -1))
        return function(x[0].flatten(t.get("axis", 1)), dim=-1).reshape(x[0].shape)

    return along


def _cumsum(x: Sequence[Any], t: Mapping[str, Any]) -> Tensor:
    (axis,), y = ints(x[1]), x[0]
    y = y.flip(axis) if t.get("reverse", 0) else y
    total = y.cumsum(axis) - y if t.get("exclusive", 0) else y.cumsum(axis)
    return total.flip(axis) if t.get("reverse", 0) else total


def _elementwise(function: Callable[..., Tensor], **options: Any) -> Function:
    """options: torch's name and default of an attribute, by ONNX's name."""
    return lambda x, t: function(
        tensor(x[0]), **{name: t.get(key, default) for key, (name, default) in options.items()}
    )


def _binary(function: Callable[..., Tensor]) -> Function:
    return lambda x, t: function(tensor(x[0]), x[1])


_UNARY = {
    "Identity": lambda x: x,
    **{name: getattr(torch, name.lower()) for name in ("Abs", "Neg", "Exp", "Log", "Sqrt", "Reciprocal", "Sigmoid")},
    **{name: getattr(torch, name.lower()) for name in ("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Erf", "Sign")},
    **{name: getattr(torch, name.lower()) for name in ("Sinh", "Cosh", "Tanh", "Asinh", "Acosh", "Atanh", "Round")},
    **{name: getattr(torch, name.lower()) for name in ("Floor", "Ceil", "Relu", "IsNaN", "IsInf")},
    "Not": torch.logical_not,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
}
_BINARY = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Pow": torch.pow,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    **{name: getattr(torch, f"logical_{name.lower()}") for name in ("And", "Or", "Xor")},
}
_REDUCED: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor] | None]] = {
    "ReduceSum": (torch.sum, None),
    "ReduceMean": (torch.mean, None),
    "ReduceMax": (torch.amax, None),
    "ReduceMin": (torch.amin, None),
    "ReduceProd": (_product, None),
    "ReduceL1": (torch.sum, torch.abs),
    "ReduceL2": (lambda v, axes, keep: v.sum(axes, keep).sqrt(), torch.square),
    "ReduceSumSquare": (torch.sum, torch.square),
    "ReduceLogSumExp": (torch.logsumexp, None),
    "ReduceLogSum": (lambda v, axes, keep: v.sum(axes, keep).log(), None),
}

FUNCTIONS: dict[str, Function] = {
    **{name: _elementwise(f) for name, f in _UNARY.items()},
    **{name: _binary(f) for name, f in _BINARY.items()},
    **{name: _reduction(*pair) for name, pair in _REDUCED.items()},
    "Gelu": _elementwise(F.gelu, approximate=("approximate", "none")),
    "LeakyRelu": _elementwise(F.leaky_relu, alpha=("negative_slope", 0.01)),
    "Elu": _elementwise(F.elu, alpha=("alpha", 1.0)),
    "Celu": _elementwise(F.celu, alpha=("alpha", 1.0)),
    "ThresholdedRelu": lambda x, t: torch.where(x[0] > t.get("alpha", 1.0), x[0], 0.0),
    "HardSigmoid": lambda x, t: (t.get("alpha", 0.2) * x[0] + t.get("beta", 0.5)).clamp(0, 1),
    "Selu": lambda x, t: (
        t.get("gamma", 1.0507009873554805)
        * torch.where(x[0] > 0, x[0], t.get("alpha", 1.6732632423543772) * torch.expm1(x[0].clamp(max=0)))
    ),
    "Swish": lambda x, t: x[0] * torch.sigmoid(t.get("alpha", 1.0) * x[0]),
    "PRelu": lambda x, t: torch.where(x[0] > 0, x[0], x[1] * x[0]),
    "Shrink": lambda x, t: (
        torch.where(x[0] < -t.get("lambd", 0.5), x[0] + t.get("bias", 0.0), 0.0)
        + torch.where(x[0] > t.get("lambd", 0.5), x[0] - t.get("bias", 0.0), 0.0)
    ),
    "Dropout": _dropout,
    "Div": _div,
    "Mod": lambda x, t: (torch.fmod if t.get("fmod", 0) else torch.remainder)(tensor(x[0]), x[1]),
    "Clip": _clip,
    "Cast": _cast,
    "CastLike": lambda x, t: x[0].to(tensor(x[1]).dtype),
    "Sum": _variadic(torch.add),
    "Mean": lambda x, t: reduce(torch.add, map(tensor, x)) / len(x),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Where": lambda x, t: torch.where(tensor(x[0]), x[1], x[2]),
    "Softmax": _softmax(torch.softmax),
    "LogSoftmax": _softmax(torch.log_softmax),
    "CumSum": _cumsum,
    "ArgMax": _places(torch.argmax),
    "ArgMin": _places(torch.argmin),
    "TopK": lambda x, t: torch.topk(x[0], ints(x[1])[0], t.get("axis", -1), bool(t.get("largest", 1))),
    "MatMul": lambda x, t: x[0] @ x[1],
    "Gemm": _gemm,
    "Einsum": lambda x, t: torch.einsum(t["equation"], *x),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": lambda x, t: x[0].permute(t.get("perm", tuple(range(x[0].ndim))[::-1])),
    "Concat": lambda x, t: torch.cat([tensor(v) for v in x], dim=t["axis"]),
    "Split": _split,
    "Slice": _slice,
    "Expand": _expand,
    "Tile": lambda x, t: x[0].repeat(ints(x[1])),
    "Gather": _gather,
    "GatherElements": lambda x, t: torch.gather(tensor(x[0]), t.get("axis", 0), x[1]),
    "GatherND": _gather_nd,
    "ScatterND": _scatter_nd,
    "ScatterElements": _scatter,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Trilu": lambda x, t: (torch.triu if t.get("upper", 1) else torch.tril)(
        x[0], 0 if given(x, 1) is None else ints(x[1])[0]
    ),
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "ConstantOfShape": lambda x, t: torch.full(
        ints(x[0]), partial(np.ndarray.item, t.get("value", np.zeros(1)))(), dtype=torch.float64
    ),
}
