"""Matrices that a kernel's author would bring, by name: the list that properties of orderings are held on."""

import math
from collections.abc import Callable

import numpy as np
from scipy.special import hankel1

from hrt.perf.networks.operators import laplace_2d, log_kernel

Matrix = Callable[[int, int], np.ndarray]  # rows, columns -> (m, n)
WAVE_NUMBER = 40.0  # of the kernels whose wave number does not grow with the matrix


def distances(m: int, n: int) -> np.ndarray:
    """Between the midpoints of m and of n cells of [0, 1]."""
    return np.abs(((np.arange(m) + 0.5) / m)[:, None] - (np.arange(n) + 0.5) / n)


def of_distance(kernel: Callable[[np.ndarray], np.ndarray]) -> Matrix:
    """A kernel of the distance; zero where that is zero and the kernel is not finite."""

    def build(m: int, n: int) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = kernel(distances(m, n))
        return np.where(np.isfinite(values), values, 0.0)

    return build


def waves(kernel: Callable[[np.ndarray], np.ndarray], points_per_wavelength: float) -> Matrix:
    """A kernel of k r, with a wavelength of so many cells."""
    return lambda m, n: of_distance(lambda r: kernel(2 * np.pi * max(m, n) / points_per_wavelength * r))(m, n)


def cut(square: Callable[[int], np.ndarray]) -> Matrix:
    """The first rows and columns of a square matrix."""
    return lambda m, n: square(max(m, n))[:m, :n]


def permuted(matrix: Matrix, alike: bool = False) -> Matrix:
    """Rows and columns in random order; `alike`: in the same one where there are as many."""

    def build(m: int, n: int) -> np.ndarray:
        generator = np.random.default_rng(1)
        rows = generator.permutation(m)
        return matrix(m, n)[rows][:, rows if alike and m == n else generator.permutation(n)]

    return build


def identity_and_low_rank(m: int, n: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return 10 * np.eye(m, n) + generator.standard_normal((m, 8)) @ generator.standard_normal((8, n))


def banded_and_scattered(m: int, n: int) -> np.ndarray:
    """A band in the natural order; a smooth kernel in a random one, a little above or below what a tolerance leaves."""
    smooth = permuted(of_distance(lambda r: np.exp(-r)), alike=True)(m, n)
    return np.where(distances(m, n) * max(m, n) < 5, 1.0, 0.0) + 1e-4 * smooth


FAMILIES: dict[str, Matrix] = {
    "log": cut(log_kernel),
    "Helmholtz, line, real": waves(np.sin, 10),
    "Helmholtz, line, imaginary": waves(np.cos, 10),
    "Helmholtz, line, 20 points": waves(np.sin, 20),
    "Helmholtz, line, fixed": of_distance(lambda r: np.sin(WAVE_NUMBER * r)),
    "Helmholtz, space, real": waves(lambda kr: np.cos(kr) / kr, 10),
    "Helmholtz, space, imaginary": waves(lambda kr: np.sin(kr) / kr, 10),
    "Helmholtz, space, fixed": of_distance(lambda r: np.cos(WAVE_NUMBER * r) / r),
    "Helmholtz, plane": waves(lambda kr: hankel1(0, kr).imag, 10),
    "Laplace, grid": cut(lambda n: laplace_2d(n)[0]),
    "1/r": of_distance(lambda r: 1 / r),
    "Gaussian": of_distance(lambda r: np.exp(-((20 * r) ** 2))),
    "Cauchy": lambda m, n: 1 / (((np.arange(m) + 0.5) / m)[:, None] - (np.arange(n) + 0.5 + math.sqrt(2) / 4) / n),
    "identity and low rank": identity_and_low_rank,
    "band and scattered": banded_and_scattered,
    "random": lambda m, n: np.random.default_rng(0).standard_normal((m, n)),
}
FAMILIES |= {f"{name}, permuted": permuted(FAMILIES[name]) for name in tuple(FAMILIES) if name != "random"}
FAMILIES |= {f"{name}, permuted alike": permuted(FAMILIES[name], True) for name in ("log", "Helmholtz, line, real")}
