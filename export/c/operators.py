"""Every op of the table in C: one row per op, in one of two tables.

EXPRESSIONS   elementwise ops: (body, node) to a C expression of type hrt_v with {0}, {1}, {2} in place of the
              arguments. Loop, broadcasting and what is stored are the generator's (`elementwise_text`): nodes of
              one shape that follow each other become one loop.
LOWERINGS     all others: (body, node) writes lines by `body.add`, from `body.of(name)` to `body.out(node)`.

`linear` is the generator's own (`linear_text`), and so are reshapes and slices of whole runs, which are no code.
What a lowering may use of `Body`: of, out, add, table, scratch, constant, literal, move.
"""

from collections.abc import Callable, Mapping
from math import prod

from hrt.export.c.body import Body
from hrt.export.c.elementwise_text import Expression
from hrt.export.c.workspace import moved_index
from hrt.program.program import Node

Lowering = Callable[[Body, Node], None]


def _moved(body: Body, node: Node) -> None:
    """An op that only moves the numbers of its argument."""
    x = body.of(node.inputs[0])
    index = moved_index(node, x.shape)
    if index is not None:
        body.move(body.out(node).pointer, x.pointer, index)


def _concat(body: Body, node: Node) -> None:
    """The parts of every row of the result, one after the other."""
    axis = node.attrs["axis"]
    rows, width, start = prod(node.shape[:axis]), prod(node.shape[axis:]), 0
    for name in node.inputs:
        x = body.of(name)
        count = prod(x.shape[axis:])
        target = body.out(node).at(f"r * {width} + {start}" if rows > 1 else start)
        source = x.at(f"r * {count}") if rows > 1 else x.pointer
        head = f"for (size_t r = 0; r < {rows}; r++) " if rows > 1 else ""
        body.add(f"{head}hrt_copy(L, {target}, {source}, {count});")
        start += count


EXPRESSIONS: Mapping[str, Expression] = {
    "tanh": lambda body, node: "hrt_tanh({0})",
    "add": lambda body, node: "{0} + {1}",
    "sub": lambda body, node: "{0} - {1}",
    "mul": lambda body, node: "{0} * {1}",
    "neg": lambda body, node: "-{0}",
}
LOWERINGS: Mapping[str, Lowering] = {"slice": _moved, "transpose": _moved, "expand": _moved, "concat": _concat}
