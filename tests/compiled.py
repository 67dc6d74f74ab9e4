"""Generated C compiled and called, for tests: `build` skips where there is no compiler."""

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

from hrt.export.c.exporter import Source
from hrt.program.program import Program

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror")


def compiler(name: str = "") -> str:
    """A C compiler's path; the test is skipped where there is none."""
    path = shutil.which(name) if name else shutil.which("gcc") or shutil.which("cc") or shutil.which("clang")
    if path is None:
        pytest.skip(f"there is no {name or 'C compiler'} on this machine")
    return path


def build(source: Source, folder: Path, *flags: str, cc: str = "") -> ctypes.CDLL:
    """The shared library of a source that stands alone."""
    file, library = folder / "net.c", folder / "net.so"
    file.write_text(source.c)
    flags = flags or ("-O1", "-march=native")
    done = subprocess.run(
        [compiler(cc), *STRICT, *flags, "-shared", "-fPIC", str(file), "-o", str(library)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[:3000]
    return ctypes.CDLL(str(library))


def aligned(nbytes: int) -> np.ndarray:
    """So many bytes at a multiple of 64, all ones: floats that are NaN."""
    memory = np.full(nbytes + 64, 255, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + nbytes]


def call(library: ctypes.CDLL, name: str, program: Program, inputs: Sequence[Tensor], dtype: type = np.float32):
    """The outputs of `name` for inputs (rows, *shape), each (rows, *shape), from a workspace full of NaN."""
    size = getattr(library, f"{name.removesuffix('_derivatives')}_workspace")
    size.restype = ctypes.c_size_t
    work, rows = aligned(size()), len(inputs[0])
    x = [np.ascontiguousarray(v.numpy(), dtype) for v in inputs]
    shapes = {v.name: v.shape for v in (*program.inputs, *program.nodes)}
    y = [np.full((rows, *shapes[name]), np.nan, dtype) for name in program.outputs]
    pointers = [ctypes.c_void_p(v.ctypes.data) for v in (*x, *y)]
    status = getattr(library, name)(*pointers, ctypes.c_size_t(rows), ctypes.c_void_p(work.ctypes.data))
    assert status == 0
    return y
