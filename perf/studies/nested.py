"""`python -m hrt.perf.studies.nested`: would shared or nested cluster bases make the hierarchical matrices smaller?

Our leaves each hold their own factors. A uniform hierarchical matrix shares one basis per cluster among all leaves of a
block row; nested bases (HSS, H^2) also express a cluster's basis by those of its two children. What a leaf stores then
shrinks to a small coupling matrix. This counts, with exact SVDs and generously (float32, no tables, every rank the
smallest that keeps its share of the tolerance, the best depth), the bytes that nested bases would take for the same
matrix at the same Frobenius error, beside what `hrt.compress_matrix` takes, tables and all.

    python -m hrt.perf.studies.nested --size 2048
"""

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import hrt
from hrt.perf.networks.operators import log_kernel, reaction_diffusion_green

ITEM = 4  # bytes of a float32


def basis_ranks(w: Tensor, level: int, budget2: float) -> list[int]:
    """Per cluster of a level (2^level of them) the rank of its whole off-diagonal block row within `budget2`."""
    n, parts = w.shape[0], 2**level
    cuts = np.linspace(0, n, parts + 1).astype(int).tolist()
    ranks = []
    for a, b in pairwise(cuts):
        row = torch.cat([w[a:b, :a], w[a:b, b:]], dim=1)
        values = torch.linalg.eigvalsh(row @ row.T).flip(0).clamp_min(0)
        tail = values.flip(0).cumsum(0).flip(0)
        ranks.append(int((tail > budget2).sum()))
    return ranks


def nested_bytes(w: Tensor, tol: float, depth: int) -> int:
    """Bytes of a matrix with nested row and column bases and `depth` halvings, at relative Frobenius error `tol`.

    Every truncation (two bases for each of the clusters of every level) gets an equal share of the squared tolerance.
    """
    n = w.shape[0]
    clusters = sum(2**level for level in range(1, depth + 1))
    share = tol**2 * float((w * w).sum()) / (2 * clusters)
    rows, cols = ({level: basis_ranks(m, level, share) for level in range(1, depth + 1)} for m in (w, w.T.contiguous()))
    total = 2**depth * (n // 2**depth) ** 2  # dense diagonal blocks
    for ranks in (rows, cols):
        total += sum(ranks[depth]) * (n // 2**depth)  # bases of the finest clusters
        for level in range(1, depth):  # a cluster's basis in terms of its children's
            children = ranks[level + 1]
            total += sum(r * (children[2 * k] + children[2 * k + 1]) for k, r in enumerate(ranks[level]))
    for level in range(1, depth + 1):  # couplings of siblings, both ways
        for k in range(0, 2**level, 2):
            total += rows[level][k] * cols[level][k + 1] + rows[level][k + 1] * cols[level][k]
    return ITEM * total


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", type=int, default=2048, help="side of the matrices (default 2048)")
    parser.add_argument("--tol", type=float, nargs="+", default=[1e-2, 1e-3, 1e-4])
    args = parser.parse_args(arguments)
    table = Table(title=f"float32 bytes at the same Frobenius error, {args.size} x {args.size}")
    for name in ("matrix", "tol", "hrt", "nested bases, at best", "nested / hrt"):
        table.add_column(name, justify="left" if name == "matrix" else "right")
    for title, kernel in (("log kernel", log_kernel), ("reaction-diffusion", reaction_diffusion_green)):
        w = torch.as_tensor(kernel(args.size), dtype=torch.float64)
        for tol in args.tol:
            ours = hrt.compress_matrix(w, tol=tol).nbytes
            deepest = int(np.log2(args.size)) - 3
            theirs = min(nested_bytes(w, tol, depth) for depth in range(3, deepest))
            table.add_row(title, f"{tol:g}", f"{ours:,}", f"{theirs:,}", f"{theirs / ours:.2f}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
