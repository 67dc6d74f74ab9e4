"""Activations, arithmetic and normalisation: what computes numbers at their places."""

import math
from typing import Any

import torch
from torch import Tensor

from hrt.capture.aten.masks import added, divided
from hrt.capture.builder import ALONG_THE_BATCH, Builder, Lowering, Ref, axis_of

SOFTPLUS_THRESHOLD = 15.0  # from here on torch's jump, exp(-threshold), is lost in float32's rounding


def _activation(op: str, **defaults: Any) -> Lowering:
    names = list(defaults)

    def lower(b: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        given = dict(zip(names, args, strict=False)) | kwargs
        if len(args) > len(names) or not given.keys() <= defaults.keys():
            raise b.fail(f"of its arguments only {names} are supported")
        return b.emit(op, [x], x.shape, **(defaults | given))

    return lower


def _composed(*steps: tuple) -> Lowering:
    """An elementwise op said as several: every step is (op, attributes or a second argument, if any)."""

    def lower(b: Builder, x: Ref) -> Ref:
        for op, *more in steps:
            attrs, others = (more[0], []) if more and isinstance(more[0], dict) else ({}, more)
            x = b.emit(op, [x, *others], x.shape, **attrs)
        return x

    return lower


def _cosh(b: Builder, x: Ref) -> Ref:
    plus, minus = (b.emit("exp", [v], x.shape) for v in (x, b.emit("neg", [x], x.shape)))
    return b.emit("mul", [b.emit("add", [plus, minus], x.shape), 0.5], x.shape)


def _sinh(b: Builder, x: Ref) -> Ref:
    """tanh(x) cosh(x), which keeps its digits near 0, as (e^x - e^-x) / 2 does not."""
    return b.emit("mul", [b.emit("tanh", [x], x.shape), _cosh(b, x)], x.shape)


def _expm1(b: Builder, x: Ref) -> Ref:
    """tanh(x / 2) (e^x + 1), which keeps its digits near 0."""
    half = b.emit("tanh", [b.emit("mul", [x, 0.5], x.shape)], x.shape)
    return b.emit("mul", [half, b.emit("add", [b.emit("exp", [x], x.shape), 1.0], x.shape)], x.shape)


def _softplus(b: Builder, x: Ref, beta: float = 1.0, threshold: float = 20.0) -> Ref:
    if threshold < SOFTPLUS_THRESHOLD:
        raise b.fail(f"it jumps at its threshold {threshold}; expected at least {SOFTPLUS_THRESHOLD}")
    return b.emit("softplus", [x], x.shape, beta=beta)


def _elu(b: Builder, x: Ref, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Ref:
    if input_scale != 1:
        raise b.fail("its input is scaled on one side only")
    y = b.emit("elu", [x], x.shape, alpha=alpha)
    return y if scale == 1 else b.emit("mul", [y, scale], x.shape)


def _celu(b: Builder, x: Ref, alpha: float = 1.0) -> Ref:
    if alpha < 0:
        raise b.fail("its alpha is negative")
    return _elu(b, b.emit("mul", [x, 1 / alpha], x.shape), 1.0, alpha)


def _clamp(b: Builder, x: Ref, low: Any = None, high: Any = None) -> Ref:
    if all(v is None or isinstance(v, (int, float)) for v in (low, high)):
        low, high = (None if v is None or math.isinf(v) else v for v in (low, high))
        return b.emit("clamp", [x], x.shape, low=low, high=high)
    y = x if low is None else b.emit("maximum", [x, low], b.result_shape())
    return y if high is None else b.emit("minimum", [y, high], b.result_shape())


def _binary(op: str) -> Lowering:
    def lower(b: Builder, x: Any, y: Any, alpha: float = 1) -> Ref:
        if alpha != 1:
            y = y * alpha if not isinstance(y, Ref) else b.emit("mul", [y, float(alpha)], y.shape)
        return b.emit(op, [x, y], b.result_shape())

    return lower


def _rsub(b: Builder, x: Ref, y: Any, alpha: float = 1) -> Ref:
    return _binary("add")(b, y, b.emit("mul", [x, -float(alpha)], x.shape))


def _identity(b: Builder, x: Any, *args: Any, **kwargs: Any) -> Any:
    return x


def _dropout(b: Builder, x: Ref, p: float, train: bool) -> Ref:
    if train and p:
        raise b.fail("it is active; call net.eval() before, and give F.dropout training=self.training")
    return x


def _lerp(b: Builder, x: Any, y: Any, weight: Any) -> Ref:
    shape = b.result_shape()
    return b.emit("add", [x, b.emit("mul", [b.emit("sub", [y, x], shape), weight], shape)], shape)


def _power(b: Builder, x: Any, exponent: Any) -> Any:
    if isinstance(x, Ref) and isinstance(exponent, Ref):
        raise b.fail("its base and its exponent depend on the input; for a positive base write (y * x.log()).exp()")
    if isinstance(x, Ref) and (not isinstance(exponent, Tensor) or exponent.numel() == 1):
        exponent = float(exponent)
        return x if exponent == 1 else b.emit("power", [x], x.shape, exponent=exponent)
    if not isinstance(x, Ref) and bool(torch.all(torch.as_tensor(x) > 0)):
        logarithm = torch.log(torch.as_tensor(x, dtype=torch.float64))
        return b.emit("exp", [b.emit("mul", [exponent, logarithm], b.result_shape())], b.result_shape())
    raise b.fail("neither is its exponent one number, nor its base a positive constant")


def _heaviside(b: Builder, x: Ref, values: Any) -> Ref:
    if not isinstance(values, Tensor) or values.numel() != 1:
        raise b.fail("its value at zero is not one constant number")
    return b.emit("step", [x], b.result_shape(), at_zero=float(values))


def _round(b: Builder, x: Ref, *, decimals: int = 0) -> Ref:
    if decimals:
        raise b.fail("it rounds to decimals")
    return b.emit("round", [x], x.shape)


def _rrelu(b: Builder, x: Ref, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, *_: Any) -> Ref:
    if training:
        raise b.fail("it draws random numbers; call net.eval()")
    return b.emit("leaky_relu", [x], x.shape, slope=(lower + upper) / 2)


def _channels(b: Builder, x: Ref) -> tuple[int, ...]:
    """The shape of a constant along the author's dimension 1."""
    return (-1, *(1,) * (-1 - axis_of(x, 1, b) if x.ndim > 1 else 0))


def _prelu(b: Builder, x: Ref, slope: Tensor) -> Ref:
    slope = b.named(slope.reshape(_channels(b, x)), "slope", slope)
    negative = b.emit("clamp", [x], x.shape, low=None, high=0.0)
    return b.emit("add", [b.emit("relu", [x], x.shape), b.emit("mul", [negative, slope], x.shape)], x.shape)


def _layer_norm(
    b: Builder, x: Ref, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Ref:
    if None in shape:
        raise b.fail(ALONG_THE_BATCH)
    affine = [p for p in (weight, bias) if p is not None]
    if bias is not None and weight is None:
        raise b.fail("it has a bias without a weight")
    return b.emit("layer_norm", [x, *affine], x.shape, shape=list(shape), eps=eps)


def _batch_norm(b: Builder, x: Ref, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *rest: Any) -> Ref:
    if training or mean is None:
        raise b.fail("it averages over the batch; call net.eval(), and keep track_running_stats=True")
    scale = (var + rest[1]).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    side = _channels(b, x)
    scale, shift = b.named(scale.reshape(side), "scale"), b.named(shift.reshape(side), "shift")
    return b.emit("add", [b.emit("mul", [x, scale], x.shape), shift], x.shape)


ELEMENTWISE: dict[str, Lowering] = {
    **{name: _activation(name) for name in ("tanh", "sin", "cos", "sigmoid", "silu", "mish", "relu", "neg", "abs")},
    **{name: _activation(name) for name in ("exp", "log", "sqrt", "reciprocal", "erf", "atan", "tan", "asin", "acos")},
    **{name: _activation(name) for name in ("asinh", "acosh", "atanh", "sinc", "floor")},
    "round": _round,
    **{name: _binary(name) for name in ("fmod", "atan2")},
    "rrelu": _rrelu,
    "gelu": _activation("gelu", approximate="none"),
    "leaky_relu": _activation("leaky_relu", slope=0.01),
    "softplus": _softplus,
    "elu": _elu,
    "celu": _celu,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": lambda b, x, high: _clamp(b, x, None, high),
    "hardtanh": lambda b, x, low=-1.0, high=1.0: _clamp(b, x, low, high),
    "square": _composed(("power", {"exponent": 2})),
    "rsqrt": _composed(("sqrt",), ("reciprocal",)),
    "log1p": _composed(("add", 1.0), ("log",)),
    "expm1": _expm1,
    "log_sigmoid": _composed(("neg",), ("softplus", {"beta": 1.0}), ("neg",)),
    "sinh": _sinh,
    "cosh": _cosh,
    "heaviside": _heaviside,
    "prelu": _prelu,
    "pow": _power,
    **{name: _binary(name) for name in ("sub", "mul", "maximum", "minimum")},
    "add": added(_binary("add")),
    "div": divided,
    "rsub": _rsub,
    "lerp": _lerp,
    "layer_norm": _layer_norm,
    "native_layer_norm": lambda b, *args: [_layer_norm(b, *args), None, None],
    "batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": lambda b, *args: [_batch_norm(b, *args[:5], False, *args[5:]), None, None],
    "dropout": _dropout,
    **{name: _identity for name in ("clone", "contiguous", "detach", "alias")},
}
