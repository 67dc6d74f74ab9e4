"""What a tile can apply to its sum in registers: the elementwise functions of the op table, by name and numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# pyright: reportArgumentType=false
import triton
import triton.language as tl


@dataclass(frozen=True)
class Epilogue:
    """A function of the kernel with its (at most two) numbers."""

    name: str = "none"
    first: float = 0.0
    second: float = 0.0


PLAIN = ("relu", "sigmoid", "silu", "gelu", "gelu_tanh", "tanh", "sin", "cos", "exp", "neg", "abs", "mish", "erf")
PLAIN += ("log", "sqrt", "reciprocal")
WITH_NUMBERS = {
    "leaky_relu": lambda t: (float(t["slope"]), 0.0),
    "elu": lambda t: (float(t["alpha"]), 0.0),
    "softplus": lambda t: (float(t["beta"]), 0.0),
    "clamp": lambda t: (_bound(t["low"], -1), _bound(t["high"], 1)),
}
NAMES = (*PLAIN, *WITH_NUMBERS)


def epilogue_of(op: str, attrs: Mapping[str, Any]) -> Epilogue | None:
    """The kernel's epilogue for an activation of the op table with these attributes; None where it has none."""
    if op == "gelu":
        name = {"none": "gelu", "tanh": "gelu_tanh"}.get(attrs["approximate"])
        return None if name is None else Epilogue(name)
    if op in WITH_NUMBERS:
        return Epilogue(op, *WITH_NUMBERS[op](attrs))
    return Epilogue(op) if op in PLAIN else None


def _bound(limit: float | None, sign: int) -> float:
    return sign * float("inf") if limit is None else float(limit)


@triton.jit
def activate(v, NAME: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr):
    """The epilogue NAME of a block of float32 numbers. NaN stays NaN."""
    if NAME == "relu":
        v = tl.where(v < 0, 0.0, v)
    elif NAME == "sigmoid":
        v = tl.sigmoid(v)
    elif NAME == "silu":
        v = v * tl.sigmoid(v)
    elif NAME == "gelu":
        v = 0.5 * v * (1.0 + tl.erf(v * 0.7071067811865476))
    elif NAME == "gelu_tanh":
        v = v * tl.sigmoid(1.5957691216057308 * (v + 0.044715 * v * v * v))
    elif NAME == "tanh":
        v = 2.0 * tl.sigmoid(2.0 * v) - 1.0
    elif NAME == "sin":
        v = tl.sin(v)
    elif NAME == "cos":
        v = tl.cos(v)
    elif NAME == "exp":
        v = tl.exp(v)
    elif NAME == "neg":
        v = -v
    elif NAME == "abs":
        v = tl.abs(v)
    elif NAME == "erf":
        v = tl.erf(v)
    elif NAME == "log":
        v = tl.log(v)
    elif NAME == "sqrt":
        v = tl.sqrt(v)
    elif NAME == "reciprocal":
        v = 1.0 / v
    elif NAME == "mish":
        soft = tl.maximum(v, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(v)))
        v = v * (2.0 * tl.sigmoid(2.0 * soft) - 1.0)
    elif NAME == "leaky_relu":
        v = tl.where(v < 0, v * FIRST, v)
    elif NAME == "elu":
        v = tl.where(v < 0, FIRST * (tl.exp(v) - 1.0), v)
    elif NAME == "softplus":
        scaled = FIRST * v
        v = (tl.maximum(scaled, 0.0) + tl.log(1.0 + tl.exp(-tl.abs(scaled)))) / FIRST
    elif NAME == "clamp":
        v = tl.where(v < FIRST, FIRST, tl.where(v > SECOND, SECOND, v))
    return v
