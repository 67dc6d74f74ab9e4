"""Figures of the certificate: right values, honest limits."""

import json
import math
from dataclasses import asdict, replace

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


def test_few_rows_have_wide_limits():
    y = torch.ones(2, 1, dtype=torch.float64)
    e = output_error(y, y + torch.tensor([[1e-3], [2e-3]]))
    assert e.upper_99 > 3 * e.value


RECORD = LayerRecord("a", (2, 3), "dense float32", 24, 24, 0.0, None, 0.0, "why")
OLDEST = "name shape structure nbytes dense_nbytes frobenius weighted spectral_estimate reason"
STATEMENT = Statement("product", 1e-2, None, "holds", "because")


def test_header_round_trip():
    layer = replace(RECORD, spectral=1e-4, spectral_bound=2e-4, condition=None, statements=(STATEMENT, STATEMENT))
    c = Certificate(1e-3, "output", (layer, RECORD), {}, {}, {"g": 1e-3}, {"seed": 0}, statements=(STATEMENT,))
    assert Certificate.from_header(json.loads(json.dumps(c.to_header(), allow_nan=False))) == c


def test_headers_of_older_versions_still_load():
    """As version 0.1 wrote them, before there were statements."""
    layer = {k: v for k, v in asdict(RECORD).items() if k in OLDEST.split()}
    header = {"tol": 1e-3, "kind": "layers", "layers": [layer], "measured": {}, "estimated": {}, "guaranteed": {}}
    found = Certificate.from_header(json.loads(json.dumps({**header, "context": {}})))
    assert found == Certificate(1e-3, "layers", (RECORD,))
    assert found.layers[0].spectral is None and found.layers[0].statements == () == found.statements


def test_brief_figures_keep_their_side_of_tol_and_limits_their_truth():
    tol, third = 1.23456789e-3, 1 / 3
    layer = replace(RECORD, frobenius=third, weighted=tol * (1 - 1e-9), spectral=third, spectral_bound=third)
    statement = replace(STATEMENT, bound=third, measured=third)
    figures = {
        "output_error": third,
        "few": [third] * 16,
        "some": [third] * 64,
        "many": [third, 1.23567e-3, math.inf, *[1.0] * 62],
    }
    limits = {"per_output_upper_99": [third] * 65}
    c = Certificate(tol, "output", (layer,), figures, limits, {"g": [third] * 65}, statements=(statement,)).brief()
    assert c.estimated["per_output_upper_99"] == [0.34] * 65
    assert (c.layers[0].frobenius, c.layers[0].spectral_bound) == (0.333333, 0.333334)
    assert c.layers[0].weighted == tol * (1 - 1e-9)  # 0.00123457 would be above tol
    assert (c.statements[0].bound, c.statements[0].measured) == (0.333334, 0.333333)
    assert c.measured["output_error"] == third and c.measured["few"] == [third] * 16
    assert c.measured["some"] == [0.3333] * 64
    assert c.measured["many"][:3] == [0.33, 1.23567e-3, math.inf] and c.guaranteed["g"] == [0.34] * 65
    assert c.tol == tol and c.brief() == c
    several = replace(c, layers=(layer,) * 17).brief()
    assert (several.layers[16].frobenius, several.layers[16].spectral_bound) == (0.3333, 0.3334)
    assert several.layers[16].weighted == tol * (1 - 1e-9) and several.brief() == several


@pytest.mark.parametrize("sigma, rows, least", [(0.0, 100, 0.99), (1.0, 100, 0.99), (2.0, 100, 0.97), (2.0, 750, 0.99)])
def test_the_limit_is_rarely_exceeded_even_where_few_rows_hold_the_error(sigma, rows, least):
    """Log-normal squared errors, whose mean is known; at sigma = 2 the largest 1 % of the rows hold 40 % of it, and a
    hundred rows may lack them all.
    """
    rng = np.random.default_rng(0)
    held, draws = 0, 1000
    for _ in range(draws):
        error = torch.from_numpy(np.exp(0.5 * sigma * rng.standard_normal((rows, 1))))
        y = torch.ones(rows, 1, dtype=torch.float64)
        held += output_error(y, y + 1e-3 * error).upper_99 >= 1e-3 * np.exp(0.25 * sigma**2)
    assert held >= least * draws, held


def test_rows_of_too_heavy_a_tail_are_named():
    """A tail without a mean, and one with all moments."""
    rng = np.random.default_rng(0)
    y = torch.ones(100, 1, dtype=torch.float64)
    heavy, light = torch.from_numpy(rng.pareto(0.4, (100, 1))), torch.from_numpy(rng.standard_normal((100, 1)))
    first, second = (output_error(y, y + 1e-3 * e) for e in (heavy.sqrt(), light))
    assert first.unsettled and first.tail > 1.5 and first.leverage > 0.3
    assert not second.unsettled and second.tail < 0.8 and second.leverage < 0.1
    assert output_error(y, y + 1e-3 * light, risk=1e-4).upper_99 > second.upper_99
