"""activations.h as a library, by compiler, precision and width. `python tests/native_libraries.py FOLDER [NAME ...]`
measures errors anew for kernels/native/accuracy.csv (half a minute a function, three for angles).
"""

import csv
import ctypes
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "kernels" / "native"
SOURCES = Path(__file__).parents[1] / "kernels" / "native"
TABLE = SOURCES / "accuracy.csv"
BLOCK = 4096
HEADER = "function,precision,step,numbers,ulps,ulps_at,error,error_at"
SAMPLES = 2_000_000  # of float64
# fmt: off
FUNCTIONS = (
    "exp", "expm1", "log", "log1p", "sigmoid", "silu", "softplus", "mish", "elu", "tanh", "erf", "gelu", "gelu_tanh",
    "sinc", "atan", "asin", "acos", "asinh", "acosh", "atanh", "sqrt", "floor", "round", "sin", "cos", "tan",
)
# fmt: on


class Result(ctypes.Structure):
    """As exhaustive.c has it."""

    _fields_ = [
        ("numbers", ctypes.c_uint64),
        ("ulps", ctypes.c_double),
        ("ulps_at", ctypes.c_double),
        ("error", ctypes.c_double),
        ("error_at", ctypes.c_double),
        ("nans", ctypes.c_uint64),
        ("nanoseconds", ctypes.c_double),
        ("digest", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Build:
    """How a library is made. width: HRT_WIDTH, None for the compiler's own choice."""

    folder: Path
    compiler: str = "cc"
    double: bool = False
    width: int | None = None
    flags: tuple[str, ...] = ("-O3", "-march=native", "-ffp-contract=fast")

    @cached_property
    def library(self) -> ctypes.CDLL:
        """Compiled and loaded."""
        name = f"{Path(self.compiler).name}-{self.double}-{self.width}"
        defines = ["-DHRT_DOUBLE"] if self.double else []
        width = [] if self.width is None else [f"-DHRT_WIDTH={self.width}"]
        reference, path = self.folder / f"references-{self.double}.o", self.folder / f"{name}.so"
        if not reference.exists():
            fast = ["-O2"] if self.double else ["-O3", "-ffast-math", "-fopenmp-simd"]
            compiler = shutil.which("gcc") or self.compiler  # libmvec
            command = [compiler, *fast, "-march=native", "-fPIC", *defines, "-c", str(HERE / "references.c")]
            subprocess.run([*command, "-o", str(reference)], check=True)
        command = [self.compiler, *self.flags, *defines, *width, "-fPIC", f"-I{SOURCES}", "-Wall", "-Wextra", "-Werror"]
        object_file = path.with_suffix(".o")
        subprocess.run([*command, "-c", str(HERE / "exhaustive.c"), "-o", str(object_file)], check=True)
        linked = [str(object_file), str(reference), "-lm", "-o", str(path)]
        mvec = subprocess.run([self.compiler, "-shared", *linked, "-lmvec"], capture_output=True, check=False)
        if mvec.returncode:
            subprocess.run([self.compiler, "-shared", *linked], check=True)
        return ctypes.CDLL(str(path))

    def measure(self, name: str, step: int) -> Result:
        """Errors of every step-th float32, or of `step` float64."""
        result = Result()
        assert self.library.measure(name.encode(), ctypes.c_uint64(step), ctypes.byref(result)) == 0
        return result

    def apply(self, name: str, x: np.ndarray, y: np.ndarray | float = 0.0) -> np.ndarray:
        """name(x), or name(x, y)."""
        dtype = np.float64 if self.double else np.float32
        out = np.empty(BLOCK, dtype)
        both = np.zeros((2, BLOCK), dtype)
        both[0, : len(x)], both[1] = x, np.pad(y, (0, BLOCK - len(y))) if isinstance(y, np.ndarray) else y
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (both[0], both[1], out)]
        assert self.library.apply(name.encode(), *pointers) == 0
        return out[: len(x)]


@dataclass(frozen=True)
class Accuracy:
    """A line of the table: the largest error in units in the last place, and of values below 1 as it is; step: of
    which float32 (1: of all), or how many float64.
    """

    step: int
    ulps: float
    error: float


def read_table() -> dict[tuple[str, str], Accuracy]:
    """By function and precision."""
    with TABLE.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        (r["function"], r["precision"]): Accuracy(int(r["step"]), float(r["ulps"]), float(r["error"])) for r in rows
    }


def line(name: str, precision: str, step: int, r: Result) -> str:
    """Of the table."""
    numbers = f"{r.ulps:.3g},{r.ulps_at:.9g},{r.error:.3g},{r.error_at:.9g}"
    return f"{name},{precision},{step},{r.numbers},{numbers}"


def write_table(folder: Path, names: Sequence[str]) -> None:
    """Measure functions anew, the others stay: all float32, SAMPLES float64."""
    builds = {"float32": (Build(folder), 1), "float64": (Build(folder, double=True), SAMPLES)}
    lines = {tuple(text.split(",")[:2]): text for text in TABLE.read_text("utf-8").splitlines()[1:]}
    for precision, (build, step) in builds.items():
        for name in names:
            lines[name, precision] = line(name, precision, step, build.measure(name, step))
            every = [lines[n, p] for p in builds for n in FUNCTIONS if (n, p) in lines]
            TABLE.write_text("\n".join([HEADER, *every, ""]), "utf-8")


if __name__ == "__main__":
    write_table(Path(sys.argv[1]), sys.argv[2:] or FUNCTIONS)
