"""`export_c`: a compressed network as one C file and its header, for programs that have no Python."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import prod
from os import PathLike
from pathlib import Path

from hrt import __version__
from hrt.certificate.derivative_outputs import limits
from hrt.derivatives.differentiate import differentiate
from hrt.errors import InputError
from hrt.export.c.body import Shared, comment
from hrt.export.c.numbers import Numbers
from hrt.export.c.packing import ORDER
from hrt.export.c.program_text import Function, function
from hrt.model.load import load
from hrt.model.model import CompressedModel
from hrt.program.parallel_linears import joined
from hrt.program.program import Program
from hrt.support.atomic_files import check_writable, replacing, warn_of_suffix
from hrt.support.torch_state import guarded

PRECISIONS = ("float32", "float64")
RESERVED = frozenset(
    [
        "alignas",
        "alignof",
        "and",
        "and_eq",
        "asm",
        "auto",
        "bitand",
        "bitor",
        "bool",
        "break",
        "case",
        "catch",
        "char",
        "class",
        "compl",
        "const",
        "const_cast",
        "constexpr",
        "continue",
        "decltype",
        "default",
        "delete",
        "do",
        "double",
        "dynamic_cast",
        "else",
        "enum",
        "explicit",
        "export",
        "extern",
        "false",
        "final",
        "float",
        "for",
        "friend",
        "goto",
        "if",
        "import",
        "inline",
        "int",
        "long",
        "main",
        "module",
        "mutable",
        "namespace",
        "new",
        "noexcept",
        "not",
        "not_eq",
        "nullptr",
        "operator",
        "or",
        "or_eq",
        "override",
        "private",
        "protected",
        "public",
        "real",
        "register",
        "reinterpret_cast",
        "requires",
        "restrict",
        "return",
        "short",
        "signed",
        "sizeof",
        "static",
        "static_assert",
        "static_cast",
        "struct",
        "switch",
        "template",
        "this",
        "thread_local",
        "throw",
        "true",
        "try",
        "typedef",
        "typeid",
        "typename",
        "union",
        "unsigned",
        "using",
        "virtual",
        "void",
        "volatile",
        "wchar_t",
        "while",
        "xor",
        "xor_eq",
        "memcpy",
        "memset",
    ]
)


@dataclass(frozen=True)
class Source:
    """A generated file and its header."""

    c: str
    h: str


@guarded
def export_c(
    model_or_path: CompressedModel | str | PathLike[str],
    path: str | PathLike[str],
    *,
    name: str | None = None,
    derivatives: Sequence[str] | None = None,
    fortran: bool = False,
    force: bool = True,
    precision: str = "float32",
) -> None:
    """Write a network as one self-contained C99 file, and a header beside it.

    The functions allocate nothing, keep nothing between calls and need no library but memcpy and memset:
    `NAME_workspace()` gives the bytes of the workspace (aligned to 64, one per thread), `NAME(x, y, rows, workspace)`
    computes rows, `NAME_derivatives` the outputs and then the derivatives, as `predict` does, `NAME_self_test` checks
    embedded rows. The header says how to call and what is promised.

    Args:
        model_or_path: A compressed network, or the path of its .hrt file.
        path: The file to write, such as "net.c". The header "net.h" stands beside it.
        name: Of the C functions; by default the file's.
        derivatives: By input coordinates, as `predict` takes them.
        fortran: Also write "net.f90", a module that binds the functions.
        force: Replace files that exist.
        precision: "float32" or "float64": of the arithmetic, the inputs and the outputs.

    Raises:
        InputError: A path, name or precision that cannot be used.
        DerivativeError: An op on the way has no such derivative.
        ExportError: An op cannot be written in C.

    Example:
        >>> import tempfile, torch, hrt
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> model = hrt.compress(net, inputs=torch.rand(64, 2), tol=1e-2, progress=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     hrt.export_c(model, f"{folder}/net.c")
        ...     "int net(const float *x, float *y, size_t rows, void *workspace);" in open(f"{folder}/net.h").read()
        True
    """
    target = check_writable(path, force)
    warn_of_suffix(path, ".c")
    header = check_writable(Path(path).with_suffix(".h"), force)
    name = checked_name(target.stem if name is None else name)
    if not isinstance(model_or_path, CompressedModel | str | PathLike):
        raise InputError(f"Found {type(model_or_path).__name__}. Expected a compressed network or a path to one.")
    model = model_or_path if isinstance(model_or_path, CompressedModel) else load(model_or_path, backend="torch")
    source = to_c(model, name, derivatives=derivatives, precision=precision, header=header.name)
    with replacing(header, force=force) as h, replacing(target, force=force) as c:
        h.write(source.h.encode())
        c.write(source.c.encode())


def checked_name(name: str) -> str:
    """`name` where it can be that of C functions. Raises InputError."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,60}", name) or name in RESERVED or name.lower().startswith("hrt_"):
        raise InputError(
            f"Found the name {name[:80]!r}. Expected a C identifier: a letter, then letters, digits and _, no word "
            "of C, C++ or of the generated file itself (hrt_...). Pass name=."
        )
    return name


def to_c(
    model: CompressedModel,
    name: str,
    *,
    derivatives: Sequence[str] | None = None,
    precision: str = "float32",
    header: str | None = None,
) -> Source:
    """The text that `export_c` writes."""
    if precision not in PRECISIONS:
        raise InputError(f"Found precision {precision!r}. Expected one of {', '.join(PRECISIONS)}.")
    program = joined(model.program)
    derived = None if derivatives is None else joined(differentiate(model.program, derivatives).program)
    promise = _promise(model, derivatives)
    return generate(program, name, derived=derived, precision=precision, promise=promise, header=header)


def generate(
    program: Program,
    name: str,
    *,
    derived: Program | None = None,
    precision: str = "float32",
    promise: Sequence[str] = (),
    header: str | None = None,
) -> Source:
    """The C file of a program, joined, and of one with derivatives behind its outputs, as `NAME_derivatives`.

    promise: lines about errors, for the comment at the top.  header: its name; None: the file stands alone.
    """
    shared = Shared(Numbers(precision == "float64"))
    functions = [function(program, name, shared)]
    if derived is not None:
        functions.append(function(derived, f"{name}_derivatives", shared))
    return Source(_c(functions, shared, promise, header), _h(functions, shared, promise))


def native(file: str) -> str:
    """A source of `hrt.kernels.native`, that generated files include as text."""
    return (files("hrt.kernels") / "native" / file).read_text("utf-8")


def _c(functions: Sequence[Function], shared: Shared, promise: Sequence[str], header: str | None) -> str:
    numbers, name = shared.numbers, functions[0].name
    arrays = numbers.text()
    used = [k for k in ORDER if numbers.arrays[k]] or ["f32"]
    scales = {"i8": "N->reals + d->scale"}
    each = " ".join(f"HRT_KIND(HRT_{k.upper()}, {scales.get(k, '0')})" for k in used)
    many = "\n".join(
        f"HRT_APART void hrt_many_{n}(const hrt_numbers *N, const hrt_layer *layer, const hrt_ports *ports) "
        f"{{ hrt_many({n}, N, layer, ports); }}"
        for n in sorted(shared.many)
    )
    sizes = [f"({f.name.upper()}_LANES * {f.name.upper()}_SIZE + {f.name.upper()}_FIXED)" for f in functions]
    largest = sizes[0] if len(sizes) == 1 else f"({sizes[0]} > {sizes[1]} ? {sizes[0]} : {sizes[1]})"
    layers = "\n".join(text.replace("%", layer) for text, layer in shared.layers.items())
    return "\n".join(
        [
            _about(functions, shared, promise),
            *(["#define HRT_DOUBLE"] if numbers.double else []),
            f"typedef {'uint' + numbers.index_type[4:6] + '_t'} hrt_index;".join(["#include <stdint.h>\n", ""]),
            *([f'#include "{header}"'] if header else ["#include <stddef.h>"]),
            native("vectors.h"),
            f"#define HRT_EACH_KIND {each}",
            native("products.h"),
            native("blocks.h"),
            native("moves.h"),
            *(native(f"{file}.h") for file in ("coefficients", "activations", "reductions", "contractions")),
            "",
            arrays,
            layers,
            many,
            *(f.text for f in functions),
            "",
            f"size_t {name}_workspace(void) {{",
            f"    return sizeof(real) * (size_t){largest};",
            "}",
            "",
        ]
    )


def _h(functions: Sequence[Function], shared: Shared, promise: Sequence[str]) -> str:
    name = functions[0].name
    real = "double" if shared.numbers.double else "float"
    lines = [
        _about(functions, shared, promise),
        f"#ifndef {name.upper()}_H",
        f"#define {name.upper()}_H",
        "#include <stddef.h>",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        f"size_t {name}_workspace(void);",
        *(f"{f.prototype.replace('REAL', real)};" for f in functions),
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "#endif",
    ]
    return "\n".join([*lines, ""])


def _about(functions: Sequence[Function], shared: Shared, promise: Sequence[str]) -> str:
    """The comment at the top: what the file is, how it is compiled and called, what is promised."""
    name, real = functions[0].name, "double" if shared.numbers.double else "float"
    lines = [
        f"/* {name}: a compressed network as C, generated by hrt {__version__}. Do not edit.",
        "",
        f"   Compile     cc -O3 -march=native -c {name}.c      (C99; no library but memcpy and memset)",
        f"   Workspace   {name}_workspace() bytes, aligned to 64, one per thread; nothing is kept in it between calls",
        "   Returns     0; 1 a pointer is null; 2 workspace misaligned; 3 too many rows for size_t. rows may be 0",
    ]
    for f in functions:
        lines += ["", f"   {f.prototype.replace('REAL', real)}"]
        shapes = {v.name: v.shape for v in (*f.program.inputs, *f.program.nodes)}
        shapes |= {k: tuple(c.shape) for k, c in f.program.constants.items() if k not in shapes}
        for pointer, value in [
            *zip(f.inputs, (v.name for v in f.program.inputs), strict=True),
            *zip(f.outputs, f.program.outputs, strict=True),
        ]:
            axes = "".join(f" x {n}" for n in shapes[value])
            lines.append(f"       {pointer:<4} {comment(value)}: rows{axes} {real}s, {prod(shapes[value])} a row")
    lines += ["", *(f"   {comment(line)}" for line in promise)] if promise else []
    return "\n".join([*lines, "*/"])


def _promise(model: CompressedModel, derivatives: Sequence[str] | None) -> list[str]:
    """What the certificate says, output by output."""
    shown = model if derivatives is None else model.differentiated(derivatives)
    bounds = limits(shown.certificate, shown.program.outputs)
    lines = [f"Compressed to a relative error of {model.certificate.tol:g}; 99 % upper limits on new inputs:"]
    return lines + [f"    {name}: {bound}" for name, bound in bounds.items()]
