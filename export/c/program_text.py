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
PORTS = "const real *const *given, real *const *asked, real *w, real *fixed, const hrt_numbers *N"  # of a part
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
    lanes = upper_lanes(body)
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
            f"HRT_INLINE void {name}_part_{k}(const int L, {PORTS}) {{",
            *text,
            "    (void)given, (void)asked, (void)w, (void)fixed, (void)N;",
            "}",
            f"HRT_APART void {name}_part_{k}_one({PORTS}) {{ {name}_part_{k}(1, given, asked, w, fixed, N); }}",
        ]
        if lanes != "1":
            lines += [
                f"HRT_APART void {name}_part_{k}_{what}({PORTS}) {{ {name}_part_{k}({size}, given, asked, w, fixed, N); }}"
                for what, size in (("block", "HRT_BLOCK"), ("half", "HRT_HALF"))
            ]
    made = Function(program, name, "")
    return Function(program, name, "\n".join([*lines, _driver(made, body, len(parts))]))


def upper_lanes(body: Body) -> str:
    """Samples of a block, in C."""
    return "HRT_BLOCK" if body.plan.size + body.scratch_size <= LARGE else "1"


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
    direct = body.plan.direct
    feeds, answers, numbers = [], [], []
    for k, v in enumerate(program.inputs):
        n = prod(v.shape)
        numbers.append(n)
        test = "if (L != 1) " if v.name in direct else ""
        place = f"w + (size_t)L * {body.plan.offset(v.name)}"
        feeds.append(f"    {test}hrt_lanes_in(L, {place}, given[{k}], {n}, {n}, rows);")
    for k, value in enumerate(program.outputs):
        place = body.of(value)
        m = place.numbers
        numbers.append(m)
        if value in direct:
            answers.append(f"    if (L != 1) hrt_lanes_out(L, asked[{k}], {place.pointer}, {m}, {m}, rows);")
        elif place.batch:
            answers.append(f"    hrt_lanes_out(L, asked[{k}], {place.pointer}, {m}, {m}, rows);")
        else:
            answers.append(
                f"    for (size_t s = 0; s < rows; s++) memcpy(asked[{k}] + s * {m}, {place.pointer}, {m} * sizeof(real));"
            )
    blocks = upper_lanes(body) != "1"
    other = [("HRT_BLOCK", "block"), ("HRT_HALF", "half")] if blocks else []
    calls = []
    for k in range(parts):
        calls += [
            f"    if (L == {size}) {name}_part_{k}_{what}(given, asked, w, fixed, N);"
            for size, what in [("1", "one"), *other]
        ]
    lines = [
        f"HRT_INLINE void {name}_rows(const int L, size_t rows, {PORTS}) {{",
        *feeds,
        *calls,
        *answers,
        "    (void)rows;",
        "}",
        "",
        f"{made.prototype.replace('REAL', 'real')} {{",
        f"    real *const w = (real *)workspace, *const fixed = w + (size_t){upper}_LANES * {upper}_SIZE;",
        "    const hrt_numbers *const N = &hrt_all_numbers;",
        "    if (!rows) return HRT_OK;",
        f"    if (!workspace || {' || '.join(f'!{p}' for p in (*made.inputs, *made.outputs))}) return HRT_NULL;",
        "    if ((uintptr_t)workspace % 64) return HRT_MISALIGNED;",
        f"    if (rows > (size_t)-1 / sizeof(real) / {max(1, *numbers)}) return HRT_TOO_MANY;",
        f"    const real *x_at[] = {{{', '.join(made.inputs)}}};",
        f"    real *y_at[] = {{{', '.join(made.outputs)}}};",
        "    for (size_t part; rows; rows -= part) {",
        "        part = 1;",
    ]
    one = f"{name}_rows(1, 1, x_at, y_at, w, fixed, N);"
    if blocks:
        lines += [
            f"        if (rows < HRT_FEW) {one}",
            f"        else if (rows <= HRT_HALF) {name}_rows(HRT_HALF, part = rows, x_at, y_at, w, fixed, N);",
            f"        else {name}_rows(HRT_BLOCK, part = rows < HRT_BLOCK ? rows : HRT_BLOCK, x_at, y_at, w, fixed, N);",
        ]
    else:
        lines.append(f"        {one}")
    moves = [f"x_at[{k}] += part * {n}" for k, n in enumerate(numbers[: len(program.inputs)])]
    moves += [f"y_at[{k}] += part * {m}" for k, m in enumerate(numbers[len(program.inputs) :])]
    return "\n".join([*lines, f"        {', '.join(moves)};", "    }", "    return HRT_OK;", "}"])
