"""The grids of stored numbers: rounding to them is what the stored program then holds, exactly."""

import pytest
import torch

import hrt
from hrt.hmatrix.hmatrix import STORAGE
from hrt.model.trainable import to_trainable
from hrt.program.program import Program, program_nbytes
from hrt.training.storage_grid import Grid, load_numbers

from helpers import hierarchical, random_inputs
from trained import made


@pytest.fixture(scope="module")
def program() -> Program:
    plain = hrt.compress(made(), tol=1e-6, storage="float32", progress=False).program
    return hierarchical(plain, 3, storages=tuple(STORAGE.values()), depth=2)


def test_rounded_numbers_are_what_is_stored(program) -> None:
    net = to_trainable(program, dtype=torch.float64)
    grid = Grid(net, program)
    assert bool(grid.coarse.any()) and bool(grid.narrow.any())
    g = torch.Generator().manual_seed(0)
    moved = grid.numbers * (1 + 0.05 * torch.randn(len(grid.numbers), generator=g, dtype=torch.float64))
    stored = grid.program(moved)
    load_numbers(net, grid.rounded(moved))
    inputs = random_inputs(program, 20)
    for found, expected in zip(stored.run(inputs), (net(*inputs),), strict=True):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert program_nbytes(stored) == program_nbytes(program)
    for name, h in program.constants.items():
        if hasattr(h, "leaves"):
            assert [e.dtype for e in h.leaves] == [e.dtype for e in stored.constants[name].leaves]


def test_rescaling_changes_no_product_and_rounding_is_stable(program) -> None:
    net = to_trainable(program, dtype=torch.float64)
    inputs = random_inputs(program, 20)
    before, grid = net(*inputs), Grid(net, program)
    load_numbers(net, grid.numbers)
    assert torch.allclose(net(*inputs), before, rtol=1e-10, atol=1e-12)
    once = grid.rounded(grid.numbers)
    assert torch.equal(grid.rounded(once), once)
    eps = torch.where(grid.narrow, torch.finfo(torch.bfloat16).eps, torch.finfo(torch.float32).eps)
    spacing = torch.where(grid.coarse, grid.step, eps * grid.numbers.abs())
    error = (once - grid.numbers).abs()
    assert (error <= 0.5 * (1 + 1e-9) * spacing + 1e-7).all()  # float16 has subnormal numbers too
