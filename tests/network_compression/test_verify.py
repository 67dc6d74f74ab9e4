"""The certificate of an output says what was measured on the rows that were held back, and what to mind."""

import torch

import hrt
from hrt.calibration.moments import evaluate, layer_moments
from hrt.calibration.output_error import output_error
from hrt.calibration.samples import Split, distinct
from hrt.capture.network import program_of_network
from hrt.network_compression.verify import Held, output_certificate, served_errors
from hrt.program.dense_view import stored

from trained import inputs, made


def test_figures_are_those_of_the_held_out_rows() -> None:
    rows = torch.cat([inputs(100), inputs(100)[:20]]).double()
    program = program_of_network(made(), (rows,))
    samples = distinct((rows,))
    split = Split.make(samples, 0)
    held = Held((rows,), samples, split, evaluate(program, split.held_out))
    worse = {k: c * 1.01 if k == "last.weight" else c for k, c in program.constants.items()}
    best = stored(program.with_constants(worse))
    served = served_errors(best, split.held_out, held.reference)
    moments = layer_moments(program, split.calibration)
    found = output_certificate(program, best, held, served, moments, tol=0.1, target="cpu", seed=0, remarks=["mind"])
    expected = output_error(held.reference, evaluate(best, split.held_out))
    assert found.measured["output_error"] == expected.value
    assert found.estimated["output_error_upper_99"] == max(e.upper_99 for e in served.values())
    remarks = found.context["remarks"]
    assert "mind" in remarks and "20 of 120 rows repeat another and were left out" in remarks
    assert any("only 100 distinct" in r for r in remarks)
    assert found.runtimes == tuple(served)
    assert isinstance(found, hrt.Certificate)
