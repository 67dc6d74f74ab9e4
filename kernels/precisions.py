"""What kernels can be asked for, without Triton: precisions, and the functions of the op table that a tile can apply to
its sum in registers, by name and numbers.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

WORKSPACE = {  # precisions, fastest first, and what the workspace holds under each
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "tf32x3": torch.float32,
    "ieee": torch.float32,
}
PRECISIONS = tuple(WORKSPACE)


def converts(storages: Iterable[torch.dtype], precision: str) -> bool:
    """Whether weights change their type in registers on the way into one product of tensor cores. They must not be its
    first operand then: Triton 3.6 to 3.8 overwrite that too soon (`hrt.kernels.orderings`).
    """
    return precision not in ("tf32x3", "ieee") and any(t != WORKSPACE[precision] for t in storages)


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
