"""Every op of the table in C: one row per op, in one of two tables.

EXPRESSIONS   elementwise ops: (body, node) to a C expression of type hrt_v with {0}, {1}, {2} in place of the
              arguments. The loop, broadcasting and what is stored are the generator's (`elementwise_text`): nodes of
              one shape that follow each other become one loop.
LOWERINGS     all others: (body, node) writes lines by `body.add`, from `body.of(name)` to `body.out(node)`.

`linear` is the generator's own (`linear_text`), and so are reshapes and slices of whole runs, which are no code.
"""

from collections.abc import Callable, Mapping

from hrt.export.c.body import Body
from hrt.export.c.operators.elementwise import EXPRESSIONS
from hrt.export.c.operators.moves import MOVES
from hrt.export.c.operators.products import PRODUCTS
from hrt.export.c.operators.reductions import REDUCTIONS
from hrt.program.program import Node

__all__ = ["EXPRESSIONS", "LOWERINGS"]

LOWERINGS: Mapping[str, Callable[[Body, Node], None]] = {**MOVES, **REDUCTIONS, **PRODUCTS}
