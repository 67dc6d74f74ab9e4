"""Writing a Program by formulas: symbols stand for values, and a writer turns operators into nodes.

Constants are folded in float64, equal formulas become one node, and numeric factors wait until they meet a sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hrt.program.names import unique_name
from hrt.program.op_table import TABLE
from hrt.program.program import Constant, Node, Program, Value

Number = int | float


@dataclass(frozen=True, eq=False)
class Symbol:
    """`factor` times the value called `name` of per-sample `shape`. A constant is a tensor (1, *shape)."""

    writer: "Writer"
    name: str
    shape: tuple[int, ...]
    factor: float = 1.0

    @property
    def constant(self) -> Tensor | None:
        """The numbers (1, *shape) where they depend on no input."""
        return self.writer.computed.get(self.name)

    def apply(self, op: str, shape: Sequence[int] | None = None, /, **attrs: Any) -> "Symbol":
        """An op of the table on this symbol alone; `shape` where the result has another."""
        return self.writer.node(op, [self], self.shape if shape is None else shape, attrs)

    def reshaped(self, *shape: int) -> "Symbol":
        """The same numbers in row-major order under another shape."""
        return self if shape == self.shape else self.linearly("reshape", shape, shape=list(shape))

    def linearly(self, op: str, shape: Sequence[int], /, *others: str, **attrs: Any) -> "Symbol":
        """An op that is linear in its first argument, this symbol; the factor waits on. others: constants by name."""
        unit = replace(self, factor=1.0)
        return self.writer.scaled(self.writer.node(op, [unit, *others], shape, attrs), self.factor)

    def __mul__(self, other: "Symbol | Number") -> "Symbol":
        if isinstance(other, Symbol):
            return self.writer.binary("mul", self, other)
        return self.writer.scaled(self, float(other))

    def __add__(self, other: "Symbol | Number") -> "Symbol":
        return self.writer.total(self, other)

    def __sub__(self, other: "Symbol | Number") -> "Symbol":
        return self.writer.total(self, -other)

    def __rsub__(self, other: Number) -> "Symbol":
        return self.writer.total(-self, other)

    def __neg__(self) -> "Symbol":
        return self * -1.0

    __rmul__ = __mul__
    __radd__ = __add__


class Writer:
    """Collects nodes over the inputs and constants of `program`. origin: the node that new ones are written for."""

    def __init__(self, program: Program):
        self.program = program
        self.operators: dict[str, str] = {node.name: node.op for node in program.nodes}
        self.nodes: list[Node] = []
        self.constants: dict[str, Constant] = dict(program.constants)
        self.computed: dict[str, Tensor] = {}  # constants that symbols stand for, float64, by name
        self.origin: Node | None = None
        self._made: dict[Any, Symbol] = {}
        self._names = {*self.constants, *(v.name for v in (*program.inputs, *program.nodes)), *program.outputs}

    def name(self, wanted: str) -> str:
        name = unique_name(wanted, self._names)
        self._names.add(name)
        return name

    def tensor(self, numbers: Tensor) -> Symbol:
        """A constant symbol of numbers (1, *shape)."""
        name = self.name("constant")
        self.computed[name] = self.constants[name] = numbers.to(torch.float64)
        return Symbol(self, name, tuple(numbers.shape[1:]))

    def number(self, value: float) -> str:
        if value not in self._made:
            self._made[value] = Symbol(self, self.name("number"), ())
            self.constants[self._made[value].name] = torch.tensor(value, dtype=torch.float64)
        return self._made[value].name

    def node(
        self,
        op: str,
        inputs: Sequence[Symbol | str],
        shape: Sequence[int],
        attrs: Mapping[str, Any],
        name: str | None = None,
    ) -> Symbol:
        """op(inputs; attrs) of per-sample `shape`. inputs: symbols, or names of the program's own constants.

        name: that the node must have; it is then written whatever there is already.
        """
        names = [v if isinstance(v, str) else self.plain(v).name for v in inputs]
        key = (op, *names, repr(attrs), *shape)
        if name is None and key in self._made:
            return self._made[key]
        if name is None and all(n in self.constants for n in names):
            values = [self.computed.get(n, c) for n, c in zip(names, map(self.constants.get, names), strict=True)]
            doubles = [v.to(torch.float64) if isinstance(v, Tensor) else v for v in values]
            symbol = self.tensor(TABLE[op].torch(doubles, attrs).reshape(1, *shape))
        else:
            origin = self.origin
            wanted = name or self.name(f"{origin.name}.{op}" if origin else op)
            module = origin.module if origin else ""
            self.nodes.append(Node(wanted, op, tuple(names), tuple(shape), dict(attrs), module))
            symbol = Symbol(self, wanted, tuple(shape))
        self._made[key] = symbol
        return symbol

    def plain(self, x: Symbol) -> Symbol:
        """The same symbol with the factor multiplied in."""
        if x.factor == 1:
            return x
        unit = replace(x, factor=1.0)
        if x.constant is not None:
            return self._folded(x)
        if x.factor == -1:
            return self.node("neg", [unit], x.shape, {})
        return self.node("mul", [unit, self.number(x.factor)], x.shape, {})

    def scaled(self, x: Symbol, factor: float) -> Symbol:
        """A factor that waits, or, for a constant, has been multiplied in."""
        product = replace(x, factor=x.factor * factor)
        return product if x.constant is None else self._folded(product)

    def _folded(self, x: Symbol) -> Symbol:
        key = ("scaled", x.name, x.factor)
        if key not in self._made:
            self._made[key] = self.tensor(self.computed[x.name] * x.factor) if x.factor != 1 else x
        return self._made[key]

    def binary(self, op: str, x: Symbol, y: Symbol) -> Symbol:
        """A product of two symbols, broadcast; factors move in front of it."""
        return self.scaled(self._broadcast(op, x, y), x.factor * y.factor)

    def total(self, x: Symbol, y: Symbol | Number) -> Symbol:
        if isinstance(y, Symbol) and abs(x.factor) == abs(y.factor):  # a common factor waits on
            return self.scaled(self._broadcast("add" if x.factor == y.factor else "sub", x, y), x.factor)
        if isinstance(y, Symbol):
            return self.total(self.plain(x), self.plain(y))
        if y == 0:
            return x
        number = self.number(float(y))
        if x.factor == -1:
            return self.node("sub", [number, replace(x, factor=1.0)], x.shape, {})
        return self.node("add", [self.plain(x), number], x.shape, {})

    def _broadcast(self, op: str, x: Symbol, y: Symbol) -> Symbol:
        shape = torch.broadcast_shapes(x.shape, y.shape)
        units = [replace(v, factor=1.0).reshaped(*(1,) * (len(shape) - len(v.shape)), *v.shape) for v in (x, y)]
        return self.node(op, units, shape, {})

    def repeated(self, x: Symbol) -> Symbol:
        """A constant symbol for every row of the batch; any other as it is."""
        if x.constant is None:
            return self.plain(x)
        rows = Symbol(self, self.program.inputs[0].name, ())
        return self.node("repeat", [x, rows], x.shape, {"shape": list(x.shape)})

    def concat(self, parts: Sequence[Symbol], axis: int) -> Symbol:
        if len(parts) == 1:
            return parts[0]
        if any(p.constant is None for p in parts):
            parts = [self.repeated(p) for p in parts]
        shape = list(parts[0].shape)
        shape[axis] = sum(p.shape[axis] for p in parts)
        return self.node("concat", list(parts), shape, {"axis": axis})

    def picked(self, x: Symbol, rows: Sequence[int]) -> Symbol:
        """Some entries of the first axis of `x`, in this order, as few slices as possible."""
        axis, size = -len(x.shape), x.shape[0]
        if list(rows) == list(range(size)):
            return x
        if x.constant is not None:
            key = ("picked", x.name, *rows)
            self._made[key] = self._made.get(key) or self.tensor(x.constant[:, list(rows)])
            return self._made[key]
        unit, pieces = replace(x, factor=1.0), []
        for start, stop, times in runs(rows):
            attrs = {"axis": axis, "start": start, "stop": stop, "step": 1}
            whole = (start, stop) == (0, size)
            piece = unit if whole else self.node("slice", [unit], (stop - start, *x.shape[1:]), attrs)
            shape = (times, *x.shape[1:])
            pieces.append(piece if times == 1 else piece.apply("expand", shape, shape=list(shape)))
        return replace(self.concat(pieces, axis), factor=x.factor)

    def program_of(self, inputs: Sequence[Value], outputs: Sequence[str]) -> Program:
        recipes = self.program.generated
        return Program(tuple(inputs), tuple(self.nodes), tuple(outputs), self.constants, recipes).simplified()


def runs(rows: Sequence[int]) -> list[tuple[int, int, int]]:
    """`rows` as (start, stop, times): a range taken once, or one row taken several times."""
    ranges: list[tuple[int, int, int]] = []
    for k in rows:
        start, stop, times = ranges[-1] if ranges else (0, -1, 1)
        if k == stop and times == 1:
            ranges[-1] = (start, k + 1, 1)
        elif k == start and stop == k + 1:
            ranges[-1] = (start, stop, times + 1)
        else:
            ranges.append((k, k + 1, 1))
    return ranges
