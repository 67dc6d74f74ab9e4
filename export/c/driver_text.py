"""What drives the functions of a program: any number of rows, the workspace, and the self-test."""

from collections.abc import Sequence

from hrt.export.c.program_text import PORTS, Function
from hrt.export.c.self_test import CheckedRows

CODES = ("OK", "NULL", "MISALIGNED", "TOO_MANY", "FAILED", "NUMBERS")  # what functions return, from 0 on
MEANINGS = (
    "done; rows may be 0",
    "a pointer is null",
    "the workspace is not aligned to 64 bytes",
    "more rows than size_t can count the numbers of",
    "the self-test found other answers than it holds",
    "the workspace was not initialised, or the numbers are not those of this network",
)


def driver(f: Function) -> str:
    """`NAME`, and `NAME_rows`, which computes 1, HRT_HALF or HRT_BLOCK rows."""
    feeds, answers, calls = [], [], []
    for k, p in enumerate(f.inputs):
        test = "if (L != 1) " if p.direct else ""
        feeds.append(f"    {test}hrt_lanes_in(L, {p.place}, given[{k}], {p.numbers}, {p.numbers}, rows);")
    for k, p in enumerate(f.outputs):
        test = "if (L != 1) " if p.direct else ""
        if p.batch:
            answers.append(f"    {test}hrt_lanes_out(L, asked[{k}], {p.place}, {p.numbers}, {p.numbers}, rows);")
        else:
            answers.append("    for (size_t s = 0; s < rows; s++)")
            answers.append(f"        memcpy(asked[{k}] + s * {p.numbers}, {p.place}, {p.numbers} * sizeof(real));")
    for k in range(f.parts):
        for size, what in [("1", "one"), *([("HRT_BLOCK", "block"), ("HRT_HALF", "half")] if f.blocks else [])]:
            word = "if" if what == "one" else "else if"
            calls.append(f"    {word} (L == {size}) {f.name}_part_{k}_{what}(given, asked, w, fixed, N);")
    ports = (*f.inputs, *f.outputs)
    one = f"{f.name}_rows(1, part = 1, given, asked, w, fixed, N);"
    choice = [f"        {one}"]
    if f.blocks:
        choice = [
            f"        if (rows < HRT_FEW) {one}",
            f"        else if (rows <= HRT_HALF) {f.name}_rows(HRT_HALF, part = rows, given, asked, w, fixed, N);",
            f"        else if (rows < HRT_BLOCK) {f.name}_rows(HRT_BLOCK, part = rows, given, asked, w, fixed, N);",
            f"        else {f.name}_rows(HRT_BLOCK, part = HRT_BLOCK, given, asked, w, fixed, N);",
        ]
    moves = [f"given[{k}] += part * {p.numbers}" for k, p in enumerate(f.inputs)]
    moves += [f"asked[{k}] += part * {p.numbers}" for k, p in enumerate(f.outputs)]
    lines = [
        f"HRT_INLINE void {f.name}_rows(const int L, size_t rows, {PORTS}) {{",
        *feeds,
        *calls,
        *answers,
        "    (void)rows;",
        "}",
        "",
        f"{f.prototype('real')} {{",
        "    real *const w = (real *)(void *)((char *)workspace + HRT_HEADER);",
        f"    real *const fixed = w + (size_t){f.upper}_LANES * {f.upper}_SIZE;",
        "    const hrt_numbers *const N = HRT_NUMBERS(workspace);",
        f"    const real *given[] = {{{', '.join(p.pointer for p in f.inputs)}}};",
        f"    real *asked[] = {{{', '.join(p.pointer for p in f.outputs)}}};",
        "    if (!rows) return HRT_OK;",
        f"    if (!workspace || {' || '.join(f'!{p.pointer}' for p in ports)}) return HRT_NULL;",
        "    if ((uintptr_t)workspace % 64) return HRT_MISALIGNED;",
        "    if (!HRT_READY(workspace)) return HRT_WITHOUT_NUMBERS;",
        f"    if (rows > (size_t)-1 / sizeof(real) / {max(1, *(p.numbers for p in ports))}) return HRT_TOO_MANY;",
        "    for (size_t part; rows; rows -= part) {",
        *choice,
        f"        {', '.join(moves)};",
        "    }",
        "    return HRT_OK;",
        "}",
    ]
    return "\n".join(lines)


def ending(functions: Sequence[Function], tests: Sequence[CheckedRows]) -> str:
    """`NAME_workspace` and `NAME_self_test`."""
    name = functions[0].name
    sizes = [f"(size_t){f.upper}_LANES * {f.upper}_SIZE + {f.upper}_FIXED" for f in functions]
    lines = [f"static size_t {name}_numbers_of_workspace(void) {{", f"    size_t most = {sizes[0]};"]
    lines += [f"    if (most < {size}) most = {size};" for size in sizes[1:]]
    lines += ["    return (most + 15) / 16 * 16;", "}", ""]
    buffer = max(HRT_TESTED * sum(p.numbers for p in (*f.inputs, *f.outputs)) for f in functions)
    lines += [
        f"size_t {name}_workspace(void) {{",
        f"    return HRT_HEADER + sizeof(real) * ({name}_numbers_of_workspace() + {buffer});",
        "}",
        "",
        "/* Whether answers have a relative L2 distance of at most `limit` from those expected; false for NaN. */",
        "HRT_APART int hrt_agrees(const real *y, const real *expected, size_t numbers, real limit) {",
        "    real error = 0, size = 0;",
        "    for (size_t k = 0; k < numbers; k++) {",
        "        error += (y[k] - expected[k]) * (y[k] - expected[k]);",
        "        size += expected[k] * expected[k];",
        "    }",
        "    return error <= limit * limit * size;",
        "}",
        "",
        f"int {name}_self_test(void *workspace) {{",
        "    if (!workspace) return HRT_NULL;",
        "    if ((uintptr_t)workspace % 64) return HRT_MISALIGNED;",
        "    if (!HRT_READY(workspace)) return HRT_WITHOUT_NUMBERS;",
        "    const hrt_numbers *const N = HRT_NUMBERS(workspace);",
        f"    real *const buffer = (real *)(void *)((char *)workspace + HRT_HEADER) + {name}_numbers_of_workspace();",
        "    int status = HRT_OK;",
    ]
    for f, rows in zip(functions, tests, strict=True):
        lines += _test(f, rows) if rows.count else [f"    /* {f.name}: {rows.remark} */"]
    return "\n".join([*lines, "    (void)N, (void)buffer;", "    return status;", "}", ""])


HRT_TESTED = 12  # rows that the self-test computes at a time: more than HRT_FEW, so that they are a block


def _test(f: Function, rows: CheckedRows) -> list[str]:
    """The embedded rows over and over, as one block; then the first alone."""
    lines, places, at = [], {}, 0
    for p in (*f.inputs, *f.outputs):
        places[p.pointer] = f"buffer + {at}"
        at += HRT_TESTED * p.numbers
    lines.append(f"    for (size_t r = 0; r < {HRT_TESTED}; r++) {{")
    for p, table in zip(f.inputs, rows.inputs, strict=True):
        source = f"{table} + r % {rows.count} * {p.numbers}"
        lines.append(f"        memcpy({places[p.pointer]} + r * {p.numbers}, {source}, {p.numbers} * sizeof(real));")
    lines.append("    }")
    arguments = ", ".join(places.values())
    for count in (HRT_TESTED, 1):
        lines.append(f"    if (!status) status = {f.name}({arguments}, {count}, workspace);")
        for p, table, limit in zip(f.outputs, rows.outputs, rows.limits, strict=True):
            expected = f"{table} + r % {rows.count} * {p.numbers}"
            answer = f"{places[p.pointer]} + r * {p.numbers}"
            lines.append(f"    for (size_t r = 0; r < {count}; r++)")
            lines.append(
                f"        if (!status && !hrt_agrees({answer}, {expected}, {p.numbers}, {limit})) status = HRT_FAILED;"
            )
    return lines
