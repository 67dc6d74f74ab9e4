"""A Program as the functions of a C file: its body, step by step, for one row and for blocks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from hrt.errors import ExportError
from hrt.export.c.body import Body, Shared, comment
from hrt.export.c.elementwise_text import Expression, elementwise
from hrt.export.c.layout.numbers import up16
from hrt.export.c.linear_text import LinearText
from hrt.export.c.operators import EXPRESSIONS, LOWERINGS
from hrt.program.carried import CARRIED
from hrt.program.op_table import TABLE
from hrt.program.program import Program

PART = 40  # steps of one function: compilers take more than in proportion for long ones
PORTS = "const real *const *given, real *const *asked, real *w, real *fixed, const hrt_numbers *N"  # of a part
LARGE = 1 << 18  # numbers of a sample beyond which blocks of samples would not fit a cache: one sample at a time


@dataclass(frozen=True)
class Port:
    """An input or output of a C function. pointer: its parameter.  place: of its value in the workspace, in C.  direct:
    one row is read or written where the caller keeps it.  batch: whether it has samples.
    """

    pointer: str
    value: str
    shape: tuple[int, ...]
    place: str
    direct: bool
    batch: bool = True

    @property
    def numbers(self) -> int:
        """Of a row."""
        return prod(self.shape)


@dataclass(frozen=True)
class Function:
    """A program in C: parts `NAME_part_K_one`, `_half` and `_block`. blocks: whether rows are computed together."""

    program: Program
    name: str
    text: str
    given: tuple[Port, ...]
    asked: tuple[Port, ...]
    parts: int
    blocks: bool

    @property
    def upper(self) -> str:
        """The name as macros begin with it."""
        return self.name.upper()

    @property
    def inputs(self) -> list[str]:
        """Names of the input pointers."""
        return [p.pointer for p in self.given]

    @property
    def outputs(self) -> list[str]:
        """Names of the output pointers."""
        return [p.pointer for p in self.asked]

    @property
    def arguments(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Of every pointer its name, the value behind it and the shape of one row of that, inputs first."""
        return [(p.pointer, p.value, p.shape) for p in (*self.given, *self.asked)]

    @property
    def prototype(self) -> str:
        """The declaration, without its semicolon."""
        arguments = [f"const REAL *{x}" for x in self.inputs] + [f"REAL *{y}" for y in self.outputs]
        return f"int {self.name}({', '.join(arguments)}, size_t rows, void *workspace)"


def _ports(body: Body, letter: str, values: Sequence[str]) -> tuple[Port, ...]:
    """The parameters x, or x0, x1 and so on."""
    ports = []
    for k, name in enumerate(values):
        place, pointer = body.of(name), letter if len(values) == 1 else f"{letter}{k}"
        where = f"w + (size_t)L * {body.plan.offset(name)}" if place.batch else place.pointer
        ports.append(Port(pointer, name, place.shape, where, name in body.plan.direct, place.batch))
    return tuple(ports)


def check_ops(program: Program) -> None:
    """Raise ExportError where an op has no row in the tables."""
    for node in program.nodes:
        if node.op not in EXPRESSIONS and node.op not in LOWERINGS and node.op not in ("linear", "reshape"):
            where = f" ({node.module})" if node.module else ""
            op = node.attrs["name"] if node.op == CARRIED else node.op
            raise ExportError(
                f"Node {node.name}{where} is the op {op}, which cannot be written in C. "
                "Expected ops with a C lowering. Use export_onnx, or put the op outside of the network."
            )


def function(program: Program, name: str, shared: Shared) -> Function:
    """The C functions of a program. Raises ExportError for an op without a lowering."""
    check_ops(program)
    body = Body(program, name, shared)
    parts = _steps(body, EXPRESSIONS)
    upper, blocks = name.upper(), body.plan.size + body.scratch_size <= LARGE
    lines = [
        f"/* {name} " + "-" * max(0, 110 - len(name)) + " */",
        f"#define {upper}_LANES {'HRT_BLOCK' if blocks else '1'} /* samples of a block */",
        f"#define {upper}_VALUES {body.plan.size} /* numbers of a sample that are values, and with scratch memory */",
        f"#define {upper}_SIZE ({upper}_VALUES + {body.scratch_size})",
        f"#define {upper}_DECODED {up16(body.fixed_size)} /* numbers of a block of a weight, decoded */",
        f"#define {upper}_FIXED ({upper}_DECODED + HRT_BLOCK * {body.lanes_size})",
    ]
    sizes = {"one": "1", **({"half": "HRT_HALF", "block": "HRT_BLOCK"} if blocks else {})}
    for k, text in enumerate(parts):
        part = f"{name}_part_{k}"
        lines += [
            f"HRT_INLINE void {part}(const int L, {PORTS}) {{",
            *text,
            "    (void)given, (void)asked, (void)w, (void)fixed, (void)N;",
            "}",
        ]
        for what, size in sizes.items():
            lines += [f"HRT_APART void {part}_{what}({PORTS})", f"{{ {part}({size}, given, asked, w, fixed, N); }}"]
    ports = _ports(body, "x", [v.name for v in program.inputs]), _ports(body, "y", program.outputs)
    return Function(program, name, "\n".join(lines), *ports, len(parts), blocks)


def _steps(body: Body, expressions: Mapping[str, Expression]) -> list[list[str]]:
    """The lines of every step, in parts."""
    parts: list[list[str]] = []
    for k, step in enumerate(body.plan.steps):
        if k % PART == 0:
            body.lines = []
            parts.append(body.lines)
        body.top = 0
        for node in step:
            where = f" ({node.module})" if node.module else ""
            attrs = "".join(f"; {key}={value}" for key, value in node.attrs.items())
            shape = " x ".join(map(str, node.shape)) or "1"
            text = f"{node.name} = {node.op}({', '.join(node.inputs)}{attrs}): {shape}{where}"
            body.add(f"/* {comment(text)} */")
        op = step[0].op
        if TABLE[op].elementwise:
            elementwise(body, step, expressions)
        elif linear := [node for node in step if node.op == "linear"]:
            LinearText(body, step, body.weight(linear[0].inputs[1])).write()
        else:
            LOWERINGS[op](body, step[0])
    return parts
