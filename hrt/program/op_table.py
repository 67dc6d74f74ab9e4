"""The closed op table. One row is everything hrt knows of an op; nothing else switches on op names.

Axes in attributes are negative, so that they never count the batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hrt.program.carried import CARRIED
from hrt.program.carried import run as carried
from hrt.program.patches import patches
from hrt.program.taylor_table import KINKED, RULES, SINC_NEAR, SINC_SERIES, Rule

Attrs = Mapping[str, Any]


@dataclass(frozen=True)
class Op:
    """A row of the table.

    torch: (arguments, attributes) -> value.  arity: None for any.  onnx: the operator that says the same, if one does.
    derivative: f'(x) of an elementwise op of one input.  lipschitz: attributes -> a constant with
    |f(x) - f(y)| <= L |x - y| everywhere.  taylor: coefficients as formulas (`hrt.program.taylor_table`).  kinked: some
    derivative jumps.  elementwise: every number comes from those at its place, arguments broadcast.  side: where values
    jump, numbers that differ by more than a half across a jump, and less along the way around it.
    ends: between which it saturates.
    """

    name: str
    arity: int | None
    torch: Callable[[Sequence[Any], Attrs], Tensor]
    onnx: str | None = None
    derivative: Callable[[Tensor, Attrs], Tensor] | None = None
    lipschitz: Callable[[Attrs], float] | None = None
    taylor: Rule | None = None
    kinked: bool = False
    elementwise: bool = False
    side: Callable[[Sequence[Any], Attrs], Tensor] | None = None
    ends: Callable[[Attrs], tuple[float, float]] | None = None

    @property
    def is_activation(self) -> bool:
        """Elementwise in one argument: what a tile's epilogue can do."""
        return self.arity == 1 and self.derivative is not None


ENDS: dict[str, Callable[[Attrs], tuple[float, float]]] = {
    "tanh": lambda t: (-1.0, 1.0),
    "sigmoid": lambda t: (0.0, 1.0),
    "erf": lambda t: (-1.0, 1.0),
    "atan": lambda t: (-math.pi / 2, math.pi / 2),
    "clamp": lambda t: (-math.inf if t["low"] is None else t["low"], math.inf if t["high"] is None else t["high"]),
}


def multiply(x: Tensor, weight: Any, bias: Tensor | None = None) -> Tensor:
    """x (..., n) times weight^T plus bias (m,), giving (..., m), for a weight (m, n) that is a tensor, or anything with
    `affine(x, bias)` of the same meaning, or with `apply(x)` for x (rows, n).
    """
    if isinstance(weight, Tensor):
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    if hasattr(weight, "affine"):
        return weight.affine(x, bias)
    rows = math.prod(x.shape[:-1])  # not -1, which is ambiguous for an empty batch
    y = weight.apply(x.reshape(rows, x.shape[-1])).reshape(*x.shape[:-1], weight.shape[0])
    return y if bias is None else y + bias


def _gelu_derivative(x: Tensor, t: Attrs) -> Tensor:
    if t["approximate"] == "tanh":
        c = math.sqrt(2 / math.pi)
        u = torch.tanh(c * (x + 0.044715 * x**3))
        return 0.5 * (1 + u) + 0.5 * x * (1 - u * u) * c * (1 + 3 * 0.044715 * x * x)
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _silu_derivative(x: Tensor, _: Attrs) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def _step(x: Tensor, below: Any) -> Tensor:
    return torch.where(x > 0, torch.ones_like(x), below)


def heaviside(x: Tensor, at_zero: float) -> Tensor:
    """1 where x > 0, at_zero where x = 0, else 0, in the precision of x."""
    if at_zero == 1:
        return (x >= 0).to(x.dtype)
    right = (x > 0).to(x.dtype)
    return right if at_zero == 0 else right + at_zero * (x == 0).to(x.dtype)


def _clamp_derivative(x: Tensor, t: Attrs) -> Tensor:
    low, high = (-math.inf if t["low"] is None else t["low"]), (math.inf if t["high"] is None else t["high"])
    return ((x >= low) & (x <= high)).to(x.dtype)


def _slice(x: Tensor, t: Attrs) -> Tensor:
    index = [slice(None)] * x.ndim
    index[t["axis"]] = slice(t["start"], t["stop"], t["step"])
    return x[tuple(index)]


def _mish_derivative(x: Tensor, _: Attrs) -> Tensor:
    t = torch.tanh(F.softplus(x))
    return t + x * torch.sigmoid(x) * (1 - t * t)


def _sinc_derivative(x: Tensor, _: Attrs) -> Tensor:
    w = (math.pi * x) ** 2
    near = sum(c * w.clamp_max(SINC_NEAR) ** k for k, c in enumerate(SINC_SERIES[0])) * (2 * math.pi**2) * x
    return torch.where(w < SINC_NEAR, near, (torch.cos(math.pi * x) - torch.sinc(x)) / torch.where(x == 0, 1.0, x))


def _unary(
    name: str,
    function: Callable[[Tensor, Attrs], Tensor],
    onnx: str | None,
    derivative: Callable[[Tensor, Attrs], Tensor],
    lipschitz: float | Callable[[Attrs], float] | None = None,
) -> Op:
    constant = lipschitz if lipschitz is None or callable(lipschitz) else lambda _, value=lipschitz: float(value)
    rule, kinked, ends = RULES[name], name in KINKED, ENDS.get(name)
    return Op(name, 1, lambda a, t: function(a[0], t), onnx, derivative, constant, rule, kinked, True, None, ends)


_ROWS = [
    Op("linear", None, lambda a, t: multiply(*a), "Gemm"),
    # activations: name, f, ONNX operator, f', Lipschitz constant
    _unary("tanh", lambda x, t: torch.tanh(x), "Tanh", lambda x, t: 1 - torch.tanh(x) ** 2, 1),
    _unary("sin", lambda x, t: torch.sin(x), "Sin", lambda x, t: torch.cos(x), 1),
    _unary("cos", lambda x, t: torch.cos(x), "Cos", lambda x, t: -torch.sin(x), 1),
    _unary(
        "sigmoid", lambda x, t: torch.sigmoid(x), "Sigmoid", lambda x, t: torch.sigmoid(x) * torch.sigmoid(-x), 0.25
    ),
    _unary("silu", lambda x, t: F.silu(x), None, _silu_derivative, 1.09984),
    _unary("gelu", lambda x, t: F.gelu(x, approximate=t["approximate"]), "Gelu", _gelu_derivative, 1.129),
    _unary("mish", lambda x, t: F.mish(x), "Mish", _mish_derivative, 1.08851),
    _unary("relu", lambda x, t: F.relu(x), "Relu", lambda x, t: (x > 0).to(x.dtype), 1),
    _unary(
        "leaky_relu",
        lambda x, t: F.leaky_relu(x, t["slope"]),
        "LeakyRelu",
        lambda x, t: _step(x, t["slope"]),
        lambda t: max(1.0, abs(t["slope"])),
    ),
    _unary(
        "elu",
        lambda x, t: torch.where(x > 0, x, t["alpha"] * torch.expm1(x.clamp_max(0))),
        "Elu",
        lambda x, t: _step(x, t["alpha"] * torch.exp(x.clamp_max(0))),
        lambda t: max(1.0, abs(t["alpha"])),
    ),
    # log(1 + exp(beta x)) / beta itself: torch's jumps by exp(-threshold) at its threshold, and so has no constant
    _unary(
        "softplus",
        lambda x, t: F.softplus(x, t["beta"], threshold=40),
        "Softplus",
        lambda x, t: torch.sigmoid(t["beta"] * x),
        1,
    ),
    _unary("clamp", lambda x, t: x.clamp(t["low"], t["high"]), "Clip", _clamp_derivative, 1),
    _unary("neg", lambda x, t: -x, "Neg", lambda x, t: -torch.ones_like(x), 1),
    _unary("abs", lambda x, t: x.abs(), "Abs", lambda x, t: torch.sign(x), 1),
    _unary("exp", lambda x, t: torch.exp(x), "Exp", lambda x, t: torch.exp(x)),
    _unary("log", lambda x, t: torch.log(x), "Log", lambda x, t: 1 / x),
    _unary("sqrt", lambda x, t: torch.sqrt(x), "Sqrt", lambda x, t: 0.5 / torch.sqrt(x)),
    _unary("reciprocal", lambda x, t: 1 / x, "Reciprocal", lambda x, t: -1 / (x * x)),
    _unary("erf", lambda x, t: torch.erf(x), "Erf", lambda x, t: 2 / math.sqrt(math.pi) * torch.exp(-x * x), 1.12838),
    _unary("atan", lambda x, t: torch.atan(x), "Atan", lambda x, t: 1 / (1 + x * x), 1),
    _unary("tan", lambda x, t: torch.tan(x), "Tan", lambda x, t: 1 + torch.tan(x) ** 2),
    _unary("asin", lambda x, t: torch.asin(x), "Asin", lambda x, t: torch.rsqrt((1 - x) * (1 + x))),
    _unary("acos", lambda x, t: torch.acos(x), "Acos", lambda x, t: -torch.rsqrt((1 - x) * (1 + x))),
    _unary("asinh", lambda x, t: torch.asinh(x), "Asinh", lambda x, t: torch.rsqrt(1 + x * x), 1),
    _unary("acosh", lambda x, t: torch.acosh(x), "Acosh", lambda x, t: torch.rsqrt((x - 1) * (x + 1))),
    _unary("atanh", lambda x, t: torch.atanh(x), "Atanh", lambda x, t: 1 / ((1 - x) * (1 + x))),
    _unary("sinc", lambda x, t: torch.sinc(x), None, _sinc_derivative, 1.370306),
    _unary("power", lambda x, t: x ** t["exponent"], "Pow", lambda x, t: t["exponent"] * x ** (t["exponent"] - 1)),
    # 1 for x > 0, at_zero for 0, else 0: the derivative of a kink. No activation: it has no Lipschitz constant
    Op(
        "step",
        1,
        lambda a, t: heaviside(a[0], t["at_zero"]),
        taylor=RULES["step"],
        kinked=True,
        elementwise=True,
        side=lambda a, t: a[0] >= 0 if t["at_zero"] == 1 else a[0] > 0,
    ),
    # whole numbers, which have no derivative between their jumps; round: half to even
    Op(
        "floor",
        1,
        lambda a, t: torch.floor(a[0]),
        "Floor",
        taylor=RULES["floor"],
        kinked=True,
        elementwise=True,
        side=lambda a, t: torch.floor(a[0]),
    ),
    Op(
        "round",
        1,
        lambda a, t: torch.round(a[0]),
        "Round",
        taylor=RULES["round"],
        kinked=True,
        elementwise=True,
        side=lambda a, t: torch.round(a[0]),
    ),
    # two arguments, broadcast
    Op("add", 2, lambda a, t: a[0] + a[1], "Add", elementwise=True),
    Op("sub", 2, lambda a, t: a[0] - a[1], "Sub", elementwise=True),
    Op("mul", 2, lambda a, t: a[0] * a[1], "Mul", elementwise=True),
    Op("div", 2, lambda a, t: a[0] / a[1], "Div", elementwise=True),
    Op("maximum", 2, lambda a, t: torch.maximum(a[0], a[1]), "Max", kinked=True, elementwise=True),
    Op("minimum", 2, lambda a, t: torch.minimum(a[0], a[1]), "Min", kinked=True, elementwise=True),
    # x - y trunc(x / y), without rounding
    Op(
        "fmod",
        2,
        lambda a, t: torch.fmod(a[0], a[1]),
        "Mod",
        kinked=True,
        elementwise=True,
        side=lambda a, t: torch.trunc(a[0] / a[1]),
    ),
    Op(
        "atan2",
        2,
        lambda a, t: torch.atan2(a[0], a[1]),
        elementwise=True,
        side=lambda a, t: torch.atan2(a[0], a[1]) / math.tau,
    ),
    # the second argument where the first, a mask of zeros and ones, is not 0, else the third
    Op("where", 3, lambda a, t: torch.where(a[0] != 0, a[1], a[2]), "Where", kinked=True, elementwise=True),
    # shape
    Op("concat", None, lambda a, t: torch.cat(list(a), dim=t["axis"]), "Concat"),
    Op("slice", 1, lambda a, t: _slice(a[0], t), "Slice"),
    Op("reshape", 1, lambda a, t: a[0].reshape(a[0].shape[0], *t["shape"]), "Reshape"),
    Op("transpose", 1, lambda a, t: a[0].permute(0, *(a[0].ndim + k for k in t["axes"])), "Transpose"),
    Op("expand", 1, lambda a, t: a[0].expand(a[0].shape[0], *t["shape"]), "Expand"),
    # a constant repeated for every row of the batch of its second argument
    Op("repeat", 2, lambda a, t: a[0].expand(a[1].shape[0], *t["shape"]), None),
    # what every step of a window over the last axes covers, as a convolution reads it
    Op("patches", 1, lambda a, t: patches(a[0], t)),
    # entries of an axis, by a constant list of whole numbers
    Op("gather", 2, lambda a, t: a[0].index_select(t["axis"], a[1].to(torch.int64)), "Gather"),
    # reductions and products of values
    Op("sum", 1, lambda a, t: a[0].sum(tuple(t["axes"]), keepdim=t["keep"]), "ReduceSum"),
    Op("mean", 1, lambda a, t: a[0].mean(tuple(t["axes"]), keepdim=t["keep"]), "ReduceMean"),
    Op("amax", 1, lambda a, t: a[0].amax(tuple(t["axes"]), keepdim=t["keep"]), "ReduceMax", kinked=True),
    Op("amin", 1, lambda a, t: a[0].amin(tuple(t["axes"]), keepdim=t["keep"]), "ReduceMin", kinked=True),
    Op("logsumexp", 1, lambda a, t: a[0].logsumexp(tuple(t["axes"]), keepdim=t["keep"]), "ReduceLogSumExp"),
    Op("cumsum", 1, lambda a, t: a[0].cumsum(t["axis"]), "CumSum"),
    Op("softmax", 1, lambda a, t: torch.softmax(a[0], t["axis"]), "Softmax", ends=lambda t: (0.0, 1.0)),
    Op("log_softmax", 1, lambda a, t: torch.log_softmax(a[0], t["axis"]), "LogSoftmax"),
    Op("matmul", 2, lambda a, t: a[0] @ a[1], "MatMul"),
    Op("einsum", None, lambda a, t: torch.einsum(t["equation"], *a), "Einsum"),
    Op(
        "layer_norm",
        None,
        lambda a, t: F.layer_norm(a[0], tuple(t["shape"]), *a[1:], eps=t["eps"]),
        "LayerNormalization",
    ),
    # what has no row: an ONNX model of its own
    Op(CARRIED, None, carried),
]

TABLE: dict[str, Op] = {op.name: op for op in _ROWS}
