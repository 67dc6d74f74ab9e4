"""The source of a network's library: the generated file, and behind it `session.c` with the shapes that it needs."""

import math
from collections.abc import Sequence
from importlib.resources import files

from hrt.program.program import Program

NAME = "network"  # the prefix of the functions


def session_text(program: Program, arguments: str) -> str:
    """What stands behind the generated functions. arguments: of NAME before rows and workspace, from arrays x and y."""
    given = [tuple(v.shape) for v in program.inputs]
    answered = [tuple(program.shape_of(name)) for name in program.outputs]
    most = max(1, *map(len, (*given, *answered)))
    lines = [
        f"enum {{ INPUTS = {len(given)}, OUTPUTS = {len(answered)}, MOST_DIMS = {1 + most} }};",
        *_tables("X", given, most),
        *_tables("Y", answered, most),
        f"#define NETWORK(x, y, rows, workspace) {NAME}({arguments}, rows, workspace)",
    ]
    return "\n".join(lines) + "\n" + files(__package__).joinpath("session.c").read_text("utf-8")


def _tables(which: str, shapes: Sequence[tuple[int, ...]], most: int) -> list[str]:
    sizes = ", ".join(str(math.prod(shape)) for shape in shapes)
    dims = ", ".join(str(1 + len(shape)) for shape in shapes)
    rows = ", ".join("{" + ", ".join(map(str, (*shape, *[1] * (most - len(shape))))) + "}" for shape in shapes)
    return [
        f"static const size_t {which}_SIZE[] = {{{sizes}}};",
        f"static const int {which}_DIMS[] = {{{dims}}};",
        f"static const intptr_t {which}_SHAPE[][{most}] = {{{rows}}};",
    ]
