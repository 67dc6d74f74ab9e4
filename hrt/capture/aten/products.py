"""Products, which decide what can be compressed: a value times a constant matrix, however written, is a linear node."""

import math
import string
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hrt.capture.builder import Builder, Lowering, Ref, moved, reshaped


def _linear(b: Builder, x: Any, weight: Any, bias: Any = None) -> Ref:
    """x (..., n) W^T + bias, where W must not depend on the input."""
    if not isinstance(x, Ref) or not isinstance(weight, Tensor):
        raise b.fail("its weight depends on the input")
    inputs = [x, b.named(weight, "weight")]
    if isinstance(bias, Tensor):
        inputs.append(b.named(bias.reshape(-1).expand(weight.shape[0]), "bias", bias))
    y = b.emit("linear", inputs, (*x.shape[:-1], weight.shape[0]))
    return b.emit("add", [y, bias], y.shape) if isinstance(bias, Ref) else y


def _matmul(b: Builder, x: Any, y: Any) -> Ref:
    """x y, one of them possibly a constant; two values are multiplied sample by sample."""
    if isinstance(x, Ref) and x.ndim > 1 and isinstance(y, Tensor) and y.ndim <= 2:
        out = _linear(b, x, b.named(y.T if y.ndim == 2 else y[None], "weight", y))
        return out if y.ndim == 2 else reshaped(b, out, x.shape[:-1])
    if isinstance(x, Tensor) and isinstance(y, Ref) and x.ndim == 2 and y.ndim >= 3:
        swap = [*range(-len(y.shape), -2), -1, -2]
        return moved(b, _linear(b, moved(b, y, swap), x), swap)
    if (isinstance(y, Ref) and y.ndim < 3) or (isinstance(x, Ref) and x.ndim < 2):
        raise b.fail("it sums over the batch, so that samples would depend on each other")
    return b.emit("matmul", [x, y], b.result_shape())


def _addmm(b: Builder, bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Ref:
    """bias + x y with a constant y."""
    if beta != 1 or alpha != 1 or not isinstance(y, Tensor):
        raise b.fail("its beta or alpha is not 1, or its weight depends on the input")
    return _linear(b, x, b.named(y.T, "weight", y), bias)


def _explicit(equation: str, operands: Sequence[Any]) -> tuple[list[str], str]:
    """The terms and the result of an equation, an ellipsis and a missing right side written out."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [c for c in string.ascii_uppercase if c not in equation]
    counts = [x.ndim - len(t) + 3 if "..." in t else 0 for t, x in zip(terms, operands, strict=True)]
    dots = "".join(spare[: max(counts)])
    written = left.replace("...", "").replace(",", "")
    terms = [t.replace("...", dots[len(dots) - k :]) for t, k in zip(terms, counts, strict=True)]
    out = out.replace("...", dots) if arrow else dots + "".join(sorted(c for c in written if written.count(c) == 1))
    return terms, out


def _einsum(b: Builder, equation: str, operands: Sequence[Any], path: Any = None) -> Ref:
    """A product by equation: linear where a value's axes are summed with a constant's, else einsum over the samples."""
    terms, out = _explicit(equation, operands)
    batch = {t[0] for t, x in zip(terms, operands, strict=True) if isinstance(x, Ref)}
    constant_labels = {c for t, x in zip(terms, operands, strict=True) if not isinstance(x, Ref) for c in t}
    if len(batch) != 1 or out[:1] not in batch or batch & constant_labels:
        raise b.fail(f"the equation {equation!r} does not keep the batch first in every operand and the result")
    values = [(t, x) for t, x in zip(terms, operands, strict=True) if isinstance(x, Ref)]
    constants = [(t, x) for t, x in zip(terms, operands, strict=True) if isinstance(x, Tensor)]
    if len(values) == len(constants) == 1:
        y = _contracted(b, *values[0], *constants[0], out)
        if y is not None:
            return y
    return b.emit("einsum", list(operands), b.result_shape(), equation=",".join(terms) + "->" + out)


def _contracted(b: Builder, labels: str, x: Ref, weight_labels: str, weight: Tensor, out: str) -> Ref | None:
    """A sum over axes of a value and a constant, as one linear node over flattened axes; None where it is none."""
    weight_sizes = zip(weight_labels, weight.shape, strict=True)
    sizes = {c: n for c, n in weight_sizes if c not in labels} | dict(zip(labels[1:], x.shape, strict=True))
    summed = [c for c in weight_labels if c in labels and c not in out]
    new = [c for c in weight_labels if c not in labels]
    lasting = [c for c in labels[1:] if c not in summed]
    distinct = len(set(weight_labels)) == len(weight_labels) and len(set(labels)) == len(labels)
    fits = distinct and tuple(sizes[c] for c in weight_labels) == weight.shape
    complete = sorted([labels[0], *lasting, *new]) == sorted(out) and len(summed + new) == len(weight_labels)
    if not (summed and fits and complete):
        return None
    lengths = [math.prod(sizes[c] for c in axes) for axes in (new, summed)]
    permuted = weight.permute([weight_labels.index(c) for c in new + summed])
    matrix = b.named(permuted.reshape(lengths), "weight", weight)
    x = moved(b, x, [labels.index(c) - len(labels) for c in lasting + summed])
    y = _linear(b, reshaped(b, x, [*(sizes[c] for c in lasting), lengths[1]]), matrix)
    y = reshaped(b, y, [sizes[c] for c in lasting + new])
    return moved(b, y, [(lasting + new).index(c) - len(out) + 1 for c in out[1:]])


PRODUCTS: dict[str, Lowering] = {
    "linear": _linear,
    "addmm": _addmm,
    **{name: _matmul for name in ("matmul", "mm", "bmm", "mv")},
    "einsum": _einsum,
}
