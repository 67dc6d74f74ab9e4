"""What the jet rules work with: a node at work, and what they may ask of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hrt.derivatives.jets import Index, Jet, aligned, elementwise, multilinear
from hrt.derivatives.symbols import Symbol, Writer
from hrt.errors import DerivativeError
from hrt.program.op_table import TABLE
from hrt.program.program import Node
from hrt.program.taylor_table import ORDER


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
        rule = TABLE[op].taylor
        if rule is None:
            raise self.fail("a derivative", "order 0")
        self.check_order()
        steep = self.writer.operators.get(x.value.name) != "linear"
        return elementwise(x, value, rule(x.value, value, attrs), self.needed, steep)

    def check_order(self) -> None:
        """Raise DerivativeError where derivatives of a higher order are needed than rules go to."""
        order = max(map(len, self.needed))
        if order > ORDER:
            raise self.fail(f"a derivative of order {order}", f"at most order {ORDER}")

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
