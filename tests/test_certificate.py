"""Figures of the certificate: right values, honest limits."""

import json
import math

import pytest
import torch

from hrt.certificate import Certificate, LayerRecord, output_error, spectral_norm_estimate


def test_relative_error_by_hand():
    reference = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    actual = reference + torch.tensor([[0.0, 0.0], [0.0, 0.5]])
    e = output_error(reference, actual)
    assert e.value == pytest.approx(0.1)
    assert e.per_output == pytest.approx((0.0, 0.125))
    assert e.upper_99 > e.value


def test_zero_references_and_nan():
    zero = torch.zeros(4, 2, dtype=torch.float64)
    assert output_error(zero, zero).value == 0
    assert output_error(zero, zero + 1e-9).value == math.inf
    assert output_error(zero + 1, zero * float("nan")).upper_99 == math.inf


def test_upper_limit_covers_as_often_as_it_says():
    """On 1,000 draws of 200 rows the true error lies above the 99 % limit in about 1 %: at most 2.5 % here (a
    binomial with p = 0.01 exceeds 25 of 1,000 with probability 1e-5)."""
    g = torch.Generator().manual_seed(0)
    true2, misses = 1e-6 * math.exp(2 * 0.5**2) / 1.0, 0
    for _ in range(1000):
        y = torch.ones(200, 1, dtype=torch.float64)
        e = 1e-3 * torch.exp(0.5 * torch.randn(200, 1, dtype=torch.float64, generator=g))
        misses += output_error(y, y + e).upper_99 ** 2 < true2
    assert misses <= 25


def test_few_rows_have_wide_limits():
    y = torch.ones(2, 1, dtype=torch.float64)
    e = output_error(y, y + torch.tensor([[1e-3], [2e-3]]))
    assert e.upper_99 > 3 * e.value


def test_spectral_estimate_never_exceeds_and_nearly_reaches():
    g = torch.Generator().manual_seed(0)
    for m, n in ((40, 30), (3, 80), (1, 1)):
        a = torch.randn(m, n, dtype=torch.float64, generator=g)
        true = float(torch.linalg.matrix_norm(a, 2))
        assert 0.95 * true <= spectral_norm_estimate(a) <= true * (1 + 1e-12)
    assert spectral_norm_estimate(torch.zeros(3, 3, dtype=torch.float64)) == 0
    assert spectral_norm_estimate(torch.zeros(0, 3, dtype=torch.float64)) == 0


def test_header_round_trip():
    record = LayerRecord("a", (2, 3), "dense float32", 24, 24, 0.0, None, 0.0, "why")
    c = Certificate(1e-3, "layers", (record,), guaranteed={"g": 1e-3}, context={"seed": 0})
    assert Certificate.from_header(json.loads(json.dumps(c.to_header()))) == c
