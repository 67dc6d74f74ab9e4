"""The scale of a matrix changes no choice: powers of two give the same structure, bytes and digits."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import hrt
from hrt.matrix_compression.request import FULL_FLOAT16, USABLE_RANGE
from hrt.perf.networks.operators import reaction_diffusion_green

TOL = 1e-3
LARGEST = 122  # powers of two either way: 1e-37 to 1e37
NORMAL = float(np.finfo(np.float32).tiny)
SUBNORMAL = 0.02  # share of the bytes
STORAGES = ("auto", "float32", "float16", "bfloat16", "int8")


@cache
def matrix(side=64):
    """A log kernel with entries of at most 1, in float64."""
    x = np.linspace(0, 1, side)
    k = np.log(np.abs(x[:, None] - x) + 1e-2)
    return k / np.abs(k).max()


@cache
def plain(storage):
    return hrt.compress_matrix(matrix(), tol=TOL, storage=storage)


def holds(storage, exponent):
    low, high = USABLE_RANGE.get(storage, (0, np.inf))
    return max(low, FULL_FLOAT16 * (storage == "float16")) <= 2.0**exponent <= high


def structure(h):
    return [(*leaf.place, leaf.rank, leaf.dtype) for leaf in h.leaves]


@settings(max_examples=20)
@given(st.integers(-LARGEST, LARGEST), st.sampled_from(STORAGES), st.sampled_from(("float32", "float64")))
@example(-118, "float32", "float32")
@example(-16, "float16", "float32")
@example(-15, "auto", "float64")
@pytest.mark.filterwarnings("error")
def test_a_power_of_two_changes_no_byte(exponent, storage, dtype):
    w = (matrix() * 2.0**exponent).astype(dtype)
    h = hrt.compress_matrix(w, tol=TOL, storage=storage)
    assert h.error(w) <= TOL
    types = [s for s in ("float16", "int8") if s == storage or storage == "auto"]
    if not all(holds(s, exponent) for s in types):  # the numbers, or their scales, have no room in that type
        assert h.nbytes <= plain("float32").nbytes
        return
    reference = hrt.compress_matrix(matrix().astype(dtype), tol=TOL, storage=storage)
    if "float16" in types:  # its smallest numbers have fewer digits, which the error that is measured shows
        assert h.nbytes == pytest.approx(reference.nbytes, rel=SUBNORMAL)
        return
    assert h.nbytes == reference.nbytes and structure(h) == structure(reference)
    numbers = torch.cat([torch.from_numpy(matrix()).abs().reshape(-1), reference.to_dense().double().abs().reshape(-1)])
    if float(numbers[numbers > 0].min()) * 2.0**exponent >= NORMAL:  # below it float32 itself keeps fewer digits
        assert torch.equal(h.to_dense() / 2.0**exponent, reference.to_dense())


@pytest.mark.parametrize("scale", [1e-37, 1e-22, 1e-20, 1e20, 1e37])
def test_the_choice_of_every_type_is_no_larger_than_float32_at_any_scale(scale):
    w = matrix() * scale
    sizes = {s: hrt.compress_matrix(w, tol=TOL, storage=s).nbytes for s in ("auto", "float32")}
    assert sizes["float32"] == plain("float32").nbytes and sizes["auto"] < sizes["float32"]


@pytest.mark.parametrize("scale", [1e-20, 1e37])
def test_large_matrices_are_factored_in_float32_at_any_scale(scale):
    """From 2^20 entries on; squares of such numbers are none of float32's."""
    side = 1024
    w = torch.from_numpy(matrix(side)).float()
    assert hrt.compress_matrix(w * scale, tol=TOL).nbytes == pytest.approx(
        hrt.compress_matrix(w, tol=TOL).nbytes, rel=0.02
    )


def test_a_small_operator_takes_what_it_takes_at_another_scale():
    """Its entries are below 2^-13, where float16 keeps fewer digits, and is still worth its bytes."""
    w = reaction_diffusion_green(512)
    assert 2.0**-18 < w.max() < FULL_FLOAT16 < 64 * w.max()
    small, large = (hrt.compress_matrix(w * scale, tol=TOL, storage="auto").nbytes for scale in (1, 64))
    assert small <= (1 + SUBNORMAL) * large


@settings(max_examples=10)
@given(st.integers(-40, 40))
def test_a_second_moment_of_any_scale_gives_the_same_bytes(exponent):
    c = np.diag(np.linspace(1, 0, 64) ** 2)
    h, scaled = (hrt.compress_matrix(matrix(), tol=TOL, second_moment=c * 2.0**k) for k in (0, exponent))
    assert scaled.nbytes == h.nbytes and torch.equal(scaled.to_dense(), h.to_dense())
