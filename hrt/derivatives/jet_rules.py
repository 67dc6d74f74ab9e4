"""How every op of the table carries a jet: one rule per op, keyed like the table."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from hrt.derivatives.jets import Jet, Part, aligned, elementwise, joint, multilinear, summed
from hrt.derivatives.reduction_rules import REDUCTIONS
from hrt.derivatives.step import Rule, Step
from hrt.derivatives.symbols import Symbol
from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.carried import CARRIED
from hrt.program.op_table import TABLE
from hrt.program.taylor_table import Series

STACK_LEAVES = 8  # a weight of more leaves multiplies a value and its derivatives at once: its products are many, small


def _elementwise(s: Step) -> Jet:
    return s.elementwise(s.node.op, s.jets[0], s.value, s.node.attrs)


def _linear(s: Step) -> Jet:
    weight, x = s.node.inputs[1], s.jets[0]
    matrix = s.writer.constants[weight]
    if isinstance(matrix, HMatrix) and len(matrix.leaves) > STACK_LEAVES:
        orders = [r for r, p in x.parts.items() if p.symbol.constant is None]
        if orders:
            return _stacked_linear(s, x, orders)
    return s.map(lambda p: p.linearly("linear", (*p.shape[:-1], matrix.shape[0]), weight))


def _stacked_linear(s: Step, x: Jet, orders: Sequence[int]) -> Jet:
    """One product for the value and for its derivatives, which are more rows of it; the bias is for the value alone."""
    _, weight, *bias = s.node.inputs
    lead = x.take([()])
    rows = s.writer.concat([lead, *(replace(x.parts[r].symbol, factor=1.0) for r in orders)], -len(lead.shape))
    out = s.writer.node("linear", [rows, weight], (rows.shape[0], *s.node.shape), {})
    value = s.writer.picked(out, [0])
    op, operands, attrs = "reshape", [value], {"shape": list(s.node.shape)}
    if bias:
        op, operands, attrs = "add", [value.reshaped(*s.node.shape), *bias], {}
    value = s.writer.node(op, operands, s.node.shape, attrs, name=s.node.name)
    parts, top = {}, 1
    for r, p in x.parts.items():
        if r in orders:
            rows = s.writer.picked(out, range(top, top + len(p.indices)))
            parts[r] = Part(p.indices, s.writer.scaled(rows, p.symbol.factor))
            top += len(p.indices)
        else:
            parts[r] = Part.make(p.indices, p.symbol.linearly("linear", (len(p.indices), *s.node.shape), weight))
    return Jet(value, {r: p for r, p in parts.items() if p is not None})


def _moved(s: Step) -> Jet:
    """Axes count from the end: to these ops the leading axis of a part is one more of the batch."""
    return s.map(lambda p: p.linearly(s.node.op, (p.shape[0], *s.node.shape), **s.node.attrs))


def _reshaped(s: Step) -> Jet:
    return s.map(lambda p: p.reshaped(p.shape[0], *s.node.shape))


def _expanded(s: Step) -> Jet:
    def expand(p: Symbol) -> Symbol:
        shape = (p.shape[0], *s.node.shape)
        return aligned(p, len(s.node.shape)).linearly("expand", shape, shape=list(shape))

    return s.map(expand)


def _transposed(s: Step) -> Jet:
    axes = [-1 - len(s.node.shape), *s.node.attrs["axes"]]
    return s.map(lambda p: p.linearly("transpose", (p.shape[0], *s.node.shape), axes=axes))


def _gathered(s: Step) -> Jet:
    return s.map(lambda p: p.linearly("gather", (p.shape[0], *s.node.shape), s.node.inputs[1], **s.node.attrs))


def _repeated(s: Step) -> Jet:
    """A constant for every row: the second argument tells how many there are."""
    return Jet(s.value, {})


def _joined(s: Step) -> Jet:
    return joint(s.jets, s.value, s.node.attrs["axis"])


def _summed(sign: float) -> Rule:
    def rule(s: Step) -> Jet:
        x, y = (a if isinstance(a, Jet) else Jet(s.value, {}) for a in s.arguments)
        return summed(x, y, s.value, sign)

    return rule


def _product(s: Step) -> Jet:

    def multiply(chosen: list[Symbol]) -> Symbol:
        if s.node.op == "mul":
            chosen = [aligned(c, len(s.node.shape)) for c in chosen]
        return _multiplied(s, chosen, (max(c.shape[0] for c in chosen), *s.node.shape), s.node.attrs)

    return multilinear(s.jets, s.value, multiply, s.needed)


def _multiplied(s: Step, chosen: Sequence[Symbol], shape: Sequence[int], attrs: Mapping[str, Any]) -> Symbol:
    """The node's op on parts in place of its values; its constants stay as they are."""
    units = iter([replace(c, factor=1.0) for c in chosen])
    operands = [a if isinstance(a, str) else next(units) for a in s.arguments]
    return s.writer.scaled(s.writer.node(s.node.op, operands, shape, attrs), prod(c.factor for c in chosen))


def _einsum(s: Step) -> Jet:
    """Linear in each value. Parts bring one more label, behind that of the batch."""
    terms, arrow, out = s.node.attrs["equation"].replace(" ", "").partition("->")
    if not arrow or "." in terms:
        raise s.fail(f"a derivative through {s.node.attrs['equation']!r}", "an equation with all its labels")
    label = next(c for c in string.ascii_letters if c not in terms)

    def multiply(chosen: list[Symbol]) -> Symbol:
        if any(c.constant is None for c in chosen):  # a runtime may not broadcast labels
            chosen = [replace(s.writer.repeated(replace(c, factor=1.0)), factor=c.factor) for c in chosen]
        several = [c.shape[0] > 1 for c in chosen]
        marks = iter([label if many else "" for many in several])
        words = [
            w if isinstance(a, str) else w[0] + next(marks) + w[1:]
            for w, a in zip(terms.split(","), s.arguments, strict=True)
        ]
        parts = [c if many else c.reshaped(*c.shape[1:]) for c, many in zip(chosen, several, strict=True)]
        if not any(several):
            return _multiplied(s, parts, s.node.shape, s.node.attrs).reshaped(1, *s.node.shape)
        shape = (max(c.shape[0] for c in chosen), *s.node.shape)
        return _multiplied(s, parts, shape, {"equation": f"{','.join(words)}->{out[0]}{label}{out[1:]}"})

    return multilinear(s.jets, s.value, multiply, s.needed)


def _divided(s: Step) -> Jet:
    """x / y, as x times 1 / y where y is no constant."""
    x, y = s.arguments
    if isinstance(y, str):
        rank = len(s.node.shape)
        return s.map(lambda p: aligned(p, rank).linearly("div", (p.shape[0], *s.node.shape), y))
    inverse = s.applied("reciprocal", y)
    if isinstance(x, Jet):
        return s.times(x, inverse, s.value)
    rank = len(s.node.shape)
    return inverse.mapped(s.value, lambda p: aligned(p, rank).linearly("mul", (p.shape[0], *s.node.shape), x))


def _operand(s: Step, a: Jet | str) -> Jet:
    """An argument as a jet, also where it is a constant."""
    if isinstance(a, Jet):
        return a
    numbers = torch.as_tensor(s.writer.constants[a])
    shape = numbers.shape if numbers.ndim > len(s.node.shape) else (1, *numbers.shape)
    return Jet(s.writer.tensor(numbers.reshape(shape)), {})


def _remainder(s: Step) -> Jet:
    """x - q y, where q = trunc(x / y) does not move."""
    x, y = (_operand(s, a) for a in s.arguments)
    if not y.parts:
        return summed(x, Jet(s.value, {}), s.value)
    quotient = ((x.value - s.value) * y.value.apply("reciprocal")).apply("round")
    return summed(x, s.times(Jet(quotient, {}), y, s.value), s.value, -1.0)


def _angle(s: Step) -> Jet:
    """Of (x, y), turned by the angle at the point: there y / x is 0, and so no quotient of large numbers."""
    y, x = (_operand(s, a) for a in s.arguments)
    if not (x.parts or y.parts):
        return Jet(s.value, {})
    s.check_order()
    inverse = (x.value * x.value + y.value * y.value).apply("reciprocal")
    along, across = (Jet(v.value * inverse, {}) for v in (x, y))
    one, zero = (s.writer.tensor(torch.full((1, *s.node.shape), v)) for v in (1.0, 0.0))
    radius = summed(s.times(along, x, one), s.times(across, y, one), one)
    height = summed(s.times(along, y, zero), s.times(across, x, zero), zero, -1.0)
    inverse = elementwise(radius, one, Series(-1.0, (1.0, -1.0)), s.needed)
    return elementwise(s.times(height, inverse, zero), s.value, Series(1.0, (None, -1 / 3)), s.needed)


def _masked(s: Step) -> Jet:
    """The derivatives of the value that the mask chooses, and zero for a constant."""
    mask, rank, zero = s.arguments[0], len(s.node.shape), s.writer.number(0.0)
    mask = aligned(mask.take([()]), rank) if isinstance(mask, Jet) else mask

    def side(a: Jet | str, place: int) -> Jet:
        def choose(p: Symbol) -> Symbol:
            sides: list[Symbol | str] = [zero, zero]
            sides[place] = replace(aligned(p, rank), factor=1.0)
            chosen = s.writer.node("where", [mask, *sides], (p.shape[0], *s.node.shape), {})
            return s.writer.scaled(chosen, p.factor)

        return a.mapped(s.value, choose) if isinstance(a, Jet) else Jet(s.value, {})

    return summed(side(s.arguments[1], 0), side(s.arguments[2], 1), s.value)


def _chosen(sign: float) -> Rule:
    """The larger (sign 1) or smaller of two: the derivatives of the one, and half of each where both are equal."""

    def rule(s: Step) -> Jet:
        first, second = (a.value if isinstance(a, Jet) else a for a in s.arguments)
        weight = (s.writer.node("sub", [first, second], s.node.shape, {}) * sign).apply("step", at_zero=0.5)
        x, y = (
            s.times(Jet(share, {}), a, s.value) if isinstance(a, Jet) else Jet(s.value, {})
            for a, share in zip(s.arguments, (weight, 1 - weight), strict=True)
        )
        return summed(x, y, s.value)

    return rule


def _layer_norm(s: Step) -> Jet:
    """(x - mean) (variance + eps)^(-1/2) scale + shift, op by op."""
    (x,), axes = s.jets, list(range(-len(s.node.attrs["shape"]), 0))
    narrow = (*s.node.shape[: axes[0]], *(1 for _ in axes))

    def mean(z: Jet) -> Jet:
        def f(p: Symbol) -> Symbol:
            lead = p.shape[: len(p.shape) - len(s.node.shape)]
            return p.linearly("mean", (*lead, *narrow), axes=axes, keep=True)

        return z.mapped(f(z.value), f)

    middle = mean(x)
    centred = summed(x, middle, x.value - middle.value, -1.0)
    variance = mean(s.times(centred, centred, centred.value * centred.value))
    scale = s.applied("power", Jet(variance.value + s.node.attrs["eps"], variance.parts), exponent=-0.5)
    normal = s.times(centred, scale, centred.value * scale.value)
    weight = s.node.inputs[1:2]
    return normal.mapped(s.value, lambda p: p.linearly("mul", p.shape, *weight) if weight else p)


def _carried(s: Step) -> Jet:
    if any(x.parts for x in s.jets):
        raise s.fail(f"a derivative of {s.node.attrs['name']}, a part that is carried outside the op table,", "none")
    return Jet(s.value, {})


RULES: dict[str, Rule] = {
    "linear": _linear,
    **{name: _elementwise for name, op in TABLE.items() if op.taylor is not None},
    "add": _summed(1.0),
    "sub": _summed(-1.0),
    **dict.fromkeys(("mul", "matmul"), _product),
    "div": _divided,
    "maximum": _chosen(1.0),
    "minimum": _chosen(-1.0),
    "concat": _joined,
    "fmod": _remainder,
    "atan2": _angle,
    "where": _masked,
    **dict.fromkeys(("slice", "sum", "mean", "cumsum", "patches"), _moved),
    "gather": _gathered,
    "reshape": _reshaped,
    "transpose": _transposed,
    "expand": _expanded,
    "repeat": _repeated,
    "einsum": _einsum,
    "layer_norm": _layer_norm,
    CARRIED: _carried,
    **REDUCTIONS,
}
