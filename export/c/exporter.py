"""`export_c`: a compressed network as one C file and its header, for programs that have no Python."""

from collections.abc import Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path

from hrt.derivatives.differentiate import differentiate
from hrt.errors import InputError
from hrt.export.c.companions.example_files import check_example, example_names, examples
from hrt.export.c.companions.fortran import fortran_text
from hrt.export.c.companions.header import promise_of
from hrt.export.c.names import checked_name, checked_stem
from hrt.export.c.source import REALS, Source, generate
from hrt.model.load import load
from hrt.model.model import CompressedModel
from hrt.program.parallel_linears import joined
from hrt.support.atomic_files import check_writable, replacing, warn_of_suffix
from hrt.support.torch_state import guarded


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
        path: The file to write, such as "net.c". The header "net.h" stands beside it, and "net.bin" where there
            is over 1 MB of numbers.
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
    check_writable(path, force)
    warn_of_suffix(path, ".c")
    options = {"derivatives": derivatives, "fortran": fortran, "precision": precision, "example": example}
    write_c(model_or_path, Path(path), name=name, force=force, **options)


@guarded
def write_c(
    model_or_path: CompressedModel | str | PathLike[str],
    path: Path,
    *,
    name: str | None,
    derivatives: Sequence[str] | None,
    fortran: bool,
    force: bool,
    precision: str,
    example: bool,
) -> list[Path]:
    """What `export_c` does. Returns the paths of all files, that of the C file first."""
    target = check_writable(path, force)
    stem, beside = checked_stem(path), fortran or example
    name = checked_name(stem if name is None else name, fortran=beside)
    for file in companions(stem, fortran=fortran, example=example):
        (check_example if file in example_names(stem) else check_writable)(path.parent / file, force)
    if not isinstance(model_or_path, CompressedModel | str | PathLike):
        raise InputError(f"Found {type(model_or_path).__name__}. Expected a compressed network or a path to one.")
    model = model_or_path if isinstance(model_or_path, CompressedModel) else load(model_or_path, backend="torch")
    source = to_c(model, name, derivatives=derivatives, precision=precision, stem=stem)
    real, is_file = REALS[precision], source.numbers is not None
    texts: dict[str, str | bytes] = {f"{stem}.h": source.h}
    if source.numbers is not None:
        texts[f"{stem}.bin"] = source.numbers
    if beside:
        texts[f"{stem}.f90"] = fortran_text(source.functions, real, source.promise, stem, is_file)
    if example:
        texts |= examples(source.functions[-1], name, real, stem, is_file)
    contents = [(target, source.c), *((path.parent / file, text) for file, text in texts.items())]
    with ExitStack() as stack:
        for where, text in reversed(contents):  # the last to be opened is the first to be there
            content = text if isinstance(text, bytes) else text.encode()
            stack.enter_context(replacing(where, force=force)).write(content)
    return [where for where, _ in contents]


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
