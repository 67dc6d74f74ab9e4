"""Dense operators with known structure, float64: the matrices hrt is tested and timed on.

An operator includes its quadrature weight, so `matrix @ f` approximates the function `K f` on the grid.
"""

import math

import numpy as np
import torch
from torch import nn

STRIP = 64  # rows built at a time, so that a matrix takes no more memory than its own
SMOOTHNESS = 3.0  # decay of the spectrum of smooth_inputs: twice differentiable functions
SERIES_MODES = 256  # modes of smooth_inputs; independent of the grid, so that grids sample the same functions


def midpoint_grid(n: int) -> np.ndarray:
    """Cell centres (i + 1/2) / n of n equal cells of [0, 1], for integral operators: (n,)."""
    return (np.arange(n) + 0.5) / n


def interior_grid(n: int) -> np.ndarray:
    """Interior points (i + 1) / (n + 1) of [0, 1], for Dirichlet problems: (n,)."""
    return np.arange(1, n + 1) / (n + 1)


def log_kernel(n: int) -> np.ndarray:
    """Single-layer logarithmic operator (K f)(x) = int_0^1 log|x - y| f(y) dy on the midpoint grid: (n, n), symmetric.

    Off the diagonal the midpoint rule, h log|x_i - x_j|; on it int_{-h/2}^{h/2} log|s| ds = h (log(h / 2) - 1).
    """
    x, h = midpoint_grid(n), 1.0 / n
    matrix = np.empty((n, n))
    for start in range(0, n, STRIP):
        strip = matrix[start : start + STRIP]
        np.abs(x[start : start + STRIP, None] - x, out=strip)
        diagonal = np.arange(len(strip))
        strip[diagonal, start + diagonal] = 0.5 * h / math.e  # its logarithm is the cell average
        np.log(strip, out=strip)
        strip *= h
    return matrix


def laplace_2d(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Logarithmic (2-D Laplace) operator (K f)(p) = int log|p - q| f(q) dq: the matrix (n, n) and the points (n, 2).

    n square cells of edge h fill the most nearly square grid, its long side of length 1; the second coordinate runs
    fastest. Off the diagonal h^2 log|p_i - p_j|; on it the integral over the cell, h^2 (log h + c) with the average of
    log|r| over the unit square around its centre, c = pi / 4 - 3 / 2 - log(2) / 2.
    """
    down = max(d for d in range(1, math.isqrt(n) + 1) if n % d == 0)
    across = n // down
    h = 1.0 / across
    i, j = np.divmod(np.arange(n), across)
    table = (h * np.arange(down))[:, None] ** 2 + (h * np.arange(across)) ** 2  # by differences of indices
    table[0, 0] = 1.0
    table = 0.5 * np.log(table)
    table[0, 0] = math.log(h) + math.pi / 4.0 - 1.5 - 0.5 * math.log(2.0)
    table *= h**2
    matrix = np.empty((n, n))
    for start in range(0, n, STRIP):
        rows = slice(start, start + STRIP)
        matrix[rows] = table[np.abs(i[rows, None] - i), np.abs(j[rows, None] - j)]
    return matrix, (np.stack([i, j], 1) + 0.5) / across


def reaction_diffusion_green(n: int, kappa: float = 10.0) -> np.ndarray:
    """Solution operator of -u'' + kappa^2 u = f on (0, 1), u(0) = u(1) = 0, on the interior grid: (n, n), symmetric.

    h G(x_i, x_j) (Stakgold and Holst, Green's Functions and Boundary Value Problems, ch. 1), where a = min(x, y) and
    b = max(x, y); the second form never overflows, and the inverse of the matrix is exactly tridiagonal:

        G(x, y) = sinh(kappa a) sinh(kappa (1 - b)) / (kappa sinh kappa)
                = e^(-kappa (b - a)) d(a) d(1 - b) / (2 kappa d(1)),   d(s) = 1 - e^(-2 kappa s)
    """
    x = interior_grid(n)
    a, b = np.minimum(x[:, None], x), np.maximum(x[:, None], x)
    left, right = -np.expm1(-2.0 * kappa * x), -np.expm1(-2.0 * kappa * (1.0 - x))
    index = np.arange(n)
    ends = left[np.minimum(index[:, None], index)] * right[np.maximum(index[:, None], index)]
    return np.exp(-kappa * (b - a)) * ends / (2.0 * kappa * -math.expm1(-2.0 * kappa) * (n + 1))


def helmholtz_line(n: int, wave_number: float) -> np.ndarray:
    """Real part of the free-space Helmholtz operator on [0, 1], u'' + k^2 u = f: (n, n), symmetric, midpoint grid.

    h Re(e^(i k |x_i - x_j|) / (2 i k)) = h sin(k |x_i - x_j|) / (2 k) (Colton and Kress, ch. 3). Off the diagonal every
    block has rank 2, sin(k x) cos(k y) - cos(k x) sin(k y); the whole matrix has not.
    """
    x = midpoint_grid(n)
    return np.sin(wave_number * np.abs(x[:, None] - x)) / (2 * wave_number * n)


def gaussian_random(n: int, seed: int = 0) -> np.ndarray:
    """(n, n) of independent N(0, 1 / n) entries: no structure, every method must fail to compress it."""
    return np.random.default_rng(seed).standard_normal((n, n)) / math.sqrt(n)


def smooth_inputs(
    n: int, count: int, seed: int = 0, *, length: float = 0.1, points: np.ndarray | None = None
) -> np.ndarray:
    """Random smooth functions (count, n) at `points`, by default the midpoint grid: right-hand sides of operators.

    A stationary Gaussian field of zero mean and unit variance by a random Fourier series of period 2 (twice the domain,
    so that the ends are neither periodic nor pinned), its spectrum that of a Matern field; `length`: of correlation.

        f(x) = sum_k s_k (a_k cos(pi k x) + b_k sin(pi k x)),   s_k^2 ~ (1 + (pi k length)^2)^(-SMOOTHNESS)

    with independent standard normal a_k, b_k. A seed fixes the functions, whatever the grid.
    """
    x = midpoint_grid(n) if points is None else points
    k = np.arange(SERIES_MODES)
    amplitude = (1.0 + (math.pi * k * length) ** 2) ** (-0.5 * SMOOTHNESS)
    amplitude /= np.linalg.norm(amplitude)
    a, b = np.random.default_rng(seed).standard_normal((2, SERIES_MODES, count))  # [mode, function]
    phase = math.pi * np.outer(x, k)  # [point, mode]
    return ((np.cos(phase) * amplitude) @ a + (np.sin(phase) * amplitude) @ b).T.copy()


class OperatorNetwork(nn.Module):
    """One bias-free linear layer: f on the grid, (batch, n) -> u on the grid, (batch, m)."""

    def __init__(self, matrix: np.ndarray) -> None:
        super().__init__()
        rows, columns = matrix.shape
        self.linear = nn.Linear(columns, rows, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(matrix)))

    def forward(self, f: torch.Tensor) -> torch.Tensor:
        return self.linear(f)


def operator_network(matrix: np.ndarray) -> OperatorNetwork:
    """Network in float32 and evaluation mode that applies `matrix` (m, n) to functions on a grid."""
    return OperatorNetwork(matrix).eval()
