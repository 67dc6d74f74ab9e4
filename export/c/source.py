"""A C file as text, and its header: what is included, tables, functions, and what a reader must know."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from hrt import __version__
from hrt.export.c.body import Shared, comment
from hrt.export.c.driver_text import CODES, MEANINGS, driver, ending
from hrt.export.c.number_file import file_text
from hrt.export.c.numbers import Numbers
from hrt.export.c.packing import ORDER
from hrt.export.c.program_text import Function, function
from hrt.export.c.self_test import checked_rows
from hrt.program.program import Program

IN_TEXT = 1 << 20  # bytes of numbers that are written as text; more go to a file of their own
INCLUDED = ("products", "blocks", "moves", "coefficients", "activations", "reductions", "contractions")


@dataclass(frozen=True)
class Promise:
    """What a certificate says. lines: as text.  tolerance, limit: of the relative error; limit None where not known."""

    lines: tuple[str, ...]
    tolerance: float
    limit: float | None


@dataclass(frozen=True)
class Source:
    """A generated file, its header, and the bytes of its numbers where they are a file of their own."""

    c: str
    h: str
    numbers: bytes | None
    functions: tuple[Function, ...]
    double: bool


def generate(
    program: Program,
    name: str,
    *,
    derived: Program | None = None,
    precision: str = "float32",
    promise: Promise | None = None,
    header: str | None = None,
    in_text: int = IN_TEXT,
) -> Source:
    """The C file of a program, joined, and of one with derivatives behind its outputs, as `NAME_derivatives`.

    header: its name; None: the file stands alone.  in_text: bytes of numbers that are text at most; -1: none.
    """
    shared = Shared(Numbers(precision == "float64"))
    programs = {name: program} | ({} if derived is None else {f"{name}_derivatives": derived})
    functions = [function(p, f, shared) for f, p in programs.items()]
    tests = [checked_rows(p, shared.numbers) for p in programs.values()]
    numbers = shared.numbers
    is_file = numbers.nbytes > in_text
    body = [
        *(["#define HRT_DOUBLE"] if numbers.double else []),
        *([f'#include "{header}"'] if header else []),
        native("vectors.h"),
        f"typedef {numbers.index_type} hrt_index;",
        f"#define HRT_EACH_KIND {_each_kind(numbers)}",
        *(native(f"{file}.h") for file in INCLUDED),
        "/* numbers " + "-" * 103 + " */",
        file_text(numbers, name) if is_file else numbers.text(),
        *(text.replace("%", layer) for text, layer in shared.layers.items()),
        *(
            f"HRT_APART void hrt_many_{n}(const hrt_numbers *N, const hrt_layer *layer, const hrt_ports *ports)\n"
            f"{{ hrt_many({n}, N, layer, ports); }}"
            for n in sorted(shared.many)
        ),
        *(f"{f.text}\n{driver(f)}" for f in functions),
        ending(functions, tests),
    ]
    data = numbers.data() if is_file else None
    text = "\n".join(body)
    about = _about(functions, numbers, promise, data)
    digest = hashlib.sha256(text.encode() + (data or b"")).hexdigest()
    h = "\n".join([about, *_header(functions, numbers, promise, digest, is_file)])
    return Source(f"{about}\n{text}", h, data, tuple(functions), numbers.double)


def native(file: str) -> str:
    """A source of `hrt.kernels.native`, that generated files include as text."""
    return (files("hrt.kernels") / "native" / file).read_text("utf-8")


def _each_kind(numbers: Numbers) -> str:
    used = [k for k in ORDER if numbers.arrays[k]] or ["f32"]
    scales = {"i8": "N->reals + d->scale"}
    return " ".join(f"HRT_KIND(HRT_{k.upper()}, {scales.get(k, '0')})" for k in used)


def real_type(numbers: Numbers) -> str:
    """The C type of inputs and outputs."""
    return "double" if numbers.double else "float"


def _header(
    functions: Sequence[Function], numbers: Numbers, promise: Promise | None, digest: str, is_file: bool
) -> list[str]:
    """The constants and prototypes of the header."""
    name, upper, real = functions[0].name, functions[0].upper, real_type(numbers)
    lines = [f"#ifndef {upper}_H", f"#define {upper}_H", "#include <stddef.h>"]
    lines.append(f'#define {upper}_DIGEST "{digest}" /* SHA-256 of what was generated */')
    if promise is not None:
        lines.append(f"#define {upper}_TOLERANCE {promise.tolerance!r} /* relative error that was asked for */")
        if promise.limit is not None:
            what = "relative error on new inputs, 99 % upper limit"
            lines.append(f"#define {upper}_ERROR_LIMIT {promise.limit!r} /* {what} */")
    lines += [f"#define {upper}_{code} {k} /* {m} */" for k, (code, m) in enumerate(zip(CODES, MEANINGS, strict=True))]
    lines += ["#ifdef __cplusplus", 'extern "C" {', "#endif", f"size_t {name}_workspace(void);"]
    lines += [f"{f.prototype(real)};" for f in functions] + [f"int {name}_self_test(void *workspace);"]
    if is_file:
        initialise = f"int {name}_initialise(void *workspace, const void *numbers, size_t bytes);"
        lines += [f"#ifndef {upper}_INCBIN", initialise, "#endif"]
    return [*lines, "#ifdef __cplusplus", "}", "#endif", "#endif", ""]


def _about(functions: Sequence[Function], numbers: Numbers, promise: Promise | None, data: bytes | None) -> str:
    """The comment at the top: what the file is, how it is compiled and called, what is promised."""
    name, real = functions[0].name, real_type(numbers)
    lines = [
        f"/* {name}: a compressed network as C, generated by hrt {__version__}. Do not edit.",
        "",
        f"   Compile     cc -O3 -march=native -c {name}.c      (C99; no library but memcpy and memset)",
        f"   Workspace   {name}_workspace() bytes, aligned to 64, one per thread; of the caller",
        "   Returns     " + "; ".join(f"{k} {meaning}" for k, meaning in enumerate(MEANINGS[:3])) + ";",
        "               " + "; ".join(f"{k + 3} {meaning}" for k, meaning in enumerate(MEANINGS[3:5])) + ";",
        f"               5 {MEANINGS[5]}",
        f"   Self-test   {name}_self_test(workspace) computes rows that are embedded, with their answers",
    ]
    if data is not None:
        lines += [
            f"   Numbers     {name}.bin, {len(data):,} bytes. Map it into memory, or read it to a multiple of 64, and",
            f"               call {name}_initialise(workspace, numbers, bytes) once for every workspace; or compile",
            f"               with -D{name.upper()}_INCBIN='\"{name}.bin\"', which makes it part of the object file",
        ]
    for f in functions:
        lines += ["", f"   {f.prototype(real)}"]
        for p in (*f.inputs, *f.outputs):
            axes = "".join(f" x {n}" for n in p.shape)
            lines.append(f"       {p.pointer:<4} rows{axes} {real}s, {p.numbers} a row: {comment(p.value)}")
    if promise is not None:
        lines += ["", *(f"   {comment(line)}" for line in promise.lines)]
    return "\n".join([*lines, "*/"])
