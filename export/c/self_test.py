"""`NAME_self_test`: rows and their answers inside the generated file, checked on the machine where it runs."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from hrt.export.c.layout.numbers import Numbers, literal
from hrt.export.c.program_text import Function

ROWS = 2
MEASURED = 16  # rows on which rounding is measured; the first of them are embedded
ROUNDING = 16  # answers may differ by so many times what float32 costs in torch: sums have another order in C
SMALLEST = 2.0**-16  # of the largest answer, in float32: where torch loses nothing, C may
FINER = 2.0**-29  # what float64 rounds to, beside float32
TEXT = """
/* Whether count rows of n numbers differ from the answers, which repeat, by more than the limit. */
static int hrt_differs(const real *y, const real *answers, size_t count, size_t n, real limit) {
    for (size_t k = 0; k < count * n; k++) {
        const real a = y[k], b = answers[k % (ROWS * n)], d = a > b ? a - b : b - a;
        if (!(d <= limit) && a != b && (a == a || b == b)) return 1;
    }
    return 0;
}

int NAME_self_test(void *workspace) {
    if (!workspace) return HRT_NULL;
    if ((uintptr_t)workspace % 64) return HRT_MISALIGNED;
    if (!HRT_READY(workspace)) return HRT_WITHOUT_NUMBERS;
    const hrt_numbers *const N = HRT_NUMBERS(workspace);
CHECKS
    return HRT_OK;
}"""
CHECK = """    { /* rows one by one, then as a block */
        const size_t many = MANY;
        real *const x = (real *)workspace + WORK, *const y = x + many * WIDTH;
        int status = NAME(SOURCES, ROWS, workspace);
        if (status) return status;
        if (DIFFERENCES_OF_ROWS) return HRT_DIFFERS;
        if (many > ROWS) {
            for (size_t s = 0; s < many; s++) {
FILL
            }
            status = NAME(TARGETS, many, workspace);
            if (status) return status;
            if (DIFFERENCES_OF_BLOCK) return HRT_DIFFERS;
        }
    }"""


def self_test(functions: Sequence[Function], numbers: Numbers) -> tuple[str, str]:
    """The C text of `NAME_self_test`, and the reals that it needs behind the functions' part of the workspace,
    NAME_WORK of them. `numbers` takes rows and answers.
    """
    checks, rooms = zip(*(_check(f, functions[0].name.upper(), numbers) for f in functions), strict=True)
    text = _filled(TEXT, NAME=functions[0].name, CHECKS="\n".join(checks), ROWS=ROWS)
    return text, rooms[0] if len(rooms) == 1 else f"({rooms[0]} > {rooms[1]} ? {rooms[0]} : {rooms[1]})"


def sample_rows(f: Function) -> list[Tensor]:
    """Rows between 0 and 1, the same for every file of a network; whole numbers where inputs are."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.rand(MEASURED, *v.shape, generator=generator) for v in f.program.inputs]
    return [x if v.kind == "float" else x.round() for x, v in zip(rows, f.program.inputs, strict=True)]


def _check(f: Function, upper: str, numbers: Numbers) -> tuple[str, str]:
    """The C text that checks one function, and the reals that it needs."""
    suffix, many = "" if numbers.double else "f", f"(size_t)({f.name.upper()}_LANES > 1 ? HRT_FEW : {ROWS})"
    sources, blocks, fill, outputs, differences = [], [], [], [], []
    width = height = 0
    samples = sample_rows(f)
    for row in samples:
        row, n = row[:ROWS], prod(row.shape[1:])
        sources.append(f"N->reals + {numbers.add('reals', row.reshape(-1), 'rows of the self-test')}")
        blocks.append(f"x + many * {width}")
        fill.append(f"memcpy({blocks[-1]} + s * {n}, {sources[-1]} + s % {ROWS} * {n}, {n} * sizeof(real));")
        width += n
    for answer, limit in _answers(f, samples, numbers.double):
        m = answer.shape[1]
        outputs.append(f"y + many * {height}")
        at = numbers.add("reals", answer.reshape(-1), "their answers")
        differences.append(f"hrt_differs({outputs[-1]}, N->reals + {at}, COUNT, {m}, {literal(limit, suffix=suffix)})")
        height += m
    differs = " || ".join(differences)
    text = _filled(
        CHECK,
        NAME=f.name,
        MANY=many,
        WORK=f"{upper}_WORK",
        WIDTH=width,
        SOURCES=", ".join([*sources, *outputs]),
        TARGETS=", ".join([*blocks, *outputs]),
        DIFFERENCES_OF_ROWS=differs.replace("COUNT", str(ROWS)),
        DIFFERENCES_OF_BLOCK=differs.replace("COUNT", "many"),
        FILL="\n".join(f"                {line}" for line in fill),
        ROWS=ROWS,
    )
    return text, f"{many} * {width + height}"


def _answers(f: Function, rows: Sequence[Tensor], double: bool) -> list[tuple[Tensor, float]]:
    """By output: the answers of the stored numbers, computed in float64, and by how much C's may differ."""
    answers = []
    constant = f.program.constants
    exact, rounded = f.program.run(rows), f.program.run(rows, dtype=torch.float32)
    for name, y, z in zip(f.program.outputs, exact, rounded, strict=True):
        y, z = (v.double().reshape(1 if name in constant else MEASURED, -1).expand(MEASURED, -1) for v in (y, z))
        finite = y.isfinite() & z.isfinite()
        noise, largest = (float(v[finite].abs().max()) if finite.any() else 0.0 for v in (y - z, y))
        answers.append((y[:ROWS], max(ROUNDING * noise, SMALLEST * largest) * (FINER if double else 1)))
    return answers


def _filled(text: str, **values: object) -> str:
    """`text` with its words in capitals replaced."""
    for word, value in values.items():
        text = text.replace(word, str(value))
    return text
