"""The cost model: what a layer's form is chosen by. Only orders and proportions are promised."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrt
from hrt.export.onnx.onnxruntime_session import forms_for
from hrt.hmatrix.batched_products import plan
from hrt.hmatrix.hmatrix import HMatrix
from hrt.perf.networks.operators import log_kernel
from hrt.runtime.onnx_costs import CLEAR, FEW_ROWS, GATHERED_US, MANY_ROWS, MOVED_US, choose_forms, layer_us

from helpers import random_hmatrix
from models import linear_model


@pytest.fixture(scope="module")
def kernel() -> HMatrix:
    return hrt.compress_matrix(torch.from_numpy(log_kernel(512)), tol=1e-3)


def test_an_index_that_is_gathered_costs_time(kernel: HMatrix) -> None:
    """Orders of a matrix whose leaves stay are gathers of its columns and rows, and nothing else."""
    m, n = kernel.shape
    mixed = replace(kernel, row_order=torch.arange(m).flip(0), col_order=torch.arange(n).flip(0))
    more = layer_us(mixed, "batched", 1) - layer_us(kernel, "batched", 1)
    written = [bool(np.any(np.diff(layer) != 1)) for layer in plan(kernel).layers]
    gathered = n + m * written.count(False)
    assert more == pytest.approx(GATHERED_US * gathered)


def test_rows_beyond_one_share_lanes(kernel: HMatrix) -> None:
    """2 to 16 rows differ in what is moved alone: products are computed on 16 lanes."""
    times = [layer_us(kernel, "batched", rows) for rows in (2, 3, 16)]
    assert times[1] - times[0] == pytest.approx((times[2] - times[0]) / 14)
    assert layer_us(kernel, "batched", 17) - times[2] > times[1] - times[0] > 4e-6 * MOVED_US * sum(kernel.shape)


@given(st.integers(0, 2**32), st.integers(1, 1200), st.integers(1, 1200), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_a_session_takes_nothing_that_is_predicted_slower_than_dense(seed: int, m: int, n: int, depth: int) -> None:
    h = random_hmatrix(seed, m, n, depth=depth)
    program = linear_model(h).program
    for rows, batches in ((1, FEW_ROWS), (17, MANY_ROWS)):
        (form,) = forms_for(program, rows).values()
        shares = [layer_us(h, form, b) / layer_us(h, "multiplied", b) for b in batches]
        assert max(shares) <= 1.0
        assert form in ("dense", "multiplied") or math.prod(shares) < CLEAR ** len(batches)


def test_one_row_that_would_be_slower_is_dense_though_eight_are_faster() -> None:
    """A kernel in two dimensions: gathering its rows takes longer than reading them all, unless several share it."""
    side = 40
    points = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2) / side
    points = points[np.random.default_rng(0).permutation(side * side)]
    kernel = np.exp(-4 * np.linalg.norm(points[:, None] - points, axis=-1))
    h = hrt.compress_matrix(torch.from_numpy(kernel), tol=1e-3)
    share = {rows: layer_us(h, "batched", rows) / layer_us(h, "multiplied", rows) for rows in (1, 8, 16)}
    assert share[16] < 1 < share[1]
    program = linear_model(h).program
    assert choose_forms(program, (1, 16, 16, 16)) == {"w": "batched"}
    assert choose_forms(program, (1, 16, 16, 16), never_slower=True) == {"w": "multiplied"}
