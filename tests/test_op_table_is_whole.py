"""A row of the op table is whole: an op that lacks one of these is found here, whichever room forgot it."""

import inspect

import pytest
import torch

from hrt.certificate.intervals import CURVES
from hrt.certificate.output_bound import RULES as ENCLOSURES
from hrt.derivatives.jet_rules import RULES as JETS
from hrt.export.onnx.operators import SPECIAL
from hrt.program.check_program import WORK
from hrt.program.op_table import TABLE
from hrt.program.taylor_table import RULES as TAYLOR

from op_cases import ACTIVATIONS, CASES, Case, program_of

UNBOUNDED = {"tan", "asin", "acos", "acosh", "atanh", "exp", "log", "sqrt", "reciprocal", "power"}  # infinitely steep
EXPORTED_WITH_OTHERS = {"linear", "patches", "carried"}  # by the exporter itself: by form, as Conv, as its nodes
ALL: list[Case] = [(name, arguments, attrs) for name, arguments, attrs, _ in CASES]
ALL += [(p.values[0].name, (torch.full((5, 3), 0.25).double(),), p.values[1]) for p in ACTIVATIONS]  # type: ignore


@pytest.mark.parametrize("name", TABLE)
def test_a_row_is_whole(name: str) -> None:
    op = TABLE[name]
    assert name in {case[0] for case in ALL}, "no test runs it against torch"
    assert name in EXPORTED_WITH_OTHERS or name in SPECIAL or op.onnx is not None, "no ONNX lowering"
    assert name in JETS, "no rule for derivatives"
    assert name in ENCLOSURES, "no rule of the certificate; 'no rule for op' would be all it says"
    assert op.elementwise or name in WORK, "no cost: a hostile file could ask for anything"
    if op.is_activation:
        assert name in CURVES and op.taylor is TAYLOR[name]
        assert (op.lipschitz is None) == (name in UNBOUNDED), "no Lipschitz constant, or one that cannot be"


def test_nothing_is_left_of_rows_that_are_gone() -> None:
    assert set(JETS) == set(ENCLOSURES) == set(TABLE)
    assert set(WORK) | {op.name for op in TABLE.values() if op.elementwise} == set(TABLE)
    assert set(SPECIAL) <= set(TABLE) and set(CURVES) <= set(TABLE) and set(TAYLOR) <= set(TABLE)
    assert all(len(inspect.signature(f).parameters) == 3 for f in WORK.values())


@pytest.mark.parametrize("case", ALL, ids=[f"{name}-{k}" for k, (name, *_) in enumerate(ALL)])
def test_the_batch_is_never_touched(case: Case) -> None:
    """A row alone, and rows in another order, give what they give among the others."""
    program, inputs = program_of(case)
    (whole,) = program.run(inputs)
    order = torch.tensor([3, 0, 4, 1, 2])
    for rows in (order, torch.tensor([2]), torch.tensor([], dtype=torch.int64)):
        (part,) = program.run([x[rows] for x in inputs])
        torch.testing.assert_close(part, whole[rows], rtol=1e-13, atol=1e-14, equal_nan=True)
