"""Generated C compiled and called, for tests: `build` skips where there is no compiler."""

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hrt.export.c.source import Source
from hrt.program.program import Node, Program, Value

from models import any_hmatrix

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror")


def chain(*widths: int, seed: int = 0) -> Program:
    """Linear layers with tanh between them; H-matrices of every storage type, with orderings."""
    generator = torch.Generator().manual_seed(seed)
    nodes, constants, value = [], {}, "x"
    for k, (n, m) in enumerate(pairwise(widths)):
        constants |= {f"w{k}": any_hmatrix(seed + k, m, n), f"b{k}": torch.randn(m, generator=generator)}
        nodes.append(Node(f"l{k}", "linear", (value, f"w{k}", f"b{k}"), (m,), {}))
        value = f"l{k}"
        if k < len(widths) - 2:
            nodes.append(Node(f"t{k}", "tanh", (value,), (m,), {}))
            value = f"t{k}"
    return Program((Value("x", (widths[0],)),), tuple(nodes), (value,), constants)


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
