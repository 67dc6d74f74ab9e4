"""The certificate of an output says what was measured on the rows that were held back, and what to mind."""

import pytest
import torch

from hrt.calibration.moments import evaluate, layer_moments
from hrt.calibration.output_error import output_error
from hrt.capture.network import program_of_network
from hrt.network_compression.request import CompressionRequest
from hrt.network_compression.verify import Original, output_certificate
from hrt.program.program import stored

from trained import inputs, made


def test_figures_are_those_of_the_held_out_rows() -> None:
    rows = torch.cat([inputs(100), inputs(100)[:20]]).double()
    original = Original.of(program_of_network(made(), (rows,)), (rows,), seed=0)
    program, split = original.program, original.split
    worse = {k: c * 1.01 if k == "last.weight" else c for k, c in program.constants.items()}
    best = stored(program.with_constants(worse))
    served = original.served_errors(best)
    moments = layer_moments(program, split.calibration)
    found = output_certificate(original, best, served, moments, CompressionRequest(0.1), ["mind"])
    expected = output_error(evaluate(program, split.held_out), evaluate(best, split.held_out))
    assert found.measured["output_error"] == pytest.approx(expected.value, rel=1e-12) and 0 < expected.value < 0.1
    limits = [e.upper_99 for e in served.values()]
    assert found.estimated["output_error_upper_99"] == max(limits) and min(limits) >= found.measured["output_error"]
    remarks = found.context["remarks"]
    assert "mind" in remarks and "20 of 120 rows repeat another and were left out" in remarks
    assert any("only 100 distinct" in r for r in remarks)
    assert found.runtimes == tuple(served)
