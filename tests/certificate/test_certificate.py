"""Figures of the certificate: right values, honest limits."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from hrt.calibration.output_error import output_error
from hrt.certificate.certificate import Certificate, LayerRecord, Statement


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


RECORD = LayerRecord("a", (2, 3), "dense float32", 24, 24, 0.0, None, 0.0, "why")
STATEMENT = Statement("product", 1e-2, None, "holds", "because")


def test_header_round_trip():
    c = Certificate(1e-3, "layers", (RECORD,), guaranteed={"g": 1e-3}, context={"seed": 0})
    assert Certificate.from_header(json.loads(json.dumps(c.to_header()))) == c


def test_header_round_trip_with_statements():
    layer = replace(RECORD, spectral=1e-4, spectral_bound=2e-4, condition=None, statements=(STATEMENT, STATEMENT))
    c = Certificate(1e-3, "output", (layer,), statements=(STATEMENT,))
    assert Certificate.from_header(json.loads(json.dumps(c.to_header(), allow_nan=False))) == c


def test_headers_of_older_versions_still_load():
    """Written by hand as version 0.1 did, before there were statements."""
    layer = {
        "name": "a",
        "shape": [2, 3],
        "structure": "dense float32",
        "nbytes": 24,
        "dense_nbytes": 24,
        "frobenius": 0.0,
        "weighted": None,
        "spectral_estimate": 0.0,
        "reason": "why",
    }
    header = {
        "tol": 1e-3,
        "kind": "layers",
        "layers": [layer],
        "measured": {},
        "estimated": {},
        "guaranteed": {},
        "context": {},
    }
    found = Certificate.from_header(header)
    assert found == Certificate(1e-3, "layers", (RECORD,))
    assert found.layers[0].spectral is None and found.layers[0].statements == () == found.statements


@pytest.mark.parametrize("sigma, least", [(0.0, 0.99), (1.0, 0.985), (2.0, 0.96)])
def test_the_limit_is_rarely_exceeded_even_where_few_rows_hold_the_error(sigma, least):
    """Log-normal squared errors, whose mean is known; at sigma = 2 the largest 1 % of the rows hold 40 % of it."""
    rng = np.random.default_rng(0)
    held, draws, rows = 0, 1000, 750
    for _ in range(draws):
        error = torch.from_numpy(np.exp(0.5 * sigma * rng.standard_normal((rows, 1))))
        y = torch.ones(rows, 1, dtype=torch.float64)
        held += output_error(y, y + 1e-3 * error).upper_99 >= 1e-3 * np.exp(0.25 * sigma**2)
    assert held >= least * draws
