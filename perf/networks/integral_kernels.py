"""The three integral kernels of the roofline, at any size: built a strip of rows at a time, never in several copies.

All are translation invariant on their grid, so that a strip is a look-up in a table of distances.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import itj0y0, y0

from hrt.hmatrix.hmatrix import HMatrix
from hrt.perf.networks.operators import midpoint_grid
from hrt.program.program import Node, Program, Value

STRIP = 64  # rows built at a time
POINTS_PER_WAVELENGTH = 10.0


@dataclass(frozen=True)
class Kernel:
    """title: for tables. build: size -> the matrix (n, n) in float64 and its points (n, d), None where the natural
    order is the geometric one.
    """

    title: str
    build: Callable[[int], tuple[np.ndarray, np.ndarray | None]]


def helmholtz_circle(n: int, points_per_wavelength: float = POINTS_PER_WAVELENGTH) -> np.ndarray:
    """Single-layer Helmholtz operator on the unit circle, (K f)(x) = int -Y0(k |x - y|) / 4 f(y) ds(y): (n, n).

    The kernel is the real part of the fundamental solution i/4 H0(k r) in the plane, H0 = J0 + i Y0 the Hankel function
    of the first kind (Colton and Kress, Inverse Acoustic and Electromagnetic Scattering Theory, ch. 3; DLMF 10.4.3).
    n points at equal angles, h = 2 pi / n apart along the arc; k = 2 pi / (points_per_wavelength h), so that the number
    of wavelengths grows with n. Off the diagonal the midpoint rule; on it the average over the cell along its tangent,
    (2 / h) int_0^{h/2} Y0(k s) ds.
    """
    h = 2 * math.pi / n
    k = 2 * math.pi / (points_per_wavelength * h)
    table = np.empty(n)  # by difference of indices
    table[1:] = y0(k * 2 * np.sin(math.pi * np.arange(1, n) / n))
    table[0] = 2 / (k * h) * itj0y0(k * h / 2)[1]
    table *= -h / 4
    out, index = np.empty((n, n)), np.arange(n)
    for start in range(0, n, STRIP):
        out[start : start + STRIP] = table[np.abs(index[start : start + STRIP, None] - index)]
    return out


def laplace_2d(n: int) -> tuple[np.ndarray, np.ndarray]:
    """`operators.laplace_2d_kernel` on `n` square cells in the most nearly square grid, its long side of length 1.

    Returns the matrix (n, n) and the points (n, 2), the second coordinate running fastest. Where n is a square both
    are those of `laplace_2d_kernel`.
    """
    down = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
    across = n // down
    h = 1.0 / across
    i, j = np.divmod(np.arange(n), across)
    table = (h * np.arange(down))[:, None] ** 2 + (h * np.arange(across)) ** 2
    table[0, 0] = 1.0
    table = 0.5 * np.log(table)
    table[0, 0] = math.log(h) + math.pi / 4.0 - 1.5 - 0.5 * math.log(2.0)  # the average over a cell
    table *= h**2
    out = np.empty((n, n))
    for start in range(0, n, STRIP):
        rows = slice(start, start + STRIP)
        out[rows] = table[np.abs(i[rows, None] - i), np.abs(j[rows, None] - j)]
    return out, h * (np.stack([i, j], 1) + 0.5)


KERNELS = {
    "log": Kernel("log kernel, 1-D", lambda n: (log_kernel(n), None)),
    "helmholtz": Kernel("Helmholtz, circle, 10 points a wavelength", lambda n: (helmholtz_circle(n), None)),
    "laplace": Kernel("Laplace, 2-D grid", laplace_2d),
}


def log_kernel(n: int) -> np.ndarray:
    """The matrix of `operators.log_kernel`, built a strip of rows at a time: its peak memory is its own size."""
    x, h = midpoint_grid(n), 1.0 / n
    out = np.empty((n, n))
    for start in range(0, n, STRIP):
        strip = out[start : start + STRIP]
        np.abs(x[start : start + STRIP, None] - x, out=strip)
        diagonal = np.arange(len(strip))
        strip[diagonal, start + diagonal] = 0.5 * h / math.e  # its logarithm is the cell average
        np.log(strip, out=strip)
        strip *= h
    return out


SETTINGS = {"bf16": ("bfloat16", 1e-2), "tf32": ("float32", 1e-3)}  # storage and tolerance: bf16 alone costs 1.6e-3


def layer(h: HMatrix) -> Program:
    """y = x H^T."""
    m, n = h.shape
    return Program((Value("x", (n,)),), (Node("y", "linear", ("x", "w"), (m,), {}),), ("y",), {"w": h})
