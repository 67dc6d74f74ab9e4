"""The three integral kernels of the roofline, at any size, as one-layer networks."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import itj0y0, y0

from hrt.hmatrix.hmatrix import HMatrix
from hrt.perf.networks.operators import STRIP, laplace_2d, log_kernel
from hrt.program.program import Node, Program, Value

POINTS_PER_WAVELENGTH = 10.0


@dataclass(frozen=True)
class Kernel:
    """build: size -> the matrix (n, n) float64 and its points (n, d), None where the natural order is geometric."""

    title: str
    build: Callable[[int], tuple[np.ndarray, np.ndarray | None]]


def helmholtz_circle(n: int, points_per_wavelength: float = POINTS_PER_WAVELENGTH) -> np.ndarray:
    """Single-layer Helmholtz operator on the unit circle, (K f)(x) = int -Y0(k |x - y|) / 4 f(y) ds(y): (n, n).

    The real part of i/4 H0(k r), H0 = J0 + i Y0 (Colton and Kress, Inverse Acoustic and Electromagnetic Scattering
    Theory, ch. 3; DLMF 10.4.3), n points h = 2 pi / n apart, k = 2 pi / (points_per_wavelength h). Off the diagonal the
    midpoint rule; on it the average over the cell along its tangent, (2 / h) int_0^{h/2} Y0(k s) ds.
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


KERNELS = {
    "log": Kernel("log kernel, 1-D", lambda n: (log_kernel(n), None)),
    "helmholtz": Kernel("Helmholtz, circle, 10 points a wavelength", lambda n: (helmholtz_circle(n), None)),
    "laplace": Kernel("Laplace, 2-D grid", laplace_2d),
}


SETTINGS = {"bf16": ("bfloat16", 1e-2), "tf32": ("float32", 1e-3)}  # storage and tolerance: bf16 alone costs 1.6e-3


def layer(h: HMatrix) -> Program:
    """y = x H^T."""
    m, n = h.shape
    return Program((Value("x", (n,)),), (Node("y", "linear", ("x", "w"), (m,), {}),), ("y",), {"w": h})
