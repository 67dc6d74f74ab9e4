"""A C file as text, and its header: what is included, tables, functions, and what a reader must know."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

from hrt.export.c.body import Shared
from hrt.export.c.companions.header import Promise, about, header_text
from hrt.export.c.driver_text import driver
from hrt.export.c.layout.numbers import Numbers, file_text
from hrt.export.c.layout.packing import ORDER
from hrt.export.c.program_text import Function, function
from hrt.export.c.self_test import self_test
from hrt.program.program import Program

IN_TEXT = 1 << 20  # bytes of numbers that are written as text; more go to a file of their own
INCLUDED = ("products", "blocks", "moves", "coefficients", "activations", "reductions", "contractions")
REALS = {"float32": "float", "float64": "double"}  # by precision
NOTHING = Promise()


@dataclass(frozen=True)
class Source:
    """A generated file and its header, the bytes of its numbers, its functions, and what is promised of them.

    numbers: the numbers, where they are a file of their own.
    """

    c: str
    h: str
    nbytes: int
    functions: tuple[Function, ...]
    promise: Promise
    numbers: bytes | None = None


def generate(
    program: Program,
    name: str,
    *,
    derived: Program | None = None,
    precision: str = "float32",
    promise: Promise = NOTHING,
    stem: str | None = None,
    tested: bool = False,
    in_text: int = IN_TEXT,
) -> Source:
    """The C file of a program, joined, and of one with derivatives behind its outputs, as `NAME_derivatives`.

    stem: of the file and its header; None: it stands alone.  tested: with `NAME_self_test`.  in_text: bytes of numbers
    that are written as text at most, -1: none; more are `Source.numbers`, for a file `stem`.bin.
    """
    shared = Shared(Numbers(precision == "float64"))
    functions = [function(program, name, shared)]
    if derived is not None:
        functions.append(function(derived, f"{name}_derivatives", shared))
    test = self_test(functions, shared.numbers) if tested else ("", "0")
    nbytes = shared.numbers.nbytes
    numbers = shared.numbers.data() if nbytes > in_text else None
    top = about(functions, REALS[precision], promise, stem or name, numbers)
    c = "\n".join([top, *([f'#include "{stem}.h"'] if stem else []), _c(functions, shared, test, numbers is not None)])
    digest = sha256(c.encode() + (numbers or b"")).hexdigest() if tested else None
    h = header_text(functions, REALS[precision], promise, top, digest)
    return Source(c, h, nbytes, tuple(functions), promise, numbers)


def native(file: str) -> str:
    """A source of `hrt.kernels.native`, that generated files include as text."""
    return (files("hrt.kernels") / "native" / file).read_text("utf-8")


def _c(functions: Sequence[Function], shared: Shared, test: tuple[str, str], is_file: bool) -> str:
    numbers, name = shared.numbers, functions[0].name
    tested, room = test
    sizes = [f"((size_t){f.upper}_LANES * {f.upper}_SIZE + {f.upper}_FIXED)" for f in functions]
    largest = sizes[0] if len(sizes) == 1 else f"({sizes[0]} > {sizes[1]} ? {sizes[0]} : {sizes[1]})"
    lines = [
        *(["#define HRT_DOUBLE"] if numbers.double else []),
        native("vectors.h"),
        f"#define HRT_WIDE {min((f.blocks for f in functions if f.blocks), default=2)} /* vectors of a block */",
        f"typedef {numbers.index_type} hrt_index;",
        f"#define HRT_EACH_KIND {_each_kind(numbers)}",
        *(native(f"{file}.h") for file in INCLUDED),
        "/* numbers " + "-" * 103 + " */",
        file_text(numbers, name) if is_file else numbers.text(),
        *(text.replace("%", layer) for text, layer in shared.layers.items()),
    ]
    for n in sorted(shared.many):
        lines.append(f"HRT_APART void hrt_many_{n}(const hrt_numbers *N, const hrt_layer *layer, const hrt_ports *p)")
        lines.append(f"{{ hrt_many({n}, N, layer, p); }}")
    for f in functions:
        lines += [f.text, driver(f)]
    lines += [
        "",
        f"#define {name.upper()}_WORK (HRT_HEADER / sizeof(real) + {largest})",
        f"size_t {name}_workspace(void) {{",
        f"    return (sizeof(real) * ({name.upper()}_WORK + {room}) + 63) / 64 * 64;",
        "}",
        tested,
        "",
    ]
    return "\n".join(lines)


def _each_kind(numbers: Numbers) -> str:
    """The storage types of weights that are there, for loops over them; int8 is scaled row by row."""
    used = [k for k in ORDER if numbers.arrays[k]] or ["f32"]
    scales = {"i8": "N->reals + d->scale"}
    return " ".join(f"HRT_KIND(HRT_{k.upper()}, {scales.get(k, '0')})" for k in used)
