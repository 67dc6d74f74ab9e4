"""Every architecture as generated C: compiled, and answers as near to float64's as torch's float32 are."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hrt.calibration.samples import given_inputs
from hrt.capture.network import call_for, captured_network
from hrt.derivatives.differentiate import differentiate
from hrt.export.c.exporter import generate
from hrt.program.parallel_linears import joined
from hrt.program.program import Program

from architectures.checked import Architecture, flat, relative_error
from architectures.table import families
from compiled import build, call

ROUNDING = 4  # times torch's own error, which sums in another order
LEAST = 2e-6  # of outputs that torch happens to round exactly: some tens of units in the last place
ALL = [pytest.param(a, id=f"{f.name}-{a.name}") for f in families() for a in f.members.values()]


def programs(architecture: Architecture) -> tuple[list[Program], list[Tensor]]:
    """The network as captured, and its derivatives; some of its rows in float64."""
    try:
        net = architecture.build()
    except ModuleNotFoundError as missing:
        pytest.skip(f"{missing.name} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples, how = call_for(net, given_inputs(architecture.rows(1)))
        program = captured_network(net, samples, how).program
    names = [*architecture.derivatives]
    derived = [differentiate(program, names).program] if names else []
    rows = [torch.as_tensor(x)[:23].double() for x in samples]
    return [joined(p) for p in (program, *derived)], rows


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ALL)
def test_answers_as_c(architecture: Architecture, tmp_path: Path) -> None:
    several, rows = programs(architecture)
    for k, program in enumerate(several):
        folder = tmp_path / str(k)
        folder.mkdir()
        library = build(generate(program, "net"), folder)
        exact = flat(program.run(rows))
        torchs = flat(program.run([x.float() for x in rows], dtype=torch.float32))
        allowed = max(ROUNDING * relative_error(torchs, exact), LEAST)
        for count in (3, 23):
            got = call(library, "net", program, [x[:count] for x in rows])
            assert relative_error(flat([torch.from_numpy(y) for y in got]), exact[:count]) <= allowed
