"""The cost-optimal partition against brute force, and against the paper's algorithm."""

import itertools

import pytest
import torch

import hrt
from hrt.hmatrix.hmatrix import HMatrix
from hrt.matrix_compression.block_choices import LEAF_OVERHEAD, Choice
from hrt.matrix_compression.block_source import BlockSource, leading_basis, low_rank_factors
from hrt.matrix_compression.block_spectra import batch_spectra
from hrt.matrix_compression.cluster_tree import block_levels
from hrt.matrix_compression.compress_matrix import compress_for
from hrt.matrix_compression.planner import Planner
from hrt.matrix_compression.request import MatrixRequest
from hrt.perf.networks.operators import gaussian_random, log_kernel

from helpers import random_hmatrix


def planner(matrix, min_leaf, storages=("float32",), budget2=None, **weights):
    budget2 = 1e-12 * float((matrix**2).sum()) if budget2 is None else budget2
    source = BlockSource(matrix, weights.get("right"), weights.get("left"))
    return Planner(source, MatrixRequest(min_leaf=min_leaf), budget2, storages)


def brute_force(matrix, levels, lam):
    """The least bytes + lam * error^2 over every quadtree partition and every rank, by plain recursion."""

    def best(depth, i, j):
        level = levels[depth]
        block = matrix[level.rows[i] : level.rows[i + 1], level.cols[j] : level.cols[j + 1]]
        h, w = block.shape
        s2 = torch.linalg.svdvals(block) ** 2
        tails = [float(s2[r:].sum()) for r in range(len(s2) + 1)]
        own = min([4 * h * w, *(4 * r * (h + w) + lam * t for r, t in enumerate(tails))]) + LEAF_OVERHEAD["bytes"]
        if depth + 1 == len(levels):
            return own
        fine = levels[depth + 1].grid
        p, q = fine[0] // level.grid[0], fine[1] // level.grid[1]
        children = itertools.product(range(i * p, i * p + p), range(j * q, j * q + q))
        return min(own, sum(best(depth + 1, a, b) for a, b in children))

    return best(0, 0, 0)


@pytest.mark.parametrize("shape", [(32, 32), (24, 40), (64, 16), (37, 29)])
@pytest.mark.parametrize("lam", [1e1, 1e3, 1e5, 1e8])
def test_dynamic_programming_finds_the_optimum(shape, lam):
    x = torch.linspace(0, 1, shape[0], dtype=torch.float64)
    y = torch.linspace(0, 1, shape[1], dtype=torch.float64)
    matrix = 1 / (0.02 + (x[:, None] - y[None]).abs())
    plan = planner(matrix, 8).solve(lam)
    rounding = 2e-15 * lam * float((matrix**2).sum())  # the plan also prices float32 rounding, (2.5e-8)^2 twice
    expected = brute_force(matrix, block_levels(*shape, 8), lam)
    assert plan.cost + lam * plan.error2 == pytest.approx(expected, rel=1e-6, abs=rounding)


def test_svd_and_dense_are_special_cases_that_never_win():
    for matrix in (log_kernel(128), gaussian_random(128, 0), log_kernel(128)[:, :7]):
        w = torch.as_tensor(matrix)
        for tol in (1e-1, 1e-3):
            s2 = torch.linalg.svdvals(w) ** 2
            rank = int((s2.flip(0).cumsum(0).flip(0) > tol**2 * s2.sum()).sum())
            svd = 4 * rank * sum(w.shape)
            assert hrt.compress_matrix(w, tol=tol).nbytes <= min(svd + 11, 4 * w.numel())


@pytest.mark.parametrize("tol", [1e-1, 1e-2, 1e-3])
def test_optimal_beats_the_papers_algorithm(tol):
    w = torch.as_tensor(log_kernel(512))
    reference = hrt.adaptive_partition(w, tol, min_leaf=16)
    optimal = hrt.compress_matrix(w, tol=tol, min_leaf=16, ordering="natural")
    assert reference.error(w) <= tol, "Algorithm 1 keeps its global bound"
    assert optimal.error(w) <= tol
    assert optimal.nbytes <= reference.nbytes


def test_predicted_error_is_the_measured_error_without_weights():
    w = torch.as_tensor(log_kernel(256))
    p = planner(w, 16)
    for tol in (1e-1, 1e-3):
        budget2 = tol**2 * float((w**2).sum())
        plan = p.solve_budget(budget2)
        measured2 = float(((w - p.build(plan).to_dense()) ** 2).sum())
        assert plan.error2 <= budget2
        assert measured2 == pytest.approx(plan.error2, rel=1e-3)


def test_sketched_spectra_are_the_true_ones():
    w = torch.as_tensor(log_kernel(512))
    block = w[:256, 256:]
    s2, norm2 = batch_spectra(block[None], torch.zeros(1), torch.full((1,), torch.inf), 0)
    true = torch.linalg.svdvals(block) ** 2
    assert float(norm2) == pytest.approx(float(true.sum()))
    found = s2[0]
    assert float((found - true[: len(found)]).abs().max()) <= 1e-9 * float(true[0])


def test_weighted_factors_are_optimal_in_the_weighted_norm():
    """||K^T (A - U V^T) L||_F equals the tail of the singular values of K^T A L (Eckart-Young), for any weights."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(30, 40, dtype=torch.float64, generator=g)
    x = torch.randn(400, 40, dtype=torch.float64, generator=g) * torch.logspace(0, -3, 40, dtype=torch.float64)
    z = torch.randn(300, 30, dtype=torch.float64, generator=g) * torch.logspace(0, -2, 30, dtype=torch.float64)
    c, k = x.T @ x / 400, z.T @ z / 300
    source = BlockSource(a, right=c, left=k)
    left, right = torch.linalg.cholesky(k), torch.linalg.cholesky(c)
    tail2 = torch.linalg.svdvals(left.T @ a @ right)[6:].square().sum()
    u, vt = low_rank_factors(source, (0, 30), (0, 40), 6)
    assert float((left.T @ (a - u @ vt) @ right).square().sum()) == pytest.approx(float(tail2), rel=1e-5)


@pytest.mark.parametrize("shape", [(120, 90), (90, 120), (30, 40)])
def test_a_leading_basis_captures_what_the_singular_vectors_do(shape):
    """Sketched or not: no more than 1 % of the error of the best approximation is added (Halko et al., 2011)."""
    torch.manual_seed(0)
    rank = 6
    block = torch.randn(*shape, dtype=torch.float64) @ torch.diag(0.7 ** torch.arange(shape[1], dtype=torch.float64))
    basis = leading_basis(block, rank, seed=1)
    assert torch.allclose(basis.mT @ basis, torch.eye(rank, dtype=torch.float64), atol=1e-12)
    missed = float((block - basis @ (basis.mT @ block)).norm())
    assert missed <= 1.01 * float(torch.linalg.svdvals(block)[rank:].norm())


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("weighted", [False, True])
def test_kept_blocks_stay_and_the_bound_holds(seed: int, weighted: bool) -> None:
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


@pytest.mark.parametrize("up", [False, True])
def test_a_dense_block_crosses_to_the_nearest_low_rank_of_every_type_and_back(up):
    g = torch.Generator().manual_seed(5)
    storages = ("float32", "float16", "int8")
    options = planner(torch.randn(24, 10, generator=g, dtype=torch.float64), None, storages).options[0]
    dense = Choice((0, 0, 0), (0, 24), (0, 10), "float16")
    nbytes = options.price(dense)[0]
    crossed = options.crossings(dense, up)
    ranks = [4, 8, 10] if up else [3, 7, 10]  # 136, 68 and 36 bytes each, of 480; rank 10 is all there is
    assert [c.counts for c in crossed] == [tuple(r * (k == s) for k in range(3)) for s, r in enumerate(ranks)]
    assert all(c.dense is None for c in crossed)
    assert [options.price(c)[0] > nbytes for c in crossed] == ([True, True, False] if up else [False] * 3)
    assert [c.dense for c in options.crossings(crossed[0], up)] == list(storages)
