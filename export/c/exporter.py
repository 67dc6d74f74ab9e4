"""`export_c`: a compressed network as one C file and its header, for programs that have no Python."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from os import PathLike
from pathlib import Path

from hrt.derivatives.differentiate import differentiate
from hrt.errors import InputError
from hrt.export.c.body import Shared
from hrt.export.c.companions.example_files import check_example, example_names, examples
from hrt.export.c.companions.fortran import fortran_text
from hrt.export.c.companions.header import Promise, about, header_text, promise_of
from hrt.export.c.names import checked_name, checked_stem
from hrt.export.c.numbers import Numbers
from hrt.export.c.packing import ORDER
from hrt.export.c.program_text import Function, function
from hrt.export.c.self_test import self_test
from hrt.model.load import load
from hrt.model.model import CompressedModel
from hrt.program.parallel_linears import joined
from hrt.program.program import Program
from hrt.support.atomic_files import check_writable, replacing, warn_of_suffix
from hrt.support.torch_state import guarded

REALS = {"float32": "float", "float64": "double"}  # by precision
NOTHING = Promise()


@dataclass(frozen=True)
class Source:
    """A generated file and its header, the bytes of its numbers, its functions, and what is promised of them."""

    c: str
    h: str
    nbytes: int
    functions: tuple[Function, ...]
    promise: Promise


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
    example: bool = False,
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
        fortran: Also write "net.f90", a module that binds the functions. Names then have at most 51 characters.
        force: Replace files that exist.
        precision: "float32" or "float64": of the arithmetic, the inputs and the outputs.
        example: Also write short programs that call the network from C, C++ and Fortran ("net_example.c" and so on,
            with "net.f90"), and a CMakeLists.txt that builds them. Files of these names that are not hrt's are kept.

    Raises:
        InputError: A path, name or precision that cannot be used, a file that may not be replaced.
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
    folder, stem = Path(path).parent, checked_stem(Path(path))
    name = checked_name(stem if name is None else name, fortran=fortran or example)
    for file in companions(stem, fortran=fortran, example=example):
        (check_example if file in example_names(stem) else check_writable)(folder / file, force)
    if not isinstance(model_or_path, CompressedModel | str | PathLike):
        raise InputError(f"Found {type(model_or_path).__name__}. Expected a compressed network or a path to one.")
    model = model_or_path if isinstance(model_or_path, CompressedModel) else load(model_or_path, backend="torch")
    source = to_c(model, name, derivatives=derivatives, precision=precision, stem=stem)
    real = REALS[precision]
    texts = {f"{stem}.h": source.h}
    if fortran or example:
        texts[f"{stem}.f90"] = fortran_text(source.functions, real, source.promise, stem)
    if example:
        texts |= examples(source.functions[-1], name, real, stem)
    with ExitStack() as stack:
        for where, text in [*((folder / file, text) for file, text in texts.items()), (target, source.c)]:
            stack.enter_context(replacing(where, force=force)).write(text.encode())


def companions(stem: str, *, fortran: bool = False, example: bool = False) -> list[str]:
    """The files that are written beside `stem`.c."""
    module = [f"{stem}.f90"] if fortran or example else []
    return [f"{stem}.h", *module, *(example_names(stem) if example else ())]


def to_c(
    model: CompressedModel,
    name: str,
    *,
    derivatives: Sequence[str] | None = None,
    precision: str = "float32",
    stem: str | None = None,
) -> Source:
    """The text that `export_c` writes to `stem`.c."""
    if precision not in REALS:
        raise InputError(f"Found precision {precision!r}. Expected one of {', '.join(REALS)}.")
    program = joined(model.program)
    derived = None if derivatives is None else joined(differentiate(model.program, derivatives).program)
    promise = promise_of(model, derivatives)
    return generate(program, name, derived=derived, precision=precision, promise=promise, stem=stem, tested=True)


def generate(
    program: Program,
    name: str,
    *,
    derived: Program | None = None,
    precision: str = "float32",
    promise: Promise = NOTHING,
    stem: str | None = None,
    tested: bool = False,
) -> Source:
    """The C file of a program, joined, and of one with derivatives behind its outputs, as `NAME_derivatives`.

    stem: of the file and its header; None: it stands alone.  tested: with `NAME_self_test`.
    """
    shared = Shared(Numbers(precision == "float64"))
    functions = [function(program, name, shared)]
    if derived is not None:
        functions.append(function(derived, f"{name}_derivatives", shared))
    nbytes = shared.numbers.nbytes
    test = self_test(functions, shared.numbers) if tested else ("", "0")
    top = about(functions, REALS[precision], promise, stem or name)
    c = "\n".join([top, *([f'#include "{stem}.h"'] if stem else []), _c(functions, shared, test)])
    digest = sha256(c.encode()).hexdigest() if tested else None
    h = header_text(functions, REALS[precision], promise, top, digest)
    return Source(c, h, nbytes, tuple(functions), promise)


def native(file: str) -> str:
    """A source of `hrt.kernels.native`, that generated files include as text."""
    return (files("hrt.kernels") / "native" / file).read_text("utf-8")


def _c(functions: Sequence[Function], shared: Shared, test: tuple[str, str]) -> str:
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
    sizes = [f"((size_t){f.name.upper()}_LANES * {f.name.upper()}_SIZE + {f.name.upper()}_FIXED)" for f in functions]
    largest = sizes[0] if len(sizes) == 1 else f"({sizes[0]} > {sizes[1]} ? {sizes[0]} : {sizes[1]})"
    tested, room = test
    layers = "\n".join(text.replace("%", layer) for text, layer in shared.layers.items())
    return "\n".join(
        [
            *(["#define HRT_DOUBLE"] if numbers.double else []),
            f"typedef {'uint' + numbers.index_type[4:6] + '_t'} hrt_index;".join(["#include <stdint.h>\n", ""]),
            "#include <stddef.h>",
            native("vectors.h"),
            f"#define HRT_EACH_KIND {each}",
            native("products.h"),
            native("moves.h"),
            *(native(f"{file}.h") for file in ("coefficients", "activations", "reductions", "contractions")),
            "#define HRT_BLOCK (2 * (int)HRT_LANES > 8 ? 2 * (int)HRT_LANES : 8) /* samples of a block */",
            "#define HRT_FEW 10 /* rows from which a block is faster than one row after the other */",
            "enum { HRT_OK, HRT_NULL, HRT_MISALIGNED, HRT_TOO_MANY, HRT_DIFFERS };",
            "",
            arrays,
            layers,
            "HRT_APART void hrt_blocks(const hrt_numbers *N, const hrt_layer *layer, const hrt_ports *ports,",
            "                          real *scratch) { hrt_block(HRT_BLOCK, N, layer, ports, scratch); }",
            many,
            *(f.text for f in functions),
            "",
            f"#define {name.upper()}_WORK {largest}",
            f"size_t {name}_workspace(void) {{",
            f"    return (sizeof(real) * ({name.upper()}_WORK + {room}) + 63) / 64 * 64;",
            "}",
            tested,
            "",
        ]
    )
