"""Ten-line programs that call a generated file from C, C++ and Fortran, and what builds them with CMake."""

import re
from importlib.resources import files
from math import prod
from pathlib import Path

from hrt.errors import InputError
from hrt.export.c.companions.fortran import dimensions
from hrt.export.c.program_text import Function
from hrt.support.atomic_files import check_writable

ROWS = 2
OURS = b"an example by hrt"  # in the first line of every file
FILES = {
    "CMakeLists.txt": "CMakeLists.txt",
    "STEM_example.c": "example.c",
    "STEM_example.cpp": "example.cpp",
    "STEM_example.f90": "example.f90",
}  # templates by what is written


def example_names(stem: str) -> tuple[str, ...]:
    """The files that stand beside `stem`.c. Raises InputError for a name that makes no good CMake target."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", stem):
        raise InputError(
            f"Found the file name {stem!r}. Expected letters, digits, _, -, + and . where examples go with it."
        )
    return tuple(file.replace("STEM", stem) for file in FILES)


def check_example(path: Path, force: bool) -> None:
    """Raise InputError where a file may not be written, or one is there that is not an example of hrt's."""
    check_writable(path, force)
    if path.exists() and OURS not in path.read_bytes()[:300].partition(b"\n")[0]:
        raise InputError(f"{path} exists, is not one of hrt's examples and was kept. Export to another folder.")


def examples(f: Function, name: str, real: str, stem: str, is_file: bool = False) -> dict[str, str]:
    """Texts by file name. f: the function that is called.  name: that of the file's first function.
    is_file: its numbers are one too, which compilers put into the object file.

    Inputs are i modulo 8, divided by 8, for the numbers i of an input; i modulo 2 where they are whole numbers.
    """
    shapes = {pointer: shape for pointer, _, shape in f.arguments}
    sizes = {pointer: ROWS * prod(shape) for pointer, shape in shapes.items()}
    whole = {p: v.kind != "float" for p, v in zip(f.inputs, f.program.inputs, strict=True)}
    digits = 17 if real == "double" else 9
    values = {p: "i % 2" if whole[p] else f"i % 8 / ({real})8" for p in f.inputs}
    fortran = {p: "modulo(i, 2)" if whole[p] else f"modulo(i, 8) / 8.0_{name}_real" for p in f.inputs}
    each = "    for (int i = 0; i < {n}; i++) "
    put = "{p}[i] = {v};"
    show = f'printf("%.{digits}g\\n", {{p}}[i]);'
    incbin = f"{name.upper()}_INCBIN"
    cmake = f'target_compile_definitions({name}_network PRIVATE {incbin}="${{CMAKE_CURRENT_SOURCE_DIR}}/{stem}.bin")'
    words = {
        "CPP_ARRAYS": ", ".join(f"{p}({n})" for p, n in sizes.items()),
        "CPP_INPUTS": [(each + put).format(n=sizes[p], p=p, v=v) for p, v in values.items()],
        "CPP_ARGUMENTS": ", ".join(f"{p}.data()" for p in shapes),
        "CPP_OUTPUTS": [(each + f"std::{show}").format(n=sizes[p], p=p) for p in f.outputs],
        "C_ARRAYS": ", ".join(f"{p}[{n}]" for p, n in sizes.items()),
        "C_INPUTS": [(each + put).format(n=sizes[p], p=p, v=v) for p, v in values.items()],
        "C_OUTPUTS": [(each + show).format(n=sizes[p], p=p) for p in f.outputs],
        "F_ARRAYS": ", ".join(f"{p}({dimensions(shape, str(ROWS))})" for p, shape in shapes.items()),
        "F_INPUTS": [f"  {p} = reshape([({v}, i = 0, size({p}) - 1)], shape({p}))" for p, v in fortran.items()],
        "F_OUTPUTS": [f"  print '(es{digits + 8}.{digits - 1})', {p}" for p in f.outputs],
        "ARGUMENTS": ", ".join(shapes),
        "CALL": f.name,
        "FLAGS": f"-O3 -march=native -D{incbin}='\"{stem}.bin\"'" if is_file else "-O3 -march=native",
        "CMAKE_NUMBERS": cmake if is_file else "",
        "NAME": name,
        "STEM": stem,
        "REAL": real,
        "ROWS": str(ROWS),
    }
    pattern = re.compile("|".join(words))
    texts = {k: "\n".join(v) if isinstance(v, list) else v for k, v in words.items()}
    folder = files("hrt.export.c.companions") / "examples"
    return {
        file.replace("STEM", stem): pattern.sub(lambda m: texts[m[0]], (folder / template).read_text("utf-8"))
        for file, template in FILES.items()
    }
