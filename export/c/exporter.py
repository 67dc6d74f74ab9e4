"""`export_c`: a compressed network as one C file and its header, for programs that have no Python."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from os import PathLike

from hrt.certificate.derivative_outputs import VALUE, held_as, limits
from hrt.derivatives.differentiate import differentiate
from hrt.errors import InputError
from hrt.export.c.source import Promise, Source, generate
from hrt.model.load import load
from hrt.model.model import CompressedModel
from hrt.program.parallel_linears import joined
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
        path: The file to write, such as "net.c". The header "net.h" stands beside it, and above 1 MB of numbers
            "NAME.bin" with them.
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
    name = checked_name(target.stem if name is None else name)
    if not isinstance(model_or_path, CompressedModel | str | PathLike):
        raise InputError(f"Found {type(model_or_path).__name__}. Expected a compressed network or a path to one.")
    model = model_or_path if isinstance(model_or_path, CompressedModel) else load(model_or_path, backend="torch")
    source = to_c(model, name, derivatives=derivatives, precision=precision, header=target.with_suffix(".h").name)
    texts = {target.with_suffix(".h"): source.h.encode(), target: source.c.encode()}
    if source.numbers is not None:
        texts[target.with_name(f"{name}.bin")] = source.numbers
    with ExitStack() as files:  # all are complete on the disk before one takes its name
        for file, content in texts.items():
            files.enter_context(replacing(file, force=force)).write(content)


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
    derived = None if derivatives is None else joined(differentiate(model.program, derivatives).program)
    options = {"precision": precision, "promise": _promise(model, derivatives), "header": header}
    return generate(joined(model.program), name, derived=derived, **options)


def _promise(model: CompressedModel, derivatives: Sequence[str] | None) -> Promise:
    """What the certificate says, output by output."""
    shown = model if derivatives is None else model.differentiated(derivatives)
    certificate = shown.certificate
    lines = [f"Compressed at a tolerance of {certificate.tol:g}. Relative L2 errors on new inputs, 99 % upper limits:"]
    lines += [f"    {output}: {bound}" for output, bound in limits(certificate, shown.program.outputs).items()]
    limit = certificate.estimated.get("output_error_upper_99")
    held = VALUE in held_as(certificate, model.program.outputs).values()
    return Promise(tuple(lines), certificate.tol, float(limit) if held and isinstance(limit, float) else None)
