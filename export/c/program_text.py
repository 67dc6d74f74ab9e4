"""A Program as the functions of a C file: its body, step by step, and the driver that feeds it rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from hrt.errors import ExportError
from hrt.export.c.body import Body, Shared, comment
from hrt.export.c.elementwise_text import Expression, elementwise
from hrt.export.c.linear_text import LinearText
from hrt.export.c.numbers import up16
from hrt.export.c.operators import EXPRESSIONS, LOWERINGS
from hrt.program.op_table import TABLE
from hrt.program.program import Program

PART = 40  # steps of one function: compilers take more than in proportion for long ones
LARGE = 1 << 18  # numbers of a sample beyond which blocks of samples would not fit a cache: one sample at a time


@dataclass(frozen=True)
class Function:
    """A program in C. text: its functions; `arguments` and `call` as the header and the self-test write them."""

    program: Program
    name: str
    text: str

    @property
    def inputs(self) -> list[str]:
        """Names of the input pointers."""
        return pointers("x", len(self.program.inputs))

    @property
    def outputs(self) -> list[str]:
        """Names of the output pointers."""
        return pointers("y", len(self.program.outputs))

    @property
    def arguments(self) -> list[tuple[str, str, tuple[int, ...]]]:
        """Of every pointer its name, the value behind it and the shape of one row of that, inputs first."""
        program = self.program
        shapes = {v.name: v.shape for v in (*program.inputs, *program.nodes)}
        shapes |= {k: tuple(c.shape) for k, c in program.constants.items() if k not in shapes}
        values = [*(v.name for v in program.inputs), *program.outputs]
        return [(p, v, shapes[v]) for p, v in zip([*self.inputs, *self.outputs], values, strict=True)]

    @property
    def prototype(self) -> str:
        """The declaration, without its semicolon."""
        arguments = [f"const REAL *{x}" for x in self.inputs] + [f"REAL *{y}" for y in self.outputs]
        return f"int {self.name}({', '.join(arguments)}, size_t rows, void *workspace)"


def pointers(letter: str, count: int) -> list[str]:
    """x, or x0, x1 and so on."""
    return [letter] if count == 1 else [f"{letter}{k}" for k in range(count)]


def check_ops(program: Program) -> None:
    """Raise ExportError where an op has no row in the tables."""
    for node in program.nodes:
        if node.op not in EXPRESSIONS and node.op not in LOWERINGS and node.op not in ("linear", "reshape"):
            where = f" ({node.module})" if node.module else ""
            raise ExportError(
                f"Node {node.name}{where} is the op {node.op}, which cannot be written in C. "
                "Expected ops with a C lowering. Use export_onnx, or put the op outside of the network."
            )


def function(program: Program, name: str, shared: Shared) -> Function:
    """The C functions of a program. Raises ExportError for an op without a lowering."""
    check_ops(program)
    body = Body(program, name, shared)
    parts = _steps(body, EXPRESSIONS)
    upper = name.upper()
    lanes = "HRT_BLOCK" if body.plan.size + body.scratch_size <= LARGE else "1"
    lines = [
        f"/* {name} " + "-" * max(0, 110 - len(name)) + " */",
        f"#define {upper}_LANES {lanes} /* samples of a block */",
        f"#define {upper}_VALUES {body.plan.size} /* numbers of a sample that are values, and with scratch memory */",
        f"#define {upper}_SIZE ({upper}_VALUES + {body.scratch_size})",
        f"#define {upper}_DECODED {up16(body.fixed_size)} /* numbers of a block of a weight, decoded */",
        f"#define {upper}_FIXED ({upper}_DECODED + HRT_BLOCK * {body.lanes_size})",
    ]
    for k, text in enumerate(parts):
        lines += [
            f"HRT_INLINE void {name}_part_{k}(const int L, real *w, real *fixed, const hrt_numbers *N) {{",
            *text,
            "    (void)w, (void)fixed, (void)N;",
            "}",
            f"HRT_APART void {name}_part_{k}_one(real *w, real *fixed, const hrt_numbers *N) {{",
            f"    {name}_part_{k}(1, w, fixed, N);",
            "}",
            f"HRT_APART void {name}_part_{k}_block(real *w, real *fixed, const hrt_numbers *N) {{",
            f"    {name}_part_{k}({upper}_LANES, w, fixed, N);",
            "}",
        ]
    made = Function(program, name, "")
    return Function(program, name, "\n".join([*lines, _driver(made, body, len(parts))]))


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
        elif op == "linear":
            LinearText(body, step, body.weight(step[0].inputs[1])).write()
        else:
            LOWERINGS[op](body, step[0])
    return parts


def _driver(made: Function, body: Body, parts: int) -> str:
    """The functions that take rows: one, a block, any number."""
    name, upper, program = made.name, made.name.upper(), made.program
    arguments = ", ".join([f"const real *{x}" for x in made.inputs] + [f"real *{y}" for y in made.outputs])
    widths = {x: prod(v.shape) for x, v in zip(made.inputs, program.inputs, strict=True)}
    heights = {y: body.of(n) for y, n in zip(made.outputs, program.outputs, strict=True)}
    feeds, answers = [], []
    for (x, width), v in zip(widths.items(), program.inputs, strict=True):
        feeds.append(f"    hrt_lanes_in(L, {body.of(v.name).pointer}, {x}, {width}, {width}, rows);")
    for y, place in heights.items():
        m = place.numbers
        if place.batch:
            answers.append(f"    hrt_lanes_out(L, {y}, {place.pointer}, {m}, {m}, rows);")
        else:
            answers.append(
                f"    for (size_t s = 0; s < rows; s++) memcpy({y} + s * {m}, {place.pointer}, {m} * sizeof(real));"
            )
    calls = "\n".join(
        f"    if (L == 1) {name}_part_{k}_one(w, fixed, N); else {name}_part_{k}_block(w, fixed, N);"
        for k in range(parts)
    )
    every = [*made.inputs, *made.outputs]
    numbers = {**widths, **{y: place.numbers for y, place in heights.items()}}
    step = ", ".join(f"{p} += part * {numbers[p]}" for p in every)
    null = " || ".join(f"!{p}" for p in every)
    return f"""
HRT_INLINE void {name}_rows(const int L, {arguments}, size_t rows, real *w, real *fixed, const hrt_numbers *N) {{
{chr(10).join(feeds)}
{calls}
{chr(10).join(answers)}
}}

{made.prototype.replace("REAL", "real")} {{
    real *const w = (real *)workspace, *const fixed = w + (size_t){upper}_LANES * {upper}_SIZE;
    const hrt_numbers *const N = &hrt_all_numbers;
    if (!rows) return HRT_OK;
    if (!workspace || {null}) return HRT_NULL;
    if ((uintptr_t)workspace % 64) return HRT_MISALIGNED;
    if (rows > (size_t)-1 / sizeof(real) / {max(1, *numbers.values())}) return HRT_TOO_MANY;
    while (rows) {{
        const size_t most = {upper}_LANES == 1 || rows < HRT_FEW ? 1 : {upper}_LANES, part = rows < most ? rows : most;
        if (most == 1) {name}_rows(1, {", ".join(every)}, 1, w, fixed, N);
        else {name}_rows({upper}_LANES, {", ".join(every)}, part, w, fixed, N);
        {step}, rows -= part;
    }}
    return HRT_OK;
}}"""
