"""What drives the functions of a program over any number of rows."""

from hrt.export.c.program_text import PORTS, Function


def driver(f: Function) -> str:
    """`NAME`, and `NAME_rows`, which computes 1, HRT_SMALL or HRT_BLOCK rows."""
    feeds, answers, calls = [], [], []
    for k, p in enumerate(f.given):
        test = "if (L != 1) " if p.direct else ""
        feeds.append(f"    {test}hrt_lanes_in(L, {p.place}, given[{k}], {p.numbers}, {p.numbers}, rows);")
    for k, p in enumerate(f.asked):
        test = "if (L != 1) " if p.direct else ""
        if p.batch:
            answers.append(f"    {test}hrt_lanes_out(L, asked[{k}], {p.place}, {p.numbers}, {p.numbers}, rows);")
        else:
            answers.append("    for (size_t s = 0; s < rows; s++)")
            answers.append(f"        memcpy(asked[{k}] + s * {p.numbers}, {p.place}, {p.numbers} * sizeof(real));")
    for k in range(f.parts):
        for size, what in [("1", "one"), *([("HRT_BLOCK", "block"), ("HRT_SMALL", "small")] if f.blocks else [])]:
            word = "if" if what == "one" else "else if"
            calls.append(f"    {word} (L == {size}) {f.name}_part_{k}_{what}(given, asked, w, fixed, N);")
    ports = (*f.given, *f.asked)
    one = f"{f.name}_rows(1, part = 1, given, asked, w, fixed, N);"
    choice = [f"        {one}"]
    if f.blocks:
        choice = [
            f"        if (rows < HRT_FEW) {one}",
            "        else if (rows + HRT_SMALL <= HRT_BLOCK) {",
            "            part = rows < HRT_SMALL ? rows : HRT_SMALL;",
            f"            {f.name}_rows(HRT_SMALL, part, given, asked, w, fixed, N);",
            "        } else {",
            "            part = rows < HRT_BLOCK ? rows : HRT_BLOCK;",
            f"            {f.name}_rows(HRT_BLOCK, part, given, asked, w, fixed, N);",
            "        }",
        ]
    moves = [f"given[{k}] += part * {p.numbers}" for k, p in enumerate(f.given)]
    moves += [f"asked[{k}] += part * {p.numbers}" for k, p in enumerate(f.asked)]
    lines = [
        f"HRT_INLINE void {f.name}_rows(const int L, size_t rows, {PORTS}) {{",
        *feeds,
        *calls,
        *answers,
        "    (void)rows;",
        "}",
        "",
        f"{f.prototype.replace('REAL', 'real')} {{",
        "    if (!rows) return HRT_OK;",
        f"    if (!workspace || {' || '.join(f'!{p.pointer}' for p in ports)}) return HRT_NULL;",
        "    if ((uintptr_t)workspace % 64) return HRT_MISALIGNED;",
        "    if (!HRT_READY(workspace)) return HRT_WITHOUT_NUMBERS;",
        f"    if (rows > (size_t)-1 / sizeof(real) / {max(1, *(p.numbers for p in ports))}) return HRT_TOO_MANY;",
        "    real *const w = (real *)(void *)((char *)workspace + HRT_HEADER);",
        f"    real *const fixed = w + (size_t){f.upper}_LANES * {f.upper}_SIZE;",
        "    const hrt_numbers *const N = HRT_NUMBERS(workspace);",
        f"    const real *given[] = {{{', '.join(p.pointer for p in f.given)}}};",
        f"    real *asked[] = {{{', '.join(p.pointer for p in f.asked)}}};",
        "    for (size_t part; rows; rows -= part) {",
        *choice,
        f"        {', '.join(moves)};",
        "    }",
        "    return HRT_OK;",
        "}",
    ]
    return "\n".join(lines)
