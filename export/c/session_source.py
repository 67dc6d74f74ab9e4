"""The source of a network's library: the generated file, and behind it `session.c` with the shapes that it needs."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from hrt.export.c.library_cache import SOURCE
from hrt.export.c.source import generate
from hrt.program.program import Program

NAME = "network"  # the prefix of the functions
NUMBERS = "network.bin"
IN_TEXT = 1 << 16  # bytes of numbers that compilers read as text; more are included as they are, where assemblers can
PART_ROWS = 32  # that a thread gets at least, a multiple of every block: to wake it takes 5 to 10 us


@dataclass(frozen=True)
class SessionSource:
    """What a compiler needs, by name. nbytes: of the tables."""

    files: dict[str, bytes]
    nbytes: int


def session_source(program: Program) -> SessionSource:
    """Of a program, joined. Raises ExportError for an op that cannot be written in C."""
    source = generate(program, NAME, in_text=IN_TEXT if sys.platform == "linux" else sys.maxsize)
    text = f'#define {NAME.upper()}_INCBIN "{NUMBERS}"\n{source.c}\n{_session_text(program)}'
    numbers = {} if source.numbers is None else {NUMBERS: source.numbers}
    return SessionSource({SOURCE: text.encode(), **numbers}, source.nbytes)


def _session_text(program: Program) -> str:
    """What stands behind the generated functions."""
    given = [tuple(v.shape) for v in program.inputs]
    answered = [tuple(program.shape_of(name)) for name in program.outputs]
    most = max(1, *map(len, (*given, *answered)))
    arguments = ", ".join([*(f"x[{k}]" for k in range(len(given))), *(f"y[{k}]" for k in range(len(answered)))])
    lines = [
        f"enum {{ INPUTS = {len(given)}, OUTPUTS = {len(answered)}, MOST_DIMS = {1 + most} }};",
        *_tables("X", given, most),
        *_tables("Y", answered, most),
        f"#define PART_ROWS ({NAME.upper()}_LANES == 1 ? 1 : HRT_BLOCK > {PART_ROWS} ? HRT_BLOCK : {PART_ROWS})",
        f"#define NETWORK(x, y, rows, workspace) {NAME}({arguments}, rows, workspace)",
    ]
    return "\n".join(lines) + "\n" + files("hrt.export.c").joinpath("session.c").read_text("utf-8")


def _tables(which: str, shapes: Sequence[tuple[int, ...]], most: int) -> list[str]:
    sizes = ", ".join(str(math.prod(shape)) for shape in shapes)
    dims = ", ".join(str(1 + len(shape)) for shape in shapes)
    rows = ", ".join("{" + ", ".join(map(str, (*shape, *[1] * (most - len(shape))))) + "}" for shape in shapes)
    return [
        f"static const size_t {which}_SIZE[] = {{{sizes}}};",
        f"static const int {which}_DIMS[] = {{{dims}}};",
        f"static const intptr_t {which}_SHAPE[][{most}] = {{{rows}}};",
    ]
