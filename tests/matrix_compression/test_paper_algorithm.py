"""Algorithm 1 in both forms: what each bounds, what the literal one does not, and what neither accepts."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrt
from hrt.errors import HrtError, InputError, ToleranceError
from hrt.perf.networks.operators import log_kernel

ROUNDING = 1e-6  # of float32 factors, relative


def block_errors(w, h):
    """The Frobenius error of every leaf."""
    left = w - h.to_dense()
    return [float(left[e.row : e.row + e.rows, e.col : e.col + e.cols].norm()) for e in h.leaves]


@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
def test_the_error_of_each_form_is_within_its_bound(tol, literal):
    w = torch.from_numpy(log_kernel(256))
    h = hrt.adaptive_partition(w, tol, literal=literal, min_leaf=8)
    tau, blocks = tol * float(w.norm()), len(h.leaves)
    assert max(block_errors(w, h)) <= tau * (1 + ROUNDING)
    assert h.error(w) <= tol * (math.sqrt(blocks) if literal else 1) * (1 + ROUNDING)


def test_the_literal_form_exceeds_its_tolerance_as_a_whole():
    """Counter-example to "a global error below tau after finitely many steps": it stops at several times tau."""
    w = torch.from_numpy(log_kernel(256))
    h = hrt.adaptive_partition(w, 1e-2, literal=True, min_leaf=8)
    assert all(e <= 1e-2 * float(w.norm()) * (1 + ROUNDING) for e in block_errors(w, h)), "its own rule has stopped it"
    assert h.error(w) > 3 * 1e-2


def test_the_literal_form_keeps_what_is_within_tolerance_even_where_dense_is_smaller():
    w = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0])
    (leaf,) = hrt.adaptive_partition(w, 1e-3, literal=True, min_leaf=8).leaves
    assert leaf.rank * (leaf.rows + leaf.cols) > leaf.rows * leaf.cols
    assert all(e.is_dense for e in hrt.adaptive_partition(w, 1e-3, min_leaf=8).leaves)


@pytest.mark.parametrize("tol", [math.nan, math.inf, 2, -1, 0, None, "1e-3", True])
def test_a_tolerance_that_means_nothing_is_refused(tol):
    with pytest.raises(ToleranceError, match="tol"):
        hrt.adaptive_partition(torch.ones(4, 4), tol)


@pytest.mark.parametrize(
    ("matrix", "options"),
    [
        (torch.full((4, 4), math.nan), {}),
        (np.array([[1.0, math.inf]]), {}),
        (torch.ones(4), {}),
        (torch.ones(4, 4, dtype=torch.complex64), {}),
        ("matrix", {}),
        (torch.ones(4, 4), {"min_leaf": 0}),
        (torch.ones(4, 4), {"min_leaf": 2.5}),
        (torch.ones(4, 4), {"max_rank": -1}),
        (torch.ones(4, 4), {"max_rank": None}),
    ],
)
def test_what_is_no_finite_matrix_and_no_whole_number_is_refused(matrix, options):
    with pytest.raises(InputError):
        hrt.adaptive_partition(matrix, 1e-3, **options)


@pytest.mark.parametrize("scale", [1e-60, 1e60])
def test_numbers_that_float32_cannot_hold_are_refused(scale):
    with pytest.raises(ToleranceError):
        hrt.adaptive_partition(torch.ones(4, 4, dtype=torch.float64) * scale, 1e-3)


@given(
    m=st.integers(0, 40),
    n=st.integers(0, 40),
    tol=st.sampled_from([1.0, 1e-1, 1e-4]),
    scale=st.sampled_from([1e-300, 1e-44, 1e-30, 1.0, 1e30]),
    kind=st.sampled_from([np.float32, np.float64, np.int64]),
    literal=st.booleans(),
    seed=st.integers(0, 9),
)
@settings(max_examples=60)
def test_any_small_matrix_is_within_its_bound_or_refused(m, n, tol, scale, kind, literal, seed):
    scale = 3.0 if kind is np.int64 else scale
    w = (np.random.default_rng(seed).standard_normal((m, n)) * scale).astype(kind)
    try:
        h = hrt.adaptive_partition(w, tol, min_leaf=4, literal=literal)
    except HrtError as error:
        assert isinstance(error, ToleranceError) and scale in (1e-300, 1e-44)
        return
    factor = max(1.0, math.sqrt(len(h.leaves))) if literal else 1
    assert h.shape == (m, n)
    assert h.error(torch.from_numpy(w).double()) <= tol * factor * (1 + 1e-3)


@pytest.mark.parametrize("exponent", [-100, -7, 40])
def test_the_scale_of_a_matrix_changes_no_block(exponent):
    w = torch.from_numpy(log_kernel(128)).float()
    one, other = (hrt.adaptive_partition(x, 1e-2) for x in (w, w * 2.0**exponent))
    assert [(e.row, e.col, e.rank) for e in one.leaves] == [(e.row, e.col, e.rank) for e in other.leaves]
    assert other.error(w * 2.0**exponent) <= 1e-2
