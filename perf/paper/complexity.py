"""How bytes, products and building grow with n, beside k n log n and n^2 (sections 3.1 and 3.2).

k is the rank within TOL of the largest block off the diagonal, in the order that compression cut the matrix in: largest
ranks of leaves would be the planner's choice. Building starts from a dense array, and so takes at least n^2.
"""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import hrt
from hrt.perf.networks.integral_kernels import helmholtz_circle
from hrt.perf.networks.operators import laplace_2d, log_kernel
from hrt.perf.paper.output import Rows, distinct, matching
from hrt.tangent_kernel.ntk_statements import PowerLaw, fit_power_law

TOL = 1e-3
WAVE_NUMBER = 32.0
SKETCH = 64  # columns of the first sketch
REPEATS = 5  # of a product; the median is kept
MEASURED = {
    "bytes": "bytes",
    "build": "seconds to build",
    "apply_1": "seconds for one row",
    "apply_64": "seconds for 64 rows",
}
KERNELS: dict[str, Callable[[int], np.ndarray]] = {
    "log, 1-D": log_kernel,
    "Helmholtz, fixed wave number": lambda n: helmholtz_circle(n, n / WAVE_NUMBER),
    "Helmholtz, 10 points a wavelength": helmholtz_circle,
    "Laplace, 2-D": lambda n: laplace_2d(n)[0],
}


@dataclass(frozen=True)
class Sizes:
    """sides: of the matrices, from small to large."""

    sides: tuple[int, ...] = (512, 1024, 2048, 4096, 8192, 16384)

    @staticmethod
    def quick() -> "Sizes":
        return Sizes((256, 512, 1024, 2048))


def complexity(sizes: Sizes) -> Rows:
    """Every kernel at every side: float32 storage at TOL. Seconds are CPU time of building, of products wall time."""
    rows: Rows = []
    for case, build in KERNELS.items():
        points = (lambda n: laplace_2d(n)[1]) if case == "Laplace, 2-D" else (lambda n: None)
        for n in sizes.sides:
            matrix, places = build(n), points(n)
            start = time.process_time()
            h = hrt.compress_matrix(matrix, tol=TOL, storage="float32", row_points=places, column_points=places)
            row: dict[str, Any] = {"case": case, "n": n, "build": time.process_time() - start, "bytes": h.nbytes}
            row["rank"] = off_diagonal_rank(matrix, h)
            del matrix
            rows.append(row | {f"apply_{batch}": _seconds(h, batch) for batch in (1, 64)})
    return rows


def off_diagonal_rank(matrix: np.ndarray, h: hrt.HMatrix) -> int:
    """The least rank that keeps the upper right quarter of the matrix, as h orders it, to TOL of its Frobenius norm:
    from random sketches (Halko, Martinsson and Tropp, 2011) as wide as leave a tenth of that.
    """
    half = len(matrix) // 2
    row, col = (
        np.arange(len(matrix)) if order is None else order.long().numpy() for order in (h.row_order, h.col_order)
    )
    block = torch.from_numpy(matrix[np.ix_(row[:half], col[half:])])
    size, count = float(block.norm().square()), SKETCH
    while True:
        count = min(count, *block.shape)
        random = torch.randn(block.shape[1], count, generator=torch.Generator().manual_seed(0), dtype=block.dtype)
        image = block.T @ torch.linalg.qr(block @ random).Q
        values = torch.linalg.eigvalsh(image.T @ image).flip(0).clamp(min=0)
        missing = max(0.0, size - float(values.sum()))
        if missing <= 0.01 * TOL**2 * size or count == min(block.shape):
            tail = values.flip(0).cumsum(0).flip(0) + missing
            return max(1, int((tail > TOL**2 * size).sum()))
        count *= 2


def _seconds(h: hrt.HMatrix, batch: int) -> float:
    x = torch.randn(batch, h.shape[1], generator=torch.Generator().manual_seed(batch))
    h.apply(x)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        h.apply(x)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def bound(row: dict[str, Any]) -> float:
    """k n log2 n."""
    return row["rank"] * row["n"] * math.log2(row["n"])


def laws(rows: Rows) -> dict[tuple[str, str], PowerLaw]:
    """figure = factor n^exponent by kernel and figure: those of MEASURED; "rank"; "over" and "over_apply", bytes and
    seconds for 64 rows over k n log n.
    """
    result = {}
    for case in distinct(rows, "case"):
        line = matching(rows, case=case)
        n = [r["n"] for r in line]
        figures = {key: [r[key] for r in line] for key in MEASURED}
        figures |= {"rank": [r["rank"] for r in line], "over": [r["bytes"] / bound(r) for r in line]}
        figures["over_apply"] = [r["apply_64"] / bound(r) for r in line]
        for key, values in figures.items():
            result[case, key] = fit_power_law(n, values)
    return result
