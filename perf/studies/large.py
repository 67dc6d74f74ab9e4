"""`python -m hrt.perf.studies.large`: time and memory to compress one large matrix, beside one SVD of the same matrix.

The matrix is the log kernel in float64 at a relative Frobenius error of 1e-3. Times are taken in this process, one
after the other, on the same threads. Memory is the peak of a child process that builds and compresses the matrix,
less that of a child that only builds it, over the bytes of the matrix itself.

    python -m hrt.perf.studies.large --size 4096
    python -m hrt.perf.studies.large --size 16384 --no-svd
"""

import argparse
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import hrt
from hrt.perf.networks.operators import log_kernel

STRIP = 64  # rows built or measured at a time
STORAGES = ("float32", "auto")
T = TypeVar("T")


def relative_error(w: np.ndarray, h: hrt.HMatrix) -> float:
    """Relative Frobenius error of what `h` multiplies by, a strip of columns at a time."""
    n, error2 = w.shape[1], 0.0
    for start in range(0, n, STRIP):
        columns = torch.zeros(min(STRIP, n - start), n, dtype=torch.float64)
        columns[torch.arange(len(columns)), start + torch.arange(len(columns))] = 1.0
        error2 += float(np.square(w[:, start : start + STRIP] - h.apply(columns).numpy().T).sum())
    return math.sqrt(error2) / float(np.linalg.norm(w))


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """The answer and the seconds it took."""
    start = time.perf_counter()
    answer = call()
    return answer, time.perf_counter() - start


def peak_bytes(job: str, size: int, tol: float, threads: int) -> int:
    """Peak resident bytes of a fresh process that does `job` (see `child`)."""
    command = [sys.executable, "-m", "hrt.perf.studies.large", "--child", job, "--size", str(size), "--tol", repr(tol)]
    done = subprocess.run([*command, "--threads", str(threads)], check=True, capture_output=True, text=True)
    return int(done.stdout)


def child(job: str, size: int, tol: float) -> int:
    """Build the matrix, warm up, compress in the storage `job` unless that is "build", print the peak in bytes."""
    w = log_kernel(size)
    hrt.compress_matrix(w[:256, :256], tol=tol)  # libraries and threads are no part of the matrix's cost
    if job != "build":
        hrt.compress_matrix(w, tol=tol, storage=job)
    print(own_peak_bytes())
    return 0


def own_peak_bytes() -> int:
    """Peak resident bytes of this process. On Linux from VmHWM: ru_maxrss there starts at what the parent held."""
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table. Returns 1 where an error or a size is not as promised."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=4096, help="side of the matrix (default 4096)")
    parser.add_argument("--tol", type=float, default=1e-3, help="relative Frobenius error (default 1e-3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--no-svd", action="store_true", help="leave the SVDs out: they cost O(n^3)")
    parser.add_argument("--child", choices=("build", *STORAGES), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    if args.child:
        return child(args.child, args.size, args.tol)

    console = Console(width=118)
    w = log_kernel(args.size)
    hrt.compress_matrix(w[:256, :256], tol=args.tol)  # the first call pays for threads and libraries
    found = {s: timed(lambda s=s: hrt.compress_matrix(w, tol=args.tol, storage=s)) for s in STORAGES}
    errors = {s: relative_error(w, h) for s, (h, _) in found.items()}
    dense = 4 * w.size
    wrong = [s for s, (h, _) in found.items() if not errors[s] <= args.tol or h.nbytes > dense]
    if wrong:
        console.print(f"BROKEN: error or size with storage {', '.join(wrong)}")
    svds = {} if args.no_svd else {name: svd_seconds(w, name) for name in ("float64", "float32")}
    built = peak_bytes("build", args.size, args.tol, args.threads)

    title = f"log kernel {args.size} x {args.size} at {args.tol:g}, {args.threads} threads"
    table = Table(title=title)
    for name in ("storage", "error", "bytes", "ratio", "seconds", "of float64 SVD", "peak memory / matrix"):
        table.add_column(name, justify="left" if name == "storage" else "right")
    for storage, (h, seconds) in found.items():
        extra = (peak_bytes(storage, args.size, args.tol, args.threads) - built) / w.nbytes
        share = f"{seconds / svds['float64']:.3f}" if svds else "-"
        cells = [f"{errors[storage]:.2e}", f"{h.nbytes:,}", f"{dense / h.nbytes:.2f}x", f"{seconds:.1f}", share]
        table.add_row(storage, *cells, f"{extra:.2f}")
    console.print(table)
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in svds.items()) or "not run"
    console.print(f"One full SVD of the same matrix by torch, same threads: {spent}.")
    console.print(
        f"Peak memory is beyond the float64 matrix itself ({w.nbytes / 2**20:,.0f} MiB), which the caller holds."
    )
    return 1 if wrong else 0


def svd_seconds(w: np.ndarray, dtype: str) -> float:
    """Seconds of one full SVD by torch, singular vectors included; checked to reproduce the matrix."""
    matrix = torch.from_numpy(w).to(getattr(torch, dtype))
    (u, s, vt), seconds = timed(lambda: torch.linalg.svd(matrix, full_matrices=False))
    error = float((u * s @ vt - matrix).norm() / matrix.norm())
    if not error <= 1e4 * torch.finfo(matrix.dtype).eps:
        raise ArithmeticError(f"The {dtype} SVD reproduces the matrix to {error:.2g} only.")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
