"""Operators against quadrature, finite differences and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import dblquad, quad

from hrt.perf.networks import operators

# --- logarithmic kernels


def test_log_kernel_diagonal_is_the_cell_integral() -> None:
    n = 37
    h = 1.0 / n
    half, _ = quad(math.log, 0.0, h / 2.0, epsabs=1e-15)  # the integrand is even
    np.testing.assert_allclose(np.diag(operators.log_kernel(n)), 2.0 * half, rtol=1e-10)


def test_log_kernel_entries_are_weighted_logarithms_of_distances() -> None:
    matrix = operators.log_kernel(10)
    assert matrix.dtype == np.float64
    assert matrix[2, 7] == pytest.approx(0.1 * math.log(0.5), rel=1e-14)
    np.testing.assert_array_equal(matrix, matrix.T)


def test_log_kernel_converges_to_the_integral() -> None:
    # int_0^1 log|x - y| dy = x log x + (1 - x) log(1 - x) - 1
    errors = []
    for n in (64, 256):
        x = operators.midpoint_grid(n)
        exact = x * np.log(x) + (1.0 - x) * np.log1p(-x) - 1.0
        errors.append(np.abs(operators.log_kernel(n) @ np.ones(n) - exact).max())
    assert errors[1] < 2e-3
    assert errors[0] / errors[1] > 3.5  # first order: 4


def test_laplace_2d_diagonal_is_the_cell_integral() -> None:
    side = 5
    h = 1.0 / side
    quarter, _ = dblquad(lambda y, x: 0.5 * math.log(x * x + y * y), 0.0, h / 2, 0.0, h / 2, epsabs=1e-11)
    matrix, _ = operators.laplace_2d(side**2)
    np.testing.assert_allclose(np.diag(matrix), 4.0 * quarter, rtol=1e-7)


def test_laplace_2d_fills_the_most_nearly_square_grid() -> None:
    matrix, points = operators.laplace_2d(8)  # 2 x 4
    assert matrix.shape == (8, 8) and points.max(axis=0).tolist() == [0.375, 0.875]


def test_laplace_2d_entries_follow_its_points() -> None:
    side = 6
    matrix, points = operators.laplace_2d(side**2)
    assert matrix.shape == (side**2, side**2)
    np.testing.assert_allclose(points[:side, 0], 0.5 / side)  # the second coordinate runs fastest
    np.testing.assert_allclose(points[:side, 1], operators.midpoint_grid(side))
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    off = ~np.eye(side**2, dtype=bool)
    np.testing.assert_allclose(matrix[off], np.log(distance[off]) / side**2, rtol=1e-12)


# --- Green's functions


def finite_difference(n: int, kappa: float, exact: bool = False) -> np.ndarray:
    """-u'' + kappa^2 u on the interior grid with Dirichlet ends: of second order, or the scheme that the Green's
    function satisfies to rounding, whose homogeneous solutions are e^{+-kappa x}.
    """
    h = 1.0 / (n + 1)
    if exact:
        scale, centre = kappa / (h * math.sinh(kappa * h)), 2.0 * math.cosh(kappa * h)
    else:
        scale, centre = 1.0 / h**2, 2.0 + (kappa * h) ** 2
    return scale * (centre * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1))


@pytest.mark.parametrize("kappa", [1.0, 10.0, 200.0])
def test_green_is_the_inverse_of_its_exact_difference_scheme(kappa: float) -> None:
    n = 80
    product = finite_difference(n, kappa, exact=True) @ operators.reaction_diffusion_green(n, kappa)
    np.testing.assert_allclose(product, np.eye(n), atol=1e-10)


def test_green_approaches_the_second_order_scheme_at_second_order() -> None:
    kappa = 10.0
    errors = []
    for n in (49, 99):
        product = finite_difference(n, kappa) @ operators.reaction_diffusion_green(n, kappa)
        errors.append(np.abs(product - np.eye(n)).max())
    assert errors[1] < 2e-3
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("kappa", [3.0, 30.0])
def test_green_is_symmetric_positive_and_positive_definite(kappa: float) -> None:
    green = operators.reaction_diffusion_green(50, kappa)
    np.testing.assert_allclose(green, green.T, rtol=1e-13)
    assert green.min() > 0.0
    assert np.linalg.eigvalsh(green).min() > 0.0


def test_green_does_not_overflow() -> None:
    # sinh(1e4) overflows; far from the ends G(x, x) is 1 / (2 kappa)
    n, kappa = 101, 1e4
    with np.errstate(over="raise", invalid="raise"):
        green = operators.reaction_diffusion_green(n, kappa)
    assert green[50, 50] * (n + 1) == pytest.approx(0.5 / kappa, rel=1e-12)


# --- random matrices and inputs


def test_gaussian_random_is_seeded_and_scaled() -> None:
    matrix = operators.gaussian_random(300, seed=4)
    np.testing.assert_array_equal(matrix, operators.gaussian_random(300, seed=4))
    assert not np.array_equal(matrix, operators.gaussian_random(300, seed=5))
    assert matrix.std() * math.sqrt(300) == pytest.approx(1.0, abs=0.02)
    assert np.linalg.svd(matrix, compute_uv=False)[0] == pytest.approx(2.0, abs=0.15)  # semicircle edge


def test_smooth_inputs_have_the_documented_covariance() -> None:
    n, count, length = 16, 20_000, 0.1
    f = operators.smooth_inputs(n, count, seed=1, length=length)
    assert f.shape == (count, n)
    assert f.dtype == np.float64
    power = (1.0 + (np.pi * np.arange(operators.SERIES_MODES) * length) ** 2) ** -operators.SMOOTHNESS
    x = operators.midpoint_grid(n)
    lag = np.pi * np.arange(operators.SERIES_MODES)[:, None, None] * (x[:, None] - x)
    covariance = (power[:, None, None] * np.cos(lag)).sum(axis=0) / power.sum()
    np.testing.assert_allclose(f.T @ f / count, covariance, atol=0.04)  # 5.6 standard errors


def test_smooth_inputs_are_smooth_and_the_same_functions_on_every_grid() -> None:
    fine, coarse = operators.smooth_inputs(300, 8, seed=2), operators.smooth_inputs(100, 8, seed=2)
    np.testing.assert_allclose(fine[:, 1::3], coarse, atol=1e-12)  # 3 i + 1 of 300 is i of 100
    assert np.abs(np.diff(fine, axis=1)).max() < 0.2
    given = operators.smooth_inputs(99, 8, seed=2, points=operators.interior_grid(99))
    middle = operators.smooth_inputs(1, 8, seed=2)  # x = 1/2 on both grids
    np.testing.assert_allclose(given[:, 49], middle[:, 0], atol=1e-12)


# --- network


def test_operator_network_applies_the_matrix_in_float32() -> None:
    matrix = operators.reaction_diffusion_green(64)
    network = operators.operator_network(matrix)
    assert [name for name, _ in network.named_parameters()] == ["linear.weight"]
    assert network.linear.weight.dtype == torch.float32
    assert network.linear.bias is None
    f = operators.smooth_inputs(64, 5, seed=3)
    with torch.no_grad():
        u = network(torch.from_numpy(f).float()).double().numpy()
    exact = f @ matrix.T
    assert np.linalg.norm(u - exact) < 1e-6 * np.linalg.norm(exact)


def test_operator_network_keeps_a_rectangular_orientation() -> None:
    matrix = np.arange(6.0).reshape(2, 3)
    f = torch.tensor([[1.0, 0.0, -1.0]])
    np.testing.assert_allclose(operators.operator_network(matrix)(f).detach().numpy(), [[-2.0, -2.0]])
