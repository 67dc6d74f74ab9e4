"""`python -m hrt.perf.studies.matrices`: what `compress_matrix` reaches on matrices of known structure, beside a global SVD."""

import argparse
import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import hrt
from hrt.perf.networks.operators import gaussian_random, log_kernel, poisson_green, reaction_diffusion_green
from hrt.perf.studies.svd import svd_nbytes, truncated


def main() -> int:
    """Print the table. Returns 1 where a bound did not hold or anything came out larger than dense."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048, help="side of the operators (default 2048)")
    args = parser.parse_args()
    n = args.size
    log = torch.as_tensor(log_kernel(n))
    g = torch.Generator().manual_seed(0)
    permuted = log[torch.randperm(n, generator=g)][:, torch.randperm(n, generator=g)]
    cases: list[tuple[str, Tensor, float]] = [
        (f"log kernel {n}", log, 1e-3),
        (f"Poisson Green {n}", torch.as_tensor(poisson_green(n)), 1e-3),
        (f"reaction-diffusion Green {n}", torch.as_tensor(reaction_diffusion_green(n)), 1e-3),
        (f"log kernel {n}", log, 1e-2),
        (f"log kernel {n}, permuted", permuted, 1e-2),
        ("Gaussian random 512", torch.as_tensor(gaussian_random(512, 0)), 1e-3),
    ]
    table = Table(title="dense float32 bytes over nbytes; relative Frobenius error")
    for name in ("matrix", "tol", "global SVD", "hrt float32", "error", "hrt auto", "error", "seconds"):
        table.add_column(name, justify="left" if name == "matrix" else "right")
    fine = True
    for title, w, tol in cases:
        dense = 4 * w.numel()
        rank = len(truncated(w, tol)[1])
        start = time.perf_counter()
        plain = hrt.compress_matrix(w, tol=tol)
        seconds = time.perf_counter() - start
        auto = hrt.compress_matrix(w, tol=tol, storage="auto")
        errors = [float((w - h.to_dense()).norm() / w.norm()) for h in (plain, auto)]
        fine &= max(errors) <= tol and max(plain.nbytes, auto.nbytes) <= dense
        cells = [dense / svd_nbytes(w.shape, rank), dense / plain.nbytes, errors[0], dense / auto.nbytes, errors[1]]
        ratios = [f"{v:.1e}" if k in (2, 4) else f"{v:.2f}x" for k, v in enumerate(cells)]
        table.add_row(title, f"{tol:g}", *ratios, f"{seconds:.1f}")
    Console(width=118).print(table)
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
