"""A partition that stays: its blocks are those given, its errors within the bound, its price that of the blocks."""

import pytest
import torch

from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.block_source import BlockSource
from hrt.matrix_compression.compress_matrix import compress_for
from hrt.matrix_compression.fixed_planner import KeptPlanner
from hrt.matrix_compression.orderings import permute
from hrt.matrix_compression.request import MatrixRequest

from helpers import random_hmatrix


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_stay_and_the_bound_holds(seed: int, weighted: bool) -> None:
    h = random_hmatrix(seed, 70, 90, max_rank=5, ordered=True)
    w = h.to_dense()
    x = torch.randn(400, 90, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    c = x.T @ x / 400 if weighted else None
    for tol in (1e-2, 1e-1):
        found = compress_for(w, MatrixRequest(tol, c, storage="auto", partition=h))
        assert found.error(w, c) <= tol
        assert found.nbytes <= HMatrix.from_dense(w).nbytes
        if not found.is_dense:
            assert found.blocks().keys() == h.blocks().keys()


def test_prediction_is_the_error_of_what_is_built() -> None:
    """Disjoint blocks, float32: the planned squared error is the measured one but for rounding."""
    h = random_hmatrix(5, 64, 64, max_rank=6, ordered=True)
    w = h.to_dense()
    source = BlockSource(permute(w, h.row_order, h.col_order))
    planner = KeptPlanner(source, h, storages=("float32",), target="bytes", budget2=1e-2 * source.norm2())
    plan = planner.solve_budget(1e-2 * source.norm2())
    found = planner.build(plan, h.row_order, h.col_order)
    measured = float((w - found.to_dense()).square().sum())
    assert measured == pytest.approx(plan.error2, rel=1e-3, abs=1e-9 * source.norm2())
    assert plan.error2 <= 1e-2 * source.norm2()
    assert found.blocks().keys() == h.blocks().keys()


def test_nothing_is_lost_at_a_fine_tolerance() -> None:
    h = random_hmatrix(7, 40, 50, max_rank=4)
    found = compress_for(h.to_dense(), MatrixRequest(1e-6, partition=h))
    assert found.error(h.to_dense()) <= 1e-6
