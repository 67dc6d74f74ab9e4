"""How every op of the table carries a jet: one rule per op, keyed like the table."""

import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import Any

from hrt.derivatives.jets import Index, Jet, Part, aligned, elementwise, joint, multilinear, summed
from hrt.derivatives.symbols import Symbol, Writer
from hrt.errors import DerivativeError
from hrt.hmatrix.hmatrix import HMatrix
from hrt.program.op_table import TABLE
from hrt.program.program import Node
from hrt.program.taylor_table import ORDER

STACK_LEAVES = 8  # a weight of more leaves multiplies a value and its derivatives at once: its products are many, small


@dataclass(frozen=True)
class Step:
    """A node at work. arguments: jets, or names of constants.  needed: the derivatives that somebody asks for."""

    writer: Writer
    node: Node
    arguments: Sequence[Jet | str]
    needed: Sequence[Index]

    @cached_property
    def value(self) -> Symbol:
        """The node's own value, written as it was on first use."""
        self.writer.nodes.append(self.node)
        return Symbol(self.writer, self.node.name, self.node.shape)

    @property
    def jets(self) -> list[Jet]:
        return [a for a in self.arguments if isinstance(a, Jet)]

    def map(self, function: Callable[[Symbol], Symbol]) -> Jet:
        """For an op that is linear in its only value: `function` takes parts (count, *shape)."""
        return self.jets[0].mapped(self.value, function)

    def applied(self, op: str, x: Jet, **attrs: Any) -> Jet:
        """An elementwise op of one argument that is not in the program."""
        return self.elementwise(op, x, x.value.apply(op, **attrs), attrs)

    def elementwise(self, op: str, x: Jet, value: Symbol, attrs: Mapping[str, Any]) -> Jet:
        """The jet of `value`, which is op(x). Raises DerivativeError where the table does not go so far."""
        if not x.parts:
            return Jet(value, {})
        rule, order = TABLE[op].taylor, max(map(len, self.needed))
        if rule is None or order > ORDER:
            raise self.fail(f"a derivative of order {order}", f"at most order {ORDER if rule else 0}")
        steep = self.writer.operators.get(x.value.name) != "linear"
        return elementwise(x, value, rule(x.value, value, attrs), self.needed, steep)

    def times(self, x: Jet, y: Jet, value: Symbol) -> Jet:
        rank = len(value.shape)
        return multilinear([x, y], value, lambda c: aligned(c[0], rank) * aligned(c[1], rank), self.needed)

    def fail(self, what: str, expected: str) -> DerivativeError:
        where = f" in {self.node.module}" if self.node.module else ""
        place = f"{self.node.op} (node {self.node.name}{where})"
        return DerivativeError(
            f"Found {what} of the op {place}. Expected {expected}: the op table has no rule for more."
        )


Rule = Callable[[Step], Jet]


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
    **dict.fromkeys(("slice", "sum", "mean", "patches"), _moved),
    "reshape": _reshaped,
    "transpose": _transposed,
    "expand": _expanded,
    "repeat": _repeated,
    "einsum": _einsum,
    "layer_norm": _layer_norm,
}
