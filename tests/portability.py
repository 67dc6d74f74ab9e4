"""Generated C on every compiler and processor that there is here, and a table of what passed.

    python tests/portability.py                  # writes docs/results/generated-c.md, an hour of one core
    python tests/portability.py 2 zig ASan       # two at once, of those that have one of the words in their names

Compilers: gcc, clang, and zig where the package ziglang is installed. Other processors run under qemu-user.
"""

import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

import hrt
from hrt.derivatives.differentiate import differentiate
from hrt.export.c.source import Source, generate
from hrt.export.onnx.check import ROUNDING, TOLERANCE, relative
from hrt.perf.measuring.provenance import commit
from hrt.program.parallel_linears import joined
from hrt.program.program import Program

from c_cases import together
from compiled import STRICT, chain
from helpers import random_inputs

PAGE = Path(__file__).parents[1] / "docs" / "results" / "generated-c.md"
DRIVER = Path(__file__).with_suffix(".c")
BATCHES = (1, 9, 45)
PARTS = 8
WRAPPED = ("-DCOUNTED", "-Wl,--wrap=malloc,--wrap=calloc,--wrap=realloc")
SANITIZED = ("-march=native", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
NAMES = ("PINN, derivatives", "the same in float64", "every storage type, orderings", "every op")
HEADS = ("compiler", "processor", "passed", *NAMES, "code, bytes", "commit")
# What compilers may call of themselves. A generated file itself calls the first two.
LIBRARY = {"memcpy", "memset", "memmove"}
EXECUTABLE, UNDEFINED, SYMBOLS = 4, 0, 2  # of ELF: a flag of sections, an index, a type of sections


@dataclass(frozen=True)
class Target:
    """compiler: gcc, clang or zig.  processor: in words.  flags: for it.  runner: what runs its programs; () this
    machine.  needs: a flag of this machine's processor.
    """

    compiler: str
    processor: str
    flags: tuple[str, ...]
    runner: str = ""
    needs: str = ""

    def __str__(self) -> str:
        return f"{self.compiler} {self.processor}"

    @property
    def command(self) -> tuple[str, ...]:
        return (sys.executable, "-m", "ziglang", "cc") if self.compiler == "zig" else (self.compiler,)

    @property
    def sanitized(self) -> bool:
        return self.flags == SANITIZED

    def missing(self) -> str | None:
        """What this machine lacks for it."""
        if self.compiler == "zig" and not find_spec("ziglang"):
            return "the package ziglang is not installed (pip install 'hmatrix-runtime[native]')"
        if self.compiler != "zig" and not shutil.which(self.compiler):
            return f"there is no {self.compiler} on this machine"
        if self.runner and not shutil.which(self.runner):
            return f"there is no {self.runner} on this machine"
        if not self.runner and self.needs not in processor_flags():
            return f"this machine's processor has no {self.needs}"
        return None


INTEL = (
    ("x86-64, SSE2", ("-march=x86-64",), "sse2"),
    ("x86-64, AVX2", ("-march=haswell",), "avx2"),
    ("x86-64, AVX-512", ("-march=skylake-avx512",), "avx512vl"),
    ("x86-64, plain C99", ("-DHRT_WIDTH=0",), "sse2"),
    ("x86-64, ASan and UBSan", SANITIZED, "avx2"),
)
ELSEWHERE = (
    ("aarch64, NEON", "aarch64-linux-musl", "qemu-aarch64"),
    ("riscv64", "riscv64-linux-musl", "qemu-riscv64"),
    ("arm, 32 bits", "arm-linux-musleabihf", "qemu-arm"),
    ("x86, 32 bits", "x86-linux-musl", "qemu-i386"),
    ("s390x, big-endian", "s390x-linux-musl", "qemu-s390x"),
)
TARGETS = (
    *(Target(c, p, flags, needs=needs) for c in ("gcc", "clang") for p, flags, needs in INTEL),
    Target("zig", "x86-64, AVX2", ("-target", "x86_64-linux-musl", "-mcpu=haswell"), needs="avx2"),
    *(Target("zig", p, ("-target", triple), runner) for p, triple, runner in ELSEWHERE),
)


@dataclass(frozen=True)
class Network:
    """name: in words; parts of one network share it.  source: its C file.  program: what is called, by `function`.
    level: of optimisation; the highest ones take compilers a minute for every op.  rows: of inputs, where not any will
    do.
    """

    name: str
    source: Source
    program: Program
    function: str
    precision: str = "float32"
    level: str = "-O2"
    rows: tuple[torch.Tensor, ...] = ()

    @property
    def dtype(self) -> type:
        return np.float64 if self.precision == "float64" else np.float32


@dataclass(frozen=True)
class Outcome:
    """self_test: its code.  difference: from torch, the worst of all outputs; limit: what rounding allows.  code: bytes
    of the object.  allocations: while it computed; None where not counted.  beyond: bytes were written that are not
    its own.  calls: functions that it calls of others.
    """

    self_test: int
    difference: float
    limit: float
    code: int
    allocations: int | None
    beyond: int
    calls: frozenset[str]

    @property
    def passed(self) -> bool:
        return not self.self_test and not self.beyond and not self.allocations and self.difference <= self.limit


@cache
def networks() -> tuple[Network, ...]:
    """A PINN with derivatives in both precisions, every storage type with orderings, every op of the table, in parts
    that compilers with sanitizers have memory for.
    """
    torch.manual_seed(0)
    layers = [torch.nn.Linear(a, b) for a, b in ((2, 64), (64, 64), (64, 64), (64, 1))]
    pinn = torch.nn.Sequential(*(m for layer in layers for m in (layer, torch.nn.Tanh())))[:-1]
    program = hrt.compress(pinn, inputs=2 * torch.rand(1024, 2) - 1, tol=1e-3, progress=False).program
    derived = joined(differentiate(program, ["d0", "d1", "d1d1"]).program)
    mixed = chain(7, 70, 33, 3)

    def made(name: str, program: Program, *, derived: Program | None = None, **options: Any) -> Network:
        precision = options.get("precision", "float32")
        source = generate(program, "net", derived=derived, precision=precision, stem="net", tested=True)
        called = ("net", program) if derived is None else ("net_derivatives", derived)
        return Network(name, source, called[1], called[0], **options)

    return (
        made(NAMES[0], joined(program), derived=derived),
        made(NAMES[1], joined(program), derived=derived, precision="float64"),
        made(NAMES[2], mixed),
        *(made(NAMES[3], every, level="-O1", rows=tuple(rows)) for every, rows in map(_part_of_all, range(PARTS))),
    )


def _part_of_all(part: int) -> tuple[Program, list[torch.Tensor]]:
    return together(part, PARTS)


def outcome(target: Target, network: Network, folder: Path) -> Outcome:
    """Compile a network with the driver, run it, and compare. Raises RuntimeError where a program fails."""
    inputs = [random_rows(network, rows) for rows in BATCHES]
    (folder / "net.c").write_text(network.source.c)
    (folder / "net.h").write_text(network.source.h)
    (folder / "call.h").write_text(call_text(network))
    driver = folder / "main.c"  # zig keeps objects by their sources' paths: those of another network must not be there
    driver.write_text(DRIVER.read_text())
    (folder / "x.bin").write_bytes(
        b"".join(v.numpy().astype(byte_order(target, network)).tobytes() for x in inputs for v in x)
    )
    counted = () if target.sanitized or target.compiler == "zig" else WRAPPED
    static = ("-static",) if target.runner else ()
    flags = (*STRICT, "-O0" if target.sanitized else network.level, *target.flags)
    run(folder, *target.command, *flags, "-c", "net.c", "-o", "net.o")
    run(folder, *target.command, *flags, *counted, *static, f"-I{folder}", str(driver), "net.o", "-o", "net")
    text = run(folder, *([target.runner] if target.runner else []), "./net")
    self_test, allocations, beyond = map(int, text.split())
    code, calls = elf_facts((folder / "net.o").read_bytes())
    answers = np.frombuffer((folder / "y.bin").read_bytes(), byte_order(target, network))
    difference, limit = compare(network, inputs, answers)
    return Outcome(self_test, difference, limit, code, allocations if counted else None, beyond, calls)


def compare(network: Network, inputs: Sequence[Sequence[torch.Tensor]], answers: np.ndarray) -> tuple[float, float]:
    """The worst relative difference of an output from torch's, and what that output may differ by: as of an exported
    graph, TOLERANCE or ROUNDING times what torch itself differs from float64 by.
    """
    torch_type, at = getattr(torch, network.precision), 0
    tolerance = TOLERANCE * (2.0**-29 if network.precision == "float64" else 1)
    worst = (0.0, tolerance)
    got: list[list[np.ndarray]] = [[] for _ in network.program.outputs]
    expected: list[list[np.ndarray]] = [[] for _ in network.program.outputs]
    exact: list[list[np.ndarray]] = [[] for _ in network.program.outputs]
    for x in inputs:
        served = network.program.run(x, dtype=torch_type)
        for k, (e, t) in enumerate(zip(served, network.program.run(x), strict=True)):
            got[k].append(answers[at : at + e.numel()])
            expected[k].append(e.numpy().ravel())
            exact[k].append(t.numpy().ravel())
            at += e.numel()
    for y, e, t in zip(got, expected, exact, strict=True):
        y, e, t = (np.concatenate(v) for v in (y, e, t))
        pair = relative(y, e), max(tolerance, ROUNDING * relative(e, t))
        worst = max(worst, pair, key=lambda p: p[0] / p[1])
    return worst


def random_rows(network: Network, rows: int) -> list[torch.Tensor]:
    """Inputs as float32 numbers; those of the cases of every op, which know where ops are smooth."""
    if network.rows:
        return [x[torch.arange(rows) % len(x)].double() for x in network.rows]
    return [x.float().double() for x in random_inputs(network.program, rows, seed=rows)]


def call_text(network: Network) -> str:
    """What tests/portability.c is told."""
    program = network.program
    widths = [prod(v.shape) for v in program.inputs]
    heights = [prod(program.shape_of(name)) for name in program.outputs]

    def pointers(letter: str, sizes: Sequence[int]) -> list[str]:
        return [f"({letter}) + (stride) * {sum(sizes[:k])}" for k in range(len(sizes))]

    arguments = ", ".join([*pointers("x", widths), *pointers("y", heights)])
    return (
        f"#define REAL {'double' if network.precision == 'float64' else 'float'}\n"
        f"#define INPUTS {sum(widths)}\n#define OUTPUTS {sum(heights)}\n#define NAME(function) net_##function\n"
        f"#define CALL(x, y, stride, rows, w) {network.function}({arguments}, rows, w)\n"
    )


def byte_order(target: Target, network: Network) -> np.dtype:
    return np.dtype(network.dtype).newbyteorder(">" if "big-endian" in target.processor else "<")


def run(folder: Path, *command: str) -> str:
    """What a command prints. Raises RuntimeError where it fails or takes long."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=1800)
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {done.stderr.strip()[:1000]}")
    return done.stdout


def elf_facts(data: bytes) -> tuple[int, frozenset[str]]:
    """Bytes of code in an object file, and the functions that it expects of others."""
    wide, order = data[4] == 2, "<" if data[5] == 1 else ">"
    offset, *_, entry, count, _ = struct.unpack_from(
        order + ("QIHHHHHH" if wide else "IIHHHHHH"), data, 40 if wide else 32
    )
    form, width = (order + "IIQQQQIIQQ", 64) if wide else (order + "10I", 40)
    sections = [struct.unpack_from(form, data, offset + k * entry) for k in range(count)]
    assert entry == width
    code = sum(s[5] for s in sections if s[2] & EXECUTABLE)
    calls = set()
    for s in (s for s in sections if s[1] == SYMBOLS):
        names = sections[s[6]]
        for at in range(s[4], s[4] + s[5], s[9]):
            name, shndx = struct.unpack_from(order + ("IBBH" if wide else "I8xBBH"), data, at)[::3]
            start = names[4] + name
            text = data[start : data.index(b"\0", start)].decode()
            if shndx == UNDEFINED and text:
                calls.add(text)
    return code, frozenset(calls)


@cache
def processor_flags() -> str:
    """Of this machine, as Linux names them; empty elsewhere."""
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def row_of(target: Target) -> list[str]:
    """A line of the table."""
    if reason := target.missing():
        return [target.compiler, target.processor, reason]
    worst, code, failed = dict.fromkeys(NAMES, 0.0), "", dict[str, str]()
    for network in networks():
        with tempfile.TemporaryDirectory() as folder:
            try:
                o = outcome(target, network, Path(folder))
                code = code or f"{o.code:,}"
                worst[network.name] = max(worst[network.name], o.difference)
                if not o.passed:
                    failed[network.name] = f"FAILED: {o}"
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                failed[network.name] = "FAILED: " + " ".join(str(error).split())[-300:]
    cells = [failed.get(name, f"{difference:.1e}") for name, difference in worst.items()]
    passed = f"{len(NAMES) - len(failed)} of {len(NAMES)}"
    row = [target.compiler, target.processor, passed, *cells, code, commit()[:7]]
    print(*row, sep=" | ", flush=True)
    return row


def main(jobs: int, words: Sequence[str]) -> None:
    """Run the targets that have one of the words in their names, or all, so many at once; write the page after each.
    Rows of others stay as they are.
    """
    networks()
    lines = (PAGE.read_text() if PAGE.exists() else "").splitlines()
    written = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    rows = {f"{row[0]} {row[1]}": row for row in written if len(row) == len(HEADS)}
    with ThreadPoolExecutor(jobs) as executor:
        asked = [t for t in TARGETS if not words or any(word in str(t) for word in words)]
        for target, row in zip(asked, executor.map(row_of, asked), strict=True):
            rows[str(target)] = row
            PAGE.write_text(page([rows.get(str(t), [t.compiler, t.processor, "not run"]) for t in TARGETS]))


def version_of(compiler: str) -> str:
    """The first line that a compiler says of itself."""
    target = next(t for t in TARGETS if t.compiler == compiler)
    if target.missing():
        return "missing"
    word = ["-m", "ziglang", "version"] if compiler == "zig" else ["--version"]
    command = [sys.executable if compiler == "zig" else compiler, *word]
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]


def page(rows: Sequence[Sequence[str]]) -> str:
    table = [HEADS, ["---"] * len(HEADS), *([*row, *[""] * (len(HEADS) - len(row))] for row in rows)]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table)
    versions = "; ".join(f"{c} is {version_of(c)}" for c in ("gcc", "clang", "zig"))
    return TEXT.format(lines=lines, versions=versions)


TEXT = """# Generated C on compilers and processors

`python tests/portability.py`. {versions}.
All with `-std=c99 -Wall -Wextra -Werror`. Processors other than this machine's run under qemu-user: nothing here is a
time.

A network passed where its self-test did, its return codes for bad arguments are right, no byte behind outputs and
workspace was written, nothing was allocated (malloc, calloc and realloc wrapped and counted with gcc and clang), and 1,
9 and 45 rows give torch's answers. The figure is the worst relative difference of an output from the torch backend's.
Code is that of the first network, without its numbers.

{lines}
"""


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count() or 1, sys.argv[2:])
