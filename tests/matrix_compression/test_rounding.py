"""Rounding that knows the data, and leaves with directions in storage types of their own."""

import pytest
import torch

import hrt
from hrt.hmatrix.hmatrix import Leaf
from hrt.matrix_compression.rounding import int8_scale, round_columns, round_rows
from hrt.matrix_compression.span_weight import compensated_weights
from hrt.perf.networks.operators import log_kernel


def moment(n: int, seed: int = 0, decay: float = 3.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=g)).Q
    return (q * torch.logspace(0, -decay, n, dtype=torch.float64)) @ q.T


def error2(e: torch.Tensor, s: torch.Tensor) -> float:
    return float(torch.trace(e @ s @ e.T))


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16", "int8"])
def test_rows_are_stored_in_their_type_and_decode_to_what_was_meant(storage):
    w = torch.randn(20, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = round_rows(w, storage, None)
    step = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 0.0}[storage] * w.abs()
    if storage == "int8":
        step = 0.5 * found.scale.double()[:, None] + 0 * w
        assert int(found.numbers.abs().max()) <= 127
    assert bool(((w - found.decoded(-2)).abs() <= step * (1 + 1e-12)).all())


def test_scaled_int8_is_exact_in_float32():
    """127 * a bfloat16 scale has at most 15 significant bits, so that decoding in float32 loses nothing."""
    w = torch.randn(50, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * 1e-3
    r = round_rows(w, "int8", None)
    leaf = Leaf(0, 50, 0, 50, dense=r.numbers, scale=r.scale)
    assert torch.equal(leaf.to_dense(torch.float32).double(), leaf.to_dense(torch.float64))
    assert leaf.nbytes == 50 * 50 + 2 * 50


@pytest.mark.parametrize("largest", [0.0, 1e-30, 1e-3, 1.0, 3e38])
def test_scales_reach_the_largest_number(largest):
    scale = float(int8_scale(torch.tensor(largest, dtype=torch.float64)))
    assert scale > 0 and 127 * scale >= largest


def test_columns_of_mixed_types_keep_their_scales():
    g = torch.Generator().manual_seed(4)
    u, s = torch.randn(30, 6, dtype=torch.float64, generator=g), moment(6)
    partner = torch.tensor([1.0, 1.0, 0.5, 0.25, 2.0, 3.0], dtype=torch.float64)
    exact, coarse = round_columns(u, ["float16"] * 2 + ["int8"] * 4, s, partner)
    assert exact.numbers.dtype == torch.float16 and exact.scale is None
    assert coarse.numbers.dtype == torch.int8 and coarse.scale.dtype == torch.bfloat16
    found = torch.cat([exact.decoded(-1), coarse.numbers.double() * (coarse.scale.double() / partner[2:])], dim=1)
    step = torch.cat([torch.full((2,), 2.0**-11), (coarse.scale.double() / partner[2:]).float()])
    assert error2(u - found, s) <= float((step.double() ** 2 * u.abs().amax(0).clamp_min(1) ** 2).sum()) * 30


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_columns_are_compensated_along_what_the_output_feels(storage):
    """Few combinations of rows are felt, so that a column's later entries can repair the earlier ones' errors."""
    g = torch.Generator().manual_seed(5)
    u, felt = torch.randn(64, 60, dtype=torch.float64, generator=g), moment(64, 1, decay=6.0)
    s, partner = torch.eye(60, dtype=torch.float64), torch.ones(60, dtype=torch.float64)

    def loss(left):
        (found,) = round_columns(u, [storage] * 60, s, partner, left)
        return error2((u - found.decoded(-1)).mT, felt)

    gain = float(compensated_weights(felt).sum() / felt.diagonal().sum())
    assert gain < 0.2 and loss(felt) < 1.5 * gain * loss(None)


def test_the_predicted_gain_of_compensation_is_the_measured_one():
    g = torch.Generator().manual_seed(6)
    w, s = torch.randn(500, 48, dtype=torch.float64, generator=g), moment(48, 2, decay=5.0)
    for weights, along in ((s.diagonal(), None), (compensated_weights(s), s)):
        found = round_rows(w, "int8", along)
        step2 = found.scale.double() ** 2 / 12
        expected = float(step2.sum() * weights.sum())
        assert 0.7 * expected < error2(w - found.decoded(-2), s) < 1.4 * expected


@pytest.mark.parametrize(
    "kwargs",
    [
        {"dense": torch.ones(2, 3, dtype=torch.int8)},
        {"dense": torch.ones(2, 3, dtype=torch.int8), "scale": torch.ones(3)},
        {"dense": torch.ones(2, 3), "scale": torch.ones(2)},
    ],
)
def test_scales_that_do_not_fit_are_refused(kwargs):
    with pytest.raises(hrt.InputError):
        Leaf(0, 2, 0, 3, **kwargs)


def test_mixed_storage_is_smaller_than_any_single_type():
    w = torch.as_tensor(log_kernel(256))
    sizes = {s: hrt.compress_matrix(w, tol=1e-3, storage=s).nbytes for s in ("auto", "float32", "float16")}
    assert sizes["auto"] < sizes["float16"] < sizes["float32"]
    h = hrt.compress_matrix(w, tol=1e-3, storage="auto")
    assert {leaf.dtype for leaf in h.leaves} >= {torch.int8, torch.float16}
    assert h.error(w) <= 1e-3
