"""The order that `compress_matrix` picks by itself is never clearly larger than the natural or the given one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_families import FAMILIES

import hrt
from hrt.matrix_compression.compress_matrix import compress_for
from hrt.matrix_compression.orderings import orders
from hrt.matrix_compression.request import MatrixRequest, Problem
from hrt.perf.networks.operators import helmholtz_line, laplace_2d

NATURAL = (None, None)
WORSE = 1.05  # of the natural order's bytes or the given coordinates'
# On both sides of every threshold of this room: Gram angles from 64 on, larger finest blocks from 256, sketched Gram
# vectors from 513, large blocks from 512 x 512, one try of storages beyond it, estimates and float32 factors from 2^20.
SMALL = (63, 64, 65, 255, 256, 257)
TRIED_ALL = (511, 512, 513, 1000, 1023)


def problem(name: str, m: int, n: int, tol: float = 1e-3, **request) -> Problem:
    return Problem.of(np.ascontiguousarray(FAMILIES[name](m, n), np.float32), MatrixRequest(tol, **request))


def within(w, order: str, **request) -> bool:
    """Whether "auto" is at most WORSE times as large as with one order."""
    automatic = hrt.compress_matrix(w, **request).nbytes
    return automatic <= WORSE * hrt.compress_matrix(w, ordering=order, **request).nbytes


LARGE = [pytest.param(n, marks=pytest.mark.slow) for n in (2048, 3072, 4096)]


@pytest.mark.parametrize("points", [6, 8, 10, 12, 20])
@pytest.mark.parametrize("n", [1024, 1280, 1536, *LARGE])
def test_helmholtz_on_a_line_is_tried_in_its_natural_order(n, points):
    """Thirty sizes and wavelengths: the natural order is always the smallest, by 2.2 to 8 times."""
    w = torch.from_numpy(helmholtz_line(n, 2 * np.pi * n / points)).float()
    assert NATURAL in orders(Problem.of(w, MatrixRequest(1e-3)))


def test_helmholtz_at_ten_points_a_wavelength_takes_no_more_at_1024_than_below():
    small, large = (
        hrt.compress_matrix(torch.from_numpy(helmholtz_line(n, 2 * np.pi * n / 10)).float()).nbytes
        for n in (1000, 1024)
    )
    assert large <= WORSE * small * (1024 / 1000) ** 2


PERMUTED = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if "permuted" in name]


@pytest.mark.parametrize("name", [*(name for name in FAMILIES if "permuted" not in name), "1/r, permuted", *PERMUTED])
def test_of_a_large_matrix_the_natural_order_is_tried_unless_another_is_smaller(name):
    case = problem(name, 1024, 1024)
    assert NATURAL in orders(case) or within(case.matrix, "natural")


@pytest.mark.slow
@pytest.mark.parametrize(("m", "n", "tol"), [(600, 2000, 1e-3), (1100, 1025, 1e-2), (2048, 2048, 1e-1)])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_of_other_shapes_and_tolerances(name, m, n, tol):
    case = problem(name, m, n, tol)
    assert NATURAL in orders(case) or within(case.matrix, "natural", tol=tol)


@pytest.mark.parametrize("n", TRIED_ALL)
def test_below_the_estimates_every_order_is_tried(n):
    for name in ("log", "Cauchy", "random"):
        assert len(orders(problem(name, n, n))) == 2


@given(
    name=st.sampled_from(list(FAMILIES)),
    m=st.sampled_from(SMALL),
    n=st.sampled_from(SMALL),
    tol=st.sampled_from([1e-1, 1e-2, 1e-4]),
    storage=st.sampled_from(["float32", "auto"]),
)
@settings(max_examples=20)
def test_auto_is_not_larger_than_the_natural_order(name, m, n, tol, storage):
    assert within(problem(name, m, n).matrix, "natural", tol=tol, storage=storage)


@pytest.mark.parametrize("n", [900, 1024, 1156])
@pytest.mark.parametrize("permuted", [False, True])
def test_auto_is_not_larger_than_with_the_given_points(n, permuted):
    matrix, points = laplace_2d(n)
    order = np.random.default_rng(0).permutation(n) if permuted else np.arange(n)
    matrix, points = torch.from_numpy(matrix[order][:, order]).float(), points[order]
    request = {"row_points": points, "column_points": points}
    for other in ("natural", "coordinates"):
        assert within(matrix, other, **request)


@pytest.mark.parametrize("target", ["bytes", "cpu", "cuda"])
def test_a_permuted_kernel_is_still_sorted(target):
    case = problem("log, permuted", 1024, 1024, target=target)
    (order,) = orders(case)
    assert order != NATURAL
    h = compress_for(case.matrix, case.request)
    assert h.nbytes < 0.1 * compress_for(case.matrix, replace(case.request, ordering="natural")).nbytes


@pytest.mark.parametrize("exponent", [-40, 7, 60])
def test_the_scale_of_a_matrix_does_not_change_its_order(exponent):
    case = problem("Helmholtz, line, real, permuted", 1024, 1024)
    other = Problem.of(case.matrix * 2.0**exponent, case.request)
    assert len(orders(case)) == len(orders(other))


def test_weights_and_the_smallest_leaf_count_in_the_estimate():
    x = torch.linspace(0, 1, 1024, dtype=torch.float64)
    moment = torch.exp(-(((x[:, None] - x) / 0.1) ** 2)) + 1e-6 * torch.eye(1024, dtype=torch.float64)
    case = problem("Helmholtz, line, real", 1024, 1024, second_moment=moment, min_leaf=128)
    assert NATURAL in orders(case)


def test_where_the_sample_is_zero_every_order_is_tried():
    w = torch.zeros(1024, 1024)
    w[5, 700] = w[900, 3] = 1
    assert len(orders(Problem.of(w, MatrixRequest(1e-3)))) == 2
