"""Products, which decide what can be compressed: a value times a constant matrix, however written, is a linear node."""

import math
import string
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from hrt.capture.builder import Builder, Lowering, Ref, joined, moved, reshaped, sliced

MOST_SLICES = 1024  # of one stack: every slice is three nodes, and one more matrix to plan
SUMS = "it sums over the batch, so that samples would depend on each other"


def _linear(b: Builder, x: Any, weight: Any, bias: Any = None) -> Ref:
    """x (..., n) W^T + bias, where one of x and W must not depend on the input."""
    if isinstance(x, Tensor) and isinstance(weight, Ref) and x.ndim == 2 and bias is None:
        x, weight = weight, x  # a batch of weights for constant rows
    if not isinstance(x, Ref) or not isinstance(weight, Tensor):
        raise b.fail("its weight depends on the input")
    _summed(b, x, -1)
    return _times(b, x, weight, bias)


def _summed(b: Builder, x: Ref, dim: int) -> int:
    """The axis of the samples that a product sums over: the author's dimension `dim`, counted from the last."""
    if x.ndim + dim == x.axis:
        raise b.fail(SUMS)
    return x.axes_of(dim)[0]


def _times(b: Builder, x: Ref, weight: Tensor, bias: Any = None) -> Ref:
    """A linear node along the last axis of the samples."""
    inputs = [x, b.named(weight, "weight")]
    if isinstance(bias, Tensor):
        inputs.append(b.named(bias.reshape(-1).expand(weight.shape[0]), "bias", bias))
    y = b.emit("linear", inputs, (*x.shape[:-1], weight.shape[0]))
    return b.emit("add", [y, bias], y.shape) if isinstance(bias, Ref) else y


def _matmul(b: Builder, x: Any, y: Any) -> Ref:
    """x y, one of them possibly a constant; two values are multiplied sample by sample."""
    for operand, dim in ((x, -1), (y, -min(y.ndim, 2))):
        if isinstance(operand, Ref):
            _summed(b, operand, dim)
    if isinstance(x, Ref) and isinstance(y, Tensor) and y.ndim <= 2:
        out = _times(b, x, b.named(y.T if y.ndim == 2 else y[None], "weight", y))
        return out if y.ndim == 2 else reshaped(b, out, x.shape[:-1])
    if isinstance(y, Ref) and isinstance(x, Tensor) and x.ndim == 2:
        return _from_left(b, x, y)
    lead = string.ascii_letters[: max(x.ndim, y.ndim, 2) - 2]
    left = lead[len(lead) + 2 - x.ndim :] + "YX" if x.ndim > 1 else "X"
    right = lead[len(lead) + 2 - y.ndim :] + "XZ" if y.ndim > 1 else "X"
    out = lead + "Y" * (x.ndim > 1) + "Z" * (y.ndim > 1)
    equation = _on_samples(b, [left, right], out, [x, y])
    values = [t for t, operand in zip((left, right), (x, y), strict=True) if isinstance(operand, Ref)]
    if len(values) == 1 and min(x.ndim, y.ndim) > 1:
        product = _contracted(b, *equation)
        if product is not None:
            return product
    fake = b.current.meta["val"]
    place, _ = b.batch_place(fake)
    if out[place] in lead:
        return b.emit("matmul", b.aligned([x, y], fake.ndim, place), b.result_shape())
    return _product(b, *equation)


def _from_left(b: Builder, matrix: Tensor, x: Ref) -> Ref:
    """A constant matrix (m, n) times a value (..., n, columns)."""
    axis = _summed(b, x, -2)
    rest = [k for k in range(-len(x.shape), 0) if k != axis]
    y = _times(b, moved(b, x, [*rest, axis]), matrix)
    back = list(range(-len(x.shape), -1))
    back.insert(axis + len(x.shape), -1)
    return moved(b, y, back)


def _addmm(b: Builder, bias: Any, x: Any, y: Any, beta: float = 1, alpha: float = 1) -> Ref:
    """bias + x y with a constant y."""
    if beta != 1 or alpha != 1 or not isinstance(y, Tensor):
        raise b.fail("its beta or alpha is not 1, or its weight depends on the input")
    return _linear(b, x, b.named(y.T, "weight", y), bias)


def explicit(b: Builder, equation: str, operands: Sequence[Any]) -> tuple[list[str], str, list[Any]]:
    """The terms, the result and the operands of an equation, an ellipsis and a missing right side written out. Axes
    that a constant alone has are summed in it.
    """
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    spare = [c for c in string.ascii_uppercase if c not in equation]
    counts = [x.ndim - len(t) + 3 if "..." in t else 0 for t, x in zip(terms, operands, strict=True)]
    dots = "".join(spare[: max(counts)])
    written = left.replace("...", "").replace(",", "")
    terms = [t.replace("...", dots[len(dots) - k :]) for t, k in zip(terms, counts, strict=True)]
    out = out.replace("...", dots) if arrow else dots + "".join(sorted(c for c in written if written.count(c) == 1))
    alone = [[c for c in t if c not in out and "".join(terms).count(c) == 1] for t in terms]
    summed = [
        b.named(x.sum([t.index(c) for c in axes]), "weight", x) if axes and isinstance(x, Tensor) else x
        for x, t, axes in zip(operands, terms, alone, strict=True)
    ]
    terms = [
        "".join(c for c in t if c not in axes) if isinstance(x, Tensor) else t
        for x, t, axes in zip(operands, terms, alone, strict=True)
    ]
    return terms, out, summed


def _on_samples(
    b: Builder, terms: Sequence[str], out: str, operands: Sequence[Any]
) -> tuple[list[str], str, list[Any]]:
    """The equation of the samples: the batch first, and what it is merged with in its place."""
    values = [(t, x) for t, x in zip(terms, operands, strict=True) if isinstance(x, Ref)]
    batch = values[0][0][values[0][1].axis]
    operands, terms = list(operands), list(terms)
    for k, (t, x) in enumerate(zip(terms, operands, strict=True)):
        if isinstance(x, Tensor) and batch in t and x.shape[t.index(batch)] == 1:
            terms[k], operands[k] = t.replace(batch, ""), b.named(x.squeeze(t.index(batch)), "weight", x)
    constants = "".join(t for t, x in zip(terms, operands, strict=True) if not isinstance(x, Ref))
    once = all(t[x.axis] == batch and t.count(batch) == 1 and x.fold == values[0][1].fold for t, x in values)
    if not once or out.count(batch) != 1 or batch in constants:
        raise b.fail(f"the equation {','.join(terms)}->{out} lets samples depend on each other")
    spare = [c for c in string.ascii_uppercase if c not in "".join(terms)]
    merged = "".join(spare[: values[0][1].before + values[0][1].after])

    def first(term: str) -> str:
        return batch + term.replace(batch, merged) if batch in term else term

    return [first(t) for t in terms], first(out), operands


def _einsum(b: Builder, equation: str, operands: Sequence[Any], path: Any = None) -> Ref:
    """A product by equation: linear where a value's axes are summed with a constant's, else einsum over the samples."""
    on_samples = _on_samples(b, *explicit(b, equation, operands))
    return _contracted(b, *on_samples) or _product(b, *on_samples)


def _product(b: Builder, terms: Sequence[str], out: str, operands: Sequence[Any]) -> Ref:
    """The op of the table that multiplies by an equation, the batch first."""
    return b.emit("einsum", list(operands), b.result_shape(), equation=",".join(terms) + "->" + out)


def _contracted(b: Builder, terms: Sequence[str], out: str, operands: Sequence[Any]) -> Ref | None:
    """A sum over axes of one value and one constant, as linear nodes over flattened axes; None where it is none. Axes
    of the constant that stay, and are the value's too, make it a stack of matrices.
    """
    if [isinstance(x, Ref) for x in operands] not in ([True, False], [False, True]):
        return None
    value = 0 if isinstance(operands[0], Ref) else 1
    (x, labels), (weight, weight_labels) = ((operands[k], terms[k]) for k in (value, 1 - value))
    labels, out = labels[1:], out[1:]
    x = b.before_expansion(x, [k for k, c in enumerate(labels) if c in weight_labels])
    labels, shape = _varying(labels, x.shape, dict(zip(weight_labels, weight.shape, strict=True)))
    weight_labels, weight_shape = _varying(weight_labels, weight.shape, dict(zip(labels, shape, strict=True)))
    sizes = dict(zip(weight_labels + labels, (*weight_shape, *shape), strict=True))
    summed = [c for c in weight_labels if c in labels and c not in out]
    stack = [c for c in weight_labels if c in labels and c in out]
    new = [c for c in weight_labels if c not in labels]
    lasting = [c for c in labels if c not in summed + stack]
    distinct = len(set(weight_labels)) == len(weight_labels) and len(set(labels)) == len(labels)
    fits = distinct and [sizes[c] for c in weight_labels] == weight_shape
    if not (summed and fits and sorted([*lasting, *stack, *new]) == sorted(out)):
        return None
    lengths = [math.prod(sizes[c] for c in axes) for axes in (stack, new, summed)]
    permuted = weight.reshape(weight_shape).permute([weight_labels.index(c) for c in stack + new + summed])
    matrices = b.named(permuted.reshape(lengths if stack else lengths[1:]), "weight", weight)
    if stack and not is_stack(matrices):
        return None
    x = moved(b, reshaped(b, x, shape), [labels.index(c) - len(labels) for c in stack + lasting + summed])
    counts, rest = lengths[:1] if stack else [], [sizes[c] for c in lasting]
    x = reshaped(b, x, [*counts, *rest, lengths[2]])
    y = stacked(b, x, matrices, axis=-len(x.shape)) if stack else _times(b, x, matrices)
    order = stack + lasting + new
    y = reshaped(b, y, [sizes[c] for c in order])
    return moved(b, y, [order.index(c) - len(out) for c in out])


def _varying(labels: str, shape: Sequence[int], other: dict[str, int]) -> tuple[str, list[int]]:
    """Labels and sizes without the axes along which the other operand, of these sizes, sees the same numbers again."""
    pairs = [(c, n) for c, n in zip(labels, shape, strict=True) if n != 1 or other.get(c, 1) == 1]
    return "".join(c for c, _ in pairs), [n for _, n in pairs]


def dot_equation(rank: int, other: int, dims: Sequence[int], others: Sequence[int]) -> str:
    """The equation of a product of tensors of these ranks that sums `dims` of one with `others` of the other."""
    left, right = string.ascii_lowercase[:rank], list(string.ascii_uppercase[:other])
    for d, e in zip(dims, others, strict=True):
        right[e % other] = left[d % rank]
    summed = {left[d % rank] for d in dims}
    return f"{left},{''.join(right)}->{''.join(c for c in (*left, *right) if c not in summed)}"


def _tensordot(b: Builder, x: Any, y: Any, dims: Sequence[int], others: Sequence[int]) -> Ref:
    return _einsum(b, dot_equation(x.ndim, y.ndim, dims, others), [x, y])


# --- stacks of constant matrices: one linear node a matrix, so that each is planned by what it sees


def is_stack(weights: Tensor) -> bool:
    """Whether the slices of (count, m, n) are worth being planned one by one: vectors have no rank to lower."""
    return weights.shape[0] <= MOST_SLICES and min(weights.shape[1:]) > 1


def stacked(b: Builder, x: Ref, weights: Tensor, biases: Tensor | None = None, axis: int = -2) -> Ref:
    """Every entry k of an axis of the samples times weights[k]^T, plus biases[k].

    x: samples (..., count, ..., n), `count` at `axis`.  weights: (count, m, n).  biases: (count, m).  Gives samples
    (..., count, ..., m). The constants are named after the stack and the place in it.
    """
    parts = []
    for k in range(len(weights)):
        part = sliced(b, x, axis, k, k + 1)
        constants = [b.entry(t, k, role) for t, role in ((weights, "weight"), (biases, "bias")) if t is not None]
        parts.append(b.emit("linear", [part, *constants], (*part.shape[:-1], weights.shape[1])))
    return parts[0] if len(parts) == 1 else joined(b, parts, axis)


PRODUCTS: dict[str, Lowering] = {
    "linear": _linear,
    "addmm": _addmm,
    **{name: _matmul for name in ("matmul", "mm", "bmm", "mv")},
    "einsum": _einsum,
    "tensordot": _tensordot,
}
